"""All terms of a step, weighed and summed: the module that a loop (and DDP or FSDP2) calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmdata.train.batch import Batch
from mmdata.train.dice import Dice
from mmdata.train.losses.config import LossConfig
from mmdata.train.losses.contrastive import fusion_terms, pair_terms
from mmdata.train.losses.ranks import world_size
from mmdata.train.losses.step import Step
from mmdata.train.model.fused import FusedModel

# A term's name in the configuration, and what makes its scalars: none where the batch has nothing to say to it, which
# all ranks then agree on.
TERMS: dict[str, Callable[[Step], dict[str, Tensor]]] = {"pair": pair_terms, "fusion": fusion_terms}


class Objective(nn.Module):
    """The model and what it is trained for.

    What it gives on a rank is that rank's share: averaged over ranks, values and gradients are those that one process
    with the whole batch would have.
    """

    def __init__(self, model: FusedModel, config: LossConfig) -> None:
        """Weights from `config`; several objectives may share a model."""
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: Batch, dice: Dice) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The loss, and its terms by name; None and nothing where no term has anything to say, on any rank."""
        step = Step(self.model, batch, dice, self.config)
        kinds = {kind: make(step) for kind, make in TERMS.items() if getattr(self.config, kind)}
        parts = [
            getattr(self.config, kind) * torch.stack(list(terms.values())).mean()
            for kind, terms in kinds.items()
            if terms
        ]
        if not parts:
            return None, {}
        loss = torch.stack(parts).sum()
        if world_size() > 1:
            loss = loss + _touch(self.model)
        return loss, {name: term for terms in kinds.values() for name, term in terms.items()}


def _touch(model: nn.Module) -> Tensor:
    """Zero, with a gradient of zeros for every parameter: ranks wait for each other's gradients of all of them."""
    # What FSDP2 holds in shards waits for nobody: its gradients are reduced where its module runs.
    parameters = [part for part in model.parameters() if part.requires_grad and not isinstance(part, DTensor)]
    return torch.stack([parameter.flatten()[0].float() for parameter in parameters]).sum() * 0
