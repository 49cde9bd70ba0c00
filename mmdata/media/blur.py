"""Take faces out of a picture: of each no more is left than a few colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFilter

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

# As in Yang et al., "A Study of Face Obfuscation in ImageNet" (2022): boxes grow by a tenth of their diagonal, and the
# edge of the mask is softened, so that no model learns the rectangle.
_GROWTH: Final = 0.1
# A Gaussian alone can be undone in part; colours that are not there any more cannot be brought back.
_CELLS: Final = 6


def blur_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The picture (RGB, RGBA or L) with every box reduced to `_CELLS` by `_CELLS` colours, smooth between them."""
    for box in boxes:
        reach = _GROWTH * ((box[2] - box[0]) ** 2 + (box[3] - box[1]) ** 2) ** 0.5
        grown = _within(image, box, reach)
        # The softened edge lies outside of what has to go.
        around = _within(image, box, 3 * reach)
        image = _blurred(image, grown, around, reach)
    return image


def _within(image: Image.Image, box: Box, by: float) -> tuple[int, int, int, int]:
    left, top = (max(0, int(at - by)) for at in box[:2])
    right, bottom = (min(side, int(at + by) + 1) for at, side in zip(box[2:], image.size, strict=True))
    return left, top, right, bottom


def _blurred(
    image: Image.Image, grown: tuple[int, int, int, int], around: tuple[int, int, int, int], soft: float
) -> Image.Image:
    whole = image.crop(around)
    cells = whole.resize((_CELLS, _CELLS), Image.Resampling.BOX).resize(whole.size, Image.Resampling.BICUBIC)
    mask = Image.new("L", whole.size)
    inner = (grown[0] - around[0], grown[1] - around[1], grown[2] - around[0] - 1, grown[3] - around[1] - 1)
    ImageDraw.Draw(mask).rectangle(inner, fill=255)
    soft_mask = mask.filter(ImageFilter.GaussianBlur(soft / 2))
    # Within the box itself nothing of the picture shines through.
    ImageDraw.Draw(soft_mask).rectangle(inner, fill=255)
    done = image.copy()
    done.paste(Image.composite(cells, whole, soft_mask), around[:2])
    return done
