"""Choose where a model runs."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from mmdata.errors import FatalError

if TYPE_CHECKING:
    import torch


# `auto`: half the bits where the hardware multiplies them natively, else float32.
Precision: TypeAlias = Literal["auto", "float32"]
PRECISION_MEANS: Final = "of the model's arithmetic; auto: 16 bits where the device multiplies them natively, else 32"

_CPU_PROCESSES: Final = 4
# The compute capability from which matrices are multiplied in bf16 (Ampere); older devices convert it on the way.
_MULTIPLIES_BF16: Final = (8, 0)


def accelerators(device: str) -> list[str]:
    """Where the processes that hold models run: one name a process.

    One for each CUDA device that is visible; without one, the cores are shared among up to four processes, because a
    model on few threads loses less to waiting than on many. Asks the driver itself: torch takes seconds to import.
    """
    if device not in ("auto", "cuda"):
        return [device] * (_shares() if device == "cpu" else 1)
    found = _cuda_devices() if device == "cuda" or _torch_has_cuda() else 0
    if found or device == "cuda":
        return [f"cuda:{index}" for index in range(max(found, 1))]
    return ["auto"] if sys.platform == "darwin" else ["cpu"] * _shares()


def threads_each(processes: int) -> int:
    """Threads of each of so many processes that compute on the CPU."""
    return max((os.cpu_count() or 1) // processes, 1)


def _shares() -> int:
    return min(os.cpu_count() or 1, _CPU_PROCESSES)


def _torch_has_cuda() -> bool:
    """Whether torch was built with CUDA, by its files: beside a driver there may be a torch for processors."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    libraries = Path(found.origin).parent / "lib"
    return any(libraries.glob("*torch_cuda*"))


def _cuda_devices() -> int:
    """How many devices the CUDA driver shows, `CUDA_VISIBLE_DEVICES` regarded."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


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


@contextmanager
def whole_float32() -> Iterator[None]:
    """Convolutions of float32 in float32: cuDNN else rounds what they multiply to 10 bits (TF32)."""
    import torch

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def multiplies_bf16(device: torch.device) -> bool:
    """Whether matrices in bf16 take less time than in float32: on CUDA devices and processors that multiply it.

    On two cores of an AMD EPYC with AVX512-BF16 a ViT-B/32 takes 0.050 s an image in bf16 and 0.108 s in float32;
    processors without such instructions emulate it, slower than float32.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _MULTIPLIES_BF16
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
