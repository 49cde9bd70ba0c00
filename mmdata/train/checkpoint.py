"""What a training needs to go on exactly where it was, on any number of ranks.

`checkpoints/step-00000200/` holds the tensors, written by torch.distributed.checkpoint as safetensors (every rank its
own shards, and nothing pickled), and `state.json`, which is everything else. It is written aside and renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.optim import Optimizer

from mmdata.errors import TrainError
from mmdata.train.config import RESUMABLE_CHANGES, RESUMABLE_DATA_CHANGES, TrainConfig
from mmdata.train.ema import Ema
from mmdata.train.launch import barrier, gathered_lists, is_main, world_size

_VERSION = 2
_NAME = re.compile(r"step-(\d{8,})")
_STATE = "state.json"


@dataclass
class Progress:
    """How far a training is. The reader's position is the step.

    Attributes:
        step: steps done.
        elapsed_s: seconds of training, over all runs.
        wait_s: those of them spent waiting for data.
        seen: samples asked for.
        failed: those of them that could not be decoded, counted each time.
        failed_members: the distinct members among them, as `shard/id/member`.
        bad_steps: steps without an update, because a number was not finite or far above its median.
        guard: what the guard of spikes knows.
    """

    step: int = 0
    elapsed_s: float = 0.0
    wait_s: float = 0.0
    seen: int = 0
    failed: int = 0
    failed_members: list[str] = field(default_factory=list)
    bad_steps: int = 0
    guard: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose tensors are not read yet.

    Attributes:
        path: its folder.
        stage: number of the stage that its optimiser is of.
        progress: how far the training was.
    """

    path: Path
    stage: int
    progress: Progress


@dataclass(frozen=True)
class Parts:
    """What has tensors to be saved."""

    model: nn.Module
    optimizer: Optimizer
    ema: Ema | None


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


def save(
    folder: Path, progress: Progress, stage: int, parts: Parts, identity: Mapping[str, Any], keep: int
) -> Checkpoint:
    """Write a checkpoint, all ranks together, and remove all but the newest `keep`.

    Args:
        folder: of checkpoints.
        progress: how far the training is.
        stage: number of the stage.
        parts: what has tensors.
        identity: which run it belongs to, see `identity_of`.
        keep: how many stay.

    Raises TrainError where the disk does not take it; the one before is still there.
    """
    path = folder / f"step-{progress.step:08d}"
    scratch = folder / f".{path.name}"
    if path.exists():
        # Of this step: the end of a stage is saved by what ends it and by what begins the next. Taken away to be
        # written again, it would be missing after a kill in between, and the ones before are gone.
        return Checkpoint(path, stage, progress)
    progress.failed_members = gathered_lists(progress.failed_members)
    try:
        _write(path, scratch, progress, stage, parts, identity)
    except (OSError, CheckpointException, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        fix = "make room; the same command goes on from the checkpoint before, where there is one"
        raise TrainError(f"{path}: a checkpoint cannot be written: {_first_line(error)}; {fix}") from None
    if is_main():
        for old in _found(folder)[:-keep]:
            shutil.rmtree(old)
    barrier()
    return Checkpoint(path, stage, progress)


def _write(
    path: Path, scratch: Path, progress: Progress, stage: int, parts: Parts, identity: Mapping[str, Any]
) -> None:
    """Write it aside and put it in its place."""
    if is_main():
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    barrier()
    with _single_process():
        writer = HuggingFaceStorageWriter(str(scratch), save_distributed=True)
        save_tensors(_tensors(parts), storage_writer=writer, no_dist=world_size() == 1)
    barrier()
    if is_main():
        state = {"version": _VERSION, "identity": dict(identity), "stage": stage, "progress": asdict(progress)}
        write_whole(scratch / _STATE, lambda file: file.write_text(json.dumps(state)))
        scratch.replace(path)
    barrier()


def newest(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The newest checkpoint of a folder, None where there is none.

    Raises TrainError where it is damaged, or belongs to a run with other settings.
    """
    found = _found(folder)
    if not found:
        return None
    file = found[-1] / _STATE
    try:
        state = json.loads(file.read_text())
        if state["version"] != _VERSION:
            raise TrainError(f"{file}: a checkpoint of version {state['version']}, this reads {_VERSION}")
        _check_identity(file, state["identity"], identity)
        return Checkpoint(found[-1], int(state["stage"]), Progress(**state["progress"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(found[-1], error) from None


def restore(checkpoint: Checkpoint, parts: Parts, *, optimizer: bool) -> None:
    """Fill the weights, the averages and, where wanted, the optimiser from a checkpoint, all ranks together.

    Raises TrainError where it is damaged.
    """
    reader = HuggingFaceStorageReader(str(checkpoint.path))
    try:
        known = set(reader.read_metadata().state_dict_metadata)
        if optimizer:
            _make_moments(parts, known)
        tensors = _tensors(parts)
        wanted = {name: tensor for name, tensor in tensors.items() if optimizer or not name.startswith("optimizer.")}
        with _single_process():
            load_tensors(wanted, storage_reader=reader, no_dist=world_size() == 1)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError, CheckpointException) as error:
        raise _damaged(checkpoint.path, error) from None


def identity_of(config: TrainConfig, digests: Mapping[str, str]) -> dict[str, Any]:
    """What two runs must share for one to continue the other: the data, and every setting that changes a step."""
    settings = _flat(config.model_dump(mode="json", exclude=set(RESUMABLE_CHANGES)))
    return {**{f"{name}.digest": digest for name, digest in digests.items()}, **settings}


def _found(folder: Path) -> list[Path]:
    """Finished checkpoints, the oldest first."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=lambda p: int(p.name[5:]))


def _tensors(parts: Parts) -> dict[str, Tensor]:
    """Every tensor by name: of the model, its averages, and the optimiser's of each parameter."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in parts.model.state_dict().items()}
    if parts.ema:
        tensors |= {f"ema.{name}": tensor for name, tensor in parts.ema.averages.items()}
    for name, parameter in parts.model.named_parameters():
        for key, value in parts.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def _make_moments(parts: Parts, known: set[str]) -> None:
    """AdamW makes its moments at the first step: here they are made for what the checkpoint has them of."""
    for name, parameter in parts.model.named_parameters():
        if f"optimizer.{name}.exp_avg" in known:
            parts.optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


@contextmanager
def _single_process() -> Iterator[None]:
    """Without the warning that one process is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _first_line(error: BaseException) -> str:
    """Of what a library says; of several ranks' errors the first one's."""
    failures = getattr(error, "failures", None)
    cause = next(iter(failures.values()))[0] if failures else error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _damaged(path: Path, error: BaseException) -> TrainError:
    fix = "delete that folder to go on from the one before, or from the start"
    return TrainError(f"{path}: not a checkpoint that can be read ({_first_line(error)}); {fix}")


def _check_identity(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    may_differ = {f"data.{name}" for name in RESUMABLE_DATA_CHANGES}
    keys = sorted(key for key in (theirs.keys() | ours.keys()) - may_differ if theirs.get(key) != ours.get(key))
    # A folder may have moved: its digest says whether the data are the same.
    keys = [key for key in keys if key != "data.shards" and not re.fullmatch(r"data\.sets\..*\.shards", key)]
    if keys:
        shown = ", ".join(f"{key} was {theirs.get(key)}, is {ours.get(key)}" for key in keys[:5])
        fix = "use another output, or delete that folder"
        if any(key.endswith(".digest") for key in keys):
            fix += "; shards that were built again are for a new run, which may begin with a finished one: --continue"
        raise TrainError(f"{path}: of a run with other settings: {shown}; {fix}")


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return flat
