"""Aligners that learn from the whole corpus: gather what the parts hold of an edge, fit, write one score part of all.

Shapes: N samples, F and E features of the left and the right member.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from mmdata.engine.work import Done
from mmdata.steps.base import Fitted
from mmdata.steps.exchange import Edge, FittedRows, Pairs
from mmdata.store.files import SCRATCH_MARK, write_json
from mmdata.store.parts import SCORE_SCHEMA, iter_vectors, read_base_rows, read_vector_ids, write_table

_KEPT: Final = "fitted.json"


@dataclass(frozen=True)
class _Row:
    """A sample that has both members: their digests, the language of the right one, the parent's id."""

    left: str
    right: str
    lang: str
    parent: str | None


def fit_corpus(step: Fitted, seed: int, base: Sequence[Path], scores: Sequence[Path], keep: Path, out: Path) -> Done:
    """Gather the pairs of a step's edge, let it learn, write the score part.

    Args:
        step: with one edge.
        seed: of the pipeline.
        base: all base parts.
        scores: the aligner's score part of each, with its vectors.
        keep: folder that becomes what the step keeps of the fit.
        out: the part to write.
    """
    (edge,) = step.edges()
    made = keep.with_name(f"{keep.name}{SCRATCH_MARK}{os.getpid()}")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    vectors = out.with_name(f"{out.name}.vectors{SCRATCH_MARK}{os.getpid()}")
    vectors.mkdir(parents=True)
    try:
        found = step.fit(gather(edge, base, scores, vectors), seed, made)
    finally:
        shutil.rmtree(vectors, ignore_errors=True)
    write_json(made / _KEPT, {"fit": out.stem})
    shutil.rmtree(keep, ignore_errors=True)
    made.rename(keep)
    table = _table(step, found)
    write_table(out, table)
    return Done(int(table.num_rows))


def is_kept(keep: Path, out: Path) -> bool:
    """Whether what a folder keeps is of the fit that wrote a part, and not of one by other settings since."""
    try:
        return bool(json.loads((keep / _KEPT).read_text())["fit"] == out.stem)
    except (OSError, ValueError, KeyError):
        return False


def gather(edge: Edge, base: Sequence[Path], scores: Sequence[Path], scratch: Path) -> Pairs:
    """The pairs of an edge: originals by id, a hash and so an order that says nothing, then children.

    Features are mapped into memory from files in `scratch`, a folder: they are what grows with the corpus.
    """
    rows = {key: row for part in base for key, row in _rows(part, edge)}
    left, right = (_Vectors(scores, name, scratch / f"{n}.f16") for n, name in enumerate((edge.left, edge.right)))
    ids = [key for key, row in rows.items() if left.has(key, row.parent) and right.has(key, row.parent)]
    ids.sort(key=lambda key: (rows[key].parent is not None, key))
    place = {key: n for n, key in enumerate(ids)}
    parents = [rows[key].parent for key in ids]
    return Pairs(
        edge,
        ids,
        left.of(ids, parents),
        right.of(ids, parents),
        _numbered([rows[key].left for key in ids]),
        _numbered([rows[key].right for key in ids]),
        _numbered([rows[key].lang for key in ids]),
        np.array([place.get(parent, -1) if parent else -1 for parent in parents], np.int64),
    )


def _table(step: Fitted, rows: FittedRows) -> pa.Table:
    scored = ~np.isnan(rows.score_N)
    count = len(rows.ids)
    real_NR = ~np.isnan(rows.null_NR)

    def lists(values_NR: np.ndarray[Any, Any]) -> list[Any]:
        return [row[real] for row, real in zip(values_NR.astype(np.float32), real_NR, strict=True)]

    columns: dict[str, Any] = {
        "sample_id": pa.array(rows.ids, pa.string()),
        "aligner": pa.array([step.label] * count, pa.string()),
        "edge": pa.array([rows.edge] * count, pa.string()),
        "score": pa.array(rows.score_N.astype(np.float32), pa.float32(), from_pandas=True),
        "strength": pa.array(rows.strength_N.astype(np.float32), pa.float32()),
        "null": pa.array(lists(rows.null_NR), pa.list_(pa.float32())),
        "null_strength": pa.array(lists(rows.null_strength_NR), pa.list_(pa.float32())),
    }
    if rows.skipped:
        columns["measures"] = pa.array([json.dumps({"skipped": rows.skipped})] * count, pa.string())
    columns |= {f.name: pa.nulls(count, f.type) for f in SCORE_SCHEMA if f.name not in columns}
    table = pa.table(columns, SCORE_SCHEMA)
    return table if rows.skipped else table.filter(pa.array(scored))


def _rows(part: Path, edge: Edge) -> Iterable[tuple[str, _Row]]:
    for row in read_base_rows(part):
        members = {m["name"]: m for m in row["members"] if m["error"] is None}
        if edge.left in members and edge.right in members:
            left, right = members[edge.left], members[edge.right]
            yield row["sample_id"], _Row(_content(left), _content(right), right["lang"] or "", row["parent_id"])


def _content(member: Mapping[str, Any]) -> str:
    """What makes two payloads the same thing: for texts the words, whatever their case."""
    return " ".join(member["text"].casefold().split()) if member["text"] else str(member["sha256"])


class _Vectors:
    """The vectors of one member, of a child's parent where the child's has not changed."""

    def __init__(self, scores: Sequence[Path], member: str, out: Path) -> None:
        self._scores, self._member, self._out = scores, member, out
        self._there = frozenset(read_vector_ids(scores, member))

    def has(self, key: str, parent: str | None) -> bool:
        return key in self._there or parent in self._there

    def of(self, ids: Sequence[str], parents: Sequence[str | None]) -> np.ndarray[Any, np.dtype[np.float16]]:
        rows: dict[str, list[int]] = {}
        for n, (key, parent) in enumerate(zip(ids, parents, strict=True)):
            rows.setdefault(key if key in self._there else str(parent), []).append(n)
        vector_ND = np.zeros((0, 0), np.float16)
        for found, part_MD in iter_vectors(self._scores, self._member):
            if not vector_ND.size and ids:
                shape = (len(ids), part_MD.shape[1])
                vector_ND = np.memmap(self._out, np.float16, "w+", shape=shape)
            for key, vector_D in zip(found, part_MD, strict=True):
                vector_ND[rows.get(key, [])] = vector_D
        return vector_ND


def _numbered(contents: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    numbers = {content: n for n, content in enumerate(dict.fromkeys(contents))}
    return np.array([numbers[content] for content in contents], np.int64)
