"""What worker processes do to measure: a base part becomes a score part; the parts of all become links.

As in `mmdata.engine.work`: files to files. A `SampleError` costs the values of one member and becomes their row.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.engine.align import Batch, digests
from mmdata.engine.work import Done
from mmdata.errors import SampleError
from mmdata.sample import Member, Sample
from mmdata.steps.base import Linked, Measure
from mmdata.store.files import SCRATCH_MARK
from mmdata.store.links import Fingerprints, write_links
from mmdata.store.parts import SCORE_SCHEMA, iter_samples, read_base_rows, read_new_texts, write_table

_tools: Final[dict[str, Any]] = {}


def measure_part(step: Measure, batch: Batch, out: Path, poison: Mapping[str, str]) -> Done:
    """Measure the members of a base part; a child's member that has its parent's bytes has its parent's values.

    Args:
        step: the measure.
        batch: all rows of the part.
        out: the score part to write.
        poison: samples that are known to kill a worker, and how.
    """
    base = read_base_rows(batch.base, *batch.span)
    same = _unchanged(base, batch)
    found = list(_inherited(same, batch))
    texts = read_new_texts(batch.made)
    for sample in iter_samples(batch.base, base, frozenset(step.of)):
        members = {member.name: member for member in texts.get(sample.sample_id, ())} | sample.members
        wanted = (step.reads().keys() & members.keys()) - same.get(sample.sample_id, frozenset())
        found += [_row(step, sample, members[name], poison) for name in wanted]
    found.sort(key=lambda row: (row["sample_id"], row["edge"]))
    write_table(out, pa.Table.from_pylist(found, SCORE_SCHEMA))
    return Done(len(found), [(row["reason"], row["detail"]) if row.get("reason") else None for row in found])


def link_corpus(step: Linked, parts: Sequence[Path], out: Path) -> Done:
    """Link all originals, given the score parts that hold what they are linked by."""
    folder = out.with_name(f"{out.name}.linking{SCRATCH_MARK}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        found = Fingerprints(step.vectors_of() or step.label, step.columns() | step.fingerprint(), parts)
        write_links(out, step.link(found, folder))
        # No samples: those went through when they were measured, and links are none.
        return Done(0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _row(step: Measure, sample: Sample, member: Member, poison: Mapping[str, str]) -> dict[str, Any]:
    row = {"sample_id": sample.sample_id, "aligner": step.label, "edge": member.name}
    try:
        if sample.sample_id in poison:
            raise SampleError("worker_died", poison[sample.sample_id])
        values = {name: _finite(value) for name, value in step.measure(_tool(step), member).items()}
    except SampleError as error:
        return {**row, "reason": error.reason, "detail": str(error)}
    return {**row, "measures": json.dumps(values, sort_keys=True, ensure_ascii=False)}


def _finite(value: Any) -> Any:
    """JSON has no NaN; no number is NULL."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tool(step: Measure) -> Any:
    """What the step works with, loaded once in this process."""
    key = f"{step.step} {step.model_dump_json()}"
    if key not in _tools:
        _tools[key] = step.load()
    return _tools[key]


def _unchanged(rows: Sequence[Mapping[str, Any]], batch: Batch) -> dict[str, frozenset[str]]:
    """Of each child the members that have the bytes of its parent's."""
    if batch.parents is None:
        return {}
    parents = {row["sample_id"]: digests(row) for row in read_base_rows(batch.parents.base)}
    return {
        row["sample_id"]: frozenset(
            name for name, digest in digests(row).items() if parents[row["parent_id"]].get(name) == digest
        )
        for row in rows
        if row["failed_step"] is None
    }


def _inherited(same: Mapping[str, frozenset[str]], batch: Batch) -> Iterator[dict[str, Any]]:
    if batch.parents is None:
        return
    of = {row["sample_id"]: row["parent_id"] for row in read_base_rows(batch.base)}
    known: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(batch.parents.scores).to_pylist():
        known.setdefault(row["sample_id"], []).append(row)
    for child, names in same.items():
        for row in known.get(of[child], ()):
            if row["edge"] in names:
                yield {**row, "sample_id": child}
