"""Whoever is not kept can read why, in one sentence of one query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmdata.store import sql
from mmdata.store.catalog import open_catalog
from mmdata.store.explained import EXPLAINED


@pytest.mark.parametrize(
    ("fate", "expression", "sentence"),
    [
        (
            ("dropped", "rules", "says_it", -1.003, 0.5, "(whisper.speech_transcript.score >= 0.5)"),
            "(whisper.speech_transcript.score >= 0.5)",
            "says_it: whisper.speech_transcript.score was -1.003, must be >= 0.5",
        ),
        (
            ("dropped", "rules", "wide", 4.0, 8.0, "(8 <= image.width)"),
            "(8 <= image.width)",
            "wide: image.width was 4, must be >= 8",
        ),
        (
            ("dropped", "rules", "least", 4.0, 8.0, "(least(image.width, image.height) > 8)"),
            "(least(image.width, image.height) > 8)",
            "least: least(image.width, image.height) was 4, must be > 8",
        ),
        (
            ("dropped", "rules", "best", 0.25, 0.31, "(clip.image_caption.score >= 0.31): top 0.3 of 1200"),
            "(clip.image_caption.score >= 0.31)",
            "best: clip.image_caption.score was 0.25, must be >= 0.31: top 0.3 of 1200",
        ),
        (
            ("dropped", "rules", "there", None, None, "(image IS NOT NULL)"),
            "(image IS NOT NULL)",
            "there: (image IS NOT NULL) is not true",
        ),
        (
            ("dropped", "quota", "caption.lang", 12.0, 10.0, "caption.lang = en: 40 samples"),
            None,
            "quota: place 12 of its kind, 10 stay (caption.lang = en: 40 samples)",
        ),
        (
            ("dropped", "mix", "source", 1.0, 0.0, "source = web"),
            None,
            "mix: place 1 of its kind, 0 stay (source = web)",
        ),
        (
            ("dropped", "terms", "terms", 0.75, 0.5, "cat: 40 samples"),
            None,
            "terms: its draw was 0.75, must be < 0.5 (cat: 40 samples)",
        ),
        (("dropped", "own", "size", 12.0, 10.0, None), None, "own by size: 12, at most 10"),
        (("duplicate", "duplicates", "pdq", 4.0, 31.0, "ab"), None, "a duplicate of ab by pdq: 4 apart, at most 31"),
        (("duplicate", "duplicates", "image", None, None, "ab"), None, "a duplicate of ab by image"),
        (("failed", "ingest", "bad_image", None, None, "no pixels"), None, "ingest: bad_image: no pixels"),
        (("failed", "ingest", "bad_image", None, None, None), None, "ingest: bad_image"),
        (
            ("dropped", "flip", "max_match_loss", 0.25, 0.125, None),
            None,
            "flip: its match is 0.25 below its parent's, at most 0.125",
        ),
    ],
)
def test_a_fate_as_a_sentence(fate: tuple[Any, ...], expression: str | None, sentence: str) -> None:
    assert explained([("x", None, *fate)]) == [("x", expression, sentence)]


def test_a_child_says_why_its_parent_is_out() -> None:
    rows = [
        ("p", None, "dropped", "rules", "wide", 4.0, 8.0, "(image.width >= 8)"),
        ("c", "p", "dropped", "augment", "parent_not_kept", None, None, "dropped"),
        ("k", None, "kept", None, None, None, None, None),
    ]
    assert explained(rows)[0] == (
        "c", None, "its parent was not kept (dropped): wide: image.width was 4, must be >= 8",
    )  # fmt: skip
    assert [row[0] for row in explained(rows)] == ["c", "p"]


def test_a_duplicate_names_the_one_that_stood_for_it_and_says_where_that_is_out() -> None:
    rows = [
        ("a", None, "kept", None, None, None, None, None),
        ("b", None, "duplicate", "duplicates", "image", None, None, "a"),
        ("c", None, "dropped", "rules", "wide", 4.0, 8.0, "(image.width >= 8)"),
        ("d", None, "duplicate", "duplicates", "image", None, None, "c"),
        ("e", None, "duplicate", "duplicates", "image", None, None, "f"),
        ("f", None, "kept", None, None, None, None, None),
    ]
    keys = {"a": ("s", "apple"), "c": ("s", "cherry"), "f": ("other", "fig")}
    assert [sentence for *_, sentence in explained(rows, keys)] == [
        "a duplicate of apple by image",
        "wide: image.width was 4, must be >= 8",
        "a duplicate of cherry by image, which is out: wide: image.width was 4, must be >= 8",
        "a duplicate of fig of other by image",
    ]


def test_everyone_who_is_not_kept_is_explained(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out")
    catalog = open_catalog(tmp_path / "out")
    missing = "SELECT count(*) FROM fates WHERE fate <> 'kept' AND sample_id NOT IN ({})"
    told = "SELECT sample_id FROM explained WHERE sentence IS NOT NULL"
    assert catalog.execute(missing.format(told)).fetchone() == (0,)
    assert catalog.execute("SELECT sentence FROM explained WHERE key = 's3' AND fate = 'dropped'").fetchall()[0] == (
        "wide: image.width was 4, must be >= 8",
    )


def explained(rows: list[tuple[Any, ...]], keys: dict[str, tuple[str, str]] | None = None) -> list[tuple[Any, ...]]:
    connection = sql.connect()
    connection.execute("CREATE TABLE base (sample_id VARCHAR, source VARCHAR, key VARCHAR, parent_id VARCHAR)")
    connection.execute(
        "CREATE TABLE fates (sample_id VARCHAR, fate VARCHAR, step VARCHAR, rule VARCHAR, value DOUBLE, "
        "threshold DOUBLE, detail VARCHAR)"
    )
    for sample, parent, *fate in rows:
        source, key = (keys or {}).get(sample, ("s", sample))
        connection.execute("INSERT INTO base VALUES (?, ?, ?, ?)", [sample, source, key, parent])
        connection.execute("INSERT INTO fates VALUES (?, ?, ?, ?, ?, ?, ?)", [sample, *fate])
    return connection.execute(f"SELECT sample_id, expression, sentence FROM ({EXPLAINED}) ORDER BY 1").fetchall()
