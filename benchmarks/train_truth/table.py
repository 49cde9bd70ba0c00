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
CONTRASTS = [("staged", "cold"), ("cold", "shuffled"), ("taught", "cold"), ("live", "cold")]

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
    for name, ways in one["sets"].items() if pairs else ():
        yield f"\n## {name}, differences of recall@10\n"
        yield f"| direction | {' | '.join(f'{more} - {less}' for more, less in pairs)} |"
        yield f"|---|{'---|' * len(pairs)}"
        for way in ways:
            found = []
            for pair in pairs:
                seeds = set.intersection(*({report["seed"] for report in arms[arm]} for arm in pair))
                more, less = (hits([one for one in arms[arm] if one["seed"] in seeds], name, way) for arm in pair)
                found.append(interval(more - less) if seeds else "-")
            yield f"| {way} | {' | '.join(found)} |"


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
