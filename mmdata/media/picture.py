"""What can be told of a picture by its pixels alone: how sharp, bright, colourful and empty it is.

Shapes: H, W pixels of a picture made smaller; rgb_HW3 is uint8, grey_HW is luma in [0, 1], float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from mmdata.media.image import ANY_SIZE, open_upright, to_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# All is measured at one scale: a large photograph is as sharp as it looks on a page, not as its pixels are.
SIDE_PX: Final = 512
# Crété-Roffet et al., "The blur effect" (2007): neighbours are compared before and after a mean over so many pixels.
_BLUR_PX: Final = 11
# Colours that differ by so little, of 255, in every channel are one: what JPEG does to a white ground.
_SAME_COLOUR: Final = 8
_COLOUR_BITS: Final = 4
_LEVELS: Final = 256


@dataclass(frozen=True)
class Picture:
    """What `measure_picture` found.

    Attributes:
        aspect: width by height, of the whole.
        sharpness: 0 (blurred) to 1; None where all neighbours are equal.
        entropy: of the grey levels, bits: 0 to 8.
        brightness: mean luma, 0 to 1.
        contrast: standard deviation of luma, 0 to 0.5.
        flat: share of the area that has the most common colour.
        colourfulness: 0 (grey) to over 100 (Hasler and Suesstrunk: 33 is moderate, 59 quite colourful).
        transparency: mean of what shines through, 0 to 1.
    """

    aspect: float
    sharpness: float | None
    entropy: float
    brightness: float
    contrast: float
    flat: float
    colourfulness: float
    transparency: float


def measure_picture(data: bytes) -> Picture:
    """Measure an encoded picture, transparent ones on white; the longer side at most `SIDE_PX`.

    Raises SampleError as `mmdata.media.image.open_upright` does.
    """
    # Twice as large as needed: what the decoder leaves out then, the mean over pixels leaves out too.
    opened = open_upright(data, ANY_SIZE, 2 * SIDE_PX)
    width, height = opened.size
    small = _reduced(opened.image)
    rgb_HW3 = np.asarray(to_rgb(small))
    grey_HW = luma(rgb_HW3)
    return Picture(
        aspect=width / height,
        sharpness=sharpness(grey_HW),
        entropy=entropy_bits(grey_HW),
        brightness=float(grey_HW.mean()),
        contrast=float(grey_HW.std()),
        flat=flat_share(rgb_HW3),
        colourfulness=colourfulness(rgb_HW3),
        transparency=_transparency(small),
    )


def luma(rgb_HW3: NDArray[np.uint8]) -> Floats:
    """ITU-R BT.601, as JPEG and Pillow have it: `[H, W]` in [0, 1]."""
    weights_3 = np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    return np.asarray(rgb_HW3.astype(np.float32) @ weights_3)


def sharpness(grey_HW: Floats) -> float | None:
    """One less the blur effect of Crété-Roffet et al. (2007), equations 1 to 5; None where nothing varies.

    How much of the difference between neighbours a strong blur takes away: nearly all of a sharp picture's, little of
    what was blurred already. Unlike the variance of the Laplacian it does not ask how much contrast there is.
    """
    kept = [share for axis in (0, 1) if (share := _lost_by_blur(grey_HW, axis)) is not None]
    return min(kept) if kept else None


def _lost_by_blur(grey_HW: Floats, axis: int) -> float | None:
    """Share of the variation along an axis that a mean over `_BLUR_PX` takes away."""
    before = np.abs(np.diff(grey_HW, axis=axis))
    after = np.abs(np.diff(_mean_along(grey_HW, axis), axis=axis))
    there = float(before.sum())
    # Less than one grey level of one pixel is rounding.
    if there < 1 / _LEVELS:
        return None
    return float(np.maximum(before - after, 0).sum()) / there


def _mean_along(grey_HW: Floats, axis: int) -> Floats:
    """Mean over `_BLUR_PX` neighbours along an axis; the border's pixels go on beyond it."""
    reach = _BLUR_PX // 2
    padding = [(0, 0), (0, 0)]
    padding[axis] = (reach + 1, reach)
    sums = np.cumsum(np.pad(grey_HW, padding, mode="edge"), axis=axis, dtype=np.float64)
    length = grey_HW.shape[axis]
    upper, lower = (sums.take(range(start, start + length), axis) for start in (_BLUR_PX, 0))
    return np.asarray((upper - lower) / _BLUR_PX, dtype=np.float32)


def entropy_bits(grey_HW: Floats) -> float:
    """Shannon's entropy of 256 grey levels, bits."""
    counts = np.bincount(np.rint(grey_HW * (_LEVELS - 1)).astype(np.int64).ravel(), minlength=_LEVELS)
    shares = counts[counts > 0] / grey_HW.size
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


def flat_share(rgb_HW3: NDArray[np.uint8]) -> float:
    """Share of the area that has the most common colour, up to `_SAME_COLOUR` of 255 in each channel."""
    coarse_HW3 = (rgb_HW3 >> (8 - _COLOUR_BITS)).astype(np.int64)
    number_HW = (coarse_HW3[:, :, 0] << 2 * _COLOUR_BITS) + (coarse_HW3[:, :, 1] << _COLOUR_BITS) + coarse_HW3[:, :, 2]
    common = rgb_HW3[number_HW == np.bincount(number_HW.ravel()).argmax()]
    colour_3 = np.median(common, axis=0)
    return float((np.abs(rgb_HW3 - colour_3) <= _SAME_COLOUR).all(axis=2).mean())


def colourfulness(rgb_HW3: NDArray[np.uint8]) -> float:
    """Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003), section 7: the metric M3."""
    red_HW, green_HW, blue_HW = (rgb_HW3[:, :, channel].astype(np.float32) for channel in range(3))
    red_green_HW, yellow_blue_HW = red_HW - green_HW, (red_HW + green_HW) / 2 - blue_HW
    spread = np.hypot(red_green_HW.std(), yellow_blue_HW.std())
    return float(spread + 0.3 * np.hypot(red_green_HW.mean(), yellow_blue_HW.mean()))


def _reduced(image: Image.Image) -> Image.Image:
    """The longer side at most `SIDE_PX`: the mean over what a pixel covers, as `image_write` shrinks."""
    if max(image.size) <= SIDE_PX:
        return image
    if image.mode.startswith("I;16"):
        image = to_rgb(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in {"L", "RGB"}:
        image = image.convert("RGB")
    scale = SIDE_PX / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BOX, reducing_gap=None)


def _transparency(image: Image.Image) -> float:
    if not image.has_transparency_data:
        return 0.0
    alpha: Any = np.asarray(image.convert("RGBA").getchannel("A"))
    return float(1 - alpha.mean() / 255)
