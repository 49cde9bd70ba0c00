"""`reconcile`: how far the texts of a sample agree, and the first of them corrected by all that the others know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from mmdata.errors import SampleError, WeightsError
from mmdata.models.weights import Weights, content_identity
from mmdata.sample import Modality, Sample
from mmdata.spec import Names
from mmdata.steps.align.spoken import spoken_language
from mmdata.steps.base import Align
from mmdata.steps.exchange import Declared, Edge, Found, NewText, Score

if TYPE_CHECKING:
    import numpy as np

    from mmdata.models.clip import Clip as ClipModel
    from mmdata.models.reconcile import Corrected, Texts
    from mmdata.models.whisper import Whisper as WhisperModel
    from mmdata.models.word_list import WordList

# Whisper's window (Radford et al. 2022, section 2.1); below a tenth of a second there is nothing to hear.
_WINDOW_S = 30.0
_SHORTEST_S = 0.1
# The word lists that the models' libraries ship are of English.
_LISTED_LANGUAGE = "en"
_HEARD = "whisper"


@dataclass(frozen=True)
class _Recipe:
    """What workers need: the languages that Whisper knows and how CLIP wants its images; None where not used."""

    languages: frozenset[str] | None
    image: Any


@dataclass(frozen=True)
class _Item:
    """One sample: its texts by member, with languages, audio_C as int16 at 16 kHz, and the image as CLIP wants it.

    `spoken` is the language of the speech, None where it is to be detected.
    """

    texts: dict[str, str]
    langs: dict[str, str | None]
    edges: list[Edge]
    spoken: str | None
    audio_C: np.ndarray[Any, np.dtype[np.int16]] | None
    image_3HW: np.ndarray[Any, np.dtype[np.uint8]] | None

    @property
    def audio(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """float32 [C]."""
        import numpy as np

        assert self.audio_C is not None
        return self.audio_C.astype(np.float32) / 32767.0


class Reconcile(Align):
    """Agreement of texts that should say the same (1 - character error rate), and the first one corrected.

    Every pair of texts is an edge. With `into` there is one more, from the first text to its correction, which is a
    new member: the first text as it is, but for the words that another reading beats by `margin_nats`. Readings come
    from the other texts, from what Whisper hears, and from a word list; they are ranked by the likelihood that Whisper
    gives them, their similarity with the image, and the texts that hold them. `provenance` says where each came from.
    """

    step: ClassVar[str] = "reconcile"
    version: ClassVar[int] = 2
    extras: ClassVar[tuple[str, ...]] = ("whisper",)
    modalities: ClassVar[tuple[Modality, Modality]] = ("text", "text")
    batch_samples: ClassVar[int] = 32
    name: str | None = Field(None, description="the aligner's name in rules and in the catalog; default: reconcile")
    texts: Names = Field(min_length=1, description="text members; the first is the one to correct")
    into: str | None = Field(None, description="text member that the first text's correction becomes")
    speech: str | None = Field(None, description="audio member that says the text; needs whisper")
    image: str | None = Field(None, description="image member that the text describes; needs clip")
    whisper: str | None = Field(None, description="a Whisper name, a checkpoint file, or a CTranslate2 folder")
    clip: str | None = Field(None, description="an open_clip architecture, hub id or local folder")
    pretrained: str | None = Field(None, description="tag or checkpoint file, for an open_clip architecture")
    words: str | None = Field(
        None, description="list of known words, most frequent first; default: the vocabulary of the model's library"
    )
    margin_nats: float = Field(4.0, ge=0, description="by how much each change has to win over the given text")
    image_weight_nats: float = Field(10.0, ge=0, description="what a cosine similarity of 1 with the image is worth")

    @model_validator(mode="after")
    def _whole(self) -> Reconcile:
        if (self.speech is None) != (self.whisper is None):
            raise ValueError("speech and whisper go together")
        if (self.image is None) != (self.clip is None):
            raise ValueError("image and clip go together")
        if self.into is None and (len(self.texts) == 1 or self.speech or self.image):
            raise ValueError("nothing to do: name 'into', or compare several texts without speech and image")
        if self.into in self.texts or len(set(self.texts)) < len(self.texts):
            raise ValueError("each text is named once, and 'into' is a member of its own")
        return self

    def edges(self) -> list[Edge]:
        """The correction first, then every pair of texts."""
        corrected = [Edge(self.texts[0], self.into)] if self.into else []
        return corrected + [Edge(left, right) for left, right in combinations(self.texts, 2)]

    def reads(self) -> dict[str, Modality | None]:
        """The texts, and what bears on them."""
        others: dict[str | None, Modality | None] = {self.speech: "audio", self.image: "image"}
        wanted = {name: kind for name, kind in others.items() if name is not None}
        return {**dict.fromkeys(self.texts, self.modalities[0]), **wanted}

    def new_members(self) -> dict[str, Declared]:
        """The correction."""
        return {self.into: Declared("text", False)} if self.into else {}

    def measures(self) -> dict[str, str]:
        """Of the correction; `agreement` is the score of every edge."""
        return {"changed_words": "INTEGER", "support": "DOUBLE", "provenance": "VARCHAR"}

    def needs(self) -> tuple[str, ...]:
        """CLIP's where an image judges."""
        return (*self.extras, "clip") if self.clip else self.extras

    def weights(self) -> Weights:
        """Of both models and the word list. Raises WeightsError."""
        parts = []
        if self.whisper:
            from mmdata.models.whisper_weights import locate as locate_whisper

            parts.append(locate_whisper(self.whisper).identity)
        if self.clip:
            from mmdata.models.clip_weights import locate as locate_clip

            parts.append(locate_clip(self.clip, self.pretrained).identity)
        if path := self._word_file():
            try:
                parts.append(content_identity([path]))
            except OSError as error:
                raise WeightsError(f"{self.label}: words: {error}") from None
        return Weights(" ".join(parts))

    def identity(self) -> dict[str, Any]:
        """Parameters and the models' content; where they lie does not matter."""
        mine = super().identity()
        for place in ("whisper", "clip", "pretrained", "words"):
            mine["params"][place] = mine["params"][place] is not None
        return mine

    def _word_file(self) -> Path | None:
        from mmdata.models.word_list import shipped_list

        if self.words:
            return Path(self.words)
        return shipped_list("whisper") if self.whisper else shipped_list("open_clip") if self.clip else None

    def load(self, device: str) -> _Scorer:
        """Load the models that are named."""
        from mmdata.models.word_list import read_words

        whisper = clip = None
        if self.whisper:
            from mmdata.models.whisper import Whisper as WhisperModel

            whisper = WhisperModel.load(self.whisper, device)
        if self.clip:
            from mmdata.models.clip import Clip as ClipModel

            clip = ClipModel.load(self.clip, self.pretrained, device)
        path = self._word_file()
        return _Scorer(self, whisper, clip, read_words(path) if path else None)

    def prepare(self, recipe: _Recipe, sample: Sample, edges: Sequence[Edge]) -> _Item | None:
        """The texts, and for a correction the speech at 16 kHz and the image as the model wants it."""
        there = sample.members
        wanted = [e for e in edges if e.left in there and (e.right in there or e.right == self.into)]
        if not wanted:
            return None
        texts = [there[name] for name in self.texts if name in there]
        correct = any(edge.right == self.into for edge in wanted)
        spoken = self._spoken(recipe, sample) if correct else None
        return _Item(
            {text.name: text.text for text in texts},
            {text.name: text.language for text in texts},
            wanted,
            spoken,
            self._prepare_speech(recipe, sample, spoken) if correct else None,
            self._prepare_image(recipe, sample) if correct else None,
        )

    def _spoken(self, recipe: _Recipe, sample: Sample) -> str | None:
        members = sample.members
        return spoken_language(members.get(self.speech or ""), members[self.texts[0]], recipe.languages)

    def _prepare_speech(
        self, recipe: _Recipe, sample: Sample, spoken: str | None
    ) -> np.ndarray[Any, np.dtype[np.int16]] | None:
        """None where there is no speech or Whisper cannot judge it."""
        import numpy as np

        from mmdata.media.audio import decode_mono

        speech = sample.members.get(self.speech or "")
        if speech is None or not _SHORTEST_S <= speech.measures["duration_s"] <= _WINDOW_S:
            return None
        if spoken and recipe.languages is not None and spoken not in recipe.languages:
            return None
        pcm_C: np.ndarray[Any, np.dtype[np.int16]]
        pcm_C = np.clip(np.rint(decode_mono(speech.data, _WINDOW_S) * 32767.0), -32768, 32767).astype(np.int16)
        return pcm_C

    def _prepare_image(self, recipe: _Recipe, sample: Sample) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        from mmdata.media.image import ANY_SIZE, open_image
        from mmdata.models.clip_image import prepare_image

        image = sample.members.get(self.image or "")
        return prepare_image(recipe.image, open_image(image.data, ANY_SIZE)) if image else None


class _Scorer:
    def __init__(
        self, step: Reconcile, whisper: WhisperModel | None, clip: ClipModel | None, words: WordList | None
    ) -> None:
        self.step = step
        self.whisper = whisper
        self.clip = clip
        self.words = words
        self.recipe = _Recipe(whisper.languages if whisper else None, clip.recipe if clip else None)

    def score(self, items: Sequence[_Item]) -> list[Found | SampleError]:
        """Pairs by character error, corrections for the batch together."""
        from mmdata.models.reconcile import agreement

        rows = [row for row, item in enumerate(items) if any(e.right == self.step.into for e in item.edges)]
        corrected = dict(zip(rows, self._correct([items[row] for row in rows]), strict=True))
        return [
            Found(
                [
                    self._corrected_score(edge, item, corrected[row])
                    if edge.right == self.step.into
                    else Score(edge.name, agreement(item.texts[edge.left], item.texts[edge.right]))
                    for edge in item.edges
                ]
            )
            for row, item in enumerate(items)
        ]

    def _corrected_score(self, edge: Edge, item: _Item, found: Corrected) -> Score:
        import json

        from mmdata.models.reconcile import agreement

        changes = [{"word": c.word, "was": c.was, "now": c.now, "sources": list(c.sources)} for c in found.changes]
        measures = {
            "changed_words": len(changes),
            "support": round(found.gain_nats, 3),
            "provenance": json.dumps(changes, ensure_ascii=False),
        }
        new = NewText(edge.right, found.text, item.langs[edge.left])
        return Score(edge.name, agreement(item.texts[edge.left], found.text), measures, new)

    def _correct(self, items: Sequence[_Item]) -> list[Corrected]:
        from mmdata.models.reconcile import reconcile

        items = [item if self.can_judge(item, item.texts[self.step.texts[0]]) else _deaf(item) for item in items]
        heard = self._heard(items)
        problems = [self._problem(item, heard.get(row)) for row, item in enumerate(items)]
        return reconcile(problems, _Evidence(self, items).nats, self.step.margin_nats)

    def can_judge(self, item: _Item, text: str) -> bool:
        """Whether Whisper takes the clip and the text: neither empty nor too long."""
        if self.whisper is None or item.audio_C is None:
            return False
        try:
            self.whisper.check(item.audio, text)
        except SampleError:
            return False
        return True

    def _problem(self, item: _Item, heard: str | None) -> Texts:
        from mmdata.models.reconcile import Copy, Texts

        first = self.step.texts[0]
        lang = item.langs[first]
        copies = [
            Copy(name, text)
            for name, text in item.texts.items()
            if name != first and (lang is None or item.langs[name] in (None, lang))
        ]
        copies += [Copy(_HEARD, heard, votes=False)] if heard else []
        words = self.words if self.step.words or lang in (None, _LISTED_LANGUAGE) else None
        return Texts(item.texts[first], copies, words, item.audio_C is not None or item.image_3HW is not None)

    def _heard(self, items: Sequence[_Item]) -> dict[int, str]:
        """What Whisper hears in each item that has speech."""
        rows = [row for row, item in enumerate(items) if item.audio_C is not None]
        if self.whisper is None or not rows:
            return {}
        found = self.whisper.transcribe([items[row].audio for row in rows], [items[row].spoken for row in rows])
        return {row: heard.text for row, heard in zip(rows, found, strict=True) if heard.text and not heard.rejected}


def _deaf(item: _Item) -> _Item:
    return replace(item, audio_C=None)


class _Evidence:
    """What speech and image say of texts; every image is seen once."""

    def __init__(self, scorer: _Scorer, items: Sequence[_Item]) -> None:
        self.scorer = scorer
        self.items = items
        self._image_emb: dict[int, np.ndarray[Any, np.dtype[np.float32]]] | None = None

    def nats(self, asked: Sequence[tuple[int, str]]) -> list[float]:
        """The texts' support: `[asked]`."""
        by_row: dict[int, list[str]] = {}
        for row, text in asked:
            by_row.setdefault(row, []).append(text)
        speech, image = self._speech_nats(by_row), self._image_nats(by_row)
        return [speech.get(pair, 0.0) + image.get(pair, 0.0) for pair in asked]

    def _speech_nats(self, by_row: Mapping[int, list[str]]) -> dict[tuple[int, str], float]:
        """Whisper's log-likelihood of each text given the speech: the whole text's, so that no word is dropped free."""
        model = self.scorer.whisper
        texts = {row: own for row, own in by_row.items() if self.items[row].audio_C is not None}
        nats = {(row, text): -math.inf for row, own in texts.items() for text in own}
        texts = {row: [t for t in own if self.scorer.can_judge(self.items[row], t)] for row, own in texts.items()}
        rows = [row for row, own in texts.items() if own]
        if model is None or not rows:
            return nats
        clips = [self.items[row] for row in rows]
        found = model.score_each([c.audio for c in clips], [texts[r] for r in rows], [c.spoken for c in clips])
        for row, scores in zip(rows, found, strict=True):
            for text, score in zip(texts[row], scores, strict=True):
                nats[row, text] = score.logprob_per_token * score.tokens
        return nats

    def _image_nats(self, by_row: Mapping[int, list[str]]) -> dict[tuple[int, str], float]:
        model = self.scorer.clip
        pairs = [(row, text) for row in by_row for text in by_row[row] if self.items[row].image_3HW is not None]
        if model is None or not pairs:
            return {}
        seen = self._seen(model)
        text_emb_ND = model.embed_texts([text for _, text in pairs])
        weight = self.scorer.step.image_weight_nats
        return {pair: weight * float(seen[pair[0]] @ emb_D) for pair, emb_D in zip(pairs, text_emb_ND, strict=True)}

    def _seen(self, model: ClipModel) -> dict[int, np.ndarray[Any, np.dtype[np.float32]]]:
        import numpy as np

        if self._image_emb is None:
            images = {row: item.image_3HW for row, item in enumerate(self.items) if item.image_3HW is not None}
            image_emb_ND = model.embed_images(np.stack(list(images.values())))
            self._image_emb = dict(zip(images, image_emb_ND, strict=True))
        return self._image_emb
