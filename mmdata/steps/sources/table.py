"""`table`: rows of a CSV, TSV, JSONL or Parquet file name the members of a sample."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from mmdata.document import closest
from mmdata.errors import PlanError
from mmdata.sample import Modality
from mmdata.spec import Frozen, Location, Names
from mmdata.steps.base import Source
from mmdata.steps.exchange import Declared, Input, Ref
from mmdata.steps.sources.files import modality_of
from mmdata.steps.sources.places import web_ref
from mmdata.steps.sources.repeats import Repeats
from mmdata.steps.sources.rows import READERS, Rows, format_of
from mmdata.store import sql
from mmdata.store.remote import Versions, is_remote

# From what a row names to its path and version.
Locator = Callable[[str], tuple[str, str | None]]
_BAD_ROW = re.compile(r"row \d+ of .*")


class MemberColumn(Frozen):
    """The column of one member: of paths, of URLs, or of the text itself."""

    path: str | None = Field(None, description="column that holds a path, relative to root")
    url: str | None = Field(None, description="column that holds an http or https URL, which is fetched")
    text: str | None = Field(None, description="column that holds the text itself")
    values: str | None = Field(None, description="column that holds a tensor's numbers: a list, or one as JSON")
    modality: Modality | None = Field(
        None, description="of a path or URL; told by the member's name where it is a modality"
    )
    required: bool = Field(True, description="whether a row without it has failed")
    lang: str | None = Field(None, description="language of the text or speech; detected for text where not given")

    @model_validator(mode="after")
    def _one_column(self) -> MemberColumn:
        if sum(column is not None for column in (self.path, self.url, self.text, self.values)) != 1:
            raise ValueError("a member needs one of `path:`, `url:`, `text:` and `values:`, the name of a column")
        return self

    @property
    def column(self) -> str:
        """The column it reads."""
        return self.path or self.url or self.text or self.values or ""


class Table(Source):
    """Rows of a CSV, TSV, JSONL or Parquet file; other columns are carried along as attributes."""

    step: ClassVar[str] = "table"
    name: str | None = Field(None, description="names the source in every sample_id; default: table")
    file: Names = Field(
        min_length=1,
        description="the table: a file, a pattern (part-*.parquet), a URL, or several; extensions tell the format, and "
        "whether it is packed (.csv.gz, .jsonl.zst)",
    )
    root: Location | None = Field(
        None, description="folder, or its URL, that paths are relative to; default: the first file's own"
    )
    key: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="column whose value names the row, or several that do so together: `[site, id]` makes keys such as "
        "`news/17`; default: the first member's column",
    )
    columns: dict[str, MemberColumn] = Field(
        alias="members", min_length=1, description="by name: `speech: {path: file}`, `caption: {text: caption}`"
    )

    @model_validator(mode="after")
    def _readable(self) -> Table:
        suffixes = {format_of(file) for file in self.file}
        if len(suffixes) > 1 or not suffixes <= READERS.keys():
            raise ValueError(
                f"cannot tell the format of {self._called}; known: {', '.join(READERS)}, one for all files"
            )
        for name, member in self.columns.items():
            if not (member.text or member.values) and modality_of(name, member.modality) is None:
                raise ValueError(f"cannot tell the modality of '{name}'; add `modality:`")
        return self

    def identity(self) -> dict[str, Any]:
        """Where the table lies does not matter, only its rows."""
        mine = super().identity()
        for place in ("file", "root"):
            mine["params"].pop(place)
        return mine

    @property
    def _called(self) -> str:
        return ", ".join(self.file)

    @property
    def scattered(self) -> bool:
        """Where it names URLs."""
        return any(member.url for member in self.columns.values())

    def members(self) -> dict[str, Declared]:
        """One a column."""
        return {name: Declared(_kind(name, m), m.required, m.lang) for name, m in self.columns.items()}

    def inputs(self) -> Iterator[Input]:
        """Rows in the order of their keys; a key that stands twice, and a bad row, are failed inputs of their own."""
        with TemporaryDirectory() as scratch, closing(Rows(self.file, self._wanted(), Path(scratch))) as rows:
            self._check(rows.names, rows.of_bytes)
            yield from self._read(rows)

    def texts_in_keys(self) -> list[str]:
        """Columns that are texts of members and name the rows."""
        texts = {member.text for member in self.columns.values()}
        return [column for column in self._keys if column in texts]

    @property
    def _keys(self) -> list[str]:
        """The columns that name a row."""
        if self.key is None:
            return [next(iter(self.columns.values())).column]
        return [self.key] if isinstance(self.key, str) else self.key

    def _read(self, rows: Rows) -> Iterator[Input]:
        # Keys in order: a key comes before those that it begins, as `Repeats` needs it.
        key, *more = map(sql.identifier, self._keys)
        joined = f"CAST({key} AS VARCHAR) || " + " || ".join(f"'/' || CAST({one} AS VARCHAR)" for one in more)
        order = f"{joined if more else key} NULLS FIRST, {', '.join(map(sql.identifier, rows.names))}"
        fix = "" if self.key else "; `key:` names a column that tells them apart"
        repeats, located = Repeats("row", fix), self._locator()
        like_bad: set[str] = set()
        for values in rows.sorted_by(order):
            row = {name: _as_text(value) for name, value in zip(rows.names, values, strict=True)}
            found = repeats.told_apart(self._input(row, located))
            if _BAD_ROW.fullmatch(found.key):
                like_bad.add(found.key)
            yield found
        for bad in rows.bad():
            name = f"row {bad.number} of {bad.file}"
            while name in like_bad:
                name += "'"
            like_bad.add(name)
            yield Input(name, (), {}, ("bad_row", f"row {bad.number} of {bad.file}: {bad.message}"))

    def _wanted(self) -> list[str]:
        return [*(member.column for member in self.columns.values()), *(self._keys if self.key else ())]

    def _check(self, names: list[str], of_bytes: Collection[str]) -> None:
        missing = [
            f"table {self._called}: the column '{n}' holds bytes; {_FIX_BYTES}"
            if n in of_bytes
            else f"table {self._called}: no column '{n}'{_among(n, names)}"
            for n in self._wanted()
            if n not in names
        ]
        if missing:
            raise PlanError(missing)

    def _locator(self) -> Locator:
        """Worked out once: rows may be millions."""
        folder = self._folder()
        if is_remote(folder):
            return partial(_elsewhere, folder, Versions(folder))
        return partial(_located, os.path.realpath(folder) + os.sep)

    def _input(self, row: dict[str, str | None], located: Locator) -> Input:
        used = {member.column for member in self.columns.values()}
        named = [row[column] for column in self._keys]
        key = None if None in named else "/".join(map(str, named))
        attributes = {name: value for name, value in row.items() if name not in used and value is not None}
        problem = ("no_key", f"the row has no key: {row}") if key is None else None
        refs = [self._ref(name, member, row[member.column], located) for name, member in self.columns.items()]
        strange = [str(ref.url) for ref in refs if ref.version == _NO_URL]
        if strange:
            problem = ("bad_url", f"'{strange[0]}' is no http or https URL")
        outside = [ref.url for ref in refs if ref.version == _OUTSIDE]
        if outside:
            problem = ("path_outside_root", f"{outside[0]} leads out of root: {self._folder()}")
        return Input(key or "", tuple(refs), attributes, problem)

    def _ref(self, name: str, member: MemberColumn, value: str | None, located: Locator) -> Ref:
        modality = _kind(name, member)
        if member.url and value is not None:
            return _fetched(name, modality, member, value.strip())
        if value is None or member.text or member.values:
            version = None if value is None else hashlib.sha256(value.encode()).hexdigest()[:16]
            url = None if value is not None else f"column {member.column}"
            return Ref(name, modality, url, value, member.lang, required=member.required, version=version)
        path, version = located(value)
        absent = _ABSENT if version is None else None
        return Ref(name, modality, path, None, member.lang, required=member.required, version=version, problem=absent)

    def _folder(self) -> str:
        folder = self.root or (self.file[0].rpartition("/")[0] or ".")
        return folder.rstrip("/") if is_remote(folder) else str(Path(os.path.expanduser(folder)))


def _among(name: str, names: Sequence[str]) -> str:
    """The column that may be meant, and those that there are."""
    close = closest(name, names)
    others = f" and {len(names) - _SHOWN_COLUMNS} others" if len(names) > _SHOWN_COLUMNS else ""
    shown = f"has {', '.join(names[:_SHOWN_COLUMNS])}{others}"
    return f"; did you mean '{close}'? It {shown}" if close else f"; it {shown}"


def _fetched(name: str, modality: Modality, member: MemberColumn, url: str) -> Ref:
    scheme, colon, rest = url.partition("://")
    ref = web_ref(name, modality, f"{scheme.lower()}{colon}{rest}", required=member.required, lang=member.lang)
    # Anything else would be taken for a path.
    return ref if scheme.lower() in {"http", "https"} else replace(ref, version=_NO_URL)


_FIX_BYTES = (
    "files inside of Parquet are read by `huggingface: {path: parquet, data_files: [...], members: {image: column}}`"
)
_SHOWN_COLUMNS = 30
_NO_URL = "no URL"
_ABSENT = ("missing_member", "the table names it, and it is not there")
_OUTSIDE = "outside root"


def _located(root: str, value: str) -> tuple[str, str | None]:
    """The path that a row names, and its version; a table from elsewhere must not reach out of root."""
    try:
        path = os.path.realpath(os.path.join(root, value))
    except ValueError:  # a NUL is in no path
        return value, None
    if not path.startswith(root):
        return value, _OUTSIDE
    try:
        stat = os.stat(path)
    except OSError:
        return path, None
    return path, f"{stat.st_size}-{stat.st_mtime_ns}"


def _elsewhere(root: str, versions: Versions, value: str) -> tuple[str, str | None]:
    """The same of a root that is a URL."""
    if is_remote(value) or value.startswith("/") or ".." in value.split("/"):
        return value, _OUTSIDE
    return f"{root}/{value}", versions.of(value)


def _kind(name: str, member: MemberColumn) -> Modality:
    if member.values:
        return "tensor"
    return "text" if member.text else modality_of(name, member.modality) or "tensor"


def _as_text(value: Any) -> str | None:
    """Lists (what holds a tensor's numbers), objects, true and false are JSON, as DuckDB gives them where types mix."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | dict | bool):
        # Without blanks, as DuckDB gives what a line of JSON holds.
        return json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))
    return str(value)
