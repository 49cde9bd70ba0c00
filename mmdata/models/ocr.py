"""What is written in an image, by PP-OCR through rapidocr and onnxruntime; the weights come inside rapidocr.

Shapes: H, W pixels of an image; image_HW3 is RGB, uint8. Boxes are quadrangles in pixels of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image, ImageDraw

from mmdata.errors import MissingExtraError
from mmdata.models.reconcile import normalise
from mmdata.models.weights import Weights, content_identity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# rapidocr itself scales the shorter side up to 736 px. On 40 captions drawn at 224 to 640 px both read every character;
# 0.30 s an image on one core here, 0.91 s there; a stamp takes 0.3 s here, 1.3 s there.
_SHORTER_SIDE_PX: Final = 320
_MOST_ASPECT: Final = 16  # 0.5 GB and 2 s at 80 by 1,280 pixels
# Least confidence of a line: of 21 stamps rapidocr's own 0.5 reads 9, three of which hold writing (0.98 and more);
# of 40 others 0.8 reads 10, eight of which do.
MIN_CONFIDENCE: Final = 0.8
# An image is its caption in writing where most of the caption stands in it, a word misread or two, and the writing is
# more than a label: labels on stamps (a tape measure, a school's sign) take 0.08 to 0.10 of the image, stamps that are
# letters 0.9 and more, captions drawn to fill a picture 0.2 to 0.5.
MOSTLY_TEXT_OVERLAP: Final = 0.8
MOSTLY_TEXT_AREA: Final = 0.2
_JOINED_LETTERS: Final = 4


@dataclass(frozen=True)
class Writing:
    """What is written in an image.

    Attributes:
        lines: from top to bottom, left to right.
        confidence: mean of the lines, weighted by their characters; None without lines.
        area: share of the image's pixels within boxes of lines.
    """

    lines: tuple[str, ...]
    confidence: float | None
    area: float

    @property
    def text(self) -> str:
        """All lines, with blanks between them."""
        return " ".join(self.lines)


def locate() -> Weights:
    """The weights inside rapidocr, without importing it. Raises MissingExtraError."""
    spec = find_spec("rapidocr")
    if spec is None or spec.origin is None or find_spec("onnxruntime") is None:
        raise MissingExtraError("ocr", "rapidocr", "ocr")
    folder = Path(spec.origin).parent
    # Which of the networks is taken for what stands in the configuration.
    return Weights(content_identity([*folder.glob("models/*.onnx"), folder / "config.yaml"]), folder)


def caption_overlap(caption: str, written: str) -> float | None:
    """Share of the caption's words that are written, in any order; None for a caption without words.

    Of a word that comes twice both have to be there. OCR joins and splits words: a word of four letters or more is also
    found in the writing without blanks.
    """
    wanted, there = normalise(caption).split(), normalise(written).split()
    if not wanted:
        return None
    left = [word for word in wanted if not _taken(there, word)]
    joined, missing = "".join(there), 0
    for word in left:
        if len(word) >= _JOINED_LETTERS and word in joined:
            joined = joined.replace(word, " ", 1)
        else:
            missing += 1
    return 1 - missing / len(wanted)


def _taken(words: list[str], word: str) -> bool:
    if word not in words:
        return False
    words.remove(word)
    return True


def is_mostly_text(
    overlap: float | None,
    area: float,
    min_overlap: float = MOSTLY_TEXT_OVERLAP,
    min_area: float = MOSTLY_TEXT_AREA,
) -> bool:
    """Whether an image is mostly a picture of its caption's words."""
    return overlap is not None and overlap >= min_overlap and area >= min_area


class Ocr:
    """PP-OCR: lines are found, then read. One thread, so that equal images give equal texts everywhere."""

    def __init__(self, min_confidence: float = MIN_CONFIDENCE) -> None:
        locate()
        from rapidocr import RapidOCR

        self.min_confidence = min_confidence
        self._engine = RapidOCR(
            params={
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                "Det.limit_type": "min",
                "Det.limit_side_len": _SHORTER_SIDE_PX,
                # Upright text only: the third network, which finds lines that stand on their head, costs a pass a line.
                "Global.use_cls": False,
                "Global.log_level": "error",
            }
        )

    def read(self, image_HW3: NDArray[np.uint8]) -> Writing:
        """The lines of an image, RGB, of those that are certain enough."""
        found: Any = self._engine(_for_engine(image_HW3), text_score=self.min_confidence)
        if not found.txts:
            return Writing((), None, 0.0)
        letters = [max(len(line), 1) for line in found.txts]
        confidence = sum(s * n for s, n in zip(found.scores, letters, strict=True)) / sum(letters)
        return Writing(tuple(found.txts), float(confidence), _covered(found.boxes, image_HW3.shape))

    def find(self, image_HW3: NDArray[np.uint8]) -> tuple[int, float]:
        """How many lines there are in an image, RGB, unread, and the share of its pixels within them."""
        found: Any = self._engine(_for_engine(image_HW3), use_rec=False, use_cls=False)
        boxes = found.boxes if found.boxes is not None else ()
        return len(boxes), _covered(boxes, image_HW3.shape) if len(boxes) else 0.0


def _for_engine(image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image as OpenCV's BGR, for which rapidocr takes arrays, with white beside it where it is too narrow.

    rapidocr scales by the shorter side: a line of 1 by 1,280 pixels took more than 6 GB, and ended the process.
    """
    import numpy as np

    height, width, _ = image_HW3.shape
    least = -(-max(height, width) // _MOST_ASPECT)
    beside = ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0))
    return np.ascontiguousarray(np.pad(image_HW3, beside, constant_values=255)[:, :, ::-1])


def _covered(boxes: Any, shape: tuple[int, ...]) -> float:
    """Share of the pixels within boxes, each counted once."""
    import numpy as np

    mask = Image.new("1", (shape[1], shape[0]))
    draw = ImageDraw.Draw(mask)
    for box in boxes:
        draw.polygon([(float(x), float(y)) for x, y in box], fill=1)
    return float(np.asarray(mask).mean())
