"""The `loss:` of a training file: which terms, and how they weigh. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmdata.spec import Frozen


class LossConfig(Frozen):
    """A weight for each kind of term; 0 leaves it out. A kind of several terms counts as their mean."""

    pair: float = Field(1.0, ge=0, description="contrastive, between every two modalities that a sample has")
    fusion: float = Field(1.0, ge=0, description="contrastive, between each modality and the fusion of the others")
    contrastive: Literal["infonce", "siglip"] = Field(
        "infonce", description="infonce: each sample among all of the batch; siglip: each pair for itself"
    )
    modality_dropout: float = Field(
        0.3, ge=0, lt=1, description="chance that one more modality is hidden from the fusion, for each sample"
    )
