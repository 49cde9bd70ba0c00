"""Mixture of experts with top-1 routing (Switch Transformer, Fedus et al. 2021): of several MLPs each token takes one.

No token is dropped: an expert takes as many as choose it.

Shapes: N sequences, S tokens of each, T tokens of all, W width, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Load:
    """How the real tokens of one pass were spread.

    Attributes:
        chosen_E: how many chose each expert.
        probability_E: sum of their probabilities of each; has a gradient.
        entropy: sum of the entropies of their choices; has a gradient.
    """

    chosen_E: Tensor
    probability_E: Tensor
    entropy: Tensor


class MixtureMlp(nn.Module):
    """A router and its experts."""

    def __init__(self, width: int, experts: list[nn.Module]) -> None:
        """`experts` keep the width."""
        super().__init__()
        self.router = nn.Linear(width, len(experts), bias=False)
        self.experts = nn.ModuleList(experts)
        self.loads: list[Load] = []

    def forward(self, tokens_NSW: Tensor, mask_NS: Tensor) -> Tensor:
        """Shape (N, S, W). In training, how the tokens that `mask_NS` calls real were spread is added to `loads`."""
        tokens_TW = tokens_NSW.flatten(0, 1)
        # In float32, as Switch does: in bf16 near ties fall this way or that.
        with torch.autocast(tokens_TW.device.type, enabled=False):
            log_TE = torch.log_softmax(nn.functional.linear(tokens_TW.float(), self.router.weight.float()), dim=-1)
        choice_T = log_TE.argmax(dim=-1)
        if self.training and torch.is_grad_enabled():
            self.loads.append(_load(log_TE, choice_T, mask_NS.flatten()))
        if torch.compiler.is_exporting():
            return self._dense(tokens_TW, log_TE, choice_T).view_as(tokens_NSW)
        gate_T1 = log_TE.gather(1, choice_T[:, None]).exp().to(tokens_TW.dtype)
        out_TW = torch.zeros_like(tokens_TW)
        for number, expert in enumerate(self.experts):
            # An expert that nobody chose runs over nothing: its gradients are zeros, and no rank waits for them.
            taken_T = (choice_T == number).nonzero()[:, 0]
            made_TW = (expert(tokens_TW[taken_T]) * gate_T1[taken_T]).to(out_TW.dtype)
            out_TW = out_TW.index_copy(0, taken_T, made_TW)
        return out_TW.view_as(tokens_NSW)

    def _dense(self, tokens_TW: Tensor, log_TE: Tensor, choice_T: Tensor) -> Tensor:
        """The same by every expert for every token: graphs hold no shapes that depend on what is routed."""
        gate_TE = log_TE.exp() * nn.functional.one_hot(choice_T, log_TE.shape[1])
        made = [gate_TE[:, number, None] * expert(tokens_TW) for number, expert in enumerate(self.experts)]
        return torch.stack(made).sum(dim=0)


@contextmanager
def uncounted(model: nn.Module) -> Iterator[None]:
    """What runs meanwhile is no load: it was made only for gradients of zeros."""
    layers = [layer for layer in model.modules() if isinstance(layer, MixtureMlp)]
    counts = [len(layer.loads) for layer in layers]
    yield
    for layer, count in zip(layers, counts, strict=True):
        del layer.loads[count:]


def _load(log_TE: Tensor, choice_T: Tensor, real_T: Tensor) -> Load:
    probability_TE, real_T1 = log_TE.exp(), real_T[:, None].float()
    chosen_TE = nn.functional.one_hot(choice_T, log_TE.shape[1])
    entropy_T1 = -(probability_TE * log_TE).sum(dim=1, keepdim=True)
    return Load((chosen_TE * real_T1).sum(dim=0), (probability_TE * real_T1).sum(dim=0), (entropy_T1 * real_T1).sum())
