"""`voice`: how much of a sound somebody speaks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from pydantic import Field

from mmdata.models.weights import Weights
from mmdata.sample import Member, Modality
from mmdata.spec import Names
from mmdata.steps.base import Measure


class Voice(Measure):
    """Speech in sounds, by Silero VAD: weights inside of the package faster-whisper (MIT).

    `speech` is its share of the time; it begins at `starts_s` and ends at `ends_s`, with `longest_pause_s` between.
    """

    step: ClassVar[str] = "voice"
    extras: ClassVar[tuple[str, ...]] = ("whisper",)
    modality: ClassVar[Modality] = "audio"
    of: Names = Field(["speech"], min_length=1, description="audio members to measure")
    min_probability: float = Field(0.5, gt=0, lt=1, description="least probability of speech, of windows of 32 ms")
    max_duration_s: float = Field(600.0, gt=0, description="of longer sounds only so much is measured, the beginning")

    def columns(self) -> dict[str, str]:
        """Share, and seconds."""
        return dict.fromkeys(("speech", "speech_s", "starts_s", "ends_s", "longest_pause_s"), "DOUBLE")

    def weights(self) -> Weights | None:
        """Those inside of faster-whisper. Raises MissingExtraError, WeightsError."""
        from mmdata.models.voice import locate

        return locate()

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:  # noqa: ARG002 - the library keeps it
        """Raises SampleError as `mmdata.media.audio` does."""
        from mmdata.media.audio import decode_mono
        from mmdata.models.voice import RATE_HZ, spoken_s

        audio_T = decode_mono(member.data, self.max_duration_s, RATE_HZ)
        spans = spoken_s(audio_T, self.min_probability)
        spoken = sum(end - start for start, end in spans)
        pauses = [later[0] - earlier[1] for earlier, later in pairwise(spans)]
        return {
            "speech": min(1.0, spoken * RATE_HZ / len(audio_T)),
            "speech_s": spoken,
            "starts_s": spans[0][0] if spans else None,
            "ends_s": spans[-1][1] if spans else None,
            "longest_pause_s": max(pauses, default=0.0) if spans else None,
        }
