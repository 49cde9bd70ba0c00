"""Fetch parts: what servers answered, a Parquet of rows, one a URL, beside a tar of bodies.

A URL that could not be fetched has a row too, with its reason. Bodies may be thrown away once they are ingested
(`downloads: discard`); the rows stay.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.store.part_writer import PartWriter
from mmdata.store.parts import open_payloads, write_table
from mmdata.store.tar import read_range

SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("final_url", pa.string()),
        ("status", pa.int32()),
        ("declared", pa.string()),
        ("mime", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("offset", pa.int64()),
        ("etag", pa.string()),
        ("last_modified", pa.string()),
        ("opt_out", pa.string()),
        ("attempts", pa.int32()),
        ("wall_s", pa.float64()),
        ("fetched_at", pa.timestamp("us", tz="UTC")),
        ("as_of", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class FetchPartWriter(PartWriter):
    """Writes one fetch part; commits when the block ends well."""

    def __init__(self, parquet: Path) -> None:
        """As any `PartWriter`."""
        super().__init__(parquet)
        self._rows: list[dict[str, Any]] = []

    def _commit(self) -> None:
        write_table(self._parquet, pa.Table.from_pylist(self._rows, SCHEMA))

    def add(self, row: Mapping[str, Any], data: bytes | None) -> None:
        """Append what became of a URL, and the body if there is one."""
        offset = None if data is None else self._tar.add(f"{len(self._rows):08d}", data)
        self._rows.append({**row, "offset": offset})

    def flush(self) -> None:
        """To the disk, apart from the block's end, which then takes no time."""
        self._file.flush()
        os.fsync(self._file.fileno())


class Fetched:
    """The bodies of a chunk, over all rounds of fetching it; the latest round speaks first."""

    def __init__(self, parts: Sequence[Path]) -> None:
        """`parts` with the latest first."""
        self._rows: dict[str, tuple[Path, dict[str, Any]]] = {}
        for path in reversed(parts):
            self._rows |= {row["url"]: (path, row) for row in read_rows(path)}
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> Self:
        """Files are opened as they are asked for."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close them."""
        for file in self._open.values():
            file.close()

    def row(self, url: str) -> dict[str, Any]:
        """What became of a URL."""
        return self._rows[url][1]

    def body(self, url: str) -> bytes:
        """Its body. Raises FatalError where the tar is not there."""
        path, row = self._rows[url]
        if path not in self._open:
            self._open[path] = open_payloads(path)
        return read_range(self._open[path], row["offset"], row["bytes"])


def read_rows(parquet: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a fetch part."""
    rows: list[dict[str, Any]] = pq.read_table(parquet, columns=columns).to_pylist()
    return rows


class Earlier:
    """What fetch parts of the build folder hold, by URL: of this list of URLs and of others, in parts of any size.

    An index on disk, so that memory does not grow with what was ever fetched.
    """

    def __init__(self, parts: Iterable[Path]) -> None:
        """Read the rows of `parts`."""
        self._index = sqlite3.connect("", check_same_thread=False)
        self._index.execute("CREATE TABLE rows (url TEXT PRIMARY KEY, part TEXT, good INTEGER, at TEXT) WITHOUT ROWID")
        for path in parts:
            self.add(path)

    def add(self, part: Path) -> None:
        """Read the rows of a part; of several answers of a URL a good one is kept, of several good ones the latest."""
        self._index.executemany(
            "INSERT INTO rows VALUES (?, ?, ?, ?) ON CONFLICT (url) DO UPDATE SET "
            "part = excluded.part, good = excluded.good, at = excluded.at "
            "WHERE (excluded.good, excluded.at) > (good, at)",
            _index_rows(part),
        )

    def close(self) -> None:
        """Remove the index."""
        self._index.close()

    def rows(self, urls: Sequence[str]) -> dict[str, tuple[Path, dict[str, Any]]]:
        """What is known of `urls`: the part and the row."""
        parts: dict[str, set[str]] = {}
        for url in urls:
            for (part,) in self._index.execute("SELECT part FROM rows WHERE url = ?", (url,)):
                parts.setdefault(part, set()).add(url)
        return {
            row["url"]: (Path(part), row)
            for part, wanted in parts.items()
            for row in read_rows(Path(part))
            if row["url"] in wanted
        }


def _index_rows(path: Path) -> Iterator[tuple[str, str, int, str]]:
    there = path.with_suffix(".tar").exists()
    for row in read_rows(path, ["url", "reason", "fetched_at"]):
        if there or row["reason"] is not None:
            yield row["url"], str(path), int(row["reason"] is None), row["fetched_at"].isoformat()


def body_of(parquet: Path, row: Mapping[str, Any]) -> bytes:
    """The body of one row of a fetch part. Raises FatalError where bodies were thrown away."""
    with open_payloads(parquet) as tar:
        return read_range(tar, row["offset"], row["bytes"])
