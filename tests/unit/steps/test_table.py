"""The `table` source: rows of four formats, inline texts, paths that stay below root."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.engine.payloads import Payloads
from mmdata.errors import PlanError, SampleError
from mmdata.steps.exchange import Declared
from mmdata.steps.sources import rows as rows_module
from mmdata.steps.sources.table import Table

ROWS = [
    {"file": "b.wav", "said": 'Hello, "you"', "voice": "anna"},
    {"file": "a.wav", "said": "zwei\nZeilen", "voice": "bert"},
    {"file": "x/c.wav", "said": "日本", "voice": None},
]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    def cell(value: Any) -> str:
        return "" if value is None else '"' + str(value).replace('"', '""') + '"'

    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        comma = "," if path.suffix == ".csv" else "\t"
        lines = [comma.join(rows[0]), *(comma.join(map(cell, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")


def table(path: Path, **more: Any) -> Table:
    members = {"speech": {"path": "file"}, "caption": {"text": "said"}}
    return Table.model_validate({"file": str(path), "members": members, **more})


@pytest.fixture
def media(tmp_path: Path) -> Path:
    (tmp_path / "x").mkdir()
    for name in ("a.wav", "b.wav", "x/c.wav"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, ns=(1, 10**18))
    return tmp_path


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.wav")
    write(tmp_path / "t.csv", [{"file": "a.wav", "said": "a"}])
    (found,) = table(tmp_path / "t.csv").inputs()
    with pytest.raises(SampleError, match="no plain file") as caught:
        Payloads([]).of(found.refs[0], 100)
    assert caught.value.reason == "unreadable"


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


def test_the_version_of_an_inline_text_is_its_digest(media: Path) -> None:
    write(media / "t.csv", [{"file": "a.wav", "said": "one"}, {"file": "b.wav", "said": "one"}])
    one, again = table(media / "t.csv").inputs()
    assert one.refs[1].version == again.refs[1].version == "7692c3ad3540bb80"
    assert Payloads([]).of(one.refs[1], 10) == b"one"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_attributes_that_are_no_texts_are_json(media: Path, suffix: str) -> None:
    more = {"bad": True, "licence": {"name": "O'Neil", "by": "Zoë"}, "tags": ["x", "y"], "score": 0.5}
    write(media / f"t.{suffix}", [{"file": "a.wav", "said": "x", **more}])
    (found,) = table(media / f"t.{suffix}").inputs()
    as_json = {name: json.dumps(value, ensure_ascii=False, separators=(",", ":")) for name, value in more.items()}
    assert found.attributes == as_json


def test_a_key_column_names_the_row_and_stays_an_attribute(media: Path) -> None:
    write(media / "t.csv", [{"id": "7", "file": "a.wav", "said": "x"}])
    (found,) = table(media / "t.csv", key="id").inputs()
    assert (found.key, found.attributes) == ("7", {"id": "7"})


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_several_columns_name_the_row_together(media: Path, suffix: str) -> None:
    names = [("a/b", 10), ("a", 2), ("a", 10), (None, 2), ("a", 2), ("a/b", 1)]
    write(media / f"t.{suffix}", [{"file": "a.wav", "said": "x", "site": site, "id": n} for site, n in names])
    found = list(table(media / f"t.{suffix}", key=["site", "id"]).inputs())
    assert [(i.key, i.problem[0] if i.problem else "") for i in found] == [
        *[("", "no_key"), ("a/10", ""), ("a/2", ""), ("a/2#2", "duplicate_key"), ("a/b/1", ""), ("a/b/10", "")],
    ]
    assert found[1].attributes == {"site": "a", "id": "10"}
    with pytest.raises(PlanError, match="no column 'sote'; did you mean 'site'"):
        list(table(media / f"t.{suffix}", key=["sote", "id"]).inputs())
    assert table(media / "t.csv", key="id").identity()["params"]["key"] == "id"


def test_a_key_that_stands_twice_is_a_failed_input_of_its_own(media: Path) -> None:
    write(media / "t.csv", [{"file": "a.wav", "said": said} for said in ("x", "y", "z")])
    found = list(table(media / "t.csv").inputs())
    assert [(i.key, i.problem) for i in found] == [
        ("a.wav", None),
        ("a.wav#2", ("duplicate_key", "row 2 with the key 'a.wav'; `key:` names a column that tells them apart")),
        ("a.wav#3", ("duplicate_key", "row 3 with the key 'a.wav'; `key:` names a column that tells them apart")),
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["a.wav", "a.wav", "a.wav#2"],
        ["a.wav", "a.wav", "a.wav#2", "a.wav#2", "a.wav#2#2"],
        ["#2", None, None, "", "#2#2"],
        ["a.wav#2", "a.wav#3", "a.wav"],
    ],
)
def test_a_key_written_like_the_second_of_another_keeps_keys_unique(media: Path, names: list[str | None]) -> None:
    write(media / "t.jsonl", [{"file": name, "said": str(n)} for n, name in enumerate(names)])
    keys = [i.key for i in table(media / "t.jsonl").inputs()]
    assert len(keys) == len(set(keys)) == len(names)


def test_rows_without_a_key_are_failed_inputs_each_of_its_own(media: Path) -> None:
    write(media / "t.jsonl", [{"file": None, "said": "x"}, {"file": None, "said": "y"}, {"file": "a.wav", "said": "z"}])
    found = list(table(media / "t.jsonl").inputs())
    assert len({i.key for i in found}) == 3
    assert sorted(i.problem[0] if i.problem else "" for i in found) == ["", "no_key", "no_key"]


@pytest.mark.parametrize("path", ["../secret.wav", "/etc/passwd", "x/../../secret.wav", "link.wav", "", "."])
def test_a_path_that_leads_out_of_root_is_an_input_with_a_problem(media: Path, path: str) -> None:
    (media.parent / "secret.wav").write_text("s")
    os.symlink(media.parent / "secret.wav", media / "link.wav")
    write(media / "t.jsonl", [{"file": path, "said": "x"}])
    (found,) = table(media / "t.jsonl").inputs()
    assert found.problem == ("path_outside_root", f"{path} leads out of root: {media}")


def test_a_missing_file_and_an_empty_cell_have_no_version(media: Path) -> None:
    write(media / "t.jsonl", [{"file": "none.wav", "said": None}])
    (found,) = table(media / "t.jsonl").inputs()
    assert found.problem is None
    assert [(ref.name, ref.version) for ref in found.refs] == [("speech", None), ("caption", None)]
    assert [ref.problem and ref.problem[0] for ref in found.refs] == ["missing_member", None]
    for ref in found.refs:
        with pytest.raises(SampleError) as caught:
            Payloads([]).of(ref, 10)
        assert caught.value.reason == "missing_member"


def test_a_path_with_a_nul_is_missing(media: Path) -> None:
    write(media / "t.jsonl", [{"file": "a\0.wav", "said": "x"}])
    (found,) = table(media / "t.jsonl").inputs()
    assert found.refs[0].version is None


def test_root_may_be_elsewhere(media: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    write(tmp_path / "tables/t.csv", ROWS[:1])
    (found,) = table(tmp_path / "tables/t.csv", root=media).inputs()
    assert found.refs[0].version is not None


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["said", "fil"], "no column 'file'; did you mean 'fil'? It has said, fil"),
        (["zzz", "said"], "no column 'file'; it has zzz, said"),
        (
            ["said", *map(str, range(40))],
            f"no column 'file'; it has said, {', '.join(map(str, range(29)))} and 11 others",
        ),
    ],
)
def test_a_column_that_is_not_there(tmp_path: Path, columns: list[str], expected: str) -> None:
    path = tmp_path / "t.csv"
    write(path, [dict.fromkeys(columns, "x")])
    with pytest.raises(PlanError) as caught:
        list(table(path).inputs())
    assert caught.value.problems == [f"table {path}: {expected}"]


@pytest.mark.parametrize("value", [b"\x89PNG", {"bytes": b"\x89PNG", "path": "a.png"}], ids=["bytes", "image"])
def test_files_inside_of_parquet_are_no_paths_and_no_attributes(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "t.parquet"
    write(path, [{"file": "a.wav", "said": "x", "cover": value, "n": 1}])
    (found,) = table(path).inputs()
    assert found.attributes == {"n": "1"}
    with pytest.raises(PlanError) as caught:
        list(table(path, members={"image": {"path": "cover"}, "caption": {"text": "said"}}).inputs())
    fix = "`huggingface: {path: parquet, data_files: [...], members: {image: column}}`"
    assert caught.value.problems == [
        f"table {path}: the column 'cover' holds bytes; files inside of Parquet are read by {fix}"
    ]


def test_a_table_that_is_not_there_or_is_none(tmp_path: Path) -> None:
    for content in (None, b"\x00\x01"):
        path = tmp_path / "t.parquet"
        if content:
            path.write_bytes(content)
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


def test_a_time_is_the_same_text_in_every_time_zone(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", [{"file": "a.wav", "said": "x", "at": datetime(2020, 1, 1, tzinfo=UTC)}])
    code = (
        "from mmdata.steps.sources.table import Table\n"
        "members = {'speech': {'path': 'file'}, 'caption': {'text': 'said'}}\n"
        f"(found,) = Table.model_validate({{'file': {str(tmp_path / 't.parquet')!r}, 'members': members}}).inputs()\n"
        "print(found.attributes['at'])"
    )
    here = {**os.environ, "TZ": "Asia/Tokyo"}
    told = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True, check=True)
    assert told.stdout == "2020-01-01 00:00:00+00:00\n"


def test_a_quote_in_the_name_of_the_table_is_no_sql(media: Path) -> None:
    write(media / "it's.csv", ROWS[:1])
    assert len(list(table(media / "it's.csv").inputs())) == 1


def test_where_the_table_lies_is_no_part_of_the_identity(tmp_path: Path) -> None:
    assert table(tmp_path / "a.csv").identity() == table(tmp_path / "b/c.parquet", root=tmp_path).identity()
    assert table(tmp_path / "a.csv").identity() != table(tmp_path / "a.csv", key="id").identity()


GOOD = "file,said,voice\na.wav,one,anna\n"


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


def test_root_is_looked_up_once(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(media / "t.csv", [{"file": f"{n}.wav", "said": "x"} for n in range(50)])
    asked: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: asked.append(str(path)) or real(path))
    assert len(list(table(media / "t.csv").inputs())) == 50
    assert len(asked) == 51
