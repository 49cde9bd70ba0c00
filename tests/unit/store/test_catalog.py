"""The catalog: its views and columns, whoever else writes, wherever the folder lies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mmdata.errors import MmdataError
from mmdata.query import run_query
from mmdata.store import sql
from mmdata.store.catalog import counts, is_fresh, open_catalog, path_of, refresh

# What the README and every query of a user stand on: names may be added, never taken away or reordered.
VIEWS = {
    "samples": "sample_id source key group_id parent_id split fate shard",
    "members": "sample_id modality name mime bytes sha256 width height duration_s sample_rate lang",
    "scores": "sample_id aligner edge score",
    "fates": "sample_id fate step rule value threshold detail",
    "explained": "sample_id source key fate step rule value threshold expression sentence",
    "shards": "path split samples bytes sha256",
    "steps": "step",
    "runs": "run_id",
}


def rows(output: Path, query: str) -> list[tuple[Any, ...]]:
    connection = open_catalog(output)
    try:
        return connection.execute(query).fetchall()  # type: ignore[no-any-return]
    finally:
        connection.close()


def columns(output: Path, view: str) -> list[str]:
    return [row[0] for row in rows(output, f"DESCRIBE SELECT * FROM {view}")]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("upto", ["ingest", "write"])
def test_every_view_has_its_columns_while_a_build_runs_and_after(
    build: Any, tmp_path: Path, view: str, upto: str
) -> None:
    build(tmp_path / "out", upto=upto)
    wanted = VIEWS[view].split()
    found = columns(tmp_path / "out", view)
    assert set(wanted) <= set(found)
    assert [name for name in found if name in wanted] == wanted


def test_views_of_a_build_that_has_only_begun_are_empty_not_absent(tmp_path: Path) -> None:
    from mmdata.store.catalog import Build, describe_build

    describe_build(tmp_path, Build("t", "0" * 20, "1" * 20, [("ingest", "f")], [], [], []))
    assert {view: rows(tmp_path, f"SELECT count(*) FROM {view}") for view in VIEWS} == {view: [(0,)] for view in VIEWS}


def test_the_ledger_of_a_build(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out")
    query = (
        "SELECT key, f.fate, rule, value, threshold FROM samples JOIN fates f USING (sample_id) WHERE parent_id IS NULL"
    )
    assert sorted(rows(tmp_path / "out", query)) == [
        ("s0", "kept", None, None, None),
        ("s1", "failed", "not_an_image", None, None),
        ("s2", "failed", "missing_member", None, None),
        ("s3", "dropped", "wide", 4.0, 8.0),
        ("s4", "kept", None, None, None),
        ("s5", "kept", None, None, None),
        ("s6", "kept", None, None, None),
        ("s7", "kept", None, None, None),
        ("s8", "duplicate", "image+caption", None, None),
    ]
    assert counts(tmp_path / "out")["fates"] == {"kept": 5, "failed": 2, "dropped": 1, "duplicate": 1}
    assert sum(counts(tmp_path / "out")["children"].values()) == 7
    kept = rows(tmp_path / "out", "SELECT count(*) FROM samples WHERE fate = 'kept' AND shard IS NOT NULL")
    assert kept == rows(tmp_path / "out", "SELECT sum(samples) FROM shards")
    assert rows(tmp_path / "out", "SELECT count(*) FROM samples WHERE fate <> 'kept' AND shard IS NOT NULL") == [(0,)]
    assert rows(tmp_path / "out", "SELECT text, lang FROM members WHERE name = 'note'")[0][0] == "noted"


def test_it_is_opened_read_only(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out")
    connection = open_catalog(tmp_path / "out")
    for query in ("CREATE TABLE x (a INTEGER)", "INSERT INTO runs SELECT * FROM runs", "DROP VIEW samples"):
        with pytest.raises(sql.Error, match="read-only"):
            connection.execute(query)


def test_a_deleted_or_broken_catalog_comes_back(build: Any, tmp_path: Path) -> None:
    plan = build(tmp_path / "out")
    before = rows(tmp_path / "out", "SELECT * FROM samples ORDER BY sample_id")
    assert len(before) == 16
    path_of(tmp_path / "out").unlink()
    assert not is_fresh(tmp_path / "out", plan.selection)
    assert rows(tmp_path / "out", "SELECT * FROM samples ORDER BY sample_id") == before
    assert is_fresh(tmp_path / "out", plan.selection)
    path_of(tmp_path / "out").write_bytes(b"none")
    assert rows(tmp_path / "out", "SELECT * FROM samples ORDER BY sample_id") == before


@pytest.mark.parametrize("what", ["ALTER TABLE build DROP layout", "UPDATE main.build SET layout = 'another'"])
def test_a_catalog_of_another_version_is_made_anew(build: Any, tmp_path: Path, what: str) -> None:
    plan = build(tmp_path / "out")
    refresh(tmp_path / "out")
    connection = sql.connect(str(path_of(tmp_path / "out")))
    connection.execute("DROP VIEW pages")
    connection.execute(what)
    connection.close()
    assert not is_fresh(tmp_path / "out", plan.selection)
    assert rows(tmp_path / "out", "SELECT count(*) FROM pages") == [(0,)]
    assert is_fresh(tmp_path / "out", plan.selection)


def test_files_of_another_version_are_told_with_the_way_out(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out")
    described = json.loads((tmp_path / "out" / "build.json").read_text())
    del described["fetches"]
    (tmp_path / "out" / "build.json").write_text(json.dumps(described))
    with pytest.raises(MmdataError, match=r"another version may have written: 'fetches'; build it anew: mmdata build"):
        open_catalog(tmp_path / "out")


def test_a_build_in_which_nothing_can_be_written_is_shown_all_the_same(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "out")
    before = rows(tmp_path / "out", "SELECT * FROM samples ORDER BY sample_id")
    path_of(tmp_path / "out").unlink()

    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mmdata.store.catalog.refresh", refused)
    assert rows(tmp_path / "out", "SELECT * FROM samples ORDER BY sample_id") == before
    assert not path_of(tmp_path / "out").exists()


def test_a_moved_folder_works(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out")
    before = rows(tmp_path / "out", "SELECT * FROM members ORDER BY ALL")
    shutil.move(tmp_path / "out", tmp_path / "elsewhere's")
    assert rows(tmp_path / "elsewhere's", "SELECT * FROM members ORDER BY ALL") == before


def test_parts_appear_as_they_are_committed(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out", upto="ingest")
    all_of_them = rows(tmp_path / "out", "SELECT count(*) FROM samples")
    for path in list((tmp_path / "out/parts/ingest").glob("*.parquet"))[1:]:
        path.unlink()
    fewer = rows(tmp_path / "out", "SELECT count(*) FROM samples")
    assert (0,) < fewer[0] < all_of_them[0]
    assert rows(tmp_path / "out", "SELECT DISTINCT fate, split, shard FROM samples") == [(None, None, None)]


def test_it_can_be_read_while_another_process_writes_it(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out")
    refresh(tmp_path / "out")
    code = (
        "import sys; from pathlib import Path; from mmdata.store.catalog import refresh\n"
        "print('ready', flush=True)\nwhile True: refresh(Path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            inodes = set()
            until = time.monotonic() + 20
            while len(inodes) < 4 and time.monotonic() < until:
                inodes.add(path_of(tmp_path / "out").stat().st_mtime_ns)
                assert rows(tmp_path / "out", "SELECT count(*) FROM samples") == [(16,)]
            assert writer.poll() is None
        finally:
            writer.kill()
    assert len(inodes) >= 2


def test_a_folder_without_a_build_is_said(tmp_path: Path) -> None:
    with pytest.raises(MmdataError) as caught:
        open_catalog(tmp_path)
    expected = f"{tmp_path}: no build here (build.json is missing); give the folder that a build wrote"
    assert str(caught.value) == expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("csv", 'key,n\r\ns0,1\r\n"s""1",\r\n'),
        ("json", '[\n {"key": "s0", "n": 1},\n {"key": "s\\"1", "n": null}\n]\n'),
    ],
)
def test_answers_in_every_shape(build: Any, tmp_path: Path, shape: str, expected: str) -> None:
    build(tmp_path / "out")
    query = """SELECT * FROM (VALUES ('s0', 1), ('s"1', NULL)) AS t(key, n);"""
    run_query(tmp_path / "out", query, shape, tmp_path / "answer")
    assert (tmp_path / "answer").read_bytes().decode() == expected


def test_json_holds_what_json_can(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out")
    query = """SELECT 1 AS a, 2 AS a, 'nan'::DOUBLE AS b, ['inf'::FLOAT, 1] AS c, {'d': 'nan'::FLOAT} AS e, 0.5 AS f"""
    run_query(tmp_path / "out", query, "json", tmp_path / "answer")
    expected = {"a": 1, "a_1": 2, "b": None, "c": [None, 1.0], "e": {"d": None}, "f": 0.5}
    assert json.loads((tmp_path / "answer").read_text(), parse_constant=pytest.fail) == [expected]
    run_query(tmp_path / "out", "SELECT 1 AS a WHERE false", "json", tmp_path / "answer")
    assert json.loads((tmp_path / "answer").read_text()) == []


@pytest.mark.parametrize("shape", ["csv", "json"])
def test_a_late_row_that_cannot_be_reckoned_leaves_the_file_alone(build: Any, tmp_path: Path, shape: str) -> None:
    build(tmp_path / "out")
    (tmp_path / "answer").write_text("before")
    query = "SELECT CASE WHEN i = 500_000 THEN error('no such row') ELSE i END FROM range(600_000) AS t(i)"
    with pytest.raises(MmdataError, match="no such row"):
        run_query(tmp_path / "out", query, shape, tmp_path / "answer")
    assert (tmp_path / "answer").read_text() == "before"


def test_an_answer_as_parquet_and_as_a_table(build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    build(tmp_path / "out")
    query = "SELECT key, fate FROM samples WHERE key = 's3' AND parent_id IS NULL;"
    run_query(tmp_path / "out", query, "parquet", tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == [{"key": "s3", "fate": "dropped"}]
    run_query(tmp_path / "out", "SELECT '[red]x' AS a, 0.123456::DOUBLE AS b, NULL AS c", "table", None)
    lines = capsys.readouterr().out.splitlines()
    assert "[red]x" in lines[3]
    assert "0.1235" in lines[3]
    assert lines[-1] == "1 row"


@pytest.mark.parametrize("shape", ["csv", "json", "table", "parquet"])
@pytest.mark.parametrize("query", ["SELECT nme FROM shards", "SELEC 1", "DROP VIEW samples"])
def test_sql_that_does_not_run_is_an_error_in_words(build: Any, tmp_path: Path, shape: str, query: str) -> None:
    build(tmp_path / "out")
    with pytest.raises(MmdataError, match=r"nme|SELEC|read-only|syntax"):
        run_query(tmp_path / "out", query, shape, tmp_path / "answer")
    assert not (tmp_path / "answer").exists()


def test_a_long_query_draws_nothing_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    from mmdata.store import sql

    # DuckDB draws after two seconds; its own switch says whether it would.
    connection = sql.connect()
    assert connection.execute("SELECT current_setting('enable_progress_bar')").fetchone() == (False,)
    assert capfd.readouterr().out == ""
