from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.errors import FatalError
from mmdata.store.embeddings import write_embeddings
from mmdata.store.parts import write_vectors

SHARDS = {"train-000000.tar": ["a", "c"], "train-000001.tar": ["d"], "val-000000.tar": ["b", "e"]}


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def vector(name: str) -> np.ndarray:
    return np.random.default_rng(ord(name)).normal(size=3).astype(np.float16)


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """Five samples in three shards; `d` is a child of `a`, and `e` a child of `b` whose picture changed."""
    (tmp_path / "shards").mkdir()
    for shard, names in SHARDS.items():
        rows = [{"sample_id": key(n), "name": part} for n in names for part in ("", "image")]
        pq.write_table(pa.Table.from_pylist(rows), (tmp_path / "shards" / shard).with_suffix(".index.parquet"))
    parents = {"d": "a", "e": "b"}
    rows = [{"sample_id": key(n), "parent_id": key(parents[n]) if n in parents else None} for n in "abcde"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "base.parquet")
    for part, names in (("one", "ab"), ("two", "e")):
        write_vectors(tmp_path / f"{part}.parquet", {"image": [(key(n), vector(n)) for n in names]})
    return tmp_path


def write(build: Path, *names: str) -> dict:
    scores = [build / f"{part}.parquet" for part in ("one", "two", "none")]
    shards = [(shard, shard.split("-")[0]) for shard in SHARDS]
    return write_embeddings(build, shards, dict.fromkeys(names, scores), [build / "base.parquet"])


def test_vectors_lie_in_the_order_of_the_shards_and_a_child_has_its_parent_s(build: Path):
    about = write(build, "clip.image")
    assert about == {"clip.image": {"dim": 3, "suffix": ".clip.image.npy", "samples": {"train": 2, "val": 2}}}
    found = {shard: np.load(build / "shards" / f"{shard[:-4]}.clip.image.npy") for shard in SHARDS}
    assert found["train-000000.tar"].dtype == np.float16
    assert np.array_equal(found["train-000000.tar"], [vector("a"), np.zeros(3)])
    assert np.array_equal(found["train-000001.tar"], [vector("a")])
    assert np.array_equal(found["val-000000.tar"], [vector("b"), vector("e")])


def test_what_is_no_longer_asked_for_goes_and_nothing_else(build: Path):
    (build / "shards" / "partners.npy").write_bytes(b"")
    write(build, "clip.image")
    before = {path.name: path.read_bytes() for path in (build / "shards").iterdir()}
    write(build, "clip.image")
    assert before == {path.name: path.read_bytes() for path in (build / "shards").iterdir()}
    assert write(build) == {}
    assert [path.name for path in (build / "shards").glob("*.npy")] == ["partners.npy"]


def test_an_aligner_without_vectors_is_named(build: Path):
    with pytest.raises(FatalError, match="'whisper' keeps no vectors of 'speech'; name an aligner that does"):
        write(build, "whisper.speech")
    assert not list((build / "shards").glob("*.npy"))
