"""What worker processes and those that hold models do for an aligner: decode batches, score them, write score parts.

As in `mmdata.engine.work`: files to rows to files. A `SampleError` becomes a row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.engine import pools
from mmdata.engine.work import Meter
from mmdata.errors import SampleError
from mmdata.sample import Failure
from mmdata.steps.base import Align
from mmdata.steps.exchange import Edge, Found, Score, Scorer
from mmdata.store.parts import (
    SCORE_SCHEMA,
    iter_samples,
    read_base_rows,
    read_new_texts,
    write_table,
    write_vectors,
)


@dataclass
class Prepared:
    """A batch, decoded: items for the model, and why the other samples have none."""

    ids: list[str]
    items: list[Any]
    failures: list[Failure]
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Parents:
    """Where the parents of a part of children are, and what an aligner found for them."""

    base: Path
    scores: Path


@dataclass(frozen=True)
class Batch:
    """Rows of a base part to score.

    Attributes:
        base: the part.
        made: score parts of aligners before, whose texts are members now.
        parents: where they are children.
        span: first row, and the one after the last; None: all.
    """

    base: Path
    made: tuple[Path, ...]
    parents: Parents | None
    span: tuple[int, int | None]


def prepare_batch(step: Align, recipe: Any, batch: Batch, poison: Mapping[str, str]) -> Prepared:
    """Decode a batch for a model: of children, only the edges that changed."""
    began = time.process_time()
    prepared = Prepared([], [], [])
    rows = read_base_rows(batch.base, *batch.span)
    changed = _changed_edges(step, rows, batch.parents)
    texts = read_new_texts(batch.made)
    for sample in iter_samples(batch.base, rows, frozenset(step.reads()) | _ends(changed)):
        for member in texts.get(sample.sample_id, ()):
            sample.members.setdefault(member.name, member)
        try:
            if sample.sample_id in poison:
                raise SampleError("worker_died", poison[sample.sample_id])
            item = step.prepare(recipe, sample, changed[sample.sample_id])
        except SampleError as error:
            prepared.failures.append(Failure(sample.sample_id, step.label, error.reason, str(error)))
            continue
        if item is not None:
            prepared.ids.append(sample.sample_id)
            prepared.items.append(item)
    prepared.cpu_s = time.process_time() - began
    return prepared


def _ends(changed: Mapping[str, Sequence[Edge]]) -> frozenset[str]:
    return frozenset(name for edges in changed.values() for edge in edges for name in (edge.left, edge.right))


def _changed_edges(step: Align, rows: Sequence[dict[str, Any]], parents: Parents | None) -> dict[str, list[Edge]]:
    """For each sample the edges whose score cannot be its parent's: those of which an end has other bytes."""
    if parents is None:
        return {row["sample_id"]: step.edges() for row in rows}
    known = {row["sample_id"]: digests(row) for row in read_base_rows(parents.base)}
    return {row["sample_id"]: _differing(step, digests(row), known[row["parent_id"]]) for row in rows}


def _differing(step: Align, own: Mapping[str, str], parent: Mapping[str, str]) -> list[Edge]:
    # Payload and language decide a score; a text that neither has is the one the aligner made of the same speech.
    return [e for e in step.edges() if any(own.get(name) != parent.get(name) for name in (e.left, e.right))]


def digests(row: Mapping[str, Any]) -> dict[str, str]:
    """Of each member of a base row that could be read, what changes when its payload or its language does."""
    return {m["name"]: f"{m['sha256']} {m['lang']}" for m in row["members"] if m["error"] is None}


def inherited_scores(step: Align, base: Path, parents: Parents) -> list[dict[str, Any]]:
    """Rows of a part of children that are their parents': the same bytes need no second look by the model."""
    rows = [row for row in read_base_rows(base) if row["failed_step"] is None]
    changed = {key: {edge.name for edge in edges} for key, edges in _changed_edges(step, rows, parents).items()}
    found: dict[str, list[dict[str, Any]]] = {}
    for score in pq.read_table(parents.scores).to_pylist():
        found.setdefault(score["sample_id"], []).append(score)
    return [
        {**score, "sample_id": row["sample_id"]}
        for row in rows
        for score in found.get(row["parent_id"], [])
        if score["edge"] is not None
        and _still_there(step, row, score)
        and score["edge"] not in changed[row["sample_id"]]
    ]


def _still_there(step: Align, row: Mapping[str, Any], score: Mapping[str, Any]) -> bool:
    left = next(edge.left for edge in step.edges() if edge.name == score["edge"])
    return left in digests(row)


_loaded: dict[str, Scorer] = {}


def load_scorer(step: Align) -> Any:
    """Load a model in this process, the one of its accelerator, and return what workers need to prepare for it."""
    key = step.model_dump_json()
    if key not in _loaded:
        _loaded[key] = step.load(pools.device)
    return _loaded[key].recipe


@dataclass
class Scored:
    """What a batch came to: rows of a score part, (sample, vector) by member, and what it cost."""

    rows: list[dict[str, Any]]
    vectors: dict[str, list[tuple[str, Any]]] = field(default_factory=dict)
    cpu_s: float = 0.0
    rss_bytes: int = 0


def score_batch(step: Align, prepared: Prepared) -> Scored:
    """Score a batch in the model's process."""
    meter = Meter()
    load_scorer(step)
    scored = Scored([_failure_row(step, failure) for failure in prepared.failures])
    if prepared.items:
        results = _loaded[step.model_dump_json()].score(prepared.items)
        for sample, result in zip(prepared.ids, results, strict=True):
            _add_result(step, scored, sample, result)
    scored.cpu_s, scored.rss_bytes = prepared.cpu_s + meter.cpu_s, meter.peak_rss_bytes
    return scored


def _add_result(step: Align, scored: Scored, sample: str, result: Found | SampleError) -> None:
    if isinstance(result, SampleError):
        scored.rows.append(_failure_row(step, Failure(sample, step.label, result.reason, str(result))))
        return
    scored.rows += [_score_row(step, sample, score) for score in result.scores]
    for member, vector_D in result.vectors.items():
        scored.vectors.setdefault(member, []).append((sample, vector_D.astype(np.float16)))


def _score_row(step: Align, sample: str, score: Score) -> dict[str, Any]:
    new = score.new_text
    return {
        "sample_id": sample,
        "aligner": step.label,
        "edge": score.edge,
        "score": score.score,
        "null": list(score.null) or None,
        "measures": json.dumps(dict(score.measures), sort_keys=True, ensure_ascii=False) if score.measures else None,
        "new_name": new.name if new else None,
        "new_text": new.text if new else None,
        "new_lang": new.lang if new else None,
    }


def _failure_row(step: Align, failure: Failure) -> dict[str, Any]:
    return {
        "sample_id": failure.sample_id,
        "aligner": step.label,
        "reason": failure.reason,
        "detail": failure.detail,
    }


def commit_scores(step: Align, scored: Sequence[Scored], base: Path, parents: Parents | None, out: Path) -> None:
    """Write a score part: what was scored, in the order of the base part, then what children inherit."""
    rows = [row for batch in scored for row in batch.rows]
    rows += inherited_scores(step, base, parents) if parents else []
    members = dict.fromkeys(member for batch in scored for member in batch.vectors)
    write_vectors(out, {m: [row for batch in scored for row in batch.vectors.get(m, ())] for m in members})
    write_table(out, pa.Table.from_pylist(rows, SCORE_SCHEMA))


def rows_of(base: Path, span: tuple[int, int | None] = (0, None)) -> tuple[int, list[str]]:
    """Rows of a base part (or of some of its rows) and the ids of those that did not fail."""
    rows = read_base_rows(base, *span)
    return len(rows), [row["sample_id"] for row in rows if row["failed_step"] is None]
