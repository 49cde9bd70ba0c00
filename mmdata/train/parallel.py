"""A model over several ranks and within memory: DDP or FSDP2, activation checkpointing, compilation, gradient norms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mmdata.train.batch import Batch
from mmdata.train.dice import Dice
from mmdata.train.launch import world_size
from mmdata.train.losses.objective import Objective
from mmdata.train.model.fused import Encoded, FusedModel


class LossModule(nn.Module):
    """What DDP or FSDP2 wraps: a batch in, the loss out; one forward and one backward a step on every rank."""

    def __init__(self, objective: Objective) -> None:
        """The objective knows the model."""
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch, dice: Dice) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's share of the loss; its terms without gradients. Zero and none where no term has a say."""
        loss, terms = self.objective(batch, dice)
        if loss is None:
            # Ranks wait for the gradients of a forward: it has some, of zeros.
            trained = [part for part in self.parameters() if part.requires_grad and not isinstance(part, DTensor)]
            loss = torch.stack([part.flatten()[0].float() for part in trained]).sum() * 0
        return loss, {name: term.detach() for name, term in terms.items()}


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The repeated layers: what stands in lists and has parameters; each once."""
    seen: set[int] = set()
    for module in model.modules():
        for child in module if isinstance(module, nn.ModuleList) else ():
            if id(child) not in seen and any(True for _ in child.parameters()):
                seen.add(id(child))
                yield child


def checkpoint_activations(model: nn.Module) -> None:
    """Compute what is inside of each block again when its gradient is wanted, instead of keeping it."""
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(model: nn.Module) -> None:
    """Compile each block for itself: as fast as the whole for repeated layers, and compiled in seconds.

    Without an analysis that is not made for dynamic shapes: on CUDA torch 2.11 ends there in an AssertionError
    (pytorch/pytorch#181563).
    """
    for block in blocks(model):
        block.compile(dynamic=True, options={"triton.coalesce_tiling_analysis": False})


def encode_in_pieces(model: FusedModel, pieces: int) -> None:
    """Let a batch go through the towers piece by piece, and each piece again when its gradient is wanted.

    Only one piece's activations are there at a time, and the losses see the whole batch: contrastive terms have all of
    its negatives. It is GradCache (Gao et al. 2021) by checkpoints of autograd.
    """
    whole = model.encode

    def encode(batch: Batch) -> Encoded:
        if pieces == 1 or not torch.is_grad_enabled():
            return whole(batch)
        parts = [checkpoint(whole, batch.rows(rows), use_reentrant=False) for rows in _cut(len(batch), pieces)]
        return _joined(parts)

    model.encode = encode  # type: ignore[method-assign]


def _joined(parts: list[Encoded]) -> Encoded:
    """The pieces of a batch as one; a modality that a piece lacks altogether has no tokens there."""
    columns = range(len(parts[0].tokens))
    longest = [max(part.tokens[column].shape[1] for part in parts) for column in columns]
    tokens = [[_longer(part.tokens[column], longest[column]) for part in parts] for column in columns]
    masks = [[_longer(part.masks[column], longest[column]) for part in parts] for column in columns]
    return Encoded(
        [torch.cat(pieces) for pieces in tokens],
        [torch.cat(pieces) for pieces in masks],
        [torch.cat([part.embeddings[column] for part in parts]) for column in columns],
        torch.cat([part.present_BM for part in parts]),
    )


def _longer(part_BS: Tensor, longest: int) -> Tensor:
    """Zeros behind the second axis."""
    missing = longest - part_BS.shape[1]
    if not missing:
        return part_BS
    return torch.cat([part_BS, part_BS.new_zeros((len(part_BS), missing, *part_BS.shape[2:]))], dim=1)


def _cut(rows: int, pieces: int) -> list[range]:
    """As equal as can be; none is empty but the only one."""
    pieces = min(pieces, max(rows, 1))
    edges = [rows * number // pieces for number in range(pieces + 1)]
    return [range(first, last) for first, last in pairwise(edges)]


def wrapped(module: LossModule, strategy: str) -> nn.Module:
    """The module over all ranks; itself where there is one.

    `fsdp` shards weights, gradients and moments as one group, whose weights are whole during a step: groups by block
    would wait for each other for ever where a batch of one rank lacks a modality, whose tower then does not run. Single
    numbers (the temperature) stay whole, as FSDP2 wants.
    """
    if world_size() == 1:
        return module
    if strategy != "fsdp":
        return DistributedDataParallel(module)
    whole = {parameter for parameter in module.parameters() if not parameter.ndim}
    fully_shard(module, ignored_params=whole)
    return module


def average_whole(model: nn.Module) -> None:
    """Average the gradients that FSDP2 leaves alone, over ranks."""
    parameters = list(model.parameters())
    if world_size() == 1 or not any(isinstance(parameter, DTensor) for parameter in parameters):
        return
    for parameter in parameters:
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def clip_gradients(model: nn.Module, most: float) -> float:
    """Scale the gradients down to a norm of at most `most`; gives the norm that they had, over all ranks."""
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    # Sharded and whole gradients do not mix in one call.
    groups: list[list[Any]] = [[p for p in trained if isinstance(p, DTensor) is sharded] for sharded in (True, False)]
    norms = [nn.utils.get_total_norm([part.grad for part in group]) for group in groups if group]
    norm = math.sqrt(sum(float(part.full_tensor() if isinstance(part, DTensor) else part) ** 2 for part in norms))
    for group in groups:
        if group and math.isfinite(norm):
            nn.utils.clip_grads_with_norm_(group, most, torch.tensor(norm, device=group[0].device))
    return norm
