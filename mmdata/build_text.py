"""What `mmdata build` says at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdata.steps.curate import unknown

if TYPE_CHECKING:
    from mmdata.engine.outcome import Outcome
    from mmdata.plan import Plan


def told(found: Plan, outcome: Outcome) -> str:
    """Lines about a build that has ended."""
    if outcome.did_nothing:
        first = f"{found.output}: nothing to do, all {outcome.inputs} inputs have their fate"
    else:
        first = f"{found.output}: built in {outcome.wall_s:.1f} s"
    if outcome.before and not outcome.did_nothing:
        first += f"; what is other: mmdata diff {outcome.before} {outcome.version}"
    inputs = f"{outcome.inputs} inputs = " + _sum(outcome.fates)
    lines = [first, inputs]
    if outcome.children:
        lines.append(f"{sum(outcome.children.values())} children = " + _sum(outcome.children))
    lines += [_operator(row) for row in outcome.operators]
    lines += [_noise(row) for row in outcome.calibrations]
    lines += map(unknown.told, outcome.unknown)
    lines += _twins(outcome.crossings)
    if outcome.gave_way_to_dropped:
        why = "put `duplicates` after `rules`, and the best of those that pass stays"
        lines.append(f"duplicates: {outcome.gave_way_to_dropped} gave way to a sample that a rule dropped; {why}")
    if outcome.moved and not outcome.did_nothing:
        lines.append(f"splits: {outcome.moved} samples moved to another split since the last build")
    lines += _empty_splits(found.pipeline.split_shares, outcome.splits)
    lines.append("shards: " + (_written(outcome.splits) or _none_kept(found, outcome)))
    return "\n".join(lines)


def _written(splits: dict[str, int]) -> str:
    return ", ".join(f"{name} {count} samples" for name, count in splits.items())


def _none_kept(found: Plan, outcome: Outcome) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in outcome.failures.items())
    why = f'mmdata query {found.output} "SELECT key, sentence FROM explained"'
    return "none, for no sample is kept" + (f"; failed: {reasons}" if reasons else "") + f"; why: {why}"


def _empty_splits(shares: dict[str, float], samples: dict[str, int]) -> list[str]:
    """What a trainer would miss."""
    empty = [name for name, share in shares.items() if share and not samples.get(name)]
    why = "a share is of the groups (`by`, links), by their hash: few groups may all fall into others"
    return [f"splits: no sample is in {', '.join(empty)}; {why}"] if empty and sum(samples.values()) else []


def _operator(row: dict[str, Any]) -> str:
    change = row["mean_match_change"]
    judged = "" if change is None else f", mean change of match {change:+.3f}"
    counts = f"made {row['made']}, vetoed {row['vetoed']}, dropped {row['dropped']}"
    return f"{row['policy']}: {row['operator']}: {counts}{judged}"


def _twins(crossings: list[dict[str, Any]]) -> list[str]:
    """What lies in two splits, told of the smaller one; that nothing does is said too."""
    lines = [
        f"splits: {row['samples']} of {row['of_samples']} samples of {row['split']} have a twin in "
        f"{row['other_split']}, by {row['twins_by']}"
        for row in crossings
        if row["samples"] and row["of_samples"] <= _total(crossings, row["other_split"])
    ]
    looked_at = ", ".join(dict.fromkeys(row["twins_by"] for row in crossings))
    return lines or ([f"splits: no sample has a twin in another, by {looked_at}"] if crossings else [])


def _total(crossings: list[dict[str, Any]], split: str) -> int:
    return next(int(row["of_samples"]) for row in crossings if row["split"] == split)


def _noise(row: dict[str, Any]) -> str:
    if row["noise"] is None:
        return f"{row['aligner']}.{row['edge']}: not calibrated: {row['problem']}"
    low, share, high = (f"{100 * row[name]:.0f}" for name in ("noise_low", "noise", "noise_high"))
    besides = f"; {row['problem']}" if row["problem"] else ""
    found = f"{share} % of {row['pairs']} pairs look mismatched (95 %: {low} to {high} %)"
    return f"{row['aligner']}.{row['edge']}: {found}{besides}"


def _sum(counts: dict[str, int]) -> str:
    return " + ".join(f"{count} {name}" for name, count in counts.items())
