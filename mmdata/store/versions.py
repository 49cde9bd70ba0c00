"""What a build decided, and by which file: each decision is a version, kept when the next one is made.

`decided/<fingerprint>/version.json` says which pipeline file was decided by, when, and over which inputs; beside it lie
the fates and places. Of versions before the current one only these are kept, and only so many.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mmdata import __version__
from mmdata.errors import MmdataError
from mmdata.store import sql
from mmdata.store.files import appearing, write_json
from mmdata.store.sql import parquet

_FILE: Final = "version.json"
# What samples are called whose parts were removed.
_NAMES: Final = "names.parquet"
_NO_NAMES: Final = "SELECT NULL::VARCHAR AS sample_id, NULL::VARCHAR AS source, NULL::VARCHAR AS key WHERE false"
# Some megabytes a million samples each.
_KEPT: Final = 10
# What only writing needs. The first is what says that a decision is whole, so it goes first.
_FOR_WRITING: Final = ("shards.json", "selection.parquet")


@dataclass(frozen=True)
class Version:
    """One decision of a build.

    Attributes:
        number: counted from 1 in the build's folder.
        name: of the pipeline.
        decided: when, UTC.
        gathering: fingerprint of the wide rows that were decided over.
        inputs: how many there were.
        parts: (label, fingerprint) of the base parts.
        spec: values of the pipeline file, variables filled in and overrides applied.
        mmdata: the version of this package.
    """

    number: int
    name: str
    decided: str
    gathering: str
    inputs: int
    parts: list[tuple[str, str]]
    spec: Any
    mmdata: str = __version__


@dataclass(frozen=True)
class Kept:
    """A version and where it lies.

    Attributes:
        build: the build's folder.
        folder: of the decisions.
        version: what was noted of them.
    """

    build: Path
    folder: Path
    version: Version

    @property
    def title(self) -> str:
        """`builds/stamps@3`."""
        return f"{self.build}@{self.version.number}"

    @property
    def parts(self) -> list[Path]:
        """The base parts that are still there."""
        paths = (self.build / "parts" / label / f"{part}.parquet" for label, part in self.version.parts)
        return [path for path in paths if path.exists()]

    @property
    def names(self) -> str:
        """A query of what its samples are called: (sample_id, source, key)."""
        kept = self.folder / _NAMES
        files = [*self.parts, *([kept] if kept.exists() else [])]
        return f"SELECT DISTINCT sample_id, source, key FROM {parquet(files)}" if files else _NO_NAMES

    @property
    def fates(self) -> Path:
        """(sample_id, fate, step, rule, value, threshold, detail)."""
        return self.folder / "fates.parquet"

    @property
    def places(self) -> Path:
        """(sample_id, group_id, split)."""
        return self.folder / "places.parquet"


def note_version(folder: Path, decided: Path, version: Version) -> None:
    """Write the version of decisions in `folder`; to be renamed to `decided`; its number follows those beside that."""
    number = 1 + max((kept.version.number for kept in iter_versions(decided.parents[1])), default=0)
    noted = {**json.loads(json.dumps(asdict(version), default=str)), "number": number}
    # As the file has them: the first of several rules is named, and shares lie side by side in their order.
    write_json(folder / _FILE, noted, sort_keys=False)


def now() -> str:
    """The time, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def iter_versions(build: Path) -> Iterator[Kept]:
    """The versions of a build, oldest first."""
    found = [_read(build, path) for path in (build / "decided").glob(f"*/{_FILE}")]
    yield from sorted(found, key=lambda kept: kept.version.number)


def open_version(named: str) -> Kept:
    """The version that `BUILD` (the current one) or `BUILD@NUMBER` names. Raises MmdataError."""
    build, _, number = named.rpartition("@")
    if Path(named).is_dir() or not (build and number.isdecimal()):
        return _current(Path(named))
    versions = {kept.version.number: kept for kept in iter_versions(Path(build))}
    if int(number) in versions:
        return versions[int(number)]
    if not versions:
        raise MmdataError(f"{build}: no version {number}; it has none")
    now = f"{build} is {_current(Path(build)).version.number}"
    raise MmdataError(f"{build}: no version {number}; it has {', '.join(map(str, versions))}, and {now}")


def keep_names(build: Path, going: Collection[Path]) -> None:
    """Before parts go: keep what the samples of versions that were decided over them are called, for `mmdata diff`."""
    for kept in iter_versions(build):
        if set(kept.parts).isdisjoint(going):
            continue
        with appearing(kept.folder / _NAMES) as scratch, sql.connect() as connection:
            sql.write_query(connection, kept.names, scratch)


def prune_versions(decided: Path) -> None:
    """Keep of the decisions beside `decided` what they decided, of so many; the rest can be made again."""
    others = [kept for kept in iter_versions(decided.parents[1]) if kept.folder != decided]
    keep = {kept.folder for kept in others[-(_KEPT - 1) :]}
    for folder in decided.parent.iterdir():
        if folder in keep:
            for name in _FOR_WRITING:
                (folder / name).unlink(missing_ok=True)
        elif folder != decided:
            shutil.rmtree(folder, ignore_errors=True)


def before(decided: Path) -> Kept | None:
    """The version before that of `decided`, whether or not this is made yet."""
    others = [kept for kept in iter_versions(decided.parents[1]) if kept.folder != decided]
    return others[-1] if others else None


def _current(build: Path) -> Kept:
    try:
        described = json.loads((build / "build.json").read_text(encoding="utf-8"))
        return _read(build, build / "decided" / described["selection"] / _FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        fix = "give a folder that a build wrote to its end" if build.is_dir() else "there is no such folder"
        if versions := list(iter_versions(build)):
            fix = f"the last build did not come to its end; what was decided before: {versions[-1].title}"
        raise MmdataError(f"{build}: nothing decided here ({Path(error.filename).name} is missing); {fix}") from None


def _read(build: Path, path: Path) -> Kept:
    return Kept(build, path.parent, Version(**json.loads(path.read_text(encoding="utf-8"))))
