"""Choose where a model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdata.errors import FatalError

if TYPE_CHECKING:
    import torch


def resolve_device(device: str) -> torch.device:
    """`auto` is the first CUDA device, else Apple's MPS, else the CPU; other names are torch's own.

    Raises FatalError where the named device is not there.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise FatalError(f"device: {device} was asked for, but torch sees no CUDA device; use device: auto")
    return torch.device(device)
