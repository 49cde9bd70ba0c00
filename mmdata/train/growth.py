"""A training that begins with a finished run: its weights, its data again, and what it forgets meanwhile."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdata.errors import TrainError
from mmdata.train.config import MAX_SETS, REPLAY, DataConfig, SetConfig, StartConfig, TrainConfig
from mmdata.train.export import read_description, read_weights, run_limits
from mmdata.train.model.fused import TRAINING_ONLY, FusedModel
from mmdata.train.stages import modality_patterns


def begin_with(model: FusedModel, start: StartConfig) -> None:
    """Fill a fresh model with a run's weights; those of a modality that is added stay fresh.

    Raises TrainError where the run's model is another, but for that modality, or its weights are no numbers.
    """
    folder = Path(start.run)
    weights = read_weights(folder)
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(TRAINING_ONLY)}
    new = modality_patterns(start.add_modality) if start.add_modality else ()
    known = set(weights)
    if start.add_modality and any(fnmatch.filter(known, pattern) for pattern in new):
        raise TrainError(f"{folder}: already has the modality '{start.add_modality}'; leave start.add_modality out")
    missing = [name for name in own if name not in known and not any(fnmatch.fnmatchcase(name, p) for p in new)]
    other = [name for name in own.keys() & known if own[name].shape != weights[name].shape]
    if missing or other or known - own.keys():
        raise TrainError(_differs(folder, sorted(missing), sorted(known - own.keys()), sorted(other)))
    model.load_state_dict({**model.state_dict(), **weights})


def _differs(folder: Path, missing: list[str], more: list[str], other: list[str]) -> str:
    kinds = (("it lacks", missing), ("it alone has", more), ("of another shape:", other))
    first = [f"{what} {names[0]}" for what, names in kinds if names]
    fix = "use the run's own model and modalities, and start.add_modality for one more"
    return f"{folder}: its model is another than this one: {', '.join(first)}; {fix}"


def check_start(config: TrainConfig) -> None:
    """Raises TrainError where a run to begin with has other inputs than this training."""
    if config.start:
        run_limits(Path(config.start.run), config, "start.run")


def replayed_sets(start: StartConfig) -> dict[str, SetConfig]:
    """The data sets of the run, their shares together those of `start.replay`; by other names.

    A run that was itself continued replayed those of the run before: they are among its own.
    """
    description = read_description(Path(start.run))
    try:
        data = DataConfig.model_validate(description["training"]["data"])
        replayed = {name: SetConfig.model_validate(one) for name, one in description.get("replayed", {}).items()}
    except (KeyError, ValueError) as error:
        raise TrainError(f"{start.run}: does not say what it was trained on: {error}") from None
    rest = 1 - sum(one.share for one in replayed.values())
    own = sum(one.share for one in data.all_sets().values())
    sets = {name: one.model_copy(update={"share": rest * one.share / own}) for name, one in data.all_sets().items()}
    sets |= replayed
    total = sum(one.share for one in sets.values())
    return {
        REPLAY + (f".{name}" if name else ""): SetConfig(shards=one.shards, share=start.replay * one.share / total)
        for name, one in sets.items()
    }


def all_sets(config: TrainConfig) -> dict[str, SetConfig]:
    """The sets of the file, and with `start` those of the run; all shares together are 1."""
    own = config.data.all_sets()
    replay = config.start.replay if config.start else 0.0
    total = sum(one.share for one in own.values())
    scaled = {name: SetConfig(shards=one.shards, share=one.share / total * (1 - replay)) for name, one in own.items()}
    sets = {**scaled, **(replayed_sets(config.start) if config.start else {})}
    if len(sets) > MAX_SETS:
        fix = "build those of the earliest runs as one, and begin with a run that learnt it"
        raise TrainError(f"start.run: {len(sets)} sets with those of earlier runs, at most {MAX_SETS}; {fix}")
    return sets


def forgetting(before: Mapping[str, Any], after: Mapping[str, Any], ks: list[int]) -> dict[str, Any]:
    """For each direction the recalls before and after, and what changed."""
    report: dict[str, Any] = {}
    for name, now in after.items():
        for k in ks:
            then = before.get(name, {}).get(f"recall@{k}", {}).get("value")
            value = now[f"recall@{k}"]["value"]
            report.setdefault(name, {})[f"recall@{k}"] = {
                "before": then, "after": value, "change": None if then is None else value - then,
            }  # fmt: skip
    return report


def forgetting_table(report: Mapping[str, Any], k: int) -> list[str]:
    """Lines for people: recall@k of each direction on what the run was trained for, before and after."""
    lines = [f"on the held-out samples of the run that was continued, recall@{k}: before, after, change"]
    for name, values in report.items():
        cell = values[f"recall@{k}"]
        if cell["before"] is not None:
            lines.append(f"{name:16}{cell['before']:>10.3f}{cell['after']:>10.3f}{cell['change']:>+10.3f}")
    return lines
