"""Files that sources look into."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from mmdata.errors import PlanError
from mmdata.sample import Modality
from mmdata.steps.exchange import Place, Ref
from mmdata.store.remote import find, is_remote, version

_RANGE: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_OF_A_RANGE: Final = 1_000_000


def file_places(step: str, patterns: Sequence[str], *, remote: bool = True) -> Iterator[Place]:
    """Files of names, patterns, ranges and URLs, sorted by name: a file is known by it, wherever it lies.

    Where several have one name, they are known by their folders too. Raises PlanError where one is not there, or lies
    elsewhere and `remote` is not possible.
    """
    found: dict[str, str] = {}
    for pattern in (one for text in patterns for one in _ranged(step, text)):
        paths = _found(step, pattern, remote=remote)
        if not paths:
            raise PlanError([f"{step}: there is no file {pattern}"])
        for path in paths:
            found.setdefault(path if is_remote(path) else os.path.abspath(path), path)
    for name, whole in sorted(_told_apart(found).items()):
        yield replace(file_place(found[whole]), key=printable(name))


def _told_apart(paths: Iterable[str]) -> dict[str, str]:
    """Each path by its last parts: by one, or by as many as no other has."""
    found: dict[str, str] = {}
    left, parts = list(paths), 1
    while left:
        alike: dict[str, list[str]] = defaultdict(list)
        for path in left:
            alike["/".join(path.split("/")[-parts:])].append(path)
        found |= {name: of_it[0] for name, of_it in alike.items() if len(of_it) == 1}
        left, parts = [path for of_it in alike.values() if len(of_it) > 1 for path in of_it], parts + 1
    return found


def _found(step: str, pattern: str, *, remote: bool) -> list[str]:
    if not is_remote(pattern):
        return matching(pattern)
    if not remote:
        raise PlanError([f"{step}: {pattern}: only files of this machine are read; copy it first"])
    return find(step, pattern)


def matching(pattern: str) -> list[str]:
    """Files of this machine by their name or by a pattern, sorted; a name may look like a pattern: `data[1].csv`.

    A folder may be called like the files are; a link that leads nowhere is one of them, which cannot be read.
    """
    path = os.path.expanduser(pattern)
    found = [path] if os.path.lexists(path) else glob.iglob(path, recursive=True)
    return sorted(one for one in found if not os.path.isdir(one))


def file_place(path: str) -> Place:
    """A file as a place; its version is its size and the time it was written, or what a store calls it."""
    if is_remote(path):
        return Place(path.rpartition("/")[2], path, version(path))
    try:
        stat = os.stat(path)
    except OSError:  # whoever looks into it says so
        return Place(Path(path).name, path, "not there")
    return Place(Path(path).name, path, f"{stat.st_size}-{stat.st_mtime_ns}")


def text_ref(name: str, text: str | None, where: str, *, required: bool, lang: str | None = None) -> Ref:
    """A text that stands in the source itself; `where` is said if it is missing."""
    version = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16] if text else None
    return Ref(name, "text", None if text else where, text or None, lang, required=required, version=version)


def web_ref(name: str, modality: Modality, url: str, *, required: bool, lang: str | None = None) -> Ref:
    """What a URL names. A fragment is sent to no server: what differs in it alone is one thing, asked for once."""
    asked = url.partition("#")[0]
    version = hashlib.sha256(asked.encode()).hexdigest()[:16]
    return Ref(name, modality, asked, None, lang, required=required, version=version)


def printable(name: str) -> str:
    """The name itself; one that is not UTF-8 is shown escaped, after what no name begins with."""
    try:
        name.encode()
    except UnicodeEncodeError:
        escaped = name.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return f"//{escaped}"
    return name


def _ranged(step: str, text: str) -> Iterator[str]:
    """`{000..012}` as webdataset writes it: every number, as wide as the first."""
    match = _RANGE.search(text)
    if match is None:
        yield text
        return
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < _MOST_OF_A_RANGE:
        raise PlanError([f"{step}: the range {match[0]} is empty, or has more than {_MOST_OF_A_RANGE} numbers"])
    for number in range(first, last + 1):
        yield from _ranged(step, f"{text[: match.start()]}{number:0{len(match[1])}d}{text[match.end() :]}")
