"""`film`: whether anything moves in a video, whether anything is seen, how often it cuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from pydantic import Field

from mmdata.sample import Member, Modality
from mmdata.spec import Names
from mmdata.steps.base import Measure


class Film(Measure):
    """Videos by their frames, and the loudness of their sound (ITU-R BS.1770-4).

    `static` and `black` are shares of the time in which nothing moves and nothing is seen, as FFmpeg's freezedetect and
    blackdetect have it; cuts are those of PySceneDetect.
    """

    step: ClassVar[str] = "film"
    extras: ClassVar[tuple[str, ...]] = ("video",)
    modality: ClassVar[Modality] = "video"
    of: Names = Field(["video"], min_length=1, description="video members to measure")
    threshold: float = Field(27.0, gt=0, description="of PySceneDetect's ContentDetector: lower cuts more")
    max_duration_s: float = Field(3600.0, gt=0, description="longer videos are not measured")

    def columns(self) -> dict[str, str]:
        """See `mmdata.media.film.Film`."""
        return dict.fromkeys(("static", "black", "cuts_per_minute", "fps", "loudness_lufs"), "DOUBLE")

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:  # noqa: ARG002 - it needs none
        """Raises SampleError as `mmdata.media.video` does."""
        from mmdata.media.film import measure_film
        from mmdata.media.image import ANY_SIZE
        from mmdata.media.video import Limits

        return asdict(measure_film(member.data, Limits(self.max_duration_s, ANY_SIZE, ANY_SIZE), self.threshold))
