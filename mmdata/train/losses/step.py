"""What the terms of one step share: each thing is computed once, when the first term asks for it.

Shapes: B samples, M modalities, D embedding dimensions, Q latents, W the fusion's width.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmdata.train.batch import Batch
from mmdata.train.dice import Dice
from mmdata.train.losses.config import LossConfig
from mmdata.train.model.fused import Encoded, FusedModel

if TYPE_CHECKING:
    from mmdata.train.losses.contrastive import Everyone


class Step:
    """A batch on its way through the model."""

    def __init__(self, model: FusedModel, batch: Batch, dice: Dice, config: LossConfig) -> None:
        """`batch` is on the model's device."""
        self.model, self.batch, self.dice, self.config = model, batch, dice, config
        self.device: torch.device = batch.present_BM.device
        self.everyone: Everyone | None = None

    @functools.cached_property
    def encoded(self) -> Encoded:
        """After the towers."""
        return self.model.encode(self.batch)

    @functools.cached_property
    def visible_MBM(self) -> Tensor:
        """What the fusion reads when it is held against each modality."""
        from mmdata.train.losses.contrastive import visible_inputs

        return visible_inputs(self.batch.present_BM, self.config.modality_dropout, self.dice, self._apart_MM())

    def _apart_MM(self) -> Tensor | None:
        """Modalities that are kept from each other; None where all may meet."""
        names, config = self.model.modalities, self.config
        apart = [[config.apart(left, right) for right in names] for left in names]
        return torch.tensor(apart, device=self.device) if config.without else None

    @functools.cached_property
    def latents_MBQW(self) -> Tensor:
        """The fusion's latents, for each modality without that modality."""
        return self.model.latents(self.encoded, self.visible_MBM)

    @functools.cached_property
    def latents_BQW(self) -> Tensor:
        """The fusion's latents of all that a sample has."""
        return self.model.latents(self.encoded, torch.ones_like(self.batch.present_BM)[None])[0]

    @functools.cached_property
    def fused_MBD(self) -> Tensor:
        """The fusion's embedding, for each modality without that modality."""
        return self.model.fused(self.latents_MBQW)
