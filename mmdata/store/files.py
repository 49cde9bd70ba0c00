"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRATCH_MARK = ".partial-"


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


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    with appearing(path) as scratch:
        scratch.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def sweep_scratch(folder: Path, shared: str = "") -> None:
    """Remove what a killed build left half-written below `folder`; what is of this process stays.

    The file `shared` other processes write too (a query makes the catalog anew): that of a living one stays.
    """
    for path in folder.rglob(f"*{SCRATCH_MARK}*"):
        name, _, pid = path.name.rpartition(SCRATCH_MARK)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif pid != str(os.getpid()) and not (name == shared and _is_alive(pid)):
            path.unlink(missing_ok=True)


def _is_alive(pid: str) -> bool:
    import psutil

    try:
        # A process that was killed and that nobody has waited for is still in the list.
        return pid.isdecimal() and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
