"""Ranks: the processes that torchrun starts on one training, `torchrun --nproc-per-node 2 -m mmdata train FILE`."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from mmdata.errors import TrainError
from mmdata.models.device import resolve_device

# While one rank measures, the others wait.
_PATIENCE = timedelta(hours=2)
# Workers of a training that was killed look after it every five seconds, and end; until then they hold its lock.
_LOCK_PATIENCE_S = 15.0


def world_size() -> int:
    """Ranks; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This one's number."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this rank says, writes and measures."""
    return rank() == 0


def rank_device(device: str) -> torch.device:
    """The device of this rank: of several accelerators of one machine the one of its number."""
    resolved = resolve_device(device)
    if resolved.type == "cuda" and device in ("auto", "cuda") and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return resolved


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the ranks that torchrun started; does nothing where there is one, or a group is there."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    own: dict[str, Any] = {"backend": "gloo"}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # Said here, ranks need not guess it at their first barrier.
        own = {"backend": "nccl", "device_id": device}
    dist.init_process_group(**own, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the folder of a run and be the only training in it; the lock goes with the process.

    Raises TrainError where it cannot be made, or another training runs there.
    """
    if not is_main():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise TrainError(f"output: {folder} cannot be made a folder: {error.strerror}; name another") from None
    try:
        _lock(folder, handle)
        yield
    finally:
        os.close(handle)


def _lock(folder: Path, handle: int) -> None:
    until = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                fix = "wait for it, or give this one its own --output"
                raise TrainError(f"{folder}: another training runs here; {fix}") from None
            time.sleep(0.2)
        except OSError:
            return None  # a file system that knows no locks


def summed(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums over all ranks."""
    if world_size() == 1:
        return list(values)
    # Accelerators of one kind lack float64, and so many steps fit into its place anyway.
    total = torch.tensor(values, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    dist.all_reduce(total)
    sums: list[float] = total.tolist()
    return sums


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def gathered_lists(items: list[str]) -> list[str]:
    """The items of all ranks, each once, in the order of the ranks."""
    if world_size() == 1:
        return items
    lists: list[Any] = [None] * world_size()
    dist.all_gather_object(lists, items)
    return list(dict.fromkeys(item for one in lists for item in one))


def whole(tensor: Tensor) -> Tensor:
    """A parameter that may be sharded, in full, without gradient; all ranks must ask together."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    detached: Tensor = full.detach()
    return detached
