"""`nsfw`: bare bodies in a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from mmdata.models.weights import Weights
from mmdata.sample import Member, Modality
from mmdata.spec import Names
from mmdata.steps.base import Measure


class Nsfw(Measure):
    """Parts of bodies in pictures by NudeNet's detector 320n: weights inside of the package nudenet (notAI-tech, MIT).

    A column for each of its classes holds the highest confidence, 0 where none was seen. `unsafe` is the highest of
    what most rules mean (genitals, anus, buttocks and women's breasts, exposed). It misses drawings, and takes some
    things for bodies: look at what a rule drops.
    """

    step: ClassVar[str] = "nsfw"
    extras: ClassVar[tuple[str, ...]] = ("safety",)
    modality: ClassVar[Modality] = "image"
    of: Names = Field(["image"], min_length=1, description="image members to look at")
    side_px: int = Field(
        320,
        ge=160,
        le=1280,
        description="longer side at which the network looks; more finds smaller things",
    )

    def columns(self) -> dict[str, str]:
        """`unsafe`, its class, the number of faces, and each class."""
        from mmdata.models.bodies import CLASSES

        return {"unsafe": "DOUBLE", "unsafe_class": "VARCHAR", "faces": "INTEGER", **dict.fromkeys(CLASSES, "DOUBLE")}

    def weights(self) -> Weights | None:
        """Those inside of nudenet. Raises MissingExtraError."""
        from mmdata.models.bodies import locate

        return locate("nsfw")

    def load(self) -> Any:
        """The detector."""
        from mmdata.models.bodies import load

        return load("nsfw", self.side_px)

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:
        """Raises SampleError as `mmdata.media.image` does."""
        from mmdata.media.image import small_rgb
        from mmdata.models.bodies import CLASSES, FACES, UNSAFE

        seen = tool.detect(small_rgb(member.data, 2 * self.side_px))
        best = {name: max((one.confidence for one in seen if one.name == name), default=0.0) for name in CLASSES}
        worst = max(UNSAFE, key=lambda name: best[name])
        return {
            "unsafe": best[worst],
            "unsafe_class": worst if best[worst] > 0 else None,
            "faces": sum(one.name in FACES for one in seen),
            **best,
        }
