"""Rows of table files, by DuckDB; rows of text that cannot be parsed are told instead of ending the reading."""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import json
import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from mmdata.errors import PlanError
from mmdata.steps.sources.places import matching, printable
from mmdata.store import remote, sql

# Every line is looked at for its columns: what only later ones have would be lost. Values stay JSON, for DuckDB would
# guess: one number in a column of texts puts all others in quotes, what looks like a time is written anew, and columns
# that are two hundred, or that most lines do not have, would be one column of maps.
_OF_LINES: Final = (
    "read_json({}, format='newline_delimited', union_by_name=true, sample_size=-1, maximum_depth=1, "
    "map_inference_threshold=-1)"
)
READERS: Final = {
    # A row that begins with '#' is a row: left to its guess, DuckDB takes it for a comment, and leaves it out.
    ".csv": "read_csv({}, all_varchar=true, header=true, quote='\"', comment='', union_by_name=true)",
    ".tsv": "read_csv({}, all_varchar=true, header=true, delim='\t', quote='\"', comment='', union_by_name=true)",
    ".jsonl": _OF_LINES,
    ".ndjson": _OF_LINES,
    ".parquet": "read_parquet({}, union_by_name=true)",
}
_SEPARATED: Final = frozenset({".csv", ".tsv"})
_LINES: Final = frozenset({".jsonl", ".ndjson"})
# What DuckDB calls the one column of lines that are lists, or pieces of a file that is one value.
_NO_OBJECTS: Final = ["json"]
_FIX_LINES: Final = "write an object a line: jq -c '.[]' makes lines of a list, jq -c . of objects over several lines"
_PACKED: Final = (".gz", ".zst")
_MOST_UNPACKED: Final = 64 << 30  # a few MB may unpack to what fills a disk
_BLOCK: Final = 1 << 20
_MOST_LINE: Final = 16 << 20  # DuckDB's maximum_object_size
# RFC 4180, and nothing guessed: what is wrong in a row must not change how the others are read.
_AS_WRITTEN: Final = (
    "SELECT * FROM read_csv({file}, auto_detect=false, header=true, delim={delimiter}, quote='\"', escape='\"', "
    "columns={columns}, store_rejects=true)"
)
_BAD: Final = """
SELECT file_path, line, min(error_message), min(csv_line) FROM reject_errors JOIN reject_scans USING (scan_id, file_id)
GROUP BY file_path, line ORDER BY file_path, line
"""
_DELIMITERS: Final = ",;|\t"
_MOST_HEADER: Final = 1 << 20
_FETCH_ROWS: Final = 1000
_SORT_MEMORY: Final = "2GB"


def format_of(name: str) -> str:
    """The extension that tells the format of a table, in lower case; what packs it left out."""
    path = Path(name.lower())
    return Path(path.stem if path.suffix in _PACKED else path).suffix


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be parsed: the file's name, its line (a header's is 1) and what is wrong."""

    file: str
    number: int
    message: str


class Rows:
    """The rows of files of one format; `with` closes them.

    Attributes:
        names: of the columns.
        of_bytes: columns of Parquet that hold bytes, which no row has.
    """

    def __init__(self, called: Sequence[str], wanted: Collection[str], scratch: Path) -> None:
        """`called` are names, patterns or URLs of files that should have the columns `wanted`. Raises PlanError.

        Copies and what is sorted lie in `scratch`.
        """
        self._called = ", ".join(called)
        self._suffix = format_of(called[0])
        # A table larger than memory is sorted on the disk.
        self._connection = sql.connect(temp_directory=str(scratch), memory_limit=_SORT_MEMORY)
        # A file that several patterns name is one.
        places = dict.fromkeys(place for name in called for place in _places(name))
        self._files = [_plain(place, scratch) for place in places]
        self._scratch = scratch
        self._as_written = False
        self._broken: list[BadRow] = []
        self.of_bytes: frozenset[str] = frozenset()
        if self._suffix in _SEPARATED | _LINES and any(map(_is_utf16, self._files)):
            raise PlanError([f"table {self._called}: is UTF-16; save it as UTF-8"])
        self.names = self._names(frozenset(wanted))
        if not set(wanted) <= set(self.names) and (problem := self._no_columns()):
            raise PlanError([f"table {self._called}: {problem}"])

    def _no_columns(self) -> str | None:
        """Why a file of text has none, where that is so: what DuckDB calls the columns then is made up."""
        if self._suffix not in _SEPARATED | _LINES:
            return None
        first = next(filter(None, map(_first_line, self._files)), b"")
        if not first:
            return "is empty"
        if self._suffix in _SEPARATED or self.names != _NO_OBJECTS:
            return None
        return f"no line is a JSON object; {_FIX_LINES}" if _no_object(first) else "its objects name nothing: {}"

    def close(self) -> None:
        """Nothing is read any more."""
        self._connection.close()

    def sorted_by(self, order: str) -> Iterator[tuple[Any, ...]]:
        """All rows that can be parsed. Raises PlanError."""
        try:
            yield from self._sorted(order)
        except sql.Error as error:
            # Sorting reads everything first: nothing was given out yet.
            if self._as_written:
                raise self._unreadable(error) from None
            self._read_as_written(error)
            yield from self._sorted(order)

    def bad(self) -> Iterator[BadRow]:
        """Rows that `sorted_by` left out."""
        yield from self._broken
        if not self._as_written or self._suffix not in _SEPARATED:
            return
        for path, number, message, text in self._connection.execute(_BAD).fetchall():
            words = " ".join(f"{message} in: {text}".split())
            yield BadRow(Path(path).name, int(number), words[:300])

    def _sorted(self, order: str) -> Iterator[tuple[Any, ...]]:
        rows = self._connection.execute(f"SELECT * FROM ({self._query}) ORDER BY {order}")
        while block := rows.fetchmany(_FETCH_ROWS):
            yield from block

    def _names(self, wanted: frozenset[str]) -> list[str]:
        self._query = f"SELECT * FROM {READERS[self._suffix].format(f'[{self._listed}]')}"
        try:
            names = self._described()
        except sql.Error as error:
            self._read_as_written(error)
            return self._described()
        if self._suffix in _SEPARATED | _LINES and not wanted <= set(names):
            # Bad rows lead DuckDB's guess astray: it may take each line for one column.
            return self._better(names, wanted)
        return names

    def _better(self, names: list[str], wanted: frozenset[str]) -> list[str]:
        guessed = self._query
        with suppress(PlanError):
            self._read_as_written(sql.Error("no such columns"))
            if wanted <= set(found := self._described()):
                return found
        self._query, self._as_written, self._broken = guessed, False, []
        return names

    @property
    def _listed(self) -> str:
        return ", ".join(map(_exactly, self._files))

    def _described(self) -> list[str]:
        """The names of the columns; from now on a value that was JSON is its text, without quotes where it is one.

        Columns of bytes are left out: whatever they hold is no text.
        """
        columns = self._connection.execute(f"DESCRIBE {self._query}").fetchall()
        if of_bytes := [column[0] for column in columns if "BLOB" in column[1]]:
            self.of_bytes = frozenset(of_bytes)
            columns = [column for column in columns if column[0] not in self.of_bytes]
            names = ", ".join(map(sql.identifier, of_bytes))
            self._query = f"SELECT * EXCLUDE ({names}) FROM ({self._query})"
        if any(column[1] == "JSON" for column in columns):
            texts = ", ".join(f"{c} ->> '$' AS {c}" for c in (sql.identifier(column[0]) for column in columns))
            self._query = f"SELECT {texts} FROM ({self._query})"
        return [column[0] for column in columns]

    def _read_as_written(self, why: sql.Error) -> None:
        """From now on by the columns of each header, or without the broken lines; raises PlanError where that fails."""
        if self._suffix not in _SEPARATED | _LINES:
            raise self._unreadable(why) from None
        self._as_written = True
        try:
            if self._suffix in _LINES:
                sifted = ", ".join(sql.quoted(str(self._sift(n, Path(file)))) for n, file in enumerate(self._files))
                self._query = f"SELECT * FROM {_OF_LINES.format(f'[{sifted}]')}"
            else:
                self._query = " UNION ALL BY NAME ".join(map(self._one, self._files))
            self._described()
        except (sql.Error, OSError, csv.Error, ValueError):
            raise self._unreadable(why) from None

    def _one(self, file: str) -> str:
        with Path(file).open("rb") as lines:
            header = lines.readline(_MOST_HEADER).decode("utf-8-sig")
        delimiter = "\t" if self._suffix == ".tsv" else max(_DELIMITERS, key=header.count)
        names = next(csv.reader([header], delimiter=delimiter, strict=True), [])
        if not names or len(set(names)) < len(names):
            raise ValueError("no header, or a name twice")
        columns = "{" + ", ".join(f"{sql.quoted(name)}: 'VARCHAR'" for name in names) + "}"
        return _AS_WRITTEN.format(file=_exactly(file), delimiter=sql.quoted(delimiter), columns=columns)

    def _sift(self, number: int, file: Path) -> Path:
        """A copy without the lines that are no JSON object, which are noted. Raises OSError."""
        copy = self._scratch / f"sifted-{number}{self._suffix}"
        with file.open("rb") as lines, copy.open("wb") as kept:
            for at, line in enumerate(_bounded(lines), 1):
                if problem := _no_object(line):
                    shown = line[:200].decode("utf-8", "replace")
                    self._broken.append(BadRow(file.name, at, " ".join(f"{problem} in: {shown}".split())[:300]))
                elif line.strip():
                    kept.write(line.removeprefix(codecs.BOM_UTF8).rstrip() + b"\n")
        return copy

    def _unreadable(self, error: Exception) -> PlanError:
        return PlanError([f"table {self._called}: cannot be read: {str(error).splitlines()[0]}"])


def _exactly(path: str) -> str:
    """A literal of the path of this one file: DuckDB takes every path for a pattern, `[1]` in a name for a `1`."""
    return sql.quoted(glob.escape(path))


def _first_line(file: str) -> bytes:
    """The first that is not blank; empty where there is none."""
    with Path(file).open("rb") as lines:
        return next((line for line in _bounded(lines) if line.removeprefix(codecs.BOM_UTF8).strip()), b"")


def _is_utf16(file: str) -> bool:
    try:
        with Path(file).open("rb") as opened:
            return opened.read(2) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}
    except OSError:
        return False


def _bounded(lines: BinaryIO) -> Iterator[bytes]:
    """Lines; of one that is longer than any row may be only the beginning."""
    while line := lines.readline(_MOST_LINE + 1):
        yield line
        while len(line) > _MOST_LINE and not line.endswith(b"\n"):
            line = lines.readline(_MOST_LINE + 1)


def _no_object(line: bytes) -> str | None:
    """What is wrong with a line; nothing with an empty one."""
    if len(line) > _MOST_LINE:
        return f"longer than {_MOST_LINE} bytes"
    if not line.strip():
        return None
    try:
        # A byte order mark opens files of some editors.
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object)
        # Half of a surrogate pair can be written in JSON, and is no text.
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    return None if isinstance(row, dict) else "no JSON object"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _places(name: str) -> list[str]:
    """Paths or URLs of a name or a pattern. Raises PlanError."""
    if remote.is_remote(name):
        found = remote.find("table", name)
    else:
        found = matching(name)
        for one in found:
            if printable(one) != one:
                raise PlanError([f"table {printable(one)}: its name is not UTF-8; rename it"])
            if not os.path.isfile(one):
                raise PlanError([f"table {one}: cannot be read: it is no plain file"])
    if not found:
        raise PlanError([f"table: there is no file {name}"])
    return found


def _plain(place: str, scratch: Path) -> str:
    """A file of this machine: itself, or a copy of what is elsewhere or packed. Raises PlanError."""
    path = Path(place)
    if remote.is_remote(place):
        path = _new_folder(scratch) / place.rpartition("/")[2]
        with path.open("wb") as file:
            remote.copy_to(place, file)
    return str(_unpacked(path, _new_folder(scratch)) if path.suffix.lower() in _PACKED else path)


def _new_folder(scratch: Path) -> Path:
    folder = scratch / str(len(list(scratch.iterdir())))
    folder.mkdir()
    return folder


def _unpacking(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    # Most plans need no pyarrow.
    import pyarrow as pa

    return pa.input_stream(str(path), compression="zstd")


def _unpacked(path: Path, folder: Path) -> Path:
    copy = folder / path.stem
    try:
        with _unpacking(path) as packed, copy.open("wb") as file:
            while block := packed.read(_BLOCK):
                if file.tell() + len(block) > _MOST_UNPACKED:
                    raise PlanError([f"table {path}: unpacks to more than {_MOST_UNPACKED} bytes; unpack it first"])
                file.write(block)
    except (OSError, EOFError, zlib.error) as error:
        raise PlanError([f"table {path}: cannot be unpacked: {error}"]) from None
    return copy
