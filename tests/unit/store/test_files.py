"""Files that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmdata.store.files import appearing, sweep_scratch, write_json


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "x" / "a.bin"
    with appearing(path) as scratch:
        scratch.write_bytes(b"new")
        assert not path.exists()
        assert scratch.parent == path.parent
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write() -> None:
        with appearing(path) as scratch:
            scratch.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_before_anything_was_written_is_that_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), appearing(tmp_path / "a"):
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []


def test_json_is_sorted_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": [1]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "a": [\n  1\n ],\n "b": "é"\n}\n'
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": [1], "b": "é"}


def test_sweeping_removes_what_dead_processes_left_half_written(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ("x/a.tar.partial-1", "c.duckdb.partial-99999999", "c.duckdb.partial-1", "keep.tar"):
        (tmp_path / name).write_text("x")
    (tmp_path / "d.partial-1").mkdir()
    (tmp_path / "d.partial-1/f").write_text("x")
    with appearing(tmp_path / "mine") as scratch:
        scratch.write_text("x")
        sweep_scratch(tmp_path, "c.duckdb")
    # The process 1 is always there.
    left = ["c.duckdb.partial-1", "keep.tar", "mine", "x"]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == left
