"""`whisper`: agreement of speech and text by Whisper; a transcript where there is no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mmdata.errors import SampleError
from mmdata.models.weights import Weights
from mmdata.sample import Modality, Sample
from mmdata.steps.base import Align, Declared, Edge, Found, NewText, Score

if TYPE_CHECKING:
    import numpy as np

    from mmdata.models.whisper import Whisper as WhisperModel

# Whisper's window (Radford et al. 2022, section 2.1); below a tenth of a second there is nothing to hear.
_WINDOW_S = 30.0
_SHORTEST_S = 0.1


@dataclass(frozen=True)
class _Clip:
    """One edge of one sample: audio_T at 16 kHz as int16, half the bytes between processes, and the text if any."""

    edge: str
    audio_T: np.ndarray[Any, np.dtype[np.int16]]
    text: str | None
    text_member: str
    lang: str | None


_Item = dict[str, "_Clip | Score"]


class Whisper(Align):
    """Log-likelihood a token that Whisper gives the text, less that of the same text after silence.

    One teacher-forced pass of the decoder, no decoding: positive where the speech makes the text more likely. Where a
    sample has the speech but not the text, the text is transcribed (greedily) and becomes a member.
    """

    step: ClassVar[str] = "whisper"
    modalities: ClassVar[tuple[Modality, Modality]] = ("audio", "text")
    name: str | None = Field(None, description="the aligner's name in rules and in the catalog; default: whisper")
    model: str = Field(description="a Whisper name (tiny.en), a checkpoint file, or a CTranslate2 folder")
    pairs: dict[str, str] = Field(
        default={"speech": "transcript"}, min_length=1, description="speech member: text member that says the same"
    )
    transcribe: bool = Field(True, description="make the text where a sample has none")

    def edges(self) -> list[Edge]:
        """One a pair."""
        return [Edge(audio, text) for audio, text in self.pairs.items()]

    def new_members(self) -> dict[str, Declared]:
        """The texts, where they may have to be made."""
        return {text: Declared("text", False) for text in self.pairs.values()} if self.transcribe else {}

    def weights(self) -> Weights:
        """Raises WeightsError."""
        from mmdata.models.whisper_weights import locate

        return locate(self.model)

    def load(self, device: str) -> _Scorer:
        """Load the model through openai-whisper's classes."""
        from mmdata.models.whisper import Whisper as WhisperModel

        return _Scorer(WhisperModel.load(self.model, device))

    def prepare(self, recipe: frozenset[str] | None, sample: Sample, edges: Sequence[Edge]) -> _Item | None:
        """Decode to 16 kHz mono; what Whisper cannot judge gets an empty score that says why."""
        item = {edge.name: self._prepare(recipe, sample, edge) for edge in edges if self._wanted(sample, edge)}
        return item or None

    def _wanted(self, sample: Sample, edge: Edge) -> bool:
        return edge.left in sample.members and (self.transcribe or edge.right in sample.members)

    def _prepare(self, languages: frozenset[str] | None, sample: Sample, edge: Edge) -> _Clip | Score:
        import numpy as np

        from mmdata.media.audio import decode_mono

        speech, text = sample.members[edge.left], sample.members.get(edge.right)
        lang = speech.lang or (text.lang if text else None)
        duration_s = speech.measures["duration_s"]
        if not _SHORTEST_S <= duration_s <= _WINDOW_S:
            return _skipped(edge, f"{duration_s:.2f} s of audio, Whisper judges {_SHORTEST_S} to {_WINDOW_S:g} s")
        if lang and languages is not None and lang not in languages:
            return _skipped(edge, f"the model does not know the language '{lang}'")
        audio_T = decode_mono(speech.data, _WINDOW_S)
        pcm_T = np.clip(np.rint(audio_T * 32767.0), -32768, 32767).astype(np.int16)
        return _Clip(edge.name, pcm_T, text.text if text else None, edge.right, lang)


class _Scorer:
    def __init__(self, model: WhisperModel) -> None:
        self.model = model
        self.recipe = model.languages

    def score(self, items: Sequence[_Item]) -> list[Found | SampleError]:
        """All clips of the batch together: given texts by likelihood, missing ones by transcription."""
        clips = [clip for item in items for clip in item.values() if isinstance(clip, _Clip)]
        given = [clip for clip in clips if clip.text is not None]
        missing = [clip for clip in clips if clip.text is None]
        found = {id(clip): score for clip, score in zip(given, self._likelihood(given), strict=True)}
        found |= {id(clip): score for clip, score in zip(missing, self._transcribed(missing), strict=True)}
        return [Found([v if isinstance(v, Score) else found[id(v)] for v in item.values()]) for item in items]

    def _likelihood(self, clips: Sequence[_Clip]) -> list[Score]:
        if not clips:
            return []
        texts = [clip.text or "" for clip in clips]
        scores = self.model.score([_float(c) for c in clips], texts, [c.lang for c in clips])
        return [
            Score(
                clip.edge,
                score.score,
                {
                    "logprob_per_token": round(score.logprob_per_token, 4),
                    "silence_logprob_per_token": round(score.silence_logprob_per_token, 4),
                    "tokens": score.tokens,
                },
            )
            for clip, score in zip(clips, scores, strict=True)
        ]

    def _transcribed(self, clips: Sequence[_Clip]) -> list[Score]:
        if not clips:
            return []
        transcripts = self.model.transcribe([_float(c) for c in clips], [c.lang for c in clips])
        return [
            Score(
                clip.edge,
                None,
                {"avg_logprob": round(t.avg_logprob, 4), "no_speech_prob": round(t.no_speech_prob, 4)},
                NewText(clip.text_member, t.text, t.language) if t.text else None,
            )
            for clip, t in zip(clips, transcripts, strict=True)
        ]


def _skipped(edge: Edge, why: str) -> Score:
    return Score(edge.name, None, {"skipped": why})


def _float(clip: _Clip) -> np.ndarray[Any, np.dtype[np.float32]]:
    import numpy as np

    return clip.audio_T.astype(np.float32) / 32767.0
