"""The `table` source: files of all formats, packed and broken, and what cannot be read of them."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tables import ROWS, table, write

from mmdata.errors import PlanError
from mmdata.steps.exchange import Declared
from mmdata.steps.sources import rows as rows_module


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson", "parquet"])
def test_rows_of_every_format_are_the_same_inputs(media: Path, suffix: str) -> None:
    write(media / f"t.{suffix}", ROWS)
    source = table(media / f"t.{suffix}")
    found = list(source.inputs())
    assert [i.key for i in found] == ["a.wav", "b.wav", "x/c.wav"]
    assert [i.attributes for i in found] == [{"voice": "bert"}, {"voice": "anna"}, {}]
    assert [i.problem for i in found] == [None] * 3
    assert [[ref.text for ref in i.refs] for i in found] == [
        [None, "zwei\nZeilen"],
        [None, 'Hello, "you"'],
        [None, "日本"],
    ]
    assert found[2].refs[0].url == os.path.realpath(media / "x/c.wav")
    assert found[2].refs[0].version == "7-1000000000000000000"
    assert source.members() == {"speech": Declared("audio", True), "caption": Declared("text", True)}


GOOD = "file,said,voice\na.wav,one,anna\n"
PACK: dict[str, Any] = {"gz": gzip.compress, "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True)}


@pytest.mark.parametrize(
    "name", ["T.CSV", "t.Jsonl", "t.csv.gz", "t.JSONL.GZ", "t.parquet.gz", "t.jsonl.zst", "T.CSV.ZST"]
)
def test_a_format_is_told_in_any_case_and_packed(media: Path, name: str) -> None:
    _, suffix, *packed = name.lower().split(".")
    plain = media / f"plain.{suffix}"
    write(plain, ROWS)
    (media / name).write_bytes(PACK[packed[0]](plain.read_bytes()) if packed else plain.read_bytes())
    assert list(table(media / name).inputs()) == list(table(plain).inputs())


def test_bad_rows_of_a_packed_table_are_told(media: Path) -> None:
    (media / "t.jsonl.gz").write_bytes(gzip.compress(b'{"file": "a.wav", "said": "x"}\n{"file": \n'))
    kept, bad = table(media / "t.jsonl.gz").inputs()
    assert (kept.key, bad.key, bad.problem[0]) == ("a.wav", "row 2 of t.jsonl", "bad_row")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (PACK["gz"](b"file,said\n" * 9)[:-12], "t.csv.gz: cannot be unpacked: "),
        (b"file,said\n", "t.csv.gz: cannot be unpacked: Not a gzipped file"),
        (PACK["gz"](b"file,said\n" + b"a.wav,x\n" * 200), "t.csv.gz: unpacks to more than 1000 bytes"),
        (PACK["zst"](b"file,said\n" * 9)[:-12], "t.csv.zst: cannot be unpacked: Truncated compressed stream"),
        (b"file,said\n", "t.csv.zst: cannot be unpacked: "),
        (PACK["zst"](b"file,said\n" + b"a.wav,x\n" * 200), "t.csv.zst: unpacks to more than 1000 bytes"),
    ],
    ids=["torn", "plain", "large", "torn zst", "plain zst", "large zst"],
)
def test_what_cannot_be_unpacked_says_so(
    media: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, expected: str
) -> None:
    monkeypatch.setattr(rows_module, "_MOST_UNPACKED", 1000)
    path = media / expected.partition(":")[0]
    path.write_bytes(data)
    with pytest.raises(PlanError, match=re.escape(expected)):
        list(table(path).inputs())


@pytest.mark.parametrize("each_its_own", [True, False])
def test_lines_of_very_many_columns_are_rows_like_any(media: Path, each_its_own: bool) -> None:
    rows = [
        {"file": f"{n:03}.wav", "said": "x", **{f"about_{k}": str(k) for k in ([n] if each_its_own else range(300))}}
        for n in range(300)
    ]
    write(media / "t.jsonl", rows)
    found = list(table(media / "t.jsonl").inputs())
    assert [one.key for one in found] == [row["file"] for row in rows]
    assert found[7].attributes == {k: v for k, v in rows[7].items() if k.startswith("about_")}


def test_a_table_that_is_not_there_or_is_none(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(PlanError, match=f"table: there is no file {path}"):
        list(table(path).inputs())
    path.write_bytes(b"\x00\x01")
    with pytest.raises(PlanError, match="cannot be read: "):
        list(table(path).inputs())


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_row_that_begins_with_a_hash_is_no_comment(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    rows = ["id,said", "#1,one", "#2,two", "3,three", "#4,four"]
    path.write_text("\n".join(rows).replace(",", "," if suffix == "csv" else "\t") + "\n")
    found = table(path, key="id", members={"caption": {"text": "said"}}).inputs()
    assert [one.key for one in found] == ["#1", "#2", "#4", "3"]


@pytest.mark.parametrize(
    "text", ['[{"file": "a.wav", "said": "x"},\n{"file": "b.wav", "said": "y"}]', '{\n "file": "a.wav"\n}']
)
def test_json_that_is_no_lines_says_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(PlanError, match=r"t\.jsonl: no line is a JSON object; write an object a line: jq"):
        list(table(path).inputs())


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("t.jsonl", "{}\n{}\n", "its objects name nothing: {}"),
        ("t.jsonl", "\n\n", "is empty"),
        ("t.csv", "", "is empty"),
        ("t.tsv", "\ufeff\n", "is empty"),
    ],
)
def test_a_table_without_columns_says_so(tmp_path: Path, name: str, text: str, problem: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        list(table(path).inputs())
    assert caught.value.problems == [f"table {path}: {problem}"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_utf_16_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    path.write_text("file,said\na.wav,größe\n", encoding="utf-16")
    with pytest.raises(PlanError, match=r"is UTF-16; save it as UTF-8"):
        list(table(path).inputs())


def test_a_table_without_rows_has_no_inputs(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("file,said\n")
    assert list(table(path).inputs()) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{broken", "no JSON: Expecting property name"),
        (b'{"file": "b.wav", "said": ', "no JSON: Expecting value"),
        (b"[1, 2]", "no JSON object"),
        (b'{"file": "b.wav", "said": "\xff"}', "no JSON: 'utf-8' codec can't decode byte 0xff"),
        (b'{"file": "b.wav", "said": "\\ud800"}', "no JSON: 'utf-8' codec can't encode"),
        (b'{"file": "b.wav", "file": "c.wav"}', "no JSON: a name stands twice in an object"),
        (b'{"file": ' + b"[" * 100_000, "no JSON: maximum recursion depth exceeded"),
        (b'{"file": "' + b"x" * (17 << 20) + b'"}{', "longer than 16777216 bytes"),
    ],
    ids=["broken", "cut", "list", "bytes", "surrogate", "twice", "deep", "long"],
)
def test_a_line_that_is_no_object_costs_itself(tmp_path: Path, line: bytes, problem: str) -> None:
    # One is beyond what DuckDB samples to guess the types.
    before = 30_000 if line == b"{broken" else 1
    path = tmp_path / "t.jsonl"
    good = [json.dumps({"file": f"{n:05}.wav", "said": "x"}).encode() for n in range(before + 1)]
    path.write_bytes(b"\n".join([*good[:before], line, b"", *good[before:]]))
    *found, bad = table(path).inputs()
    assert [one.key for one in found] == [f"{n:05}.wav" for n in range(before + 1)]
    assert bad.key == f"row {before + 1} of t.jsonl"
    assert bad.problem is not None
    assert bad.problem[0] == "bad_row"
    assert bad.problem[1].startswith(f"row {before + 1} of t.jsonl: {problem}")
    assert len(bad.problem[1]) < 400


def test_a_table_without_a_single_row_that_can_be_read_stops_the_plan(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("{broken\n" * 3)
    with pytest.raises(PlanError, match=r"t\.jsonl: "):
        list(table(tmp_path / "t.jsonl").inputs())


def test_values_of_lines_are_told_as_they_are_written(media: Path) -> None:
    said = ['a "red" box', "zwei\nZeilen", 7, ["a", "b"], "2020-01-01T10:00:00Z", None, "007", True, {"en": "x"}]
    write(media / "t.jsonl", [{"id": n, "file": "a.wav", "said": one} for n, one in enumerate(said)])
    found = list(table(media / "t.jsonl", key="id").inputs())
    assert [one.key for one in found] == [str(n) for n in range(len(said))]
    assert [one.refs[1].text for one in found] == [
        'a "red" box',
        "zwei\nZeilen",
        "7",
        '["a","b"]',
        "2020-01-01T10:00:00Z",
        None,
        "007",
        "true",
        '{"en":"x"}',
    ]
    # What the first two are called and say does not change with what stands below them.
    write(media / "t.jsonl", [{"id": n, "file": "a.wav", "said": one} for n, one in enumerate(said[:2])])
    assert list(table(media / "t.jsonl", key="id").inputs()) == found[:2]


def test_a_column_that_only_late_lines_have_is_carried_along(tmp_path: Path) -> None:
    # Beyond what DuckDB samples.
    rows = [{"file": f"{n:05}.wav", "said": "x"} for n in range(30_000)]
    write(tmp_path / "t.jsonl", [*rows, {"file": "z.wav", "said": "x", "site": "y"}])
    *_, last = table(tmp_path / "t.jsonl").inputs()
    assert (last.key, last.attributes) == ("z.wav", {"site": "y"})


@pytest.mark.parametrize("name", ["t[1].csv", "t[1].csv.gz", "t[1].jsonl", "t?.csv", "t*.csv", "t[1].parquet"])
@pytest.mark.parametrize("broken", [False, True])
def test_a_name_that_looks_like_a_pattern_is_that_of_one_file(media: Path, name: str, broken: bool) -> None:
    _, suffix, *packed = name.split(".")
    write(media / f"t1.{suffix}", [{"file": "b.wav", "said": "another"}])
    write(media / f"plain.{suffix}", [{"file": "a.wav", "said": "x"}])
    data = (media / f"plain.{suffix}").read_bytes() + (b"{" * 3 if broken and suffix != "parquet" else b"")
    (media / name).write_bytes(gzip.compress(data) if packed else data)
    found = list(table(media / name).inputs())
    assert [one.key for one in found if not one.problem] == ["a.wav"]
    pattern = table(media / f"[tz][[?*]*.{suffix}{'.gz' if packed else ''}")
    assert list(pattern.inputs()) == found


def test_a_file_that_several_patterns_name_is_one(media: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write(media / name, [{"file": name, "said": "x"}])
    source = table(media / "b.csv", file=[str(media / "b.csv"), str(media / "*.csv")])
    assert [(one.key, one.problem) for one in source.inputs()] == [("a.csv", None), ("b.csv", None)]


@pytest.mark.timeout(20)
def test_what_is_no_plain_file_is_no_table(media: Path) -> None:
    os.mkfifo(media / "t.csv")
    os.symlink(media / "none", media / "u.csv")
    for name in ("t.csv", "u.csv"):
        with pytest.raises(PlanError, match=rf"{name}: cannot be read: it is no plain file"):
            list(table(media / name).inputs())
    (media / "caf\udce9.csv").write_text("file,said\n")
    with pytest.raises(PlanError, match=r"caf\\xe9\.csv: its name is not UTF-8; rename it"):
        list(table(media / "caf*.csv").inputs())


@pytest.mark.parametrize("far", [False, True])
def test_a_row_that_cannot_be_parsed_costs_itself(media: Path, far: bool) -> None:
    # Beyond what DuckDB samples to guess the format, and within.
    many = "".join(f"n{n}.wav,said,x\n" for n in range(30_000 if far else 0))
    bad = "b.wav,too,many,columns\nshort\n"
    (media / "t.csv").write_text(f'{GOOD}{many}{bad}x/c.wav,"a ""quoted"" word",x\n')
    found = list(table(media / "t.csv").inputs())
    problems = {one.key: one.problem for one in found if one.problem and one.problem[0] == "bad_row"}
    first = 3 + (30_000 if far else 0)
    assert list(problems) == [f"row {first} of t.csv", f"row {first + 1} of t.csv"]
    assert problems[f"row {first} of t.csv"] == (
        "bad_row",
        f"row {first} of t.csv: Expected Number of Columns: 3 Found: 4 in: b.wav,too,many,columns",
    )
    good = {one.key: one for one in found if one.key not in problems}
    assert len(good) == first - 1
    assert good["x/c.wav"].refs[1].text == 'a "quoted" word'
    assert good["a.wav"].attributes == {"voice": "anna"}


def test_bad_rows_of_several_files_are_told_by_file_and_columns_by_name(media: Path) -> None:
    (media / "1.csv").write_text(f"{GOOD}bad\n")
    (media / "2.csv").write_text("said;file\nzwei;b.wav\nx;y;z\n")
    source = table(media / "1.csv", file=[str(media / "1.csv"), str(media / "2.csv")])
    found = {one.key: one for one in source.inputs()}
    assert set(found) == {"a.wav", "b.wav", "row 3 of 1.csv", "row 3 of 2.csv"}
    assert found["b.wav"].refs[1].text == "zwei"


def test_a_row_that_is_called_like_a_bad_one_stays_itself(media: Path) -> None:
    (media / "t.csv").write_text(f"{GOOD}row 4 of t.csv,two,x\nbad\n")
    keys = [one.key for one in table(media / "t.csv").inputs()]
    assert sorted(keys) == ["a.wav", "row 4 of t.csv", "row 4 of t.csv'"]


def test_bytes_that_are_no_text_cost_their_row(media: Path) -> None:
    (media / "t.csv").write_bytes(GOOD.encode() + b"b.wav,caf\xe9,x\nx/c.wav,two,x\n")
    found = {one.key: one.problem for one in table(media / "t.csv").inputs()}
    assert {key for key, problem in found.items() if problem} == {"row 3 of t.csv"}
    assert set(found) == {"a.wav", "x/c.wav", "row 3 of t.csv"}
