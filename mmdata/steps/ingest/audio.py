"""`audio`: checked by a full decode; kept as it came, or cut, resampled and encoded."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ByteSize, Field

from mmdata.sample import Member, Modality
from mmdata.steps.base import Ingest
from mmdata.steps.exchange import Ref


class Audio(Ingest):
    """Audio: limits, a full decode to be sure, duration, rate and channels.

    The payload stays as it came where nothing else is asked for; a piece of a recording, and the sound of a film,
    become FLAC.
    """

    step: ClassVar[str] = "audio"
    version: ClassVar[int] = 5
    modality: ClassVar[Modality] = "audio"
    max_bytes: ByteSize = Field(ByteSize(200 << 20), description="larger files have failed, unread")
    max_duration_s: float = Field(3600.0, gt=0, description="longer audio has failed")
    truncated: Literal["fail", "keep"] = Field(
        "fail",
        description="what becomes of sound that is shorter than its header says; pieces of it are kept, of a film "
        "that breaks off but for the last",
    )
    encode: Literal["keep", "flac", "opus"] = Field("keep", description="codec that is stored")
    rate_hz: int | None = Field(None, ge=4000, le=192_000, description="sample rate; default: as it came")
    mono: bool = Field(False, description="mix the channels into one")
    bitrate_kbps: int = Field(64, ge=6, le=510, description="of Opus")

    def decode(self, ref: Ref, data: bytes) -> Member:
        """The member, measured. Raises SampleError as `mmdata.media.audio` does."""
        from mmdata.media.audio_write import Target, normalise

        target = Target(self.encode, self.rate_hz, self.mono, self.bitrate_kbps, self.truncated == "fail")
        stored, info = normalise(data, target, self.max_duration_s, ref.clip)
        measures = {"duration_s": info.duration_s, "sample_rate": info.sample_rate, "channels": info.channels}
        return Member(ref.name, "audio", info.mime, info.extension, stored, ref.lang, measures)
