"""The exponential moving average of the weights (Polyak and Juditsky 1992), which is what is measured and exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Averages of the trained parameters; sharded like them.

    The decay of step t is min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage: early averages
    do not drag the first weights along.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the model's weights."""
        self._decay = decay
        self.averages = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after the step, counted from 0."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.averages[name].lerp_(parameter.detach(), share)

    def lay_over(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights, with the averages where there are some."""
        return {name: self.averages.get(name, value) for name, value in weights.items()}
