"""`video`: checked by a full decode; kept as it came, or cut, made smaller and encoded."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ByteSize, Field, model_validator

from mmdata.sample import Member, Modality
from mmdata.steps.base import Ingest
from mmdata.steps.exchange import Ref


class Video(Ingest):
    """Video: limits, a full decode to be sure, size and duration.

    The payload stays as it came where nothing else is asked for. A piece of a recording is encoded, exact in its times,
    or begins at the key frame before, its packets as they are; the column `start_s` says where.
    """

    step: ClassVar[str] = "video"
    version: ClassVar[int] = 6
    modality: ClassVar[Modality] = "video"
    max_bytes: ByteSize = Field(ByteSize(1 << 30), description="larger files have failed, unread")
    max_duration_s: float = Field(3600.0, gt=0, description="longer video has failed")
    max_frames: int = Field(250_000, ge=1, description="video with more frames has failed")
    max_pixels: int = Field(16_000_000, ge=1, description="video with larger frames has failed")
    truncated: Literal["fail", "keep"] = Field(
        "fail",
        description="what becomes of video whose container says that there is more; pieces but for the last are kept",
    )
    encode: Literal["keep", "h264"] = Field("keep", description="h264: encode it anew, as H.264 and AAC in MP4")
    fps: float | None = Field(None, gt=0, le=240, description="frames a second at most; default: all there are")
    side_px: int | None = Field(None, ge=16, le=8192, description="what the shorter side is made, if it is longer")
    crf: int = Field(20, ge=0, le=51, description="quality where it is encoded; less is better and larger")
    sound: bool = Field(True, description="whether it keeps its sound")
    cut: Literal["exact", "keyframes"] = Field(
        "exact",
        description="exact: a piece is encoded; keyframes: it is copied, not encoded, and begins at a key frame",
    )

    @model_validator(mode="after")
    def _copies_or_encodes(self) -> Video:
        if self.cut == "keyframes" and (self.encode != "keep" or self.fps or self.side_px):
            raise ValueError("`cut: keyframes` copies: leave out `encode`, `fps` and `side_px`")
        return self

    def decode(self, ref: Ref, data: bytes) -> Member:
        """The member, measured. Raises SampleError as `mmdata.media.video` does."""
        from mmdata.media.video import Limits, Target, normalise

        target = Target(
            self.encode == "h264",
            self.fps,
            self.side_px,
            self.sound,
            self.crf,
            copy=self.cut == "keyframes",
            whole=self.truncated == "fail",
        )
        limits = Limits(self.max_duration_s, self.max_frames, self.max_pixels)
        stored, info = normalise(data, target, limits, ref.clip)
        measures = {"width": info.width, "height": info.height, "duration_s": info.duration_s}
        if info.start_s is not None:
            measures["start_s"] = info.start_s
        return Member(ref.name, "video", info.mime, info.extension, stored, ref.lang, measures)
