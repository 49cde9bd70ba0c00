"""Files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmdata.errors import FatalError

SCRATCH_MARK = ".partial-"


def make_folder(folder: Path) -> None:
    """Make a folder that somebody has named, with those above it. Raises FatalError where nothing can be put there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FatalError(f"{folder}: cannot be made a folder: {error.strerror}; name another") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FatalError(f"{folder}: nothing can be written there; name another")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One at a time builds in a folder or cleans it; the lock goes with the process. Raises FatalError."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FatalError(
                f"{folder}: another build runs here; wait for it, or give this one its own --output"
            ) from None
        yield


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A scratch path that becomes `path`, flushed to the disk, when the block ends well, and vanishes when it does not.

    A crash leaves at worst a file with `.partial-` in its name, which `sweep_scratch` removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}{SCRATCH_MARK}{os.getpid()}")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, sort_keys: bool = True) -> None:
    """Write JSON, with sorted keys where their order says nothing, whole or not at all."""
    with appearing(path) as scratch:
        text = json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False)
        scratch.write_text(text + "\n", encoding="utf-8")


def sweep_scratch(folder: Path, shared: str = "") -> None:
    """Remove what a killed build left half-written below `folder`; what is of this process stays.

    The file `shared` other processes write too (a query makes the catalog anew): that of a living one stays.
    """
    for path in folder.rglob(f"*{SCRATCH_MARK}*"):
        name, _, pid = path.name.rpartition(SCRATCH_MARK)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif pid != str(os.getpid()) and not (name == shared and is_alive(pid)):
            path.unlink(missing_ok=True)


def is_alive(pid: str, since: float = float("inf")) -> bool:
    """Whether a process lives, and lived at a time already: numbers are given again."""
    import psutil

    try:
        process = psutil.Process(int(pid)) if pid.isdecimal() else None
        # A process that was killed and that nobody has waited for is still in the list.
        return process is not None and process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= since
    except psutil.Error:
        return False


def keep_only(wanted: Path) -> None:
    """Remove what stands beside a folder: tables that no longer hold, and can be made again."""
    for folder in wanted.parent.iterdir():
        if folder != wanted:
            shutil.rmtree(folder, ignore_errors=True)
