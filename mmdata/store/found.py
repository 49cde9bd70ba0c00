"""Found parts: what a source found in one file, a Parquet of inputs beside a tar of payloads that had to be copied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmdata.store.part_writer import PartWriter

KEPT = "kept:"
"""Stands for the tar beside a found part, wherever the build folder lies."""
_ROWS_A_BATCH = 4096


class FoundPartWriter(PartWriter):
    """Writes one found part; commits when the block ends well."""

    def __init__(self, parquet: Path) -> None:
        """As any `PartWriter`."""
        super().__init__(parquet)
        self._lines: list[bytes] = []
        self._kept = 0

    def _commit(self) -> None:
        import pyarrow as pa

        from mmdata.store.parts import write_table

        write_table(self._parquet, pa.table({"line": pa.array(self._lines, pa.binary())}))

    def keep(self, data: bytes) -> tuple[str, tuple[int, int]]:
        """Store a payload: what stands for its path, and its span."""
        self._kept += 1
        return KEPT, (self._tar.add(f"{self._kept:08d}", data), len(data))

    def add(self, line: bytes) -> None:
        """Append an input."""
        self._lines.append(line)

    def __len__(self) -> int:
        """Inputs so far."""
        return len(self._lines)


def iter_found(parquet: Path) -> Iterator[bytes]:
    """The inputs of a found part, in the order in which they were found."""
    # A plan reads found parts, and most plans have none: they need not pay for pyarrow.
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(parquet).iter_batches(_ROWS_A_BATCH):
        yield from batch.column("line").to_pylist()
