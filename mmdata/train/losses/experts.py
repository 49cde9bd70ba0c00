"""What keeps a mixture of experts a mixture.

Shapes: E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdata.train.losses.ranks import gathered
from mmdata.train.model.moe import Load, MixtureMlp


def clear_loads(model: nn.Module) -> None:
    """Forget earlier passes."""
    for layer in model.modules():
        if isinstance(layer, MixtureMlp):
            layer.loads.clear()


def expert_terms(model: nn.Module) -> dict[str, Tensor]:
    """`experts.balance` and `experts.entropy`, each the mean over the layers with experts that have run.

    Balance is Switch's loss (Fedus et al. 2021, equation 4), 1 where all experts are used alike. Entropy is that of
    LIMoE (Mustafa et al. 2022, equation 4): of a token's choice, which is to be sure, less that of all tokens' mean
    choice, which is to be wide.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, MixtureMlp) and layer.loads]
    if not layers:
        return {}
    pairs = [_penalties(layer.loads) for layer in layers]
    balance, entropy = (torch.stack(column).mean() for column in zip(*pairs, strict=True))
    return {"experts.balance": balance, "experts.entropy": entropy}


def _penalties(loads: list[Load]) -> tuple[Tensor, Tensor]:
    """Over all passes and ranks. Every rank has the whole of it, so that the mean over ranks is the same."""
    chosen_E = torch.stack([load.chosen_E for load in loads]).sum(dim=0)
    probability_E = torch.stack([load.probability_E for load in loads]).sum(dim=0)
    entropy = torch.stack([load.entropy for load in loads]).sum()
    mine = torch.cat([chosen_E, probability_E, entropy[None]])
    everyone = gathered(mine[None]).sum(dim=0)
    experts = len(chosen_E)
    tokens = everyone[:experts].sum().clamp(min=1)
    share_E, mean_E = everyone[:experts] / tokens, everyone[experts:-1] / tokens
    balance = experts * (share_E.detach() * mean_E).sum()
    marginal = -(mean_E * mean_E.clamp(min=1e-9).log()).sum()
    return balance, everyone[-1] / tokens - marginal
