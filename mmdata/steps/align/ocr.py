"""`ocr`: what is written in an image, and whether the image is but a picture of its caption's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from mmdata.errors import SampleError
from mmdata.models.weights import Weights
from mmdata.sample import Modality, Sample
from mmdata.steps.base import Align
from mmdata.steps.exchange import Declared, Edge, Found, NewText, Score

if TYPE_CHECKING:
    import numpy as np

    from mmdata.models.ocr import Ocr as OcrModel


@dataclass(frozen=True)
class _Item:
    """One sample: its image as RGB, uint8 [H, W, 3], the caption if there is one, and the edge."""

    image_HW3: np.ndarray[Any, np.dtype[np.uint8]]
    caption: str | None
    edge: str


class Ocr(Align):
    """Text in images by PP-OCR (rapidocr): a new text member, and measures beside the caption; no score.

    An image whose caption is written all over it (`mostly_text`) teaches a model to read, not to see: CLIP scores such
    pairs highest of all.
    """

    step: ClassVar[str] = "ocr"
    extras: ClassVar[tuple[str, ...]] = ("ocr",)
    modalities: ClassVar[tuple[Modality, Modality]] = ("image", "text")
    batch_samples: ClassVar[int] = 16
    name: str | None = Field(None, description="the aligner's name in rules and in the catalog; default: ocr")
    image: str = Field("image", description="image member")
    caption: str = Field("caption", description="text member to look for in the image")
    into: str | None = Field("written", description="text member that what is written becomes; null: none")
    min_confidence: float = Field(0.8, ge=0, le=1, description="least confidence of a line")
    mostly_text_overlap: float = Field(0.8, ge=0, le=1, description="mostly_text: least share of the caption's words")
    mostly_text_area: float = Field(0.2, ge=0, le=1, description="mostly_text: least share of the image's pixels")
    max_side_px: int = Field(1280, ge=64, description="larger images are scaled down to this, the longer side")

    @model_validator(mode="after")
    def _own_member(self) -> Ocr:
        if self.into == self.caption:
            raise ValueError("'into' is a member of its own, not the caption")
        return self

    def edges(self) -> list[Edge]:
        """The image with its caption."""
        return [Edge(self.image, self.caption)]

    def new_members(self) -> dict[str, Declared]:
        """What is written."""
        return {self.into: Declared("text", False)} if self.into else {}

    def measures(self) -> dict[str, str]:
        """Of the image, and of how much of the caption is written in it."""
        return {
            "text_area": "DOUBLE",
            "ocr_words": "INTEGER",
            "ocr_confidence": "DOUBLE",
            "caption_overlap": "DOUBLE",
            "mostly_text": "BOOLEAN",
        }

    def weights(self) -> Weights:
        """Those inside rapidocr. Raises MissingExtraError."""
        from mmdata.models.ocr import locate

        return locate()

    def load(self, device: str) -> _Scorer:  # noqa: ARG002 - onnxruntime's CPU build, one thread: the same everywhere
        """Load the networks."""
        from mmdata.models.ocr import Ocr as OcrModel

        return _Scorer(self, OcrModel(self.min_confidence))

    def prepare(self, recipe: Any, sample: Sample, edges: Sequence[Edge]) -> _Item | None:  # noqa: ARG002 - theirs
        """Decode the image, scaled down if it is large."""
        import numpy as np
        from PIL import Image

        from mmdata.media.image import ANY_SIZE, open_image, to_rgb

        if not edges or self.image not in sample.members:
            return None
        image = to_rgb(open_image(sample.members[self.image].data, ANY_SIZE))
        image.thumbnail((self.max_side_px, self.max_side_px), Image.Resampling.LANCZOS)
        caption = sample.members.get(self.caption)
        return _Item(np.asarray(image, dtype=np.uint8), caption.text if caption else None, edges[0].name)


class _Scorer:
    recipe = None

    def __init__(self, step: Ocr, model: OcrModel) -> None:
        self.step = step
        self.model = model

    def score(self, items: Sequence[_Item]) -> list[Found | SampleError]:
        """One image after the other."""
        return [Found([self._read(item)]) for item in items]

    def _read(self, item: _Item) -> Score:
        from mmdata.models.ocr import caption_overlap, is_mostly_text

        writing = self.model.read(item.image_HW3)
        overlap = caption_overlap(item.caption, writing.text) if item.caption is not None else None
        measures = {
            "text_area": round(writing.area, 4),
            "ocr_words": len(writing.text.split()),
            "ocr_confidence": round(writing.confidence, 4) if writing.confidence is not None else None,
            "caption_overlap": overlap,
            "mostly_text": is_mostly_text(
                overlap, writing.area, self.step.mostly_text_overlap, self.step.mostly_text_area
            ),
        }
        into = self.step.into
        return Score(item.edge, None, measures, NewText(into, writing.text, None) if into and writing.lines else None)
