"""`image`: checked by a full decode, kept as it came; SVG becomes PNG."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ByteSize, Field

from mmdata.sample import Member, Modality
from mmdata.steps.base import Ingest, Ref


class Image(Ingest):
    """Images: limits, a full decode to be sure, width and height. The payload stays as it came; SVG is drawn as PNG."""

    step: ClassVar[str] = "image"
    modality: ClassVar[Modality] = "image"
    max_bytes: ByteSize = Field(ByteSize(50 << 20), description="larger files have failed, unread")
    max_pixels: int = Field(50_000_000, ge=1, description="larger images have failed, undecoded")
    svg_side_px: int = Field(512, ge=16, le=8192, description="longer side that an SVG is drawn at")

    def decode(self, ref: Ref, data: bytes) -> Member:
        """The member, measured. Raises SampleError as `mmdata.media.image` does."""
        from mmdata.media.image import FORMATS, is_svg, open_image, rasterise_svg

        if is_svg(data):
            data = rasterise_svg(data, self.svg_side_px, self.max_pixels)
        image = open_image(data, self.max_pixels)
        mime, extension = FORMATS[str(image.format)]
        measures = {"width": image.width, "height": image.height}
        return Member(ref.name, "image", mime, extension, data, ref.lang, measures)
