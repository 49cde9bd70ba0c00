"""What worker processes do to make children: a base part and what aligners know of it become a part of children.

As in `mmdata.engine.work`: files of one part to files of another; a `SampleError` becomes a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmdata.augment.policy import Others, chosen
from mmdata.engine.work import Done
from mmdata.errors import SampleError
from mmdata.plan import Plan
from mmdata.sample import Failure, Sample, child_id
from mmdata.steps.base import Augment
from mmdata.steps.exchange import Veto
from mmdata.store.parts import BasePartWriter, iter_samples, read_base_rows, read_new_texts


@dataclass(frozen=True)
class Known:
    """Parents, and what aligners know of them.

    Attributes:
        base: the parents' part.
        found: score parts of the aligners whose findings the operator needs, by label.
        made: score parts of aligners that made texts it reads.
    """

    base: Path
    found: Mapping[str, Path]
    made: tuple[Path, ...]

    @classmethod
    def of(cls, plan: Plan, step: Augment, base: str) -> Known:
        """Of a part that was taken in."""
        found = {label: plan.scores_of(label, base) for label in step.findings()}
        return cls(plan.part("ingest", base), found, tuple(plan.scores_of(label, base) for label in plan.makers(step)))


def augment_part(step: Augment, seed: int, known: Known, out: Path, poison: Mapping[str, str]) -> Done:
    """Make the children of a base part. A veto is a row with its reason: the child was never made.

    Args:
        step: the operator.
        seed: of the pipeline.
        known: the parents.
        out: the part to write.
        poison: samples that are known to kill a worker, and how.
    """
    done = Done(0)
    parents = _Parents(step, known)
    with BasePartWriter(out) as writer:
        for sample in parents:
            for child in _children(step, sample, seed, parents.other, poison):
                done.samples += 1
                done.failures.append(None)
                if isinstance(child, Sample):
                    writer.add(replace(child, found={}))
                    continue
                own = child_id(sample.sample_id, child.variant)
                unmade = replace(sample, sample_id=own, members={}, parent_id=sample.sample_id, variant=child.variant)
                writer.add_failure(
                    replace(unmade, augmentation=child.augmentation),
                    Failure(own, step.label, child.reason, child.detail),
                )
    return done


class _Parents:
    """Samples of a base part with what aligners found and made; `other` gives any of them again, to be mixed in."""

    def __init__(self, step: Augment, known: Known) -> None:
        self._base = known.base
        self._rows = read_base_rows(known.base)
        self._good = {row["sample_id"]: row for row in self._rows if row["failed_step"] is None}
        self._ids = sorted(self._good)
        self._names = frozenset(member["name"] for row in self._rows for member in row["members"])
        self._findings = _findings(known.found)
        read = step.reads()
        made = read_new_texts(known.made)
        self._made = {key: {m.name: m for m in texts if m.name in read} for key, texts in made.items()}

    def __iter__(self) -> Iterator[Sample]:
        return map(self._known, iter_samples(self._base, self._rows, self._names))

    def _known(self, sample: Sample) -> Sample:
        members = self._made.get(sample.sample_id, {}) | sample.members
        return replace(sample, members=members, found=self._findings.get(sample.sample_id, {}))

    def other(self, but: str, draw: int) -> Sample | None:
        key = chosen(self._ids, but, draw)
        if key is None:
            return None
        return self._known(next(iter_samples(self._base, [self._good[key]], self._names)))


def _children(
    step: Augment, sample: Sample, seed: int, others: Others, poison: Mapping[str, str]
) -> Iterator[Sample | Veto]:
    if sample.sample_id in poison:
        yield Veto(step.label, "worker_died", poison[sample.sample_id])
        return
    try:
        yield from step.make(sample, seed, others)
    except SampleError as error:
        yield Veto(step.label, error.reason, str(error))


def _findings(parts: Mapping[str, Path]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """What aligners found for each sample: label, edge, measure; the score is the measure `score`."""
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for label, path in parts.items():
        for row in pq.read_table(path, columns=["sample_id", "edge", "score", "measures"]).to_pylist():
            if row["edge"] is not None:
                measures = json.loads(row["measures"] or "{}") | {"score": row["score"]}
                found.setdefault(row["sample_id"], {}).setdefault(label, {})[row["edge"]] = measures
    return found
