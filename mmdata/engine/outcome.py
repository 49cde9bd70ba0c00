"""What a build came to, out of its catalog: for people (`mmdata.build_text`) and as JSON."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from mmdata.engine import decide
from mmdata.plan import Plan
from mmdata.store import catalog, versions


@dataclass(frozen=True)
class Outcome:
    """What a build came to: `fates` counts the `inputs`, children apart; the lists of rows as the catalog has them.

    `failures` counts the inputs that failed by their reason.

    `version` and `before` are titles, of what was decided and of what was decided before that, if it was.
    """

    inputs: int
    fates: dict[str, int]
    failures: dict[str, int]
    children: dict[str, int]
    splits: dict[str, int]
    calibrations: list[dict[str, Any]]
    operators: list[dict[str, Any]]
    crossings: list[dict[str, Any]]
    unknown: list[dict[str, Any]]
    moved: int
    gave_way_to_dropped: int
    wall_s: float
    did_nothing: bool
    version: str
    before: str | None


def outcome(plan: Plan, began: float, *, did_nothing: bool) -> Outcome:
    """Of a build that has ended; `began` as `time.time()` has it."""
    counts, before = catalog.counts(plan.output), versions.before(plan.decided)
    return Outcome(
        inputs=plan.inputs,
        fates=counts["fates"],
        failures=catalog.failures(plan.output),
        children=counts["children"],
        splits=counts["splits"],
        calibrations=catalog.calibrations(plan.output),
        operators=catalog.operators(plan.output),
        crossings=catalog.crossings(plan.output),
        unknown=decide.read_unknown(plan.decided),
        moved=catalog.moved(plan.output),
        gave_way_to_dropped=catalog.gave_way_to_dropped(plan.output),
        wall_s=time.time() - began,
        did_nothing=did_nothing,
        version=versions.open_version(str(plan.output)).title,
        before=before.title if before else None,
    )
