"""The `table` source: members, keys and attributes of rows, inline texts, paths that stay below root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tables import ROWS, table, write

from mmdata.engine.payloads import Payloads
from mmdata.errors import PlanError, SampleError


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.wav")
    write(tmp_path / "t.csv", [{"file": "a.wav", "said": "a"}])
    (found,) = table(tmp_path / "t.csv").inputs()
    with pytest.raises(SampleError, match="no plain file") as caught:
        Payloads([]).of(found.refs[0], 100)
    assert caught.value.reason == "unreadable"


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


def test_root_is_looked_up_once(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(media / "t.csv", [{"file": f"{n}.wav", "said": "x"} for n in range(50)])
    asked: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: asked.append(str(path)) or real(path))
    assert len(list(table(media / "t.csv").inputs())) == 50
    assert len(asked) == 51
