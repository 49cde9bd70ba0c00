"""`segments`: cut a long recording into samples, one a cue of its subtitles, where the aligner `timing` heard it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field

from mmdata.errors import SampleError
from mmdata.sample import Member, Modality, Sample, child_id
from mmdata.steps.base import Augment
from mmdata.steps.exchange import Declared, Veto

if TYPE_CHECKING:
    import numpy as np

    from mmdata.augment.policy import Others

_RATE_HZ: Final = 16_000
_DETAILS: Final = {
    "no_words": "nothing in it that should be heard",
    "too_short": "shorter than 0.3 s",
    "too_long": "longer than the 30 s that Whisper judges",
    "outside": "begins before the recording or ends after it",
    "overlaps": "is shown together with the cue beside it",
    "text_too_long": "more words than Whisper takes at once",
    "not_heard": "Whisper does not hear these words there",
}


class Segments(Augment):
    """One child for each cue that was heard: the clip as FLAC (16 kHz mono) and its words; nothing else but `keep`.

    Each cue that was not heard is a veto with its reason.
    """

    step: ClassVar[str] = "segments"
    replaces: ClassVar[bool] = True
    timing: str = Field("timing", description="label of the aligner that placed the cues")
    speech: str = Field("speech", description="the recording; the clip has its name")
    subtitles: str = Field("subtitles", description="the subtitles that were timed")
    text: str = Field("words", description="name of the text member that children get")
    keep: list[str] = Field(default=[], description="members that go into every child as they are, images say")

    def reads(self) -> dict[str, Modality | None]:
        """What was timed, and what is kept."""
        return {self.speech: "audio", self.subtitles: "text", **dict.fromkeys(self.keep)}

    def new_members(self) -> dict[str, Declared]:
        """The words."""
        return {self.text: Declared("text", False)}

    def findings(self) -> list[str]:
        """The segments are a measure of the aligner's."""
        return [self.timing]

    def make(
        self,
        sample: Sample,
        seed: int,  # noqa: ARG002 - nothing here is random
        others: Others,  # noqa: ARG002 - nor mixed
    ) -> Iterator[Sample | Veto]:
        """A child or a veto for each cue, in their order; variants are numbered by cue.

        Raises SampleError `not_timed` where the recording has no segments, or with the aligner's own `problem`.
        """
        found = sample.found.get(self.timing, {}).get(f"{self.speech}_{self.subtitles}", {})
        if problem := found.get("problem"):
            raise SampleError(problem, "the subtitles could not be placed in the recording")
        if self.speech not in sample.members or not found.get("segments"):
            raise SampleError("not_timed", f"'{self.timing}' placed no cues of '{self.subtitles}' in '{self.speech}'")
        pcm_T = self._decoded(sample)
        for number, segment in enumerate(found["segments"]):
            variant = f"{self.step}_{number:04d}"
            if reason := segment.get("reason"):
                yield Veto(variant, reason, f"{_DETAILS.get(reason, reason)}: '{segment['text']}'")
            else:
                yield self._child(sample, variant, segment, pcm_T)

    def _decoded(self, sample: Sample) -> np.ndarray[Any, np.dtype[np.int16]]:
        import numpy as np

        from mmdata.media.audio import decode_mono

        speech = sample.members[self.speech]
        audio_T = decode_mono(speech.data, speech.measures["duration_s"] + 1.0)
        pcm_T: np.ndarray[Any, np.dtype[np.int16]] = np.clip(np.rint(audio_T * 32767.0), -32768, 32767).astype(np.int16)
        return pcm_T

    def _child(
        self, sample: Sample, variant: str, segment: Mapping[str, Any], pcm_T: np.ndarray[Any, np.dtype[np.int16]]
    ) -> Sample:
        start, end = (max(0, round(segment[key] * _RATE_HZ)) for key in ("start_s", "end_s"))
        members = {name: sample.members[name] for name in self.keep if name in sample.members}
        members[self.speech] = _clip(sample.members[self.speech], pcm_T[start:end])
        members[self.text] = _words(self.text, segment["text"], sample.members.get(self.subtitles))
        return replace(
            sample,
            sample_id=child_id(sample.sample_id, variant),
            parent_id=sample.sample_id,
            variant=variant,
            members=members,
            found={},
        )


def _clip(speech: Member, pcm_T: np.ndarray[Any, np.dtype[np.int16]]) -> Member:
    """The clip as a FLAC member."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, pcm_T, _RATE_HZ, format="FLAC", subtype="PCM_16")
    measures = {"duration_s": pcm_T.size / _RATE_HZ, "sample_rate": _RATE_HZ, "channels": 1}
    return Member(speech.name, "audio", "audio/flac", "flac", buffer.getvalue(), speech.lang, measures)


def _words(name: str, text: str, subtitles: Member | None) -> Member:
    from mmdata.media.text import count_words

    counts = {"text": text, "chars": len(text), "words": count_words(text)}
    whole = subtitles.measures if subtitles else {}
    guessed = {name: whole[name] for name in ("lang_guessed",) if name in whole}
    lang = subtitles.lang if subtitles else None
    return Member(name, "text", "text/plain", "txt", text.encode(), lang, {**guessed, **counts})
