from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mmdata.errors import FatalError, MmdataError
from mmdata.store import catalog
from mmdata.store.clean import remove, unneeded
from mmdata.store.files import locked

BUILD: dict[str, Any] = {
    "base": [["ingest", "a"], ["joint", "b"]],
    "scores": [["clip", "c"]],
    "fetches": [["fetch", "d"]],
    "retried": [["ingest", "e"]],
    "links": [["alike", "f"]],
    "looked": [["look", "g"]],
    "crawls": ["web-1"],
}
NEEDED = [
    *("ingest/a.parquet", "ingest/a.tar", "ingest/e.tar", "joint/b.tar", "clip/c.parquet"),
    *("clip/c.image.vectors.parquet", "fetch/d.tar", "alike/f.parquet", "look/g.parquet"),
]
OLD = ["ingest/x.parquet", "ingest/x.tar", "gone/y.parquet", "clip/z.image.vectors.parquet"]
ASKED = ["fetch/w.parquet", "fetch/w.tar", "look/v.parquet"]


@pytest.fixture
def build(tmp_path: Path) -> Path:
    (tmp_path / "build.json").write_text(json.dumps(BUILD))
    for name in [*NEEDED, *OLD, *ASKED]:
        path = tmp_path / "parts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
    for name in ("web-1", "web-2"):
        (tmp_path / "crawl" / name).mkdir(parents=True)
        (tmp_path / "crawl" / name / "pages.warc.gz").write_bytes(bytes(500))
    return tmp_path


def there(build: Path) -> set[str]:
    return {str(path.relative_to(build / "parts")) for path in (build / "parts").rglob("*") if path.is_file()}


def test_what_no_plan_names_is_told_by_kind_with_its_bytes(build: Path):
    found = {one.kind: (len(one.paths), one.bytes, one.asked) for one in unneeded(build)}
    assert found == {
        "ingest": (2, 2000, False),
        "gone": (1, 1000, False),
        "clip": (1, 1000, False),
        "fetch": (2, 2000, True),
        "look": (1, 1000, True),
        "crawl": (1, 500, True),
    }
    assert there(build) == {*NEEDED, *OLD, *ASKED}


def test_what_servers_said_stays_unless_it_is_meant(build: Path):
    assert {one.kind for one in remove(build, asked=False)} == {"ingest", "gone", "clip"}
    assert there(build) == {*NEEDED, *ASKED}
    assert not (build / "parts" / "gone").exists()
    assert {one.kind for one in remove(build, asked=True)} == {"fetch", "look", "crawl"}
    assert there(build) == set(NEEDED)
    assert [path.name for path in (build / "crawl").iterdir()] == ["web-1"]
    assert remove(build, asked=True) == []


def test_a_build_that_did_not_note_what_it_found_keeps_all_of_that(build: Path):
    older = {key: value for key, value in BUILD.items() if key not in {"looked", "crawls"}}
    (build / "build.json").write_text(json.dumps(older))
    assert {one.kind for one in remove(build, asked=True)} == {"ingest", "gone", "clip", "fetch"}
    assert {"look/g.parquet", "look/v.parquet"} <= there(build)
    assert (build / "crawl" / "web-2").exists()


def test_nothing_goes_where_a_build_runs_or_none_is(build: Path, tmp_path: Path):
    with locked(build), pytest.raises(FatalError):
        remove(build, asked=True)
    assert there(build) == {*NEEDED, *OLD, *ASKED}
    (build / "build.json").unlink()
    with pytest.raises(MmdataError, match="no build here"):
        remove(build, asked=False)


@pytest.mark.parametrize(
    ("run", "status"),
    [
        ({"status": "done", "pid": 10**9}, "done"),
        ({"status": "running", "pid": 10**9}, "killed"),
        ({"status": "running", "pid": os.getpid()}, "running"),
        # The number was given to another process since.
        ({"status": "running", "pid": os.getpid(), "started": 1.0}, "killed"),
        # Of another machine nothing is known here.
        ({"status": "running", "pid": 10**9, "host": "elsewhere"}, "running"),
    ],
)
def test_a_run_whose_process_is_gone_was_killed(run: dict[str, Any], status: str):
    record = {"run_id": f"20261125T000000-{run.pop('pid')}", "started": time.time(), **run}
    assert catalog._status({"run": record}) == status
