"""`whisper`: agreement of speech and text by Whisper; a transcript where there is no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from mmdata.errors import SampleError
from mmdata.models.device import PRECISION_MEANS, Precision
from mmdata.models.weights import Weights
from mmdata.sample import Modality, Sample
from mmdata.steps.align.spoken import spoken_language
from mmdata.steps.base import Align
from mmdata.steps.exchange import Declared, Edge, Found, NewText, Score

if TYPE_CHECKING:
    import numpy as np

    from mmdata.models.transcribe import Transcript
    from mmdata.models.whisper import SpeechScore
    from mmdata.models.whisper import Whisper as WhisperModel

# Whisper's window (Radford et al. 2022, section 2.1); below a tenth of a second there is nothing to hear.
_WINDOW_S = 30.0
_SHORTEST_S = 0.1


@dataclass(frozen=True)
class _Clip:
    """One edge of one sample: audio_T at 16 kHz as int16, half the bytes between processes, and the text if any.

    `digest` is the speech's, whichever sample it is of.
    """

    edge: str
    audio_T: np.ndarray[Any, np.dtype[np.int16]]
    text: str | None
    text_member: str
    lang: str | None
    digest: str


_Item = dict[str, "_Clip | Score"]


class Whisper(Align):
    """Log-likelihood a token that Whisper gives the text, less that of the same text after silence.

    One teacher-forced pass of the decoder, no decoding: positive where the speech makes the text more likely. Where a
    sample has the speech but not the text, the text is transcribed and becomes a member; where it has a text that the
    speech does not bear out, the transcript can become another, `{text}_heard`, with the word error rate between both.
    """

    step: ClassVar[str] = "whisper"
    version: ClassVar[int] = 4
    extras: ClassVar[tuple[str, ...]] = ("whisper",)
    modalities: ClassVar[tuple[Modality, Modality]] = ("audio", "text")
    name: str | None = Field(None, description="the aligner's name in rules and in the catalog; default: whisper")
    model: str = Field(description="a Whisper name (tiny.en), a checkpoint file, or a CTranslate2 folder")
    pairs: dict[str, str] = Field(
        default={"speech": "transcript"}, min_length=1, description="speech member: text member that says the same"
    )
    transcribe: Literal["missing", "disagreeing", "never"] = Field(
        "missing",
        description="make the text where a sample has none; disagreeing: also hear again what scores too low",
    )
    # Prompts under tiny.en: 99 % of the right texts score above 2.1, 98 % of other prompts' texts below 1.
    disagrees_below: float = Field(1.0, description="score below which `disagreeing` hears again")
    precision: Precision = Field("auto", description=PRECISION_MEANS)
    null_per_pair: int = Field(1, ge=0, le=16, description="texts of other samples that calibration scores a clip with")

    def edges(self) -> list[Edge]:
        """One a pair."""
        return [Edge(audio, text) for audio, text in self.pairs.items()]

    def new_members(self) -> dict[str, Declared]:
        """The texts, where they may have to be made."""
        if self.transcribe == "never":
            return {}
        texts = list(self.pairs.values())
        heard = [_heard(text) for text in texts] if self.transcribe == "disagreeing" else []
        return {text: Declared("text", False) for text in texts + heard}

    def measures(self) -> dict[str, str]:
        """Of each edge; those of a transcript are NULL where none was made, `wer` and `cer` below 4 words."""
        numbers = ("logprob_per_token", "weakest_word_logprob", "end_logprob", "no_speech_prob", "avg_logprob")
        return {
            **dict.fromkeys((*numbers, "wer", "cer"), "DOUBLE"),
            **dict.fromkeys(("language", "rejected"), "VARCHAR"),
        }

    def weights(self) -> Weights:
        """Raises WeightsError."""
        from mmdata.models.whisper_weights import locate

        return locate(self.model)

    def load(self, device: str) -> _Scorer:
        """Load the model through openai-whisper's classes."""
        from mmdata.models.whisper import Whisper as WhisperModel

        return _Scorer(self, WhisperModel.load(self.model, device, self.precision))

    def prepare(self, recipe: frozenset[str] | None, sample: Sample, edges: Sequence[Edge]) -> _Item | None:
        """Decode to 16 kHz mono; what Whisper cannot judge gets an empty score that says why."""
        item = {edge.name: self._prepare(recipe, sample, edge) for edge in edges if self._wanted(sample, edge)}
        return item or None

    def _wanted(self, sample: Sample, edge: Edge) -> bool:
        return edge.left in sample.members and (self.transcribe != "never" or edge.right in sample.members)

    def _prepare(self, languages: frozenset[str] | None, sample: Sample, edge: Edge) -> _Clip | Score:
        import numpy as np

        from mmdata.media.audio import decode_mono

        speech, text = sample.members[edge.left], sample.members.get(edge.right)
        lang = spoken_language(speech, text, languages)
        duration_s = speech.measures["duration_s"]
        if not _SHORTEST_S <= duration_s <= _WINDOW_S:
            return _skipped(edge, f"{duration_s:.2f} s of audio, Whisper judges {_SHORTEST_S} to {_WINDOW_S:g} s")
        if lang and languages is not None and lang not in languages:
            return _skipped(edge, f"the model does not know the language '{lang}'")
        audio_T = decode_mono(speech.data, _WINDOW_S)
        pcm_T = np.clip(np.rint(audio_T * 32767.0), -32768, 32767).astype(np.int16)
        return _Clip(edge.name, pcm_T, text.text if text else None, edge.right, lang, speech.sha256)


class _Scorer:
    def __init__(self, step: Whisper, model: WhisperModel) -> None:
        self.step = step
        self.model = model
        self.recipe = model.languages

    def score(self, items: Sequence[_Item]) -> list[Found | SampleError]:
        """All clips of the batch together: given texts by likelihood, missing and doubtful ones by transcription."""
        clips = [clip for item in items for clip in item.values() if isinstance(clip, _Clip)]
        found = {id(clip): score for clip in clips if (score := self._unfit(clip))}
        fit = [clip for clip in clips if id(clip) not in found]
        given = [clip for clip in fit if clip.text is not None]
        found |= {id(clip): score for clip, score in zip(given, self._likelihood(given), strict=True)}
        again = [clip for clip in fit if clip.text is None or self._disagrees(found[id(clip)])]
        for clip, transcript in zip(again, self._transcripts(again), strict=True):
            found[id(clip)] = _with_transcript(clip, transcript, found.get(id(clip)))
        return [Found([v if isinstance(v, Score) else found[id(v)] for v in item.values()]) for item in items]

    def _unfit(self, clip: _Clip) -> Score | None:
        try:
            self.model.check(_float(clip), clip.text)
        except SampleError as error:
            return Score(clip.edge, None, {"skipped": str(error)})
        return None

    def _disagrees(self, score: Score) -> bool:
        low = score.score is not None and score.score < self.step.disagrees_below
        return self.step.transcribe == "disagreeing" and low

    def _likelihood(self, clips: Sequence[_Clip]) -> list[Score]:
        from mmdata.models.mismatched import other_texts

        if not clips:
            return []
        texts, languages = [clip.text or "" for clip in clips], [clip.lang for clip in clips]
        others = other_texts(texts, languages, [clip.digest for clip in clips], self.step.null_per_pair)
        each = [[text, *(texts[other] for other in more)] for text, more in zip(texts, others, strict=True)]
        scored = self.model.score_each([_float(clip) for clip in clips], each, languages)
        return [_agreement(clip, own) for clip, own in zip(clips, scored, strict=True)]

    def _transcripts(self, clips: Sequence[_Clip]) -> list[Transcript]:
        return self.model.transcribe([_float(clip) for clip in clips], [clip.lang for clip in clips])


def _agreement(clip: _Clip, scores: Sequence[SpeechScore]) -> Score:
    """The first score is that of the clip's own text, the others are of other samples' texts."""
    own, *null = scores
    measures = {
        "logprob_per_token": round(own.logprob_per_token, 4),
        "silence_logprob_per_token": round(own.silence_logprob_per_token, 4),
        "weakest_word_logprob": round(own.weakest_word_logprob, 4),
        "end_logprob": round(own.end_logprob, 4),
        "no_speech_prob": round(own.no_speech_prob, 4),
        "tokens": own.tokens,
        "language": own.language,
    }
    return Score(clip.edge, own.score, measures, null=tuple(score.score for score in null))


def _with_transcript(clip: _Clip, heard: Transcript, score: Score | None) -> Score:
    """The score with what was heard, which is a member only if it is to be believed."""
    known = score or Score(clip.edge, None)
    measures: dict[str, Any] = {"rejected": heard.rejected, "avg_logprob": _rounded(heard.avg_logprob)}
    if score is None:
        measures |= {"no_speech_prob": _rounded(heard.no_speech_prob), "language": heard.language}
    if heard.rejected is not None:
        return replace(known, measures={**known.measures, **measures})
    name = clip.text_member if clip.text is None else _heard(clip.text_member)
    measures |= _errors(clip.text, heard.text)
    return replace(known, measures={**known.measures, **measures}, new_text=NewText(name, heard.text, heard.language))


def _errors(given: str | None, heard: str) -> dict[str, float]:
    from mmdata.models.word_errors import word_errors

    errors = word_errors(given, heard) if given is not None else None
    return {"wer": round(errors.wer, 4), "cer": round(errors.cer, 4)} if errors else {}


def _heard(text_member: str) -> str:
    return f"{text_member}_heard"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _skipped(edge: Edge, why: str) -> Score:
    return Score(edge.name, None, {"skipped": why})


def _float(clip: _Clip) -> np.ndarray[Any, np.dtype[np.float32]]:
    import numpy as np

    return clip.audio_T.astype(np.float32) / 32767.0
