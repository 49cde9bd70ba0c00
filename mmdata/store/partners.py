"""Who may be mixed with whom: beside shards whose children a loader makes, so that it picks the partners a build picks.

In a build the candidates are the originals of a part, also those that are dropped later or go to another split: what is
mixed with one of them is dropped. A loader that knew only what was kept would pick others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from mmdata.store import sql
from mmdata.store.files import appearing

PARTNERS_NAME: Final = "partners.npy"
"""Rows of (sample_id, group), sorted by sample_id: who has the same group may be mixed."""
_ROW: Final = np.dtype([("sample_id", "S32"), ("group", "<u4")])


def write_partners(folder: Path, parts: Sequence[Path]) -> None:
    """Write the candidates of base parts, each part a group, into a folder of shards; none where there are no parts."""
    if not parts:
        (folder / PARTNERS_NAME).unlink(missing_ok=True)
        return
    rows = sql.arrow(
        sql.connect(),
        f"""SELECT sample_id, dense_rank() OVER (ORDER BY filename) - 1 AS number
        FROM {sql.parquet(parts, filename=True)} WHERE failed_step IS NULL AND parent_id IS NULL ORDER BY sample_id""",
    )
    found = np.empty(len(rows), _ROW)
    found["sample_id"] = rows.column("sample_id").to_numpy().astype("S32")
    found["group"] = rows.column("number").to_numpy()
    with appearing(folder / PARTNERS_NAME) as scratch, scratch.open("wb") as file:
        np.save(file, found, allow_pickle=False)
