"""The command line as a user runs it: a process of its own, a folder of its own, its output read as text."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

# Every process that a test starts carries this, its orphans too, wherever they hang in the process tree.
_MARK = "MMDATA_E2E_RUN"
IMAGES: dict[str, Any] = {
    "files": {"name": "pictures", "root": "media", "members": {"image": "{stem}.png", "caption": "{stem}.txt"}}
}


@dataclass(frozen=True)
class Cli:
    """`mmdata` in a folder."""

    folder: Path
    env: dict[str, str]

    def spec(self, *, file: str = "pipeline.yaml", **blocks: Any) -> Path:
        """A pipeline file over `media/{stem}.png` and `.txt`, where `blocks` say nothing else."""
        value = {"name": "e2e", "sources": [IMAGES], "engine": {"workers": 2, "part_samples": 16}, **blocks}
        path = self.folder / file
        path.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return path

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start it at the head of a process group of its own."""
        command = [sys.executable, "-m", "mmdata", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def run(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run it to its end and hold it to its exit code."""
        process = self.start(*arguments)
        out, err = process.communicate()
        assert process.returncode == code, f"exit code {process.returncode}, not {code}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def build(self, *arguments: object, code: int = 0, output: str = "out") -> subprocess.CompletedProcess[str]:
        """Build `pipeline.yaml` into `output`."""
        return self.run("build", "pipeline.yaml", "--output", output, *arguments, code=code)

    def query(self, sql: str, output: str = "out") -> list[dict[str, Any]]:
        """Rows of the catalog."""
        rows: list[dict[str, Any]] = json.loads(self.run("query", output, sql, "--format", "json").stdout)
        return rows

    def processes(self) -> list[psutil.Process]:
        """What is alive of all that was started here."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self.env[_MARK] and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_for_no_process(self, seconds: float = 10) -> None:
        """Fail where something still runs after so long."""
        until = time.monotonic() + seconds
        while left := self.processes():
            assert time.monotonic() < until, f"still running: {left}"
            time.sleep(0.1)


def _cli(folder: Path) -> Cli:
    (folder / "media").mkdir(exist_ok=True)
    return Cli(folder, {**os.environ, _MARK: uuid.uuid4().hex, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"})


@pytest.fixture(scope="session")
def build_once() -> Callable[..., Cli]:
    """Build a folder's `media` into `out`: for the fixtures of a module."""

    def build(folder: Path, **blocks: Any) -> Cli:
        run = _cli(folder)
        run.spec(**blocks)
        run.build()
        return run

    return build


@pytest.fixture
def cli(tmp_path: Path):
    run = _cli(tmp_path)
    yield run
    for process in run.processes():
        process.kill()


@pytest.fixture(scope="session")
def shard_digests() -> Callable[[Path], dict[str, str]]:
    """Digest of every file of a build's data set, by name."""

    def digests(build: Path) -> dict[str, str]:
        files = sorted((build / "shards").iterdir())
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    return digests


@pytest.fixture(scope="session")
def layout() -> Callable[[Path], set[str]]:
    """Every file below a build folder but the logs, whose names are times."""

    def names(build: Path) -> set[str]:
        files = (file.relative_to(build) for file in build.rglob("*"))
        return {str(file) for file in files if file.parts[0] != "log"}

    return names


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of these starts some Python processes: on a busy machine that takes its time."""
    for item in items:
        if "e2e" in item.path.parts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1800 if item.get_closest_marker("slow") else 300))
