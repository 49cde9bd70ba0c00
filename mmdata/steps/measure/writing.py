"""`writing`: how much of a picture is writing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from mmdata.models.weights import Weights
from mmdata.sample import Member, Modality
from mmdata.spec import Names
from mmdata.steps.base import Measure


class Writing(Measure):
    """Finds lines of writing in pictures; the aligner `ocr` reads them too.

    PP-OCR's detector: weights inside of the package rapidocr (Apache-2.0).
    """

    step: ClassVar[str] = "writing"
    extras: ClassVar[tuple[str, ...]] = ("ocr",)
    modality: ClassVar[Modality] = "image"
    of: Names = Field(["image"], min_length=1, description="image members to measure")
    max_side_px: int = Field(1280, ge=64, description="larger images are scaled down to this, the longer side")

    def columns(self) -> dict[str, str]:
        """Share of the picture within boxes of lines, and how many lines."""
        return {"area": "DOUBLE", "lines": "INTEGER"}

    def weights(self) -> Weights | None:
        """Those inside of rapidocr. Raises MissingExtraError."""
        from mmdata.models.ocr import locate

        return locate()

    def load(self) -> Any:
        """The detector."""
        from mmdata.models.ocr import Ocr

        return Ocr()

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:
        """Raises SampleError as `mmdata.media.image` does."""
        import numpy as np

        from mmdata.media.image import small_rgb

        lines, area = tool.find(np.asarray(small_rgb(member.data, self.max_side_px), dtype=np.uint8))
        return {"area": area, "lines": lines}
