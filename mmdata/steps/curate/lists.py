"""Lists out of files, for rules that allow or deny what they name: ids, keys, digests, texts, hosts, domains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mmdata.document import nearest
from mmdata.errors import FatalError
from mmdata.store.curation import Curation
from mmdata.store.sql import identifier

if TYPE_CHECKING:
    import pyarrow as pa

Match = Literal["exact", "text", "words", "host", "domain"]

# Digests of ten million samples are 650 MB; what is larger is no list.
_MAX_BYTES: Final = 1 << 30
_BLOCK_CHARS: Final = 1 << 20
_SUFFIXES: Final = (".txt", ".csv", ".tsv", ".parquet")
# RFC 3986, 3.2: the authority is between `//` and the next `/`, `?` or `#`; the host is after `@` and before `:port`.
_HOST: Final = r"^[a-z][a-z0-9+.-]*://(?:[^/?#]*@)?(\[[^\]]*\]|[^/?#:@]+)"
# RFC 5890, 2.3.1: a label of another script, as it is read, and as the name service has it.
_SPELT_TWICE: Final = r"[^\x00-\x7f]|(^|\.)xn--"
# Where no blanks stand between words, a character is one, and terms of two are what most words are.
_ALONE: Final = r"([\p{Han}\p{Hiragana}\p{Katakana}])"
_WORD: Final = r"[\p{L}\p{M}\p{Nd}]+"


def digest(file: Path) -> str:
    """What changes when the list does. Raises OSError."""
    with file.expanduser().open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_list(file: Path, column: str | None) -> None:
    """Raises ValueError for a file that is no list: it is not there, too large, not UTF-8, or has no such column."""
    path = file.expanduser()
    if _format(path) not in _SUFFIXES:
        raise ValueError(f"{file}: cannot tell the format; known: {', '.join(_SUFFIXES)}")
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(f"{file}: {size} bytes; a list has at most {_MAX_BYTES}")
        if _format(path) != ".parquet":
            _check_encoding(path)
        columns = _columns(path)
    except OSError as error:
        # `mmdata whatif` asks for the lists of a build that may have run somewhere else.
        where = "" if path.is_absolute() else f" in {Path.cwd()}, where mmdata runs"
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}{where}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 ({error.reason}); save it as UTF-8") from None
    if not columns:
        raise ValueError(f"{file}: is empty; the first line of a table names its columns")
    if column is None and len(columns) > 1:
        raise ValueError(f"{file}: has {len(columns)} columns; say which with `column:`, one of {', '.join(columns)}")
    if column is not None and column not in columns:
        raise ValueError(f"{file}: has no column '{column}'{nearest(column, columns)}")


def load_list(curation: Curation, files: Iterable[Path], column: str | None, match: Match, table: str) -> None:
    """A temporary table `entry` of the distinct entries of all files, in the form that `comparable` gives values.

    A host that is not all ASCII is there in both of its spellings: `münchen.de`, `xn--mnchen-3ya.de` (RFC 5891).
    Raises FatalError where a file was taken away since the plan.
    """
    import numpy as np

    run = curation.connection.execute
    run(f"CREATE OR REPLACE TEMP TABLE {identifier(table)} (entry VARCHAR)")
    for file in files:
        try:
            entries = _entries(file.expanduser(), column)
        except (OSError, ValueError) as error:
            raise FatalError(f"the list {file} cannot be read: {error}") from None
        # The compiled module takes no Arrow without DuckDB's Python layer; an array of objects it does.
        values: Any = {"entry": np.array(entries.to_pylist(), dtype=object)}
        curation.connection.register("listed", values)
        run(
            f"INSERT INTO {identifier(table)} SELECT entry FROM "
            f"(SELECT {comparable('entry', match, of_list=True)} AS entry FROM listed) WHERE entry <> '' "
            f"EXCEPT SELECT entry FROM {identifier(table)}"
        )
        curation.connection.unregister("listed")
    if match in ("host", "domain"):
        rows = run(f"SELECT entry FROM {identifier(table)} WHERE regexp_matches(entry, '{_SPELT_TWICE}')").fetchall()
        listed = {host for (host,) in rows}
        others = {spelling for host in listed for spelling in _spellings(host)} - listed
        run(f"INSERT INTO {identifier(table)} SELECT unnest($others)", {"others": sorted(others)})


def _spellings(host: str) -> tuple[str, ...]:
    """Of a name both: as it is read, and as the name service has it; of what can be no name nothing."""
    from yarl import URL

    try:
        url = URL.build(scheme="http", host=host)
        return str(url.host), str(url.raw_host)
    except ValueError:
        return ()


def comparable(value: str, match: Match, *, of_list: bool = False) -> str:
    """SQL of the form in which a value is compared.

    `text`: NFC, lower case, runs of white space are one. `words`: see `words`, with a blank between them. `host` and
    `domain`: of a URL, or of what is a bare host in a list; NFC, lower case, without the last dot.
    """
    if match == "exact":
        return f"trim({value})" if of_list else value
    if match == "text":
        return f"trim(regexp_replace(lower(nfc_normalize({value})), '\\s+', ' ', 'g'))"
    if match == "words":
        return f"array_to_string({words(value)}, ' ')"
    text = f"lower(nfc_normalize(trim({value})))"
    host = f"regexp_extract({text}, '{_HOST}', 1)"
    if of_list:
        bare = f"regexp_extract({text}, '^(?:\\*\\.)?([^/?#:]+)', 1)"
        host = f"CASE WHEN contains({value}, '://') THEN {host} ELSE {bare} END"
    return f"rtrim({host}, '.')"


def words(text: str) -> str:
    """SQL of the words of a text, in lower case: runs of letters, marks and digits; of Chinese, each character."""
    apart = f"regexp_replace(lower(nfc_normalize({text})), '{_ALONE}', ' \\1 ', 'g')"
    return f"regexp_extract_all({apart}, '{_WORD}')"


def suffixes(host: str) -> str:
    """SQL of the domains that a host is in, itself included: `[a.b.org, b.org, org]`."""
    labels = f"string_split({host}, '.')"
    return f"list_transform(range(1, len({labels}) + 1), lambda n: array_to_string({labels}[n:], '.'))"


def _check_encoding(path: Path) -> None:
    """Raises UnicodeDecodeError now, not when all else is done."""
    with path.open(encoding="utf-8-sig") as file:
        while file.read(_BLOCK_CHARS):
            pass


def _columns(path: Path) -> list[str]:
    if _format(path) == ".txt":
        with path.open("rb"):
            return ["entry"]
    if _format(path) == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(path).names)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: is no Parquet file: {error}") from None
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file, delimiter=_delimiter(path)), [])


def _entries(path: Path, column: str | None) -> pa.ChunkedArray:
    """The entries as texts: of a `.txt` its lines, of a table one column."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    if _format(path) == ".txt":
        text = path.read_text(encoding="utf-8-sig")
        return pa.chunked_array([pa.array(text.split("\n"), pa.string())])
    column = column or _columns(path)[0]
    if _format(path) == ".parquet":
        return pq.read_table(path, columns=[column]).column(column).cast(pa.string())
    convert = pa_csv.ConvertOptions(include_columns=[column], column_types={column: pa.string()})
    options = pa_csv.ParseOptions(delimiter=_delimiter(path), newlines_in_values=True)
    return pa_csv.read_csv(path, parse_options=options, convert_options=convert).column(column)


def _format(path: Path) -> str:
    return path.suffix.lower()


def _delimiter(path: Path) -> str:
    return "\t" if _format(path) == ".tsv" else ","
