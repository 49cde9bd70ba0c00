"""What a build folder holds that its build does not need: parts of an earlier list, or of other parameters."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmdata.errors import MmdataError
from mmdata.store.files import locked
from mmdata.store.versions import keep_names

# What servers said, and what was found in files: to ask again costs others something, or much reading.
_ASKED: Final = frozenset({"fetch", "look"})


@dataclass(frozen=True)
class Unneeded:
    """Files of one kind that no plan names any more.

    Attributes:
        kind: the label of their step, or `crawl`.
        paths: files and folders.
        bytes: that they take.
        asked: whether servers would have to be asked again for what they hold.
    """

    kind: str
    paths: tuple[Path, ...]
    bytes: int
    asked: bool


def unneeded(output: Path) -> list[Unneeded]:
    """All of it, by kind. Raises MmdataError where `output` holds no build."""
    needed = _needed(output)
    found = []
    for folder in sorted(_folders(output / "parts")):
        mine = needed.get(folder.name, set())
        if folder.name == "look" and "look" not in needed:
            continue  # of a version that did not note which it needs
        paths = tuple(path for path in sorted(folder.iterdir()) if path.name.partition(".")[0] not in mine)
        found.append(Unneeded(folder.name, paths, sum(map(_size, paths)), folder.name in _ASKED))
    if "crawl" in needed:
        paths = tuple(path for path in sorted(_folders(output / "crawl")) if path.name not in needed["crawl"])
        found.append(Unneeded("crawl", paths, sum(map(_size, paths)), True))
    return [one for one in found if one.paths]


def remove(output: Path, *, asked: bool) -> list[Unneeded]:
    """Remove it, with what servers said only if `asked`; returns what is gone.

    Raises MmdataError, FatalError while a build runs there.
    """
    with locked(output):
        gone = [one for one in unneeded(output) if asked or not one.asked]
        keep_names(output, {path for one in gone for path in one.paths})
        for one in gone:
            # The Parquet is the commit: without it a tar that a crash leaves is nothing.
            for path in sorted(one.paths, key=lambda path: path.suffix != ".parquet"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in _folders(output / "parts"):
            if not any(folder.iterdir()):
                folder.rmdir()
    return gone


def _needed(output: Path) -> dict[str, set[str]]:
    """Fingerprints by label, as build.json has them."""
    try:
        build: dict[str, Any] = json.loads((output / "build.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MmdataError(f"{output}: no build here (build.json is missing)") from None
    found: dict[str, set[str]] = {}
    for key in ("base", "scores", "fetches", "retried", "links", "looked"):
        for label, part in build.get(key) or ():
            found.setdefault(label, set()).add(part)
    if "looked" in build:
        found.setdefault("look", set())
        found["crawl"] = set(build["crawls"])
    return found


def _folders(folder: Path) -> Iterator[Path]:
    try:
        entries: Iterable[os.DirEntry[str]] = list(os.scandir(folder))
    except FileNotFoundError:
        return
    yield from (Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
