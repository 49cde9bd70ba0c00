"""Links between samples that a `Linked` measure found close, and what it found them by.

A link is a row of `LINKS`: two originals of the build, the smaller id first, or an original and an item of a reference
set. Links are sorted and each stands once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmdata.store import sql
from mmdata.store.files import appearing
from mmdata.store.parts import iter_vectors
from mmdata.store.sql import identifier, parquet, quoted

LINKS: Final = pa.schema(
    [
        ("member", pa.string()),
        ("sample_id", pa.string()),
        ("other_id", pa.string()),
        ("distance", pa.float64()),
        ("other_source", pa.string()),
    ]
)


@dataclass(frozen=True)
class Fingerprints:
    """What was measured of the originals of a build, a part in memory at a time.

    Attributes:
        label: of the measure, or of the aligner whose embeddings count.
        columns: of the measure, with their SQL types.
        parts: its score parts.
    """

    label: str
    columns: Mapping[str, str]
    parts: Sequence[Path]

    def tables(self, member: str) -> Iterator[pa.Table]:
        """`sample_id` and the columns of the samples whose member was measured, a part after the other."""
        typed = (
            f"TRY_CAST(measures ->> {quoted('$.' + name)} AS {kind}) AS {identifier(name)}"
            for name, kind in self.columns.items()
        )
        wanted, where = ", ".join(["sample_id", *typed]), f"edge = {quoted(member)} AND reason IS NULL"
        connection = sql.connect()
        try:
            for path in self.parts:
                yield sql.arrow(connection, f"SELECT {wanted} FROM {parquet([path])} WHERE {where}")
        finally:
            connection.close()

    def vectors(self, member: str) -> Iterator[tuple[list[str], np.ndarray[Any, np.dtype[np.float16]]]]:
        """Samples and embeddings `[N, D]` of a member, a part after the other; for `Linked.vectors_of`."""
        return iter_vectors(self.parts, member)


def write_links(path: Path, tables: Iterable[pa.Table]) -> int:
    """A part of links; returns how many. Raises ValueError for a pair of originals whose smaller id is not first."""
    rows = 0
    with appearing(path) as scratch, pq.ParquetWriter(scratch, LINKS, compression="zstd") as writer:
        for table in tables:
            own = table.filter(pc.is_null(table.column("other_source")))
            if pc.any(pc.greater_equal(own.column("sample_id"), own.column("other_id"))).as_py():
                raise ValueError(f"{path}: a link names the smaller id first, and no sample is linked to itself")
            writer.write_table(table.select(LINKS.names).cast(LINKS))
            rows += table.num_rows
    return rows
