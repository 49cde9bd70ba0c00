"""`acoustics`: loudness, noise, silence, clipping and bandwidth of a sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from pydantic import Field

from mmdata.sample import Member, Modality
from mmdata.spec import Names
from mmdata.steps.base import Measure


class Acoustics(Measure):
    """Sounds by their samples, at their own rate.

    `loudness_lufs` by ITU-R BS.1770-4; `silence`: share of windows of 20 ms below a level; `clipping`: share of the
    samples in runs at full scale; `bandwidth_hz`: the highest frequency within 70 dB of the strongest; `snr_db`: of
    speech in noise by the distribution of its amplitudes (WADA, Kim and Stern 2008), -10 to 60.
    """

    step: ClassVar[str] = "acoustics"
    modality: ClassVar[Modality] = "audio"
    of: Names = Field(["speech"], min_length=1, description="audio members to measure")
    max_duration_s: float = Field(600.0, gt=0, description="of longer sounds only so much is measured, the beginning")
    silence_dbfs: float = Field(-60.0, le=0, description="windows of 20 ms below this level are silence")

    def columns(self) -> dict[str, str]:
        """See `mmdata.media.sound.Sound`."""
        names = ("loudness_lufs", "peak_dbfs", "silence", "clipping", "dc_offset", "bandwidth_hz", "snr_db")
        return dict.fromkeys(names, "DOUBLE")

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:  # noqa: ARG002 - it needs none
        """Raises SampleError as `mmdata.media.audio` does."""
        from mmdata.media.sound import measure_sound

        return asdict(measure_sound(member.data, self.max_duration_s, self.silence_dbfs))
