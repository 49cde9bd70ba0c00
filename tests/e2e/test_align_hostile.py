"""Scoring what strangers bring: every sample is scored or says why not, and nobody else's score changes."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import pytest

RATE_HZ = 16_000
SAMPLES = 16
LONG = " ".join(f"word{n}" for n in range(10_000))

pytestmark = pytest.mark.slow


def silence(path: Path, seconds: float) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes(bytes(2 * round(seconds * RATE_HZ)))


@pytest.fixture
def spoken_stamps(cli: Any, stamps_dir: Path, lite_dir: Path, whisper_tiny_dir: Path) -> Any:
    """Stamps whose English description is spoken, as `s00` to `s15`, and aligners of three kinds."""
    spoken = (path for path in sorted(stamps_dir.rglob("*_desc.ogg")) if path.with_name(stem(path) + ".png").is_file())
    for number, path in zip(range(SAMPLES), spoken, strict=False):
        caption = path.with_name(stem(path) + ".txt").read_text(encoding="utf-8").splitlines()[0]
        target = cli.folder / "media" / f"s{number:02d}"
        target.with_suffix(".png").write_bytes(path.with_name(stem(path) + ".png").read_bytes())
        target.with_suffix(".txt").write_text(caption, encoding="utf-8")
        target.with_suffix(".ogg").write_bytes(path.read_bytes())
    models = lite_dir.parent
    checkpoint = str(models / "efficientnet-lite0" / "efficientnet-lite0.pth")
    viewer = {"kind": "timm", "model": "tf_efficientnet_lite0", "checkpoint": checkpoint, "resize_mode": "longest"}
    reader = {"kind": "sentence", "model": str(models / "minilm")}
    members = {
        "image": "{stem}.png",
        "caption": {"path": "{stem}.txt", "lang": "en"},
        "speech": {"path": ["{stem}.ogg", "{stem}.wav"], "lang": "en", "required": False},
    }
    cli.spec(
        sources=[{"files": {"root": "media", "members": members}}],
        align=[
            {"clip": {"model": str(lite_dir)}},
            {"crossfit": {"pair": ["image", "caption"], "left": viewer, "right": reader}},
            {"regions": {"model": str(lite_dir), "scales": [1, 2]}},
            {"whisper": {"model": str(whisper_tiny_dir), "pairs": {"speech": "caption"}}},
        ],
    )
    return cli


def stem(path: Path) -> str:
    return path.stem.removesuffix("_desc")


def scores(cli: Any, output: str) -> dict[tuple[str, str], dict[str, Any]]:
    rows = cli.query("SELECT key, aligner, score, measures FROM scores JOIN samples USING (sample_id)", output)
    return {(row["key"], row["aligner"]): row for row in rows}


def test_what_is_broken_silent_or_endless_is_scored_or_says_why_and_others_are_as_they_were(spoken_stamps):
    cli, media = spoken_stamps, spoken_stamps.folder / "media"
    cli.build(output="clean")
    clean = scores(cli, "clean")
    assert all(clean[f"s{n:02d}", name]["score"] is not None for n in range(SAMPLES) for name in ("clip", "whisper"))

    picture = (media / "s03.png").read_bytes()
    for name, image, caption in (
        ("t_broken", picture[: len(picture) // 2], "A broken one."),
        ("t_endless", picture, LONG),
        ("t_silent", picture, "Something that nobody says."),
    ):
        (media / f"{name}.png").write_bytes(image)
        (media / f"{name}.txt").write_text(caption)
    silence(media / "t_silent.wav", 2.0)
    silence(media / "t_endless.wav", 2.0)
    cli.build(output="out")
    fates = {row["key"]: row for row in cli.query("SELECT key, f.* FROM fates f JOIN samples USING (sample_id)")}
    assert (fates["t_broken"]["fate"], fates["t_broken"]["step"]) == ("failed", "ingest")
    assert {row["fate"] for key, row in fates.items() if key != "t_broken"} == {"kept"}

    found = scores(cli, "out")
    for aligner in ("clip", "crossfit", "regions"):
        assert found["t_silent", aligner]["score"] is not None, aligner
    assert found["t_endless", "clip"]["score"] is not None
    assert found["t_endless", "crossfit"]["score"] is not None
    # Whisper's decoder has room for 448 tokens; what is longer is not scored, which is no failure.
    endless, silent = (found[key, "whisper"] for key in ("t_endless", "t_silent"))
    assert endless["score"] is None
    assert "tokens" in json.loads(endless["measures"])["skipped"]
    # Silence tells of a text what silence tells of it: the score's zero.
    assert silent["score"] is not None
    assert silent["score"] < 0.5
    # Alone or beside others, a pair's score is its own, but for rounding; crossfit learns from all.
    for number in range(SAMPLES):
        for aligner in ("clip", "whisper", "regions"):
            before, after = (of[f"s{number:02d}", aligner]["score"] for of in (clean, found))
            assert after == pytest.approx(before, abs=2e-3), (number, aligner)


def test_too_few_pairs_to_learn_from_are_said_not_fatal(spoken_stamps):
    media = spoken_stamps.folder / "media"
    for path in media.glob("s*"):
        if int(path.stem[1:]) > 4:
            path.unlink()
    said = spoken_stamps.build().stdout
    assert "crossfit.image_caption: not calibrated: 0 scores" in said
    assert "5 not judged, most often: too few pairs to hold any out: 10 have to differ from the commonest" in said
    found = scores(spoken_stamps, "out")
    assert {aligner for (_, aligner), row in found.items() if row["score"] is not None} == {
        "clip",
        "regions",
        "whisper",
    }
