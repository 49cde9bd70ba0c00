"""All terms of a step, weighed and summed: the module that a loop (and DDP or FSDP2) calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmdata.train.batch import Batch
from mmdata.train.dice import Dice
from mmdata.train.launch import world_size
from mmdata.train.losses.config import LossConfig
from mmdata.train.losses.contrastive import fusion_terms, pair_terms
from mmdata.train.losses.distill import distill_terms
from mmdata.train.losses.experts import clear_loads, expert_terms
from mmdata.train.losses.generative import answer_terms, caption_terms, flow_terms, route_terms
from mmdata.train.losses.masked import masked_terms
from mmdata.train.losses.match import match_terms
from mmdata.train.losses.mimic import mimic_terms
from mmdata.train.losses.step import Step
from mmdata.train.model.fused import FusedModel
from mmdata.train.model.sizes import Moe

# A kind of term by its name in `loss:`, and what makes its scalars: none where no rank's batch has anything to say to
# it, which all ranks then agree on. Each kind weighs as the mean of its scalars.
TERMS: dict[str, Callable[[Step], dict[str, Tensor]]] = {
    "pair": pair_terms,
    "fusion": fusion_terms,
    "masked": masked_terms,
    "caption": caption_terms,
    "answer": answer_terms,
    "flow": flow_terms,
    "route": route_terms,
    "match": match_terms,
    "distill": distill_terms,
    "mimic": mimic_terms,
}


class Objective(nn.Module):
    """The model and what it is trained for.

    What it gives on a rank is that rank's share: averaged over ranks, values and gradients are those that one process
    with the whole batch would have (but for `match`, whose negatives are the rank's own).
    """

    def __init__(self, model: FusedModel, config: LossConfig) -> None:
        """Weights from `config`; several objectives may share a model."""
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: Batch, dice: Dice) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The loss, and its terms by name; None and nothing where no term has anything to say, on any rank."""
        distributed = world_size() > 1
        self.model.run_absent = distributed
        clear_loads(self.model)
        step = Step(self.model, batch, dice, self.config)
        kinds = {kind: make(step) for kind, make in TERMS.items() if getattr(self.config, kind)}
        parts = [getattr(self.config, kind) * _mean(terms) for kind, terms in kinds.items() if terms]
        if not parts:
            return None, {}
        terms = {name: term for made in kinds.values() for name, term in made.items()}
        if moe := self.model.architecture.moe:
            spread = expert_terms(self.model)
            parts += [weight * spread[f"experts.{name}"] for name, weight in _weights(moe) if spread]
            terms |= spread
        loss = torch.stack(parts).sum()
        return loss + _touch(self.model) if distributed else loss, terms


def _mean(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).mean()


def _weights(moe: Moe) -> list[tuple[str, float]]:
    return [("balance", moe.balance), ("entropy", moe.entropy)]


def _touch(model: nn.Module) -> Tensor:
    """Zero, with a gradient of zeros for every parameter: ranks wait for each other's gradients of all of them."""
    # What FSDP2 holds in shards waits for nobody: its gradients are reduced where its module runs.
    parameters = [part for part in model.parameters() if part.requires_grad and not isinstance(part, DTensor)]
    return torch.stack([parameter.flatten()[0].float() for parameter in parameters]).sum() * 0
