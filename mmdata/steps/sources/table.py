"""`table`: rows of a CSV, TSV, JSONL or Parquet file name the members of a sample."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from mmdata.errors import PlanError
from mmdata.sample import Modality
from mmdata.spec import Frozen, nearest
from mmdata.steps.base import Declared, Input, Ref, Source
from mmdata.steps.sources.files import modality_of
from mmdata.store import sql

_READERS = {
    ".csv": "read_csv({}, all_varchar=true, header=true)",
    ".tsv": "read_csv({}, all_varchar=true, header=true, delim='\t')",
    ".jsonl": "read_json({}, format='newline_delimited')",
    ".ndjson": "read_json({}, format='newline_delimited')",
    ".parquet": "read_parquet({})",
}
_FETCH_ROWS = 1000


class MemberColumn(Frozen):
    """The column of one member: of paths, or of the text itself."""

    path: str | None = Field(None, description="column that holds a path, relative to root")
    text: str | None = Field(None, description="column that holds the text itself")
    modality: Modality | None = Field(None, description="of a path; told by the member's name where it is a modality")
    required: bool = Field(True, description="whether a row without it has failed")
    lang: str | None = Field(None, description="language of the text or speech; detected for text where not given")

    @model_validator(mode="after")
    def _one_column(self) -> MemberColumn:
        if (self.path is None) == (self.text is None):
            raise ValueError("a member needs either `path:` or `text:`, the name of a column")
        return self

    @property
    def column(self) -> str:
        """The column it reads."""
        return self.path or self.text or ""


class Table(Source):
    """Rows of a CSV, TSV, JSONL or Parquet file; other columns are carried along as attributes."""

    step: ClassVar[str] = "table"
    name: str | None = Field(None, description="names the source in every sample_id; default: table")
    file: Path = Field(description="the table; its extension tells the format")
    root: Path | None = Field(None, description="folder that paths are relative to; default: the table's own folder")
    key: str | None = Field(None, description="column whose value names the row; default: the first member's column")
    columns: dict[str, MemberColumn] = Field(
        alias="members", min_length=1, description="by name: `speech: {path: file}`, `caption: {text: caption}`"
    )

    @model_validator(mode="after")
    def _readable(self) -> Table:
        if self.file.suffix not in _READERS:
            raise ValueError(f"cannot tell the format of '{self.file.name}'; known: {', '.join(_READERS)}")
        for name, member in self.columns.items():
            if member.path and modality_of(name, member.modality) is None:
                raise ValueError(f"cannot tell the modality of '{name}'; add `modality:`")
        return self

    def identity(self) -> dict[str, Any]:
        """Where the table lies does not matter, only its rows."""
        mine = super().identity()
        for place in ("file", "root"):
            mine["params"].pop(place)
        return mine

    def members(self) -> dict[str, Declared]:
        """One a column."""
        return {name: Declared(_kind(name, m), m.required, m.lang) for name, m in self.columns.items()}

    def inputs(self) -> Iterator[Input]:
        """Rows in the order of their keys; a key that stands twice is a failed input of its own."""
        connection = sql.connect()
        names = self._names(connection)
        key = sql.identifier(self.key or next(iter(self.columns.values())).column)
        # Keys in order: a key comes before those that it begins, as `_Repeats` needs it.
        order = f"{key} NULLS FIRST, {', '.join(map(sql.identifier, names))}"
        repeats = _Repeats()
        for values in self._rows(connection, f"SELECT * FROM {self._reader()} ORDER BY {order}"):
            row = {name: None if value is None else str(value) for name, value in zip(names, values, strict=True)}
            yield repeats.told_apart(self._input(row))

    def _rows(self, connection: Any, query: str) -> Iterator[tuple[Any, ...]]:
        try:
            rows = connection.execute(query)
            while block := rows.fetchmany(_FETCH_ROWS):
                yield from block
        except sql.Error as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> PlanError:
        return PlanError([f"table {self.file}: cannot be read: {str(error).splitlines()[0]}"])

    def _reader(self) -> str:
        return _READERS[self.file.suffix].format(sql.quoted(str(self.file.expanduser())))

    def _names(self, connection: Any) -> list[str]:
        try:
            names = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {self._reader()}").fetchall()]
        except sql.Error as error:
            raise self._unreadable(error) from None
        wanted = [member.column for member in self.columns.values()] + ([self.key] if self.key else [])
        missing = [f"table {self.file}: no column '{n}'{nearest(n, names)}" for n in wanted if n not in names]
        if missing:
            raise PlanError(missing)
        return names

    def _input(self, row: dict[str, str | None]) -> Input:
        used = {member.column for member in self.columns.values()}
        key = row[self.key or next(iter(self.columns.values())).column]
        attributes = {name: value for name, value in row.items() if name not in used and value is not None}
        problem = ("no_key", f"the row has no key: {row}") if key is None else None
        refs = [self._ref(name, member, row[member.column]) for name, member in self.columns.items()]
        outside = [ref.url for ref in refs if ref.version == _OUTSIDE]
        if outside:
            problem = ("path_outside_root", f"{outside[0]} leads out of root: {self._folder()}")
        return Input(key or "", tuple(refs), attributes, problem)

    def _ref(self, name: str, member: MemberColumn, value: str | None) -> Ref:
        modality = _kind(name, member)
        if value is None or member.text:
            version = None if value is None else hashlib.sha256(value.encode()).hexdigest()[:16]
            url = None if value is not None else f"column {member.column}"
            return Ref(name, modality, url, value, member.lang, required=member.required, version=version)
        path, version = _located(self._folder(), value)
        return Ref(name, modality, path, None, member.lang, required=member.required, version=version)

    def _folder(self) -> Path:
        return (self.root or self.file.parent).expanduser()


_OUTSIDE = "outside root"


def _located(root: Path, value: str) -> tuple[str, str | None]:
    """The path that a row names, and its version; a table from elsewhere must not reach out of root."""
    try:
        path = os.path.realpath(root / value)
    except ValueError:  # a NUL is in no path
        return value, None
    if not path.startswith(os.path.realpath(root) + os.sep):
        return value, _OUTSIDE
    try:
        stat = os.stat(path)
    except OSError:
        return path, None
    return path, f"{stat.st_size}-{stat.st_mtime_ns}"


class _Repeats:
    """Tells rows of one key apart, `key#2` and so on, also from rows whose key is written like that."""

    def __init__(self) -> None:
        self._seen: str | None = None
        self._times: dict[str, int] = {}

    def told_apart(self, found: Input) -> Input:
        if found.key != self._seen and not self._is_made_up(found.key):
            self._seen = found.key
            return found
        times = self._times[found.key] = self._times.get(found.key, 1) + 1
        problem = ("duplicate_key", f"row {times} with the key '{found.key}'")
        return Input(f"{found.key}#{times}", (), found.attributes, problem)

    def _is_made_up(self, key: str) -> bool:
        repeated, _, number = key.rpartition("#")
        return number.isdecimal() and repeated in self._times and int(number) <= self._times[repeated]


def _kind(name: str, member: MemberColumn) -> Modality:
    return "text" if member.text else modality_of(name, member.modality) or "tensor"
