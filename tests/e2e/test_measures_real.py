"""Measures over real media, and a measure of another package, through the command line."""

from __future__ import annotations

import io
import os
import random
import shutil
from pathlib import Path

import pytest
from onnx_file import colours_onnx
from photos import photo
from PIL import Image, ImageFilter

EXAMPLES = Path(__file__).parents[2] / "examples"
STAMPS = {
    "files": {
        "name": "stamps",
        "root": "media",
        "members": {
            "image": "{stem}.png",
            "caption": {"path": "{stem}.txt", "line": 1, "lang": "en"},
            "sound": {"path": "{stem}.ogg", "required": False},
        },
    }
}
BLURRED, GREY, NAMED = 6, 5, 4


def _stamps(stamps_dir: Path, media: Path) -> None:
    """Forty stamps, fifteen with sounds; some blurred, some without colour, some called like a file."""
    media.mkdir(exist_ok=True)
    stems = [path.with_suffix("") for path in sorted(stamps_dir.rglob("*.png")) if path.with_suffix(".txt").exists()]
    heard = [stem for stem in stems if stem.with_suffix(".ogg").exists()]
    rest = [stem for stem in stems if stem not in heard]
    draw = random.Random(3)
    chosen = draw.sample(heard, 15) + draw.sample(rest, 25)
    for number, stem in enumerate(chosen):
        name = f"{number:02}"
        for suffix in (".png", ".txt", ".ogg"):
            if stem.with_suffix(suffix).exists():
                shutil.copy(stem.with_suffix(suffix), media / f"{name}{suffix}")
    images = sorted(media.glob("*.png"))
    for path in images[:BLURRED]:
        _changed(path, lambda image: image.filter(ImageFilter.GaussianBlur(5)))
    for path in images[BLURRED : BLURRED + GREY]:
        _changed(path, lambda image: image.convert("LA"))
    for number, path in enumerate(images[-NAMED:]):
        path.with_suffix(".txt").write_text(f"DSC0{number}123.JPG\n")


def _changed(path: Path, change) -> None:
    image = change(Image.open(path).convert("RGBA"))
    image.save(path)


@pytest.mark.slow
def test_rules_over_measures_of_real_media(cli, stamps_dir: Path) -> None:
    _stamps(stamps_dir, cli.folder / "media")
    (cli.folder / "colours.onnx").write_bytes(colours_onnx())
    measure = [
        "picture",
        "wording",
        "personal",
        {"acoustics": {"of": "sound"}},
        {"classifier": {"model": "colours.onnx", "labels": ["red", "green", "blue"], "side_px": 32}},
    ]
    keep = {
        "says_something": "wording.caption.junk IS NULL",
        "sharp": "picture.image.sharpness >= 0.45",
        "in_colour": "picture.image.colourfulness > 0.5",
        "loud_enough": "acoustics.sound.loudness_lufs >= -60",
        "nobody": "personal.caption.total = 0",
    }
    cli.spec(sources=[STAMPS], measure=measure, curate=[{"rules": {"keep": keep}}])
    cli.build()
    by_rule = {
        row["rule"]: row["keys"]
        for row in cli.query(
            "SELECT rule, list(key ORDER BY key) AS keys FROM fates JOIN samples USING (sample_id) "
            "WHERE fates.fate = 'dropped' GROUP BY rule"
        )
    }
    assert by_rule["sharp"] == [f"{n:02}" for n in range(BLURRED)]
    # Some stamps have no colours of their own: coins, say.
    assert set(by_rule["in_colour"]) >= {f"{n:02}" for n in range(BLURRED, BLURRED + GREY)}
    assert by_rule["says_something"] == ["36", "37", "38", "39"]
    rows = cli.query("SELECT aligner, edge, count(*) AS n, count(reason) AS bad FROM scores GROUP BY ALL ORDER BY ALL")
    assert [(row["aligner"], row["edge"], row["n"], row["bad"]) for row in rows] == [
        ("acoustics", "sound", 15, 0),
        ("classifier", "image", 40, 0),
        ("personal", "caption", 40, 0),
        ("picture", "image", 40, 0),
        ("wording", "caption", 40, 0),
    ]
    # Of equal media, equal values: a second build in another folder writes the same bytes.
    cli.build(output="again")
    shards = [sorted((cli.folder / out / "shards").glob("*.tar")) for out in ("out", "again")]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
    assert "nothing to do" in cli.build().stdout


@pytest.mark.slow
def test_faces_and_personal_data_never_reach_a_part(cli) -> None:
    media = cli.folder / "media"
    for name in ("astronaut", "chelsea"):
        photo(name).save(media / f"{name}.png")
    (media / "astronaut.txt").write_text("Ask her: +1 650 253 0000\n")
    (media / "chelsea.txt").write_text("a cat called Chelsea\n")
    ingest = [{"image": {"blur_faces": True}}, {"text": {"mask": ["phone"]}}]
    keep = {"nobody": "image.faces = 0 OR caption.masked = 1"}
    cli.spec(ingest=ingest, measure=["nsfw"], curate=[{"rules": {"keep": keep}}])
    cli.build()
    found = cli.query("SELECT key, name, faces, masked, text FROM members JOIN samples USING (sample_id) ORDER BY ALL")
    assert [tuple(row.values()) for row in found] == [
        ("astronaut", "caption", None, 1, "Ask her: <PHONE>"),
        ("astronaut", "image", 1, None, None),
        ("chelsea", "caption", None, 0, "a cat called Chelsea"),
        ("chelsea", "image", 0, None, None),
    ]
    rows = cli.query("SELECT sum((measures ->> '$.faces')::INT) AS faces FROM scores WHERE aligner = 'nsfw'")
    assert rows == [{"faces": 0}]
    original = io.BytesIO()
    photo("astronaut").save(original, "PNG")
    for part in (cli.folder / "out").rglob("*"):
        if part.is_file():
            assert b"253 0000" not in part.read_bytes()


def test_a_plan_names_the_column_that_was_meant(cli) -> None:
    keep = {"sharp": "picture.image.sharpnes > 0.4"}
    cli.spec(measure=["picture"], curate=[{"rules": {"keep": keep}}])
    assert "did you mean 'sharpness'" in cli.run("plan", "pipeline.yaml", code=2).stderr


@pytest.mark.slow
def test_the_example_of_a_measure_of_ones_own(cli) -> None:
    about = cli.folder / "site" / "own_measure-1.0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(EXAMPLES / "own_measure.py", cli.folder / "site")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own_measure\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[mmdata.steps]\nemoji = own_measure:Emoji\n")
    paths = [str(cli.folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    cli.env["PYTHONPATH"] = os.pathsep.join(paths)
    for name, words in (("a", "a cat \U0001f408"), ("b", "wow \U0001f600\U0001f600\U0001f600")):
        Image.new("RGB", (9, 9), name and (9, 9, ord(name))).save(cli.folder / "media" / f"{name}.png")
        (cli.folder / "media" / f"{name}.txt").write_text(words)
    cli.spec(measure=[{"emoji": {"of": "caption"}}], curate=[{"rules": {"keep": {"few": "emoji.caption.count <= 2"}}}])
    cli.build()
    found = cli.query("SELECT key, rule, value FROM fates JOIN samples USING (sample_id) ORDER BY key")
    assert [tuple(row.values()) for row in found] == [("a", None, None), ("b", "few", 3)]
