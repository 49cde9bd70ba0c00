"""Steps that link: what they gather, reference sets, what is measured again and what is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.engine.measure import link_corpus
from mmdata.errors import FatalError
from mmdata.near.words import shingles, signature
from mmdata.steps.base import Linked
from mmdata.steps.measure.minhash import Minhash
from mmdata.steps.measure.neighbours import Neighbours
from mmdata.steps.measure.pdq import Pdq
from mmdata.steps.measure.soundprint import Soundprint
from mmdata.store.catalog import Build, describe_build
from mmdata.store.parts import SCORE_SCHEMA, write_table, write_vectors

HASH = bytes(range(32))
FAR = bytes(255 - byte for byte in range(32))


def flipped(data: bytes, bits: int) -> bytes:
    return (int.from_bytes(data) ^ ((1 << bits) - 1)).to_bytes(len(data))


def hashed(data: bytes, mirror: bytes = FAR, quality: int = 100) -> dict[str, Any]:
    return {"hash": data.hex(), "mirror": mirror.hex(), "quality": quality}


def said(text: str) -> dict[str, Any]:
    return {"signature": signature(shingles(text, 3)).tobytes().hex()}


def part(path: Path, label: str, found: dict[str, dict[str, Any] | None], member: str = "x") -> Path:
    rows = [
        {"sample_id": one, "aligner": label, "edge": member, "measures": values and json.dumps(values)}
        | ({} if values else {"reason": "bad_image", "detail": "broken"})
        for one, values in found.items()
    ]
    write_table(path, pa.Table.from_pylist(rows, SCORE_SCHEMA))
    return path


def linked(folder: Path, step: Linked, *parts: Path) -> list[tuple[Any, ...]]:
    assert link_corpus(step, parts, folder / "links.parquet").samples == 0, "links are no samples"
    return [tuple(row.values()) for row in pq.read_table(folder / "links.parquet").to_pylist()]


def test_hashes_of_all_parts_are_linked_by_id_with_the_bits_that_differ(tmp_path: Path) -> None:
    one = part(tmp_path / "a.parquet", "pdq", {"d": hashed(HASH), "b": hashed(FAR, HASH), "z": None})
    two = part(
        tmp_path / "b.parquet", "pdq", {"a": hashed(flipped(HASH, 31)), "c": hashed(flipped(HASH, 9)), "e": hashed(FAR)}
    )
    expected = [
        ("x", "a", "c", 22.0, None),
        ("x", "a", "d", 31.0, None),
        ("x", "b", "e", 0.0, None),
        ("x", "c", "d", 9.0, None),
    ]
    assert linked(tmp_path, Pdq(of=["x"]), one, two) == expected
    assert linked(tmp_path, Pdq(of=["x"], max_distance=21), two, one) == expected[2:]


def test_a_mirror_image_is_linked_where_that_is_asked_for(tmp_path: Path) -> None:
    found = part(
        tmp_path / "a.parquet",
        "pdq",
        {"a": hashed(HASH, flipped(FAR, 4)), "b": hashed(FAR, flipped(HASH, 9))},
    )
    assert linked(tmp_path, Pdq(of=["x"], mirrored=True), found)[0] == ("x", "a", "b", 4.0, None)
    assert linked(tmp_path, Pdq(of=["x"]), found) == []


def test_flat_pictures_are_linked_with_none(tmp_path: Path) -> None:
    found = part(
        tmp_path / "a.parquet", "pdq", {"a": hashed(HASH, quality=49), "b": hashed(HASH, quality=50), "c": hashed(HASH)}
    )
    assert linked(tmp_path, Pdq(of=["x"]), found) == [("x", "b", "c", 0.0, None)]
    assert len(linked(tmp_path, Pdq(of=["x"], min_quality=49), found)) == 2


def test_of_equals_each_is_linked_with_the_first_and_only_that_with_others(tmp_path: Path) -> None:
    found = {one: hashed(HASH) for one in "badc"} | {"e": hashed(flipped(HASH, 2))}
    links = linked(tmp_path, Pdq(of=["x"]), part(tmp_path / "a.parquet", "pdq", found))
    assert [link[1:4] for link in links] == [("a", "b", 0.0), ("a", "c", 0.0), ("a", "d", 0.0), ("a", "e", 2.0)]


def test_nothing_measured_is_nothing_linked(tmp_path: Path) -> None:
    for step in (Pdq(of=["x"]), Minhash(of=["x"])):
        assert linked(tmp_path, step, part(tmp_path / "a.parquet", step.label, {"a": None})) == []
        assert linked(tmp_path, step) == []


def vectors(path: Path, found: dict[str, list[float]]) -> Path:
    write_vectors(path, {"x": [(one, np.array(vector, np.float32)) for one, vector in found.items()]})
    write_table(path, pa.Table.from_pylist([], SCORE_SCHEMA))
    return path


def test_embeddings_of_any_length_are_linked_by_their_cosine(tmp_path: Path) -> None:
    found = vectors(tmp_path / "a.parquet", {"b": [2, 0], "a": [0.5, 0.05], "d": [0, 0], "c": [0, 1]})
    links = linked(tmp_path, Neighbours(of=["x"], aligner="clip"), found)
    assert [link[:3] for link in links] == [("x", "a", "b")]
    assert links[0][3] == pytest.approx(1 - 1 / np.sqrt(1.01), abs=1e-3)


# --- references -------------------------------------------------------------------------------------------------------


def built(folder: Path, label: str, found: dict[str, dict[str, Any]]) -> Path:
    """What another build leaves of a measure."""
    part(folder / "parts" / label / "p.parquet", label, found, member="photo")
    describe_build(folder, Build("val", "s", "g", [], [(label, "p"), (label, "gone")], [], []))
    return folder


def test_each_sample_is_linked_with_the_nearest_item_of_a_build(tmp_path: Path) -> None:
    other = built(
        tmp_path / "val", "pdq", {"v1": hashed(flipped(HASH, 6)), "v2": hashed(flipped(HASH, 3)), "v3": hashed(FAR)}
    )
    own = part(
        tmp_path / "a.parquet",
        "pdq",
        {"a": hashed(HASH), "b": hashed(HASH), "c": hashed(FAR), "d": hashed(flipped(HASH, 128))},
    )
    links = linked(tmp_path, Pdq(of=["x"], reference=[str(other)]), own)
    assert links == [
        ("x", "a", "b", 0.0, None),
        ("x", "a", "v2", 3.0, "val"),
        ("x", "b", "v2", 3.0, "val"),
        ("x", "c", "v3", 0.0, "val"),
    ]


def test_a_file_of_fingerprints_is_a_reference_too(tmp_path: Path) -> None:
    file = tmp_path / "test_set.parquet"
    pq.write_table(
        pa.table(
            {"id": [7, 8], "signature": [said("two dogs run on a beach")["signature"], said("a cat")["signature"]]}
        ),
        file,
    )
    own = part(tmp_path / "a.parquet", "minhash", {"a": said("Two dogs run on a beach!"), "b": said("three birds")})
    assert linked(tmp_path, Minhash(of=["x"], reference={"coco": str(file)}), own) == [("x", "a", "7", 0.0, "coco")]


def test_embeddings_have_references(tmp_path: Path) -> None:
    other = tmp_path / "val"
    vectors(other / "parts" / "clip" / "p.parquet", {"v": [1, 0.02]})
    describe_build(other, Build("val", "s", "g", [], [("clip", "p")], [], []))
    file = tmp_path / "more.parquet"
    pq.write_table(pa.table({"id": ["w", "n"], "vector": [[0.0, 1.0], None]}), file)
    own = vectors(tmp_path / "a.parquet", {"a": [1, 0], "b": [0, 3]})
    links = linked(tmp_path, Neighbours(of=["x"], aligner="clip", reference=[str(other), str(file)]), own)
    assert [(link[1], link[2], link[4]) for link in links] == [("a", "v", "val"), ("b", "w", "more")]
    three = vectors(tmp_path / "b.parquet", {"a": [1, 0, 0]})
    with pytest.raises(FatalError, match="of another kind"):
        linked(tmp_path, Neighbours(of=["x"], aligner="clip", reference=[str(file)]), three)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere", "nowhere is not there; give the folder of a build, or a Parquet of fingerprints"),
        ("empty", "empty: no build here (build.json is missing)"),
        ("val", "val: the build has no 'pdq'; did you mean 'pqd'?; it has pqd"),
        ("t.parquet", "t.parquet has no column 'id'; it has key"),
    ],
)
def test_a_reference_that_is_none_is_said_when_it_is_planned(
    tmp_path: Path, monkeypatch, reference: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    built(tmp_path / "val", "pqd", {"v": hashed(HASH)})
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"key": ["a"]}), "t.parquet")
    with pytest.raises(ValueError, match=re.escape(message)):
        Pdq(of=["x"], reference=reference).check_references()


def test_a_file_without_the_fingerprint_is_said(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "hashes": ["00"], "mirror": ["00"], "quality": [1]}), tmp_path / "t.parquet")
    own = part(tmp_path / "a.parquet", "pdq", {"a": hashed(HASH)})
    with pytest.raises(FatalError, match="no column 'hash'; did you mean 'hashes'"):
        linked(tmp_path, Pdq(of=["x"], reference=str(tmp_path / "t.parquet")), own)


def test_fingerprints_that_are_not_what_they_should_be_are_said(tmp_path: Path) -> None:
    own = part(tmp_path / "a.parquet", "minhash", {"a": {"signature": "abc"}})
    with pytest.raises(FatalError, match="not all 256 hexadecimal digits"):
        linked(tmp_path, Minhash(of=["x"]), own)


def test_limits_and_references_link_anew_and_measure_nothing_again(tmp_path: Path) -> None:
    other = built(tmp_path / "val", "minhash", {"v": said("a cat")})
    plain, strict = Minhash(of=["x"]), Minhash(of=["x"], min_similarity=0.9)
    held, coarse = Minhash(of=["x"], reference=[str(other)]), Minhash(of=["x"], shingle_chars=5)
    assert plain.identity() == strict.identity() == held.identity() != coarse.identity()
    assert plain.linking() != strict.linking()
    before = held.linking()
    assert plain.linking() != before
    (other / "parts" / "minhash" / "gone.parquet").write_bytes((other / "parts" / "minhash" / "p.parquet").read_bytes())
    assert held.linking() != before, "the reference set has grown"


def test_each_measure_says_how_far_apart_its_links_are() -> None:
    steps = [
        Pdq(of=["x"], max_distance=40),
        Minhash(of=["x"], min_similarity=0.7),
        Soundprint(of=["x"], max_distance=0.3),
        Neighbours(of=["x"], aligner="clip", max_distance=0.1),
    ]
    assert [step.links_up_to() for step in steps] == [
        (40, "raise `max_distance`"),
        (0.3, "lower `min_similarity`"),
        (0.3, "raise `max_distance`"),
        (0.1, "raise `max_distance`"),
    ]
