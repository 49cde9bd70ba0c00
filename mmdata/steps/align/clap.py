"""`clap`: agreement of sounds and texts by a CLAP model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mmdata.errors import SampleError
from mmdata.models.weights import Weights
from mmdata.sample import Modality, Sample
from mmdata.spec import Names
from mmdata.steps.base import Align
from mmdata.steps.exchange import Edge, Found, Score

if TYPE_CHECKING:
    from mmdata.models.clap import Clap as ClapModel
    from mmdata.models.clap import ClapRecipe, Sound


@dataclass(frozen=True)
class _Item:
    """One sample, ready for the model: sounds as mels, texts as they are, and the edges to score."""

    sounds: dict[str, Sound]
    texts: dict[str, str]
    edges: list[Edge]


class Clap(Align):
    """Cosine similarity of sound and text embeddings, by any CLAP model that transformers can load."""

    step: ClassVar[str] = "clap"
    extras: ClassVar[tuple[str, ...]] = ("clap",)
    modalities: ClassVar[tuple[Modality, Modality]] = ("audio", "text")
    name: str | None = Field(None, description="the aligner's name in rules and in the catalog; default: clap")
    model: str = Field(description="a hub id (laion/clap-htsat-unfused) or the folder of a transformers CLAP model")
    sound: Names = Field(default=["sound"], min_length=1, description="sound members")
    text: Names = Field(default=["caption"], min_length=1, description="text members")
    max_duration_s: float = Field(60.0, gt=0, description="what is beyond in a sound is not heard")

    def edges(self) -> list[Edge]:
        """Every sound with every text."""
        return [Edge(sound, text) for sound in self.sound for text in self.text]

    def weights(self) -> Weights:
        """Raises WeightsError."""
        from mmdata.models.clap import locate

        return locate(self.model)

    def load(self, device: str) -> _Scorer:
        """Load the model through transformers."""
        from mmdata.models.clap import Clap as ClapModel

        return _Scorer(ClapModel.load(self.model, device))

    def prepare(self, recipe: ClapRecipe, sample: Sample, edges: Sequence[Edge]) -> _Item | None:
        """Decode at the model's rate and make the spectrograms."""
        there = sample.members
        wanted = [edge for edge in edges if edge.left in there and edge.right in there]
        # In the order of the edges, never of a set: a batch must be the same in every process.
        lefts, rights = dict.fromkeys(e.left for e in wanted), dict.fromkeys(e.right for e in wanted)
        sounds = {name: self._sound(recipe, there[name].data) for name in lefts}
        return _Item(sounds, {name: there[name].text for name in rights}, wanted) if wanted else None

    def _sound(self, recipe: ClapRecipe, data: bytes) -> Sound:
        from mmdata.media.audio import decode_mono
        from mmdata.models.clap import prepare_sound

        return prepare_sound(recipe, decode_mono(data, self.max_duration_s, recipe.rate_hz))


class _Scorer:
    def __init__(self, model: ClapModel) -> None:
        self.model = model
        self.recipe: Any = model.recipe

    def score(self, items: Sequence[_Item]) -> list[Found | SampleError]:
        """One call of each tower for the batch; cosines of unit vectors."""
        sound_emb_ND = iter(self.model.embed_sounds([sound for item in items for sound in item.sounds.values()]))
        text_emb_ND = iter(self.model.embed_texts([text for item in items for text in item.texts.values()]))
        found: list[Found | SampleError] = []
        for item in items:
            vectors = {name: next(sound_emb_ND) for name in item.sounds}
            vectors |= {name: next(text_emb_ND) for name in item.texts}
            scores = [Score(edge.name, float(vectors[edge.left] @ vectors[edge.right])) for edge in item.edges]
            found.append(Found(scores, vectors))
        return found
