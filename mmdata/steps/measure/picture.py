"""`picture`: how sharp, bright, colourful and empty a picture is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from pydantic import Field

from mmdata.sample import Member, Modality
from mmdata.spec import Names
from mmdata.steps.base import Measure


class Picture(Measure):
    """Pictures by their pixels, at a longer side of at most 512 px, transparent ones on white.

    `sharpness` is 0 to 1 and does not depend on contrast (blur effect, Crété-Roffet 2007; below 0.4 most are blurred);
    `entropy` of grey levels in bits; `brightness` and `contrast` (standard deviation) of luma; `flat`: share of the
    area that has the most common colour; `colourfulness`: 0 is grey, 59 quite colourful (Hasler and Suesstrunk 2003).
    """

    step: ClassVar[str] = "picture"
    modality: ClassVar[Modality] = "image"
    of: Names = Field(["image"], min_length=1, description="image members to measure")

    def columns(self) -> dict[str, str]:
        """See `mmdata.media.picture.Picture`."""
        names = ("aspect", "sharpness", "entropy", "brightness", "contrast", "flat", "colourfulness", "transparency")
        return dict.fromkeys(names, "DOUBLE")

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:  # noqa: ARG002 - it needs none
        """Raises SampleError as `mmdata.media.image` does."""
        from mmdata.media.picture import measure_picture

        return asdict(measure_picture(member.data))
