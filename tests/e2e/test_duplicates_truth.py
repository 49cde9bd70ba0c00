"""Near-duplicates planted among real pictures, sentences and speech: which method finds which kind, and how surely.

`pytest -s` prints the table that stands in benchmarks/results/2026-11-25-duplicates.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import planted
import pytest

pytestmark = pytest.mark.slow
ORIGINALS, EACH = 100, 15
MEASURES: list[dict[str, Any]] = [
    {"content": {"of": ["picture", "speech"]}},
    {"pdq": {"of": "picture", "mirrored": True, "max_distance": 47}},
    # Wider than what counts as a duplicate: a link that is none costs a split nothing.
    {"minhash": {"of": "said", "min_similarity": 0.5}},
    {"soundprint": {"of": "speech", "max_distance": 0.3}},
    {"neighbours": {"of": "picture", "aligner": "clip", "max_distance": 0.25}},
]
SPLITS = {"splits": {"shares": {"train": 0.5, "val": 0.5}}}


@pytest.fixture(scope="module")
def build(tmp_path_factory, build_once, clipart_dir: Path, prompts_dir: Path, lite_dir: Path):
    folder = tmp_path_factory.mktemp("planted")
    table = planted.write_table(folder / "media", clipart_dir, prompts_dir, ORIGINALS, EACH)
    members = {
        "picture": {"path": "picture", "modality": "image", "required": False},
        "title": {"text": "title", "lang": "en", "required": False},
        "said": {"text": "said", "lang": "en", "required": False},
        "speech": {"path": "speech", "modality": "audio", "required": False},
    }
    return build_once(
        folder,
        sources=[{"table": {"file": str(table), "key": "key", "members": members}}],
        align=[{"clip": {"model": str(lite_dir), "image": ["picture"], "text": ["title"]}}],
        measure=MEASURES,
        curate=[SPLITS],
        engine={"workers": 2},
    )


@dataclass
class Found:
    """What a method linked within a limit. Of equal ones each is linked with the first: `same` has that."""

    links: set[frozenset[str]] = field(default_factory=set)
    same: dict[str, str] = field(default_factory=dict)

    def pairs(self, one: str, other: str) -> bool:
        one, other = self.same.get(one, one), self.same.get(other, other)
        return one == other or frozenset((one, other)) in self.links


@pytest.fixture(scope="module")
def keys(build) -> list[str]:
    return [row["key"] for row in build.query("SELECT key FROM samples ORDER BY key")]


@pytest.fixture(scope="module")
def found(build) -> Callable[[str, float], Found]:
    rows = build.query(
        """SELECT measure, a.key AS one, b.key AS other, distance FROM links l JOIN samples a USING (sample_id)
        JOIN samples b ON b.sample_id = l.other_id ORDER BY l.sample_id, l.other_id"""
    )

    def within(measure: str, limit: float) -> Found:
        mine = [row for row in rows if row["measure"] == measure and row["distance"] <= limit]
        equal = [row for row in mine if row["distance"] == 0]
        same: dict[str, str] = {}
        for row in equal:
            same[row["other"]] = same.get(row["one"], row["one"])
        ends = (frozenset(same.get(row[end], row[end]) for end in ("one", "other")) for row in mine)
        return Found(set(ends), same)

    return within


def original(key: str) -> str:
    return key.partition(".")[0]


def recall(found: Found, keys: list[str], letter: str, kind: str) -> float:
    copies = [key for key in keys if key[0] == letter and key.endswith(f".{kind}")]
    assert len(copies) == EACH
    return sum(found.pairs(key, original(key)) for key in copies) / EACH


def wrong(found: Found, keys: list[str], letter: str) -> tuple[int, int]:
    """Pairs of a copy with another's original, or another's copy, and all pairs of copies.

    Twins among the originals are the corpus' own; their copies are twins too.
    """
    mine = [key for key in keys if key[0] == letter]
    pairs = [(a, b) for n, a in enumerate(mine) for b in mine[n + 1 :] if "." in a + b and found.pairs(a, b)]
    foreign = [(a, b) for a, b in pairs if original(a) != original(b) and not found.pairs(original(a), original(b))]
    return len(foreign), len(pairs)


CASES = [
    ("pdq", 31, "p", 0.97, {"lossless": 1, "resized": 0.9, "jpeg": 0.95, "flipped": 0.95, "recoloured": 0.6}),
    ("pdq", 47, "p", 0.9, {"lossless": 1, "resized": 0.9, "jpeg": 0.95, "flipped": 0.95, "recoloured": 0.7}),
    ("neighbours", 0.05, "p", 0.9, {"lossless": 1, "cropped": 0.85}),
    ("minhash", 0.3, "t", 0.9, {"case": 1, "inserted": 0.8, "typo": 0.5}),
    ("minhash", 0.4, "t", 0.85, {"case": 1, "inserted": 0.9, "typo": 0.8}),
    ("soundprint", 0.2, "s", 0.97, {"lossless": 1, "mp3": 0.9, "opus": 0.8, "quiet": 0.9, "shifted": 0.9, "cut": 0.9}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]}")
def test_it_finds_what_was_planted(
    found, keys: list[str], case: tuple[str, float, str, float, dict[str, float]]
) -> None:
    measure, limit, letter, precision, kinds = case
    close = found(measure, limit)
    known = {"p": planted.PICTURES, "t": planted.TEXTS, "s": planted.SOUNDS}[letter]
    recalls = {kind: recall(close, keys, letter, kind) for kind in known}
    foreign, pairs = wrong(close, keys, letter)
    figures = ", ".join(f"{kind} {share:.2f}" for kind, share in recalls.items())
    print(f"{measure} <= {limit}: {figures}; {pairs - foreign} of {pairs} pairs right")  # noqa: T201 - the table
    assert {kind: recalls[kind] for kind, least in kinds.items() if recalls[kind] < least} == {}
    assert (pairs - foreign) / pairs >= precision


def test_another_lossless_encoding_has_the_same_content(build, keys: list[str]) -> None:
    rows = build.query(
        """SELECT key, measures ->> '$.digest' AS digest FROM scores JOIN samples USING (sample_id)
        WHERE aligner = 'content'"""
    )
    digests = {row["key"]: row["digest"] for row in rows}
    for kind, same in (("lossless", EACH), ("resized", 0), ("jpeg", 0), ("mp3", 0), ("quiet", 0)):
        copies = [key for key in digests if key.endswith(f".{kind}")]
        equal = sum(digests[key] == digests[original(key)] for key in copies)
        assert equal == same * (2 if kind == "lossless" else 1), kind


def test_no_planted_pair_that_is_linked_straddles_a_split(build, found, keys: list[str]) -> None:
    rows = {row["key"]: row for row in build.query("SELECT key, split, group_id FROM samples")}
    assert {row["split"] for row in rows.values()} == {"train", "val"}
    methods = [found(name, math.inf) for name in ("pdq", "minhash", "soundprint", "neighbours")]
    copies = [key for key in keys if "." in key]
    linked = [key for key in copies if any(close.pairs(key, original(key)) for close in methods)]
    # `lite` is fitted on each machine: a recoloured picture may be as far as `max_distance` on some.
    assert len(linked) >= 0.99 * len(copies)
    # Not by chance: halves would tear every second one of those that nothing links.
    assert [key for key in linked if rows[key]["group_id"] != rows[original(key)]["group_id"]] == []
    assert [key for key in linked if rows[key]["split"] != rows[original(key)]["split"]] == []
    sizes = build.query("SELECT group_id, count(*) AS n FROM samples GROUP BY group_id ORDER BY n DESC LIMIT 1")
    assert sizes[0]["n"] <= 12


def test_of_each_pair_that_is_close_enough_one_stays(build, found, keys: list[str]) -> None:
    near = {"pdq.picture": 31, "minhash.said": 0.3, "soundprint.speech": 0.2, "neighbours.picture": 0.05}
    step = {"of": ["content.picture.digest"], "near": near, "best": "picture.width * picture.height DESC"}
    spec = build.spec(**{**build_blocks(build), "curate": [{"duplicates": step}, SPLITS]}, file="dropping.yaml")
    build.run("build", spec, "--output", "out")
    fates = {row["key"]: row["fate"] for row in build.query("SELECT key, fate FROM samples")}
    methods = [found(name.partition(".")[0], limit) for name, limit in near.items()]
    linked = [key for key in keys if "." in key and any(close.pairs(key, original(key)) for close in methods)]
    assert [key for key in linked if fates[key] == fates[original(key)] == "kept"] == []
    shown = build.query("SELECT fate, rule, value, threshold, detail FROM samples JOIN fates USING (sample_id, fate)")
    for row in shown:
        if row["fate"] == "duplicate":
            assert row["detail"]
            assert row["rule"] == "content.picture.digest" or row["value"] <= row["threshold"]


def build_blocks(build) -> dict[str, Any]:
    import yaml

    return {k: v for k, v in yaml.safe_load((build.folder / "pipeline.yaml").read_text()).items() if k != "name"}
