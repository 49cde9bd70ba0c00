"""`audio`: checked by a full decode, kept as it came."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ByteSize, Field

from mmdata.sample import Member, Modality
from mmdata.steps.base import Ingest, Ref


class Audio(Ingest):
    """Audio: limits, a full decode to be sure, duration, rate and channels. The payload stays as it came."""

    step: ClassVar[str] = "audio"
    modality: ClassVar[Modality] = "audio"
    max_bytes: ByteSize = Field(ByteSize(200 << 20), description="larger files have failed, unread")
    max_duration_s: float = Field(3600.0, gt=0, description="longer audio has failed")

    def decode(self, ref: Ref, data: bytes) -> Member:
        """The member, measured. Raises SampleError as `mmdata.media.audio` does."""
        from mmdata.media.audio import measure_audio

        info = measure_audio(data, self.max_duration_s)
        measures = {"duration_s": info.duration_s, "sample_rate": info.sample_rate, "channels": info.channels}
        return Member(ref.name, "audio", info.mime, info.extension, data, ref.lang, measures)
