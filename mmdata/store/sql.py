"""One way to open DuckDB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

# The package's Python layer takes 0.2 s to import, five times what the engine itself takes, and a plan has half a
# second. But in `arrow` only `connect`, `execute` and `fetch*` are used of it, which the compiled module has by itself.
try:
    import _duckdb as engine
except ImportError:
    import duckdb as engine  # type: ignore[no-redef]

Error = engine.Error
OutOfMemoryError = engine.OutOfMemoryException
# A value is to blame, not the query.
VALUE_ERRORS: Final = (engine.ConversionException, engine.OutOfRangeException, engine.InvalidInputException)


def connect(database: str = ":memory:", **config: Any) -> duckdb.DuckDBPyConnection:
    """A connection; `config` as DuckDB's own settings."""
    connection: duckdb.DuckDBPyConnection = engine.connect(database, config=config)
    # Else a query of some seconds draws on standard output, which is ours.
    connection.execute("SET enable_progress_bar = false")
    # Else a time is another text, and may be another day, wherever the machine stands in another zone.
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def arrow(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """What a query gives, as a table."""
    # The compiled module has no tables by itself.
    import duckdb  # noqa: F401

    return connection.sql(query).to_arrow_table()


def quoted(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


# Digests, which most columns are, take twice the time at the usual level, and are no smaller.
_WRITTEN: Final = "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1"


def write_query(connection: duckdb.DuckDBPyConnection, query: str, path: Path, version: str = "V1") -> None:
    """Write what a query gives as Parquet; texts that all differ are written in a third less time as V2."""
    connection.execute(f"COPY ({query}) TO {quoted(str(path))} ({_WRITTEN}, PARQUET_VERSION {version})")


def parquet(paths: Sequence[Path], *, filename: bool = False) -> str:
    """`read_parquet([...])` over exactly these files."""
    names = ", ".join(quoted(str(path)) for path in paths)
    return f"read_parquet([{names}]{', filename=true' if filename else ''})"
