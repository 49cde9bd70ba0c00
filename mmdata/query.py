"""Ask a build's catalog and print the answer."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import chain, count
from pathlib import Path
from typing import Any, TextIO

from mmdata.errors import MmdataError
from mmdata.store import sql
from mmdata.store.catalog import open_catalog
from mmdata.store.sql import quoted

Rows = Iterable[Sequence[Any]]
# Rows that are asked for at once: an answer may be larger than memory.
_ROWS = 4096


def run_query(build: Path, query: str, shape: str, out: Path | None) -> None:
    """Run one query against the catalog, read-only, and write the rows as `table`, `csv`, `json` or `parquet`.

    Raises MmdataError for SQL that does not run, in DuckDB's words; no file is written then.
    """
    connection = open_catalog(build)
    try:
        if shape == "parquet":
            _write_parquet(connection, query, out)
            return
        # None where nothing but blanks and comments is there.
        result = connection.execute(query)
        if result is None:
            raise MmdataError("no query; for example: SELECT fate, count(*) FROM samples GROUP BY fate")
        names = [column[0] for column in result.description or []]
        rows = chain.from_iterable(iter(lambda: result.fetchmany(_ROWS), []))
        write_rows(names, rows, shape, out)
    except sql.Error as error:
        raise MmdataError(str(error)) from None


def write_rows(names: Sequence[str], rows: Rows, shape: str, out: Path | None = None) -> None:
    """Write rows as `table`, `csv` or `json`, to standard output where no file is given. Raises MmdataError."""
    if out is None:
        _WRITERS[shape](names, rows, sys.stdout)
        return
    # First beside it: what goes wrong at a late row leaves no half of an answer.
    with writable(out), tempfile.TemporaryDirectory(dir=out.parent) as folder:
        scratch = Path(folder) / out.name
        with scratch.open("w", encoding="utf-8", newline="") as file:
            _WRITERS[shape](names, rows, file)
        scratch.replace(out)


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """While something is written where a user said: that this cannot be is no defect. Raises MmdataError."""
    try:
        yield
    except OSError as error:
        raise MmdataError(f"{out}: cannot be written: {error.strerror or error}") from None


def _write_parquet(connection: Any, query: str, out: Path | None) -> None:
    if out is None and sys.stdout.isatty():
        raise MmdataError("parquet is no text: give a file with --out, or send it to one with >")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "answer.parquet"
        connection.execute(f"COPY ({query.strip().rstrip(';')}) TO {quoted(str(scratch))} (FORMAT parquet)")
        if out is None:
            sys.stdout.buffer.write(scratch.read_bytes())
            return
        with writable(out):
            shutil.copyfile(scratch, out)


def _write_table(names: Sequence[str], rows: Rows, file: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table, rows = Table(), list(rows)
    for index, name in enumerate(names):
        numbers = bool(rows) and all(isinstance(row[index], int | float) or row[index] is None for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        # Values come from strangers' files: shown as text, never read as markup.
        table.add_row(*(Text(_shown(value)) for value in row))
    console = Console(file=file, width=None if file.isatty() else 160, highlight=False)
    console.print(table)
    console.print(f"{len(rows)} row{'' if len(rows) == 1 else 's'}")


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_csv(names: Sequence[str], rows: Rows, file: TextIO) -> None:
    writer = csv.writer(file)
    writer.writerow(names)
    writer.writerows(rows)


def _write_json(names: Sequence[str], rows: Rows, file: TextIO) -> None:
    names = _told_apart(names)
    start = "["
    for row in rows:
        cells = {name: finite(value) for name, value in zip(names, row, strict=True)}
        file.write(start + "\n " + json.dumps(cells, ensure_ascii=False, default=str, allow_nan=False))
        start = ","
    file.write("[]\n" if start == "[" else "\n]\n")


def _told_apart(names: Sequence[str]) -> list[str]:
    """Columns of one name become `a`, `a_1`, as DuckDB names those of a subquery: an object keeps one of each name."""
    own: list[str] = []
    for name in names:
        own.append(next(free for free in chain([name], (f"{name}_{n}" for n in count(1))) if free not in own))
    return own


def finite(value: Any) -> Any:
    """The value, with null for what JSON has no number for; decimals as numbers."""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


_WRITERS: dict[str, Callable[[Sequence[str], Rows, TextIO], None]] = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
}
