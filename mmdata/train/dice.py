"""Random numbers that belong to samples: a function of the seed, the step, the sample and the purpose alone.

So it does not matter how a batch is spread over ranks, in which order it stands, or on which device it is.

Shapes: B samples, E numbers a sample.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import torch
from torch import Tensor

# splitmix64 (Steele, Lea and Flood 2014; the constants of Vigna's public-domain code), as signed 64-bit numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_SHIFTS = (30, 27, 31)
# A float32 below 1 has 24 bits.
_BITS = 24


class Purpose(enum.IntEnum):
    """What numbers are drawn for: two purposes never share one."""

    HIDE_WHETHER = 1
    HIDE_WHICH = 2
    MASK = 3
    FLOW_NOISE = 4
    FLOW_TIME = 5
    FLOW_CONDITION = 6
    NEGATIVE = 7


@dataclass(frozen=True)
class Dice:
    """A stream for each sample of a batch.

    Attributes:
        key_B: int64.
    """

    key_B: Tensor

    @classmethod
    def of(cls, seed: int, step: int, row_B: Tensor) -> Dice:
        """For the samples `row_B` of the step."""
        base = torch.tensor([seed, step], dtype=torch.int64, device=row_B.device)
        seed_1, step_1 = _mix(base + _GOLDEN).unbind()
        return cls(_mix(row_B.to(torch.int64) + seed_1 + _mix(step_1 + _GOLDEN)))

    def uniform(self, purpose: Purpose, *shape: int) -> Tensor:
        """Numbers in [0, 1), float32. Shape (B, *shape)."""
        numbers_E = torch.arange(1, math.prod(shape) + 1, device=self.key_B.device)
        stream_B = _mix(self.key_B + int(purpose))
        bits_BE = _mix(stream_B[:, None] + numbers_E * _GOLDEN)
        unit_BE = _shifted(bits_BE, 64 - _BITS).to(torch.float32) / (1 << _BITS)
        return unit_BE.view(len(self.key_B), *shape)

    def normal(self, purpose: Purpose, *shape: int) -> Tensor:
        """Standard normal numbers, float32, by Box and Muller (1958). Shape (B, *shape)."""
        unit = self.uniform(purpose, 2, *shape)
        radius = (-2 * (1 - unit[:, 0]).log()).sqrt()
        return radius * (2 * math.pi * unit[:, 1]).cos()


def _mix(value: Tensor) -> Tensor:
    for shift, factor in zip(_SHIFTS, (*_MIX, 1), strict=True):
        value = (value ^ _shifted(value, shift)) * factor
    return value


def _shifted(value: Tensor, by: int) -> Tensor:
    """To the right, with zeros coming in: torch's own shift repeats the sign."""
    return (value >> by) & ((1 << (64 - by)) - 1)
