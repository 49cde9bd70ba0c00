"""Ask a build's catalog and print the answer."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mmdata.errors import MmdataError
from mmdata.store import sql
from mmdata.store.catalog import open_catalog
from mmdata.store.sql import quoted

Rows = Sequence[Sequence[Any]]


def run_query(build: Path, query: str, shape: str, out: Path | None) -> None:
    """Run one query against the catalog, read-only, and write the rows as `table`, `csv`, `json` or `parquet`.

    Raises MmdataError for SQL that does not run, in DuckDB's words.
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
        rows = result.fetchall()
    except sql.Error as error:
        raise MmdataError(str(error)) from None
    write_rows(names, rows, shape, out)


def write_rows(names: Sequence[str], rows: Rows, shape: str, out: Path | None = None) -> None:
    """Write rows as `table`, `csv` or `json`, to standard output where no file is given. Raises MmdataError."""
    if out is None:
        _WRITERS[shape](names, rows, sys.stdout)
        return
    with _writable(out), out.open("w", encoding="utf-8", newline="") as file:
        _WRITERS[shape](names, rows, file)


@contextmanager
def _writable(out: Path) -> Iterator[None]:
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
        with _writable(out):
            shutil.copyfile(scratch, out)


def _write_table(names: Sequence[str], rows: Rows, file: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
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
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    json.dump(objects, file, ensure_ascii=False, indent=1, default=str)
    file.write("\n")


_WRITERS: dict[str, Callable[[Sequence[str], Rows, TextIO], None]] = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
}
