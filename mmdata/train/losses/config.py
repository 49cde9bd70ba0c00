"""The `loss:` of a training file: which terms, and how they weigh. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import permutations
from typing import Literal

from pydantic import Field

from mmdata.document import Keys, nearest
from mmdata.spec import Frozen

# The kinds of term, each a weight.
TERM_NAMES = (
    "pair", "fusion", "masked", "caption", "answer", "flow", "route", "match", "distill", "mimic",
)  # fmt: skip


class LossConfig(Frozen):
    """A weight for each kind of term; 0 leaves it out. A kind of several terms counts as their mean."""

    pair: float = Field(1.0, ge=0, description="contrastive, between every two modalities that a sample has")
    fusion: float = Field(1.0, ge=0, description="contrastive, between each modality and the fusion of the others")
    masked: float = Field(0.0, ge=0, description="hidden patches, spans of sound and tokens are rebuilt from the rest")
    caption: float = Field(0.0, ge=0, description="the text is written from the fusion of the other modalities")
    answer: float = Field(0.0, ge=0, description="answers are written from the fusion and the question: data.answers")
    flow: float = Field(0.0, ge=0, description="images and sounds are made from the fusion of the other modalities")
    route: float = Field(0.0, ge=0, description="the fusion of the others says which modality is to be made of it")
    match: float = Field(
        0.0, ge=0, description="true pairs are told from hard negatives, of a rank's own batch, by the fusion of both"
    )
    distill: float = Field(0.0, ge=0, description="similarities are as a teacher's: data.teachers, or a live one")
    mimic: float = Field(
        0.0, ge=0, description="a teacher's vectors are foretold from the embeddings: data.teachers, or a live one"
    )
    contrastive: Literal["infonce", "siglip"] = Field(
        "infonce", description="infonce: each sample among all of the batch; siglip: each pair for itself"
    )
    without: list[str] = Field(
        [], description="pairs of modalities that never meet, `audio~image`, so that what was not trained is measured"
    )
    modality_dropout: float = Field(
        0.3, ge=0, lt=1, description="chance that one more modality is hidden from the fusion, for each sample"
    )
    masked_share: float = Field(0.3, gt=0, lt=1, description="share of the tokens that masked modelling hides")
    condition_dropout: float = Field(
        0.1, ge=0, lt=1, description="chance that a flow learns without its condition, for guidance when it makes"
    )
    distill_temperature: float = Field(0.07, gt=0, le=1, description="of the teacher's and the student's similarities")

    def apart(self, left: str, right: str) -> bool:
        """Whether two modalities are kept from each other."""
        return f"{left}~{right}" in self.without or f"{right}~{left}" in self.without


def apart_problems(keys: Keys, loss: LossConfig | None, modalities: Collection[str]) -> Iterator[tuple[Keys, str]]:
    """Names under `without` that are no pair of modalities."""
    known = [f"{left}~{right}" for left, right in permutations(modalities, 2)]
    for index, pair in enumerate(loss.without if loss else ()):
        if pair not in known:
            yield (*keys, "without", index), f"'{pair}' is no pair of data.modalities{nearest(pair, known)}"
