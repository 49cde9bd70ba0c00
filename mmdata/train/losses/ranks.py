"""What the losses have to do with other ranks: gather features, and weigh a rank's sum by the count of all.

DDP and FSDP2 average gradients over ranks. A rank's share of a mean over all samples is therefore its own sum, times
the number of ranks, over the count of all: the average of that is the mean, and its gradient that of one process.

Shapes: N rows of this rank, A rows of all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional

from mmdata.train.launch import rank, world_size


def total(count: Tensor) -> Tensor:
    """The sum over ranks, without a gradient."""
    count = count.detach().clone()
    if world_size() > 1:
        dist.all_reduce(count)
    return count


def shared_mean(value_N: Tensor, weight_N: Tensor, everyone: Tensor | None = None) -> Tensor:
    """This rank's share of the weighted mean over all ranks: averaged over ranks it is that mean. A scalar.

    Zero, with a gradient of zeros, where all weights are; `everyone` is the sum of weights of all ranks, where known.
    """
    everyone = total(weight_N.sum()) if everyone is None else everyone
    return (value_N * weight_N).sum() * world_size() / everyone.clamp(min=1e-12)


def gathered(rows_N: Tensor, counts: list[int] | None = None) -> Tensor:
    """The rows of all ranks, one rank after the other; gradients find their way back. Shape (A, ...).

    Args:
        rows_N: this rank's; their number may differ by rank.
        counts: see `row_counts`; asked for where it is not given.
    """
    if world_size() == 1:
        return rows_N
    counts = row_counts(len(rows_N), rows_N.device) if counts is None else counts
    padded = functional.pad(rows_N, (0, 0) * (rows_N.ndim - 1) + (0, max(counts) - len(rows_N)))
    if padded.is_floating_point() and torch.is_grad_enabled() and not padded.requires_grad:
        # The others wait for this rank on the way back too, also where it has only zeros that nothing made.
        padded = padded.detach().requires_grad_()
    parts: list[Tensor] = _Gather.apply(padded).split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def row_counts(rows: int, device: torch.device) -> list[int]:
    """How many rows each rank has."""
    if world_size() == 1:
        return [rows]
    every = torch.zeros(world_size(), dtype=torch.int64, device=device)
    every[rank()] = rows
    return [int(count) for count in total(every).tolist()]


class _Gather(torch.autograd.Function):
    """All ranks' rows; the gradient of a rank's rows is the sum of what all ranks make of them."""

    @staticmethod
    def forward(ctx: Any, rows_N: Tensor) -> Tensor:
        ctx.rows = len(rows_N)
        parts = [torch.empty_like(rows_N) for _ in range(world_size())]
        dist.all_gather(parts, rows_N.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient_A = gradients[0].contiguous()
        dist.all_reduce(gradient_A)
        return gradient_A[rank() * ctx.rows : (rank() + 1) * ctx.rows]
