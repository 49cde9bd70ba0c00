"""What a fit over the whole corpus is given, and how what it found is stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.engine import fit
from mmdata.models.weights import Weights
from mmdata.sample import Member, Sample
from mmdata.steps.base import Fitted
from mmdata.steps.exchange import Edge, FittedRows, Pairs, Scorer
from mmdata.store.parts import BasePartWriter, write_table, write_vectors


class Products(Fitted):
    """Scores a pair by the sum of its features."""

    step = "products"
    modalities = ("image", "text")

    def edges(self) -> list[Edge]:
        return [Edge("image", "caption")]

    def weights(self) -> Weights:
        return Weights("none")

    def load(self, device: str) -> Scorer:
        raise NotImplementedError

    def prepare(self, recipe: Any, sample: Sample, edges: Sequence[Edge]) -> Any:
        raise NotImplementedError

    def fit(self, pairs: Pairs, seed: int, folder: Path) -> FittedRows:  # noqa: ARG002
        (folder / "heads").write_text("kept")
        score_N = pairs.left_NF.sum(axis=1) + pairs.right_NE.sum(axis=1)
        score_N[0] = np.nan
        null_NR = np.stack([score_N, np.full(len(score_N), np.nan)], axis=1)
        return FittedRows("image_caption", pairs.ids, score_N, null_NR, score_N * 0, null_NR)


def text(words: str, lang: str = "en") -> Member:
    return Member("caption", "text", "text/plain", "txt", words.encode(), lang, {"text": words})


def image(content: bytes) -> Member:
    return Member("image", "image", "image/png", "png", content, None, {"width": 1, "height": 1})


def sample(key: str, *members: Member, parent: str | None = None) -> Sample:
    return Sample(key, "s", key, {m.name: m for m in members}, parent, parent and "flip")


@pytest.fixture
def parts(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    """Originals a to d, e without a caption; a child of a with a new image, one of d that lost its caption."""
    base = []
    for name, samples in {
        "one": [
            sample("a", image(b"1"), text("A  cat")),
            sample("b", image(b"2"), text("a CAT", "fr")),
            sample("c", image(b"2"), text("a dog")),
            sample("d", image(b"4"), text("a cow")),
            sample("e", image(b"5")),
        ],
        "two": [
            sample("aa", image(b"6"), text("A  cat"), parent="a"),
            sample("da", image(b"7"), parent="d"),
        ],
    }.items():
        with BasePartWriter(tmp_path / f"{name}.parquet") as writer:
            for one in samples:
                writer.add(one)
        base.append(tmp_path / f"{name}.parquet")
    scores = [tmp_path / "s1.parquet", tmp_path / "s2.parquet"]
    write_vectors(
        scores[0],
        {
            "image": [(key, np.array([n, n], np.float32)) for n, key in enumerate("abcde")],
            "caption": [(key, np.array([n], np.float32)) for n, key in enumerate("abcd")],
        },
    )
    write_vectors(scores[1], {"image": [("aa", np.array([9, 9], np.float32))]})
    write_table(scores[0], pa.table({}))
    write_table(scores[1], pa.table({}))
    return base, scores


def test_pairs_are_originals_by_id_then_children_with_what_they_have_of_their_parents(parts, tmp_path):
    pairs = fit.gather(Edge("image", "caption"), *parts, tmp_path)
    assert pairs.ids == ["a", "b", "c", "d", "aa"]
    np.testing.assert_array_equal(pairs.left_NF[:, 0], [0, 1, 2, 3, 9])
    np.testing.assert_array_equal(pairs.right_NE[:, 0], [0, 1, 2, 3, 0])
    np.testing.assert_array_equal(pairs.parent_N, [-1, -1, -1, -1, 0])
    np.testing.assert_array_equal(pairs.left_id_N, [0, 1, 1, 2, 3])
    np.testing.assert_array_equal(pairs.right_id_N, [0, 0, 1, 2, 0])
    np.testing.assert_array_equal(pairs.lang_N, [0, 1, 0, 0, 0])


def test_the_part_holds_what_was_found(parts, tmp_path):
    out = tmp_path / "out.parquet"
    assert fit.fit_corpus(Products(), 3, *parts, tmp_path / "kept", out).samples == 4
    assert (tmp_path / "kept" / "heads").read_text() == "kept"
    assert fit.is_kept(tmp_path / "kept", out)
    assert not fit.is_kept(tmp_path / "kept", tmp_path / "other.parquet")
    assert not fit.is_kept(tmp_path, out)
    assert [path.name for path in tmp_path.glob("*.partial-*")] == []
    rows = pq.read_table(out).to_pylist()
    assert [(row["sample_id"], row["score"]) for row in rows] == [("b", 3.0), ("c", 6.0), ("d", 9.0), ("aa", 18.0)]
    assert rows[1]["null"] == [6.0]
    assert rows[1]["null_strength"] == [6.0]
    assert {(row["aligner"], row["edge"], row["reason"]) for row in rows} == {("products", "image_caption", None)}
