"""Tables in Markdown of what benchmarks/train_truth.py found: `python benchmarks/train_truth/table.py OUT`.

Intervals (95 %) are percentiles of a bootstrap that draws seeds, and of each the same drawn queries: what other
trainings and other queries would give. With three seeds the first is rough. Differences are of the same seed and query.

Shapes: S seeds, N queries, R resamples.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
CONTRASTS = [
    ("staged", "cold"),
    ("cold", "shuffled"),
    ("taught", "cold"),
    ("taught", "taught_by_lite"),
    ("taught_by_lite", "cold"),
    ("taught_by_lite", "restarted"),
    ("restarted", "cold"),
    ("live", "cold"),
]

Floats: TypeAlias = npt.NDArray[np.float64]


def interval(value_SN: Floats) -> str:
    """The mean, with what other seeds and queries would give."""
    rng = np.random.default_rng(0)
    seeds, queries = value_SN.shape
    means = []
    for _ in range(RESAMPLES):
        seed_S, query_N = rng.integers(0, seeds, seeds), rng.integers(0, queries, queries)
        means.append(value_SN[seed_S][:, query_N].mean())
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{value_SN.mean():.3f} ({low:.3f} to {high:.3f})"


def hits(reports: list[dict[str, Any]], name: str, way: str) -> Floats:
    """Whether each query was a hit, of each seed."""
    return np.array([[float(hit) for hit in report["sets"][name][way]["hits"]] for report in reports])


def interval_of_mean(wider: list[dict[str, Any]], other: list[dict[str, Any]], names: list[str]) -> str:
    """The mean over sets of the mean over a set's directions of what one arm finds more, by other seeds and samples.

    A sample that is drawn is drawn in all directions: what it is in one says something of what it is in another.
    """
    sets = [gains_of(wider, other, name) for name in names]
    rng, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        seed_S, found = rng.integers(0, len(wider), len(wider)), []
        for gains, rows, samples in sets:
            weight_N = np.bincount(rng.integers(0, samples, samples), minlength=samples)
            drawn = [
                (gain_SN[seed_S].mean(axis=0), weight_N[row_N]) for gain_SN, row_N in zip(gains, rows, strict=True)
            ]
            found.append(np.mean([gain_N @ weight_n / weight_n.sum() for gain_N, weight_n in drawn]))
        means.append(np.mean(found))
    low, high = np.quantile(means, (0.025, 0.975))
    mean = np.mean([np.mean([gain_SN.mean() for gain_SN in gains]) for gains, _, _ in sets])
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def gains_of(
    wider: list[dict[str, Any]], other: list[dict[str, Any]], name: str
) -> tuple[list[Floats], list[npt.NDArray[np.int64]], int]:
    """Of each direction of a set what one arm finds more `[S, N]` and the samples of its queries; how many samples."""
    ways = wider[0]["sets"][name]
    rows = [np.array(way["rows"]) for way in ways.values()]
    gains = [hits(wider, name, way) - hits(other, name, way) for way in ways]
    return gains, rows, int(max(row_N.max() for row_N in rows)) + 1


def recalls(arms: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Recall@10 of each arm by set and direction, chance beside it."""
    one = next(iter(arms.values()))[0]
    for name, ways in one["sets"].items():
        yield f"\n## {name}, recall@10\n"
        yield f"| direction | queries | chance | {' | '.join(arms)} |"
        yield f"|---|---|---|{'---|' * len(arms)}"
        for way, cell in ways.items():
            cells = [interval(hits(reports, name, way)) for reports in arms.values()]
            yield f"| {way} | {len(cell['hits'])} | {cell['chance']:.3f} | {' | '.join(cells)} |"


def differences(arms: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """What an arm finds more than another, by set and direction."""
    pairs = [pair for pair in CONTRASTS if set(pair) <= arms.keys()]
    one = next(iter(arms.values()))[0]
    both = {pair: paired(arms, *pair) for pair in pairs}
    head = [f"| direction | {' | '.join(f'{more} - {less}' for more, less in pairs)} |", f"|---|{'---|' * len(pairs)}"]
    for name, ways in one["sets"].items() if pairs else ():
        yield from (f"\n## {name}, differences of recall@10\n", *head)
        for way in ways:
            found = []
            for more, less in both.values():
                found.append(interval(hits(more, name, way) - hits(less, name, way)) if more else "-")
            yield f"| {way} | {' | '.join(found)} |"
        means = [interval_of_mean(more, less, [name]) if more else "-" for more, less in both.values()]
        yield f"| mean of all | {' | '.join(means)} |"
    if pairs:
        yield from ("\n## all sets, differences of recall@10\n", *head)
        means = [interval_of_mean(more, less, list(one["sets"])) if more else "-" for more, less in both.values()]
        yield f"| mean of the sets' means | {' | '.join(means)} |"


def paired(arms: dict[str, list[dict[str, Any]]], *pair: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The reports of two arms of the seeds that both have, in one order."""
    seeds = set.intersection(*({report["seed"] for report in arms[arm]} for arm in pair))
    of = [{report["seed"]: report for report in arms[arm]} for arm in pair]
    return [of[0][seed] for seed in sorted(seeds)], [of[1][seed] for seed in sorted(seeds)]


def others(arms: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Figures of tasks that have intervals of their own: the mean of the seeds, and each seed's."""
    for arm, reports in arms.items():
        for task in ("detector", "captions", "images"):
            told = [dict(figures((), report[task])) for report in reports if task in report]
            if told:
                yield f"\n## {arm}, {task}\n"
                seeds = [f"seed {report['seed']}" for report in reports if task in report]
                yield f"| figure | mean of seeds | {' | '.join(seeds)} |"
                yield f"|---|---|{'---|' * len(told)}"
            for keys in told[0] if told else ():
                cells = [one[keys] for one in told if keys in one]
                shown = [f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for one in cells]
                mean = np.mean([one["value"] for one in cells])
                yield f"| {' '.join(keys)} | {mean:.3f} | {' | '.join(shown)} |"


def figures(keys: tuple[str, ...], found: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every figure with an interval, and the way to it."""
    for key, cell in found.items():
        if isinstance(cell, dict) and {"value", "low", "high"} <= cell.keys():
            yield (*keys, key), cell
        elif isinstance(cell, dict):
            yield from figures((*keys, key), cell)


def main() -> None:
    """Print."""
    arms: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(Path(sys.argv[1]).glob("*-*.json")):
        report = json.loads(path.read_text())
        arms[report["arm"]].append(report)
    for arm, reports in arms.items():
        seconds = [round(report["seconds"]["train"]) for report in reports]
        devices = ", ".join(sorted({report["device"] for report in reports}))
        print(f"{arm}: seeds {[one['seed'] for one in reports]}, {reports[0]['steps']} steps, {seconds} s on {devices}")
    print(*recalls(arms), *differences(arms), *others(arms), sep="\n")


if __name__ == "__main__":
    main()
