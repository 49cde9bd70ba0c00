"""Aligners that learn from the whole corpus: gather what the parts hold of an edge, run the jobs, write a score part.

The features of all pairs lie in files that every process maps into memory, so that no job carries them.

Shapes: N samples, F and E features of the left and the right member.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmdata.steps.base import Edge, Fitted, FittedRows, Pairs
from mmdata.store.files import SCRATCH_MARK
from mmdata.store.parts import SCORE_SCHEMA, read_base_rows, read_vectors, write_table, write_vectors

_ARRAYS = ("left_NF", "right_NE", "group_N", "lang_N", "parent_N")


@dataclass(frozen=True)
class _Row:
    """A sample that has both members: their digests, the language of the right one, the parent's id."""

    left: str
    right: str
    lang: str
    parent: str | None


@dataclass(frozen=True)
class Fit:
    """A fit under way: the aligner, the seed of the pipeline, and the folder of the pairs' features."""

    step: Fitted
    seed: int
    folder: Path

    @property
    def edge(self) -> Edge:
        """The one edge that is fitted."""
        (edge,) = self.step.edges()
        return edge


def gather(fit: Fit, base: Sequence[Path], scores: Sequence[Path]) -> int:
    """Write the pairs of the edge into the fit's folder; returns how many there are.

    Args:
        fit: whose folder is not there yet.
        base: all base parts, those of originals before those of children.
        scores: the aligner's score part of each, with its vectors.
    """
    rows = {key: row for part in base for key, row in _rows(part, fit.edge)}
    left, right = (_Vectors(scores, name) for name in (fit.edge.left, fit.edge.right))
    ids = [key for key, row in rows.items() if left.has(key, row.parent) and right.has(key, row.parent)]
    # By id, a hash: an order that says nothing of the content, children behind their parents.
    ids.sort(key=lambda key: (rows[key].parent is not None, key))
    place = {key: n for n, key in enumerate(ids)}
    parents = [rows[key].parent for key in ids]
    langs = {lang: n for n, lang in enumerate(sorted({rows[key].lang for key in ids}))}
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "left_NF": left.of(ids, parents),
        "right_NE": right.of(ids, parents),
        "group_N": _groups([(rows[key].left, rows[key].right) for key in ids]),
        "lang_N": np.array([langs[rows[key].lang] for key in ids], np.int64),
        "parent_N": np.array([place.get(parent, -1) if parent else -1 for parent in parents], np.int64),
    }
    fit.folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(fit.folder / f"{name}.npy", array, allow_pickle=False)
    (fit.folder / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
    return len(ids)


def next_jobs(fit: Fit, results: Sequence[Sequence[Any]]) -> list[Any]:
    """The jobs of the next round."""
    return fit.step.jobs(_load(fit), fit.seed, results)


def run_job(fit: Fit, job: Any) -> Any:
    """One job of a round, in a model process."""
    return fit.step.run(_load(fit), fit.seed, job)


def finish(fit: Fit, results: Sequence[Sequence[Any]], keep: Path, out: Path) -> int:
    """Score all pairs and write the score part; what the step keeps becomes the folder `keep`. Returns the pairs."""
    made = keep.with_name(f"{keep.name}{SCRATCH_MARK}{os.getpid()}")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    found = fit.step.finish(_load(fit), fit.seed, results, made)
    shutil.rmtree(keep, ignore_errors=True)
    made.rename(keep)
    write_vectors(out, {name: list(zip(found.ids, array, strict=True)) for name, array in found.vectors.items()})
    table = _table(fit.step, found)
    write_table(out, table)
    return int(table.num_rows)


def _load(fit: Fit) -> Pairs:
    """What `gather` wrote; the arrays stay on disk until they are looked at."""
    ids = json.loads((fit.folder / "ids.json").read_text(encoding="utf-8"))
    arrays = {name: np.load(fit.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
    return Pairs(fit.edge, ids, **arrays)


def _table(step: Fitted, rows: FittedRows) -> pa.Table:
    scored = ~np.isnan(rows.score_N)
    count = len(rows.ids)
    null = [row[~np.isnan(row)] for row in rows.null_NR.astype(np.float32)]
    columns: dict[str, Any] = {
        "sample_id": pa.array(rows.ids, pa.string()),
        "aligner": pa.array([step.label] * count, pa.string()),
        "edge": pa.array([rows.edge] * count, pa.string()),
        "score": pa.array(rows.score_N.astype(np.float32), pa.float32(), from_pandas=True),
        "null": pa.array(null, pa.list_(pa.float32())),
    }
    columns |= {f.name: pa.nulls(count, f.type) for f in SCORE_SCHEMA if f.name not in columns}
    return pa.table(columns, SCORE_SCHEMA).filter(pa.array(scored))


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

    def __init__(self, scores: Sequence[Path], member: str) -> None:
        ids, self._vector_ND = read_vectors(scores, member)
        self._row = {key: n for n, key in enumerate(ids)}

    def has(self, key: str, parent: str | None) -> bool:
        return key in self._row or parent in self._row

    def of(self, ids: Sequence[str], parents: Sequence[str | None]) -> np.ndarray[Any, np.dtype[np.float16]]:
        rows = [self._row[key] if key in self._row else self._row[str(p)] for key, p in zip(ids, parents, strict=True)]
        return self._vector_ND[rows]


def _groups(contents: Sequence[tuple[str, str]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Numbers that are equal where pairs share a payload on either side, directly or through others."""
    root: dict[str, str] = {}

    def find(node: str) -> str:
        while (above := root.setdefault(node, node)) != node:
            root[node] = root[above]
            node = root[node]
        return node

    for left, right in contents:
        root[find(f"l{left}")] = find(f"r{right}")
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(find(f"l{left}"), len(numbers)) for left, _ in contents], np.int64)
