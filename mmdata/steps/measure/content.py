"""`content`: a digest of what a payload holds, whatever it is written as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mmdata.errors import SampleError
from mmdata.sample import Member, Modality
from mmdata.steps.base import Measure


class Content(Measure):
    """SHA-256 of decoded content: pixels upright and in sRGB, samples, text without case: for exact duplicates.

    PNG and TIFF of the same pixels, WAV and FLAC of the same samples, other metadata: the digest is the same.
    """

    step: ClassVar[str] = "content"
    modality: ClassVar[Modality | None] = None

    def columns(self) -> dict[str, str]:
        """`digest`, hexadecimal."""
        return {"digest": "VARCHAR"}

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:  # noqa: ARG002 - it needs none
        """The digest. Raises SampleError where it cannot be decoded, or is no image, sound or text."""
        from mmdata.near import content

        if member.modality == "image":
            return {"digest": content.of_image(member.data)}
        if member.modality == "audio":
            return {"digest": content.of_audio(member.data)}
        if member.modality == "text":
            return {"digest": content.of_text(member.text)}
        raise SampleError("not_comparable", f"content of {member.modality} has no digest")
