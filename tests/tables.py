"""Tables of four formats, and sources over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.steps.sources.table import Table

ROWS = [
    {"file": "b.wav", "said": 'Hello, "you"', "voice": "anna"},
    {"file": "a.wav", "said": "zwei\nZeilen", "voice": "bert"},
    {"file": "x/c.wav", "said": "日本", "voice": None},
]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    def cell(value: Any) -> str:
        return "" if value is None else '"' + str(value).replace('"', '""') + '"'

    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        comma = "," if path.suffix == ".csv" else "\t"
        lines = [comma.join(rows[0]), *(comma.join(map(cell, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")


def table(path: Path, **more: Any) -> Table:
    members = {"speech": {"path": "file"}, "caption": {"text": "said"}}
    return Table.model_validate({"file": str(path), "members": members, **more})
