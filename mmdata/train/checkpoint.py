"""What a training needs to go on exactly where it was, in one file that is replaced as a whole."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mmdata.errors import TrainError
from mmdata.train.config import RESUMABLE_CHANGES, TrainConfig

_VERSION = 1


@dataclass
class Progress:
    """How far a training is. The reader's position is the step.

    Attributes:
        step: steps done.
        elapsed_s: seconds of training, over all runs.
        seen: samples asked for.
        failed: those of them that could not be decoded, counted each time.
        failed_members: the distinct members among them, as `shard/id/member`.
        bad_steps: steps without an update, because the loss or a gradient was not finite.
    """

    step: int = 0
    elapsed_s: float = 0.0
    seen: int = 0
    failed: int = 0
    failed_members: list[str] = field(default_factory=list)
    bad_steps: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A file as it was read."""

    progress: Progress
    model: dict[str, Any]
    optimizer: dict[str, Any]
    rng: dict[str, torch.Tensor]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a file beside `path`, then put it in place: readers see the old or the new, never a part."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(scratch)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def save(path: Path, progress: Progress, model: nn.Module, optimizer: Optimizer, identity: dict[str, Any]) -> None:
    """Write a checkpoint. `identity` says which run it belongs to, see `identity_of`."""
    content = {
        "version": _VERSION,
        "identity": identity,
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": _rng_states(),
    }
    write_whole(path, lambda scratch: torch.save(content, scratch))


def load(path: Path, identity: dict[str, Any]) -> Checkpoint:
    """Read a checkpoint. Raises TrainError where it is damaged, or belongs to a run with other settings."""
    try:
        # weights_only: a checkpoint is data, and may come from someone else.
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["version"] != _VERSION:
            raise TrainError(f"{path}: a checkpoint of version {content['version']}, this reads {_VERSION}")
        _check_identity(path, content["identity"], identity)
        progress = Progress(**content["progress"])
        return Checkpoint(progress, content["model"], content["optimizer"], content["rng"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        fix = "delete it to train from the start"
        raise TrainError(f"{path}: not a checkpoint that can be read ({error}); {fix}") from None


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> Progress:
    """Put the weights, the optimiser and the random numbers back; gives the progress."""
    model.load_state_dict(checkpoint.model)
    optimizer.load_state_dict(checkpoint.optimizer)
    torch.set_rng_state(checkpoint.rng["cpu"])
    if "cuda" in checkpoint.rng and torch.cuda.is_available():
        torch.cuda.set_rng_state(checkpoint.rng["cuda"])
    return checkpoint.progress


def identity_of(config: TrainConfig, data_digest: str) -> dict[str, Any]:
    """What two runs must share for one to continue the other: the data, and every setting that changes a step."""
    return {"data.digest": data_digest, **_flat(config.model_dump(exclude=set(RESUMABLE_CHANGES)))}


def _rng_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _check_identity(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    keys = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    # The folder may have moved: the digest says whether the data are the same.
    keys = [key for key in keys if key != "data.shards"]
    if keys:
        shown = ", ".join(f"{key} was {theirs.get(key)}, is {ours.get(key)}" for key in keys[:5])
        raise TrainError(f"{path}: of a run with other settings: {shown}; use another output, or delete that folder")


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return flat
