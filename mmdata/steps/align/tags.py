"""`tags`: agreement of sounds and texts by what a sound tagger names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mmdata.errors import SampleError
from mmdata.models.weights import Weights
from mmdata.sample import Modality, Sample
from mmdata.spec import Frozen, Names
from mmdata.steps.base import Align
from mmdata.steps.exchange import Edge, Found, Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmdata.models.tagger import Tagger

# Texts of other samples that each sound is also compared with, as far as the batch has them.
_NULLS = 8


@dataclass(frozen=True)
class _Text:
    text: str
    lang: str | None


@dataclass(frozen=True)
class _Item:
    """One sample: sounds as float32 [T] at the tagger's rate and their digests, texts with language, edges to score."""

    sounds: dict[str, NDArray[np.float32]]
    digests: dict[str, str]
    texts: dict[str, _Text]
    edges: list[Edge]


class TaggerFiles(Frozen):
    """Where a tagger lies."""

    model: str = Field(description="a folder with model.onnx, labels.csv and tagger.json, or an .onnx file")
    labels: str | None = Field(None, description="CSV with a column display_name; default: labels.csv beside the model")


class Tags(Align):
    """Probability of the tag whose words stand in the text: the best product of a tag's probability and its overlap.

    The score is empty where no label of the tagger shares a word with the text, and for texts that are not English.
    """

    step: ClassVar[str] = "tags"
    extras: ClassVar[tuple[str, ...]] = ("tags",)
    modalities: ClassVar[tuple[Modality, Modality]] = ("audio", "text")
    name: str | None = Field(None, description="the aligner's name in rules and in the catalog; default: tags")
    tagger: TaggerFiles = Field(description="an ONNX sound tagger: of YAMNet's patches or of a waveform at 16 kHz")
    sound: Names = Field(default=["sound"], min_length=1, description="sound members")
    text: Names = Field(default=["caption"], min_length=1, description="text members")
    max_duration_s: float = Field(60.0, gt=0, description="what is beyond in a sound is not heard")

    def edges(self) -> list[Edge]:
        """Every sound with every text."""
        return [Edge(sound, text) for sound in self.sound for text in self.text]

    def measures(self) -> dict[str, str]:
        """The likeliest tag, and the one that the text names."""
        return {"top_tag": "VARCHAR", "top_probability": "DOUBLE", "matched_tag": "VARCHAR"}

    def weights(self) -> Weights:
        """Raises WeightsError."""
        from mmdata.models.tagger import locate

        return locate(self.tagger.model, self.tagger.labels)[2]

    def identity(self) -> dict[str, Any]:
        """Parameters and the tagger's content; where it lies does not matter."""
        mine = super().identity()
        mine["params"].pop("tagger")
        return mine

    def load(self, device: str) -> _Scorer:  # noqa: ARG002 - a small model, on the processor everywhere
        """Load the tagger through onnxruntime."""
        from mmdata.models.tagger import load_tagger

        return _Scorer(load_tagger(self.tagger.model, self.tagger.labels))

    def prepare(self, recipe: int, sample: Sample, edges: Sequence[Edge]) -> _Item | None:
        """Decode at the tagger's rate."""
        from mmdata.media.audio import decode_mono

        there = sample.members
        wanted = [edge for edge in edges if edge.left in there and edge.right in there]
        # In the order of the edges, never of a set: a batch must be the same in every process.
        lefts, rights = dict.fromkeys(e.left for e in wanted), dict.fromkeys(e.right for e in wanted)
        sounds = {name: decode_mono(there[name].data, self.max_duration_s, recipe) for name in lefts}
        texts = {name: _Text(there[name].text, there[name].language) for name in rights}
        return _Item(sounds, {name: there[name].sha256 for name in lefts}, texts, wanted) if wanted else None


class _Scorer:
    def __init__(self, tagger: Tagger) -> None:
        from mmdata.models.tagger import RATE_HZ, Vocabulary

        self.tagger = tagger
        self.words = Vocabulary(tagger.labels)
        self.recipe = RATE_HZ

    def score(self, items: Sequence[_Item]) -> list[Found | SampleError]:
        """Each sound once, against its own text and against texts of other samples of the batch."""
        partners = _partners(items)
        return [self._found(item, partners[row]) for row, item in enumerate(items)]

    def _found(self, item: _Item, partners: dict[str, list[str]]) -> Found:
        probabilities = {name: self.tagger.probabilities(audio_T) for name, audio_T in item.sounds.items()}
        return Found(
            [
                self._score(edge, item.texts[edge.right], partners.get(edge.name, []), probabilities[edge.left])
                for edge in item.edges
            ]
        )

    def _score(self, edge: Edge, mine: _Text, partners: list[str], probability_K: NDArray[np.float64]) -> Score:
        from mmdata.models.tagger import listed

        tags = listed(self.tagger.labels, probability_K)
        measures: dict[str, Any] = {"tags": [[tag.label, round(tag.probability, 4)] for tag in tags]}
        if tags:
            measures |= {"top_tag": tags[0].label, "top_probability": round(tags[0].probability, 4)}
        if not _is_english(mine):
            return Score(edge.name, None, {**measures, "skipped": f"the labels are English, the text is '{mine.lang}'"})
        score, best = self.words.agreement(probability_K, mine.text)
        if best is not None:
            measures["matched_tag"] = self.tagger.labels[best]
        others = (self.words.agreement(probability_K, text)[0] for text in partners)
        return Score(edge.name, score, measures, null=tuple(other for other in others if other is not None)[:_NULLS])


def _partners(items: Sequence[_Item]) -> list[dict[str, list[str]]]:
    """For each sample and edge the English texts of other samples."""
    from mmdata.models.mismatched import other_texts

    partners: list[dict[str, list[str]]] = [{} for _ in items]
    for edge in dict.fromkeys(edge for item in items for edge in item.edges):
        rows = [row for row, item in enumerate(items) if edge in item.edges and _is_english(item.texts[edge.right])]
        texts = [items[row].texts[edge.right].text for row in rows]
        media = [items[row].digests[edge.left] for row in rows]
        for row, others in zip(rows, other_texts(texts, ["en"] * len(rows), media, len(rows)), strict=True):
            partners[row][edge.name] = [texts[other] for other in others]
    return partners


def _is_english(text: _Text) -> bool:
    return text.lang in (None, "en")
