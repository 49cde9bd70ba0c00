"""A policy: which operators a child goes through, and the child.

What a child is follows from (seed, sample_id, variant) alone, and, where operators mix samples, from which others there
are. Each operator draws from a generator of its own, so its record (name, parameters, seed) is all a replay needs.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mmdata.augment.base import Mixer, Operator, VetoError
from mmdata.augment.child import Child
from mmdata.augment.view import Notes
from mmdata.errors import SampleError
from mmdata.sample import Sample, child_id

Others = Callable[[str, int], Sample | None]
"""Another sample than the one with this id, chosen by a number of 128 bits; None where there is none."""


def nobody(_: str, __: int) -> None:
    """The `Others` of a sample that is alone."""


def chosen(ids: Sequence[str], but: str, draw: int) -> str | None:
    """Of sorted sample ids the next after `draw` on their ring: they are hashes, so each is as likely."""
    at = bisect.bisect_left(ids, f"{draw:032x}")
    around = (ids[(at + step) % len(ids)] for step in range(min(2, len(ids))))
    return next((one for one in around if one != but), None)


@dataclass(frozen=True)
class Entry:
    """An operator of a policy.

    Attributes:
        operator: the operator.
        params: as the pipeline file has them, for the record.
        p: how likely a child goes through it.
    """

    operator: Operator | Mixer
    params: Mapping[str, Any]
    p: float = 1.0


@dataclass(frozen=True)
class Step:
    """An operator that a child goes through, and its seed."""

    entry: Entry
    seed: int


@dataclass(frozen=True)
class Policy:
    """Operators in their order.

    Attributes:
        label: names the children: variant `{label}_{n}`.
        entries: the operators.
        notes: members that say something of others.
    """

    label: str
    entries: Sequence[Entry]
    notes: Notes = field(default_factory=Notes)

    def child(self, sample: Sample, number: int, seed: int, others: Others = nobody) -> Sample:
        """Child `number` of a sample, its record in `augmentation`.

        Raises VetoError with the first reason where no operator could be applied, `nothing_drawn` where none was drawn.
        """
        variant = f"{self.label}_{number}"
        return self._made(sample, variant, self._drawn(sample.sample_id, variant, seed), others, replayed=False)

    def replay(self, sample: Sample, record: Mapping[str, Any], variant: str, others: Others = nobody) -> Sample:
        """The child that a record describes, from its parent; `entries` are those of the record.

        Raises SampleError where an operator cannot be applied again: then the parent is not what it was.
        """
        seeds = [int(one["seed"]) for one in record["applied"]]
        steps = [Step(entry, own) for entry, own in zip(self.entries, seeds, strict=True)]
        return replace(self._made(sample, variant, steps, others, replayed=True), augmentation=record)

    def _drawn(self, sample_id: str, variant: str, seed: int) -> list[Step]:
        digest = hashlib.blake2b(f"{seed}\0{sample_id}\0{variant}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        # All are drawn, also for those left out: what one entry does never depends on another's `p`.
        draws = [(rng.random(), int(rng.integers(2**63))) for _ in self.entries]
        return [Step(e, own) for e, (u, own) in zip(self.entries, draws, strict=True) if u < e.p]

    def _made(self, sample: Sample, variant: str, steps: Sequence[Step], others: Others, *, replayed: bool) -> Sample:
        steps = [step for step in steps if _concerns(step.entry.operator, sample)]
        if not steps:
            raise VetoError("nothing_drawn", "no operator that concerns the sample was drawn")
        changes = frozenset().union(*(step.entry.operator.changes for step in steps))
        work = Child(sample, self.notes, changes, others)
        for step in steps:
            try:
                work.apply(step)
            except SampleError as error:
                if replayed or not isinstance(error, VetoError):
                    raise
                work.skipped.append({"op": step.entry.operator.name, "reason": error.reason, "detail": str(error)})
        if not work.applied:
            first = work.skipped[0]
            veto = VetoError(first["reason"], f"{first['op']}: {first['detail']}")
            veto.record = work.record(self.label)
            raise veto
        return replace(
            sample,
            sample_id=child_id(sample.sample_id, variant),
            parent_id=sample.sample_id,
            variant=variant,
            members=work.members(),
            augmentation=work.record(self.label),
            found={},
        )


def _concerns(operator: Operator | Mixer, sample: Sample) -> bool:
    return any(member.modality in operator.changes for member in sample.members.values())
