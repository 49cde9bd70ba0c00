"""`mmdata eval`: from a finished run to figures, in JSON and as a table. Imports torch only when it starts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdata.errors import TrainError
from mmdata.extras import require
from mmdata.models.weights import content_identity
from mmdata.train.evaluate.config import TASKS, EvalConfig, Task, load_settings

if TYPE_CHECKING:
    from mmdata.train.evaluate.bench import Bench

Say = Callable[[str], None]


def evaluate(
    folder: Path, settings: Path | None, overrides: Sequence[str], name: str | None, say: Say
) -> dict[str, Any]:
    """Measure a run, and write `RUN/eval/<name>.json`, where `name` is the split's unless given.

    Raises SpecError for the settings, TrainError for the run or the shards, MissingExtraError without torch.
    """
    config = load_settings(settings, overrides)
    require("mmdata eval", "train")
    from mmdata.train.batch import told_failures
    from mmdata.train.evaluate.bench import Bench
    from mmdata.train.export import write_json

    bench = Bench(folder, config)
    name = name or bench.split
    if not name or name.startswith(".") or "/" in name:
        raise TrainError(f"'{name}' is no name of a file; give another with --name")
    if config.detect:
        path = folder / "eval" / f"{name}.detected.parquet"
        said = {"samples": bench.detect(path), "path": str(path)}
        say(f"{said['samples']} samples: {path}")
        return said
    report: dict[str, Any] = {"run": str(folder), "split": bench.split, **bench.counts(), "seed": config.seed}
    if failures := bench.features.failures:
        say(told_failures(failures, report["samples"] + report["failed"]))
    report["shards"] = [one.shards for one in bench.run.config.data.all_sets().values()]
    report["model"] = content_identity([folder / "model.safetensors"])
    (folder / "eval").mkdir(exist_ok=True)
    path = folder / "eval" / f"{name}.json"
    found = _known(path, report) | {task: _carry_out(bench, task, say) for task in _tasks(bench, config)}
    report["tasks"] = {task: found[task] for task in TASKS if task in found}
    write_json(path, _plain(report))
    say(f"{path}")
    return report


def _known(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Tasks that were measured before, of the same model on the same samples: another task does not take them away."""
    try:
        before = json.loads(path.read_text())
        same = all(before[key] == value for key, value in report.items())
        return dict(before["tasks"]) if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _tasks(bench: Bench, config: EvalConfig) -> list[Task]:
    """Those that are asked for, in the order of `TASKS`; else all that there is something for."""
    if config.tasks:
        return [task for task in TASKS if task in config.tasks]
    return [task for task in TASKS if bench.has(task)]


def _carry_out(bench: Bench, task: Task, say: Say) -> dict[str, Any]:
    found: dict[str, Any] = getattr(bench, task)()
    for line in table(task, found):
        say(line)
    return found


def table(task: str, found: dict[str, Any]) -> list[str]:
    """Lines for people: a figure each, with its interval, and chance where there is one."""
    lines = [f"{task:44}{'value':>9}{'95 % interval':>20}{'chance':>9}"]
    for keys, cell in _figures((), found):
        label = "  " + " ".join(keys)
        if isinstance(cell, str):
            lines.append(f"{label}: {cell}")
            continue
        interval = f"{cell['low']:.3f} to {cell['high']:.3f}" if "low" in cell else ""
        chance = f"{cell['chance']:.3f}" if "chance" in cell else ""
        lines.append(f"{label:44}{cell['value']:>9.3f}{interval:>20}{chance:>9}")
    return lines


def _figures(keys: tuple[str, ...], found: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every figure and every reason, with the way to it."""
    for key, cell in found.items():
        if isinstance(cell, dict) and "value" in cell:
            yield (*keys, key), cell
        elif isinstance(cell, dict):
            yield from _figures((*keys, key), cell)
        elif key in ("refused", "not_calibrated"):
            yield (*keys, key), cell


def _plain(value: Any) -> Any:
    """As JSON has it: what is no number is null."""
    if isinstance(value, dict):
        return {key: _plain(cell) for key, cell in value.items()}
    if isinstance(value, list):
        return [_plain(cell) for cell in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
