"""What holds for whatever anybody writes: ledgers, tars, mirrors, cuts, overrides."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from candidates import gathered
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmdata.document import read_yaml
from mmdata.errors import MmdataError, SpecError
from mmdata.listing import _cut, input_line, parse_line
from mmdata.sample import Member, Sample, sample_id
from mmdata.spec import parse_spec
from mmdata.steps.curate.duplicates import Duplicates
from mmdata.steps.curate.rules import Rules
from mmdata.steps.curate.splits import Splits
from mmdata.steps.exchange import Input, Ref
from mmdata.store.curation import Columns, Curation, Rows
from mmdata.store.parts import SCORE_SCHEMA, BasePartWriter, iter_samples, read_base_rows, write_table
from mmdata.store.selection import decide_fates
from mmdata.store.tar import TarWriter

COLUMNS = Columns({"image": "image", "caption": "text"}, {"clip": {"image_caption": {}}})
WORDS = st.sampled_from(["a cat", "a dog", "it's", "", "größer", "a 'b\" c"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "side": st.none() | st.integers(1, 20),
            "caption": st.none() | WORDS,
            "score": st.none() | st.floats(-1, 1, width=32),
        }
    ),
    max_size=12,
)


def loaded(folder: Path, rows: list[dict[str, Any]]) -> Curation:
    with BasePartWriter(folder / "base.parquet") as writer:
        for n, row in enumerate(rows):
            members = {}
            if row["side"] is not None:
                size = {"width": row["side"], "height": row["side"]}
                members["image"] = Member("image", "image", "image/png", "png", b"%d" % row["side"], None, size)
            if row["caption"] is not None:
                text = {"text": row["caption"], "chars": len(row["caption"]), "words": len(row["caption"].split())}
                data = row["caption"].encode()
                members["caption"] = Member("caption", "text", "text/plain", "txt", data, "en", text)
            writer.add(Sample(sample_id("s", str(n)), "s", str(n), members))
    scores = [
        {"sample_id": sample_id("s", str(n)), "aligner": "clip", "edge": "image_caption", "score": row["score"]}
        for n, row in enumerate(rows)
        if row["score"] is not None
    ]
    write_table(folder / "scores.parquet", pa.Table.from_pylist(scores, SCORE_SCHEMA))
    return gathered(COLUMNS, Rows([folder / "base.parquet"], [folder / "scores.parquet"]), folder)


def kept(rows: list[dict[str, Any]], keep: dict[str, str]) -> set[str]:
    """Ids of what is left; checks on the way that everyone has one fate."""
    with tempfile.TemporaryDirectory() as folder:
        curation = loaded(Path(folder), rows)
        for step in (Duplicates(of=["image", "caption"]), Rules(keep=keep), Splits(by="caption.text")):
            step.apply(curation)
        decide_fates(curation, len(rows))
        fates = curation.connection.execute("SELECT sample_id, fate FROM fates").fetchall()
        curation.connection.close()
    assert sorted(found for found, _ in fates) == sorted(sample_id("s", str(n)) for n in range(len(rows)))
    return {found for found, fate in fates if fate == "kept"}


@settings(max_examples=12)
@given(ROWS, st.integers(0, 20), st.integers(0, 5), st.floats(-1, 1))
@pytest.mark.slow
def test_everyone_has_one_fate_and_a_tighter_rule_never_keeps_more(
    rows: list[dict[str, Any]], width: int, more: int, score: float
) -> None:
    loose = kept(rows, {"wide": f"image.width >= {width}"})
    tight = kept(rows, {"wide": f"image.width >= {width + more}"})
    both = kept(rows, {"wide": f"image.width >= {width + more}", "fits": f"clip.image_caption.score >= {score!r}"})
    assert both <= tight <= loose
    expected = {sample_id("s", str(n)) for n, row in enumerate(rows) if row["side"] is None or row["side"] >= width}
    assert loose <= expected


# --- tar and parts --------------------------------------------------------------------------------------------------

NAMES = st.text("abcdefgh0123456789._-", min_size=1, max_size=100).filter(lambda name: name.strip("./"))


@settings(max_examples=80)
@given(st.dictionaries(NAMES, st.binary(max_size=1500), max_size=6))
def test_a_tar_gives_back_what_it_was_given(members: dict[str, bytes]) -> None:
    file = io.BytesIO()
    tar = TarWriter(file)
    offsets = {name: tar.add(name, data) for name, data in members.items()}
    tar.finish()
    content = file.getvalue()
    assert tar.offset == len(content)
    assert {n: content[offsets[n] : offsets[n] + len(data)] for n, data in members.items()} == members
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as read:
        assert [(e.name, e.offset_data, e.size) for e in read] == [
            (name.rstrip("/"), offsets[name], len(data)) for name, data in members.items()
        ]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=25)
@given(st.lists(st.tuples(TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=3), st.binary(max_size=600)), max_size=5))
def test_a_part_gives_back_what_it_was_given(content: list[tuple[str, dict[str, str], bytes]]) -> None:
    samples = [
        Sample(f"{n:032x}", "s", key, {"x": Member("x", "tensor", "a/b", "bin", data)}, attributes=attributes)
        for n, (key, attributes, data) in enumerate(content)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.parquet"
        with BasePartWriter(path) as writer:
            for sample in samples:
                writer.add(sample)
        assert list(iter_samples(path, read_base_rows(path), frozenset({"x"}))) == samples


# --- cutting --------------------------------------------------------------------------------------------------------


def runs(keys: set[str], target: int) -> list[tuple[str, ...]]:
    return [tuple(found.key for found in run) for run in _cut("keys", (Input(key, ()) for key in sorted(keys)), target)]


@settings(max_examples=150)
@given(st.sets(st.text(max_size=4), max_size=120), st.integers(1, 20))
def test_cutting_loses_doubles_and_reorders_nothing_within_its_bounds(keys: set[str], target: int) -> None:
    found = runs(keys, target)
    assert [key for run in found for key in run] == sorted(keys)
    assert all(max(target // 2, 1) <= len(run) <= 2 * target for run in found[:-1])
    assert all(0 < len(run) <= 2 * target for run in found)


@settings(max_examples=60)
@given(st.integers(0, 399), st.integers(0, 3))
def test_an_added_input_makes_few_parts_new(position: int, salt: int) -> None:
    keys = {f"{salt}-{n:04d}" for n in range(400)}
    before = set(runs(keys, 16))
    after = set(runs({*keys, f"{salt}-{position:04d}+"}, 16))
    assert 1 <= len(after - before) <= 6 < len(before) // 3


def test_an_added_input_makes_on_average_hardly_more_than_one_part_new() -> None:
    keys = {f"{n:04d}" for n in range(400)}
    before = set(runs(keys, 16))
    new = [len(set(runs({*keys, f"{n:04d}+"}, 16)) - before) for n in range(400)]
    assert sum(new) / len(new) < 1.5
    assert sum(count <= 2 for count in new) >= 0.9 * len(new)


REFS = st.builds(
    Ref,
    name=st.just("x"),
    modality=st.just("text"),
    url=st.none() | st.text(max_size=9),
    text=st.none() | TEXTS,
    lang=st.none() | st.just("en"),
    line=st.none() | st.integers(1, 9) | st.just("{text}"),
    required=st.booleans(),
    version=st.none() | st.just("1-2"),
    span=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
    clip=st.none() | st.tuples(st.floats(0, 1), st.floats(1, 2)),
)


@settings(max_examples=150)
@given(st.builds(Input, TEXTS, st.lists(REFS, max_size=3).map(tuple), st.dictionaries(TEXTS, TEXTS, max_size=2),
                 st.none() | st.tuples(TEXTS, TEXTS)))  # fmt: skip
def test_a_line_of_the_listing_is_one_line_and_gives_its_input_back(found: Input) -> None:
    line = input_line(found)
    assert line.splitlines() == [line[:-1]]
    assert parse_line(line) == found


# --- overrides ------------------------------------------------------------------------------------------------------

SPEC = "name: t\nseed: 1\nsources:\n  - files: {root: a}\n  - table:\ncurate: [splits]\nengine: {workers: 1}\n"
SCALARS = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | TEXTS
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=3), max_leaves=5)
PLACES_OF_VALUES: dict[str, tuple[str | int, ...]] = {
    "seed": ("seed",),
    "engine.workers": ("engine", "workers"),
    "engine.device": ("engine", "device"),
    "sources.files.root": ("sources", 0, "files", "root"),
    "sources.0.files.name": ("sources", 0, "files", "name"),
    "sources.table.file": ("sources", 1, "table", "file"),
    "curate.splits.by": ("curate", 0, "splits", "by"),
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "p.yaml"
    path.write_text(SPEC)
    return path


@settings(max_examples=150)
@given(where=st.sampled_from(sorted(PLACES_OF_VALUES)), value=VALUES)
def test_set_puts_exactly_that_value_there_and_changes_nothing_else(spec: Path, where: str, value: Any) -> None:
    document = read_yaml(spec, [f"{where}={yaml.safe_dump(value, default_flow_style=True, width=10**6)}"])
    *parents, last = PLACES_OF_VALUES[where]
    found = document.value
    for key in parents:
        found = found[key]
    assert found[last] == value
    assert document.overridden.keys() == {PLACES_OF_VALUES[where]}
    # Put back what was there, or nothing: the rest is as it was.
    plain = read_yaml(spec, [f"{where.rpartition('.')[0]}.x=1"] if parents else []).value
    there = plain
    for key in parents:
        there = there[key]
    there.pop("x", None)
    found.pop(last)
    there.pop(last, None)
    assert document.value == plain


@settings(max_examples=200)
@given(override=st.text(st.sampled_from("seouc.=01[]{}:,a-\"'\n &*!"), max_size=20) | st.text(max_size=15))
def test_whatever_is_typed_after_set_is_taken_or_refused_in_words(spec: Path, override: str) -> None:
    try:
        parse_spec(read_yaml(spec, [override]))
    except SpecError as error:
        assert error.problems  # noqa: PT017


@settings(max_examples=200)
@given(
    content=st.binary(max_size=60)
    | st.text(st.sampled_from("ab:-[]{}&*!|>?%@\"'#, \n\t0${}<"), max_size=60).map(str.encode)
)
def test_whatever_a_file_holds_it_is_read_or_refused_in_words(spec: Path, content: bytes) -> None:
    path = spec.with_name("hostile.yaml")
    path.write_bytes(content)
    try:
        parse_spec(read_yaml(path))
    except MmdataError as error:
        assert "hostile.yaml" in str(error)  # noqa: PT017


@settings(max_examples=60)
@given(st.text(max_size=20))
def test_ids_are_32_hexadecimal_digits_and_differ(key: str) -> None:
    assume(all(not 0xD800 <= ord(char) <= 0xDFFF for char in key))
    assert len(sample_id("s", key)) == len(bytes.fromhex(sample_id("s", key))) * 2 == 32
    assert len({sample_id("s", key), sample_id("t", key), sample_id("s", key + "x"), json.dumps(key)}) == 4
