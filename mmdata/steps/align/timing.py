"""`timing`: where in long speech each cue of its subtitles is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mmdata.errors import SampleError
from mmdata.models.weights import Weights
from mmdata.sample import Modality, Sample
from mmdata.steps.align.spoken import spoken_language
from mmdata.steps.base import Align
from mmdata.steps.exchange import Edge, Found, Score

if TYPE_CHECKING:
    import numpy as np

    from mmdata.models.subtitles import Cue
    from mmdata.models.timing import Timing as FoundTiming
    from mmdata.models.timing_pieces import Piece
    from mmdata.models.timing_search import Segment
    from mmdata.models.whisper import Whisper as WhisperModel


@dataclass(frozen=True)
class _Item:
    """One recording: audio_T at 16 kHz mono as int16, its cues, and the language if it is known."""

    edge: str
    audio_T: np.ndarray[Any, np.dtype[np.int16]]
    cues: Sequence[Cue]
    lang: str | None


class Timing(Align):
    """Places subtitles in long speech: by an offset and a drift, then each cue judged by Whisper.

    A recording that was cut differently than its subtitles, or has advertisements between, has several such lines:
    `pieces` says how many, `lines` which, and `offset_s` and `drift` are those of most cues. The score is the share of
    cues that are heard where they should be. `segments` lists all of them, those that cannot be used with a reason: the
    operator `segments` cuts the others into samples. Where no line can be found the score is NULL and `problem` says
    why. A recording takes 115 MB an hour in each process that holds it, 460 MB more in a worker while it is decoded.
    """

    step: ClassVar[str] = "timing"
    version: ClassVar[int] = 4
    extras: ClassVar[tuple[str, ...]] = ("timing",)
    modalities: ClassVar[tuple[Modality, Modality]] = ("audio", "text")
    batch_samples: ClassVar[int] = 1
    name: str | None = Field(None, description="the aligner's name in rules and in the catalog; default: timing")
    model: str = Field(description="a Whisper name (tiny.en), a checkpoint file, or a CTranslate2 folder")
    speech: str = Field("speech", description="the audio member, of any length up to `max_duration_s`")
    subtitles: str = Field("subtitles", description="the text member: SRT, WebVTT, ASS, SSA, or segments as JSON")
    max_duration_s: float = Field(10_800.0, gt=0, description="longer recordings are not timed; bounds memory")
    max_offset_s: float = Field(60.0, ge=0, le=600, description="how far the middle of the subtitles may be off")
    # Narrated film under tiny.en: 33 right cues score 2.2 and more (one, cut to 0.5 s, 0.1), with the words of another
    # cue of the film all of them less than 0.1. Of 160 prompts of one to fourteen words 1 % score less than 1.0; of 640
    # at the place of another 2 % score more, most of them for words that both share. A threshold of each recording's
    # own, out of such places, would follow those few.
    min_agreement: float = Field(1.0, description="Whisper's score below which a cue is not heard, nats a token")

    def edges(self) -> list[Edge]:
        """The one."""
        return [Edge(self.speech, self.subtitles)]

    def measures(self) -> dict[str, str]:
        """The line `offset_s + (1 + drift) * t`, how far cues lie from it, and how many cues and lines there are."""
        numbers, counts = ("offset_s", "drift", "residual_s"), ("cues", "placed", "pieces")
        return {**dict.fromkeys(numbers, "DOUBLE"), **dict.fromkeys(counts, "INTEGER"), "problem": "VARCHAR"}

    def weights(self) -> Weights:
        """Raises WeightsError."""
        from mmdata.models.whisper_weights import locate

        return locate(self.model)

    def load(self, device: str) -> _Scorer:
        """Load the model through openai-whisper's classes."""
        from mmdata.models.whisper import Whisper as WhisperModel

        return _Scorer(self, WhisperModel.load(self.model, device))

    def prepare(self, recipe: frozenset[str] | None, sample: Sample, edges: Sequence[Edge]) -> _Item | Score | None:
        """Parse the subtitles and decode the recording.

        Raises SampleError as `mmdata.models.subtitles` and `mmdata.media.audio` do.
        """
        import numpy as np

        from mmdata.media.audio import decode_mono
        from mmdata.models.subtitles import parse_subtitles

        speech, subtitles = sample.members.get(self.speech), sample.members.get(self.subtitles)
        if not edges or speech is None or subtitles is None:
            return None
        cues = parse_subtitles(subtitles.text)
        lang = spoken_language(speech, subtitles, recipe)
        if speech.measures["duration_s"] > self.max_duration_s:
            return _unplaced(edges[0].name, len(cues), "recording_too_long")
        if lang and recipe is not None and lang not in recipe:
            return _unplaced(edges[0].name, len(cues), "language_unknown_to_model")
        audio_T = decode_mono(speech.data, self.max_duration_s)
        pcm_T = np.clip(np.rint(audio_T * 32767.0), -32768, 32767).astype(np.int16)
        return _Item(edges[0].name, pcm_T, cues, lang)


class _Scorer:
    def __init__(self, step: Timing, model: WhisperModel) -> None:
        self.step = step
        self.model = model
        self.recipe = model.languages

    def score(self, items: Sequence[_Item | Score]) -> list[Found | SampleError]:
        """One recording after the other: each is a batch of windows by itself."""
        return [Found([item if isinstance(item, Score) else self._timed(item)]) for item in items]

    def _timed(self, item: _Item) -> Score:
        from mmdata.models.timing import find_timing

        step = self.step
        found = find_timing(self.model, item.audio_T, item.cues, item.lang, step.max_offset_s, step.min_agreement)
        if not found.pieces:
            return _unplaced(item.edge, len(item.cues), found.problem or "")
        return _score(item.edge, found)


def _score(edge: str, found: FoundTiming) -> Score:
    placed = sum(segment.reason is None for segment in found.segments)
    measures = {
        **_line(found.main),
        "cues": len(found.segments),
        "placed": placed,
        "pieces": len(found.pieces),
        "lines": [{**_line(piece), "first_cue": piece.first, "placed": piece.placed} for piece in found.pieces],
        "segments": [_row(segment) for segment in found.segments],
    }
    return Score(edge, placed / len(found.segments), measures)


def _line(piece: Piece) -> dict[str, float]:
    return {
        "offset_s": round(piece.clock.offset_s, 4),
        "drift": round(piece.clock.drift, 6),
        "residual_s": round(piece.residual_s, 4),
    }


def _row(segment: Segment) -> dict[str, Any]:
    row: dict[str, Any] = {
        "start_s": round(segment.start_s, 3),
        "end_s": round(segment.end_s, 3),
        "text": segment.text,
    }
    if segment.score is not None:
        row["score"] = round(segment.score, 4)
    return row if segment.reason is None else {**row, "reason": segment.reason}


def _unplaced(edge: str, cues: int, problem: str) -> Score:
    return Score(edge, None, {"cues": cues, "placed": 0, "problem": problem})
