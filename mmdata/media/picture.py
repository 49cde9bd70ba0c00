"""What can be told of a picture by its pixels alone: how sharp, bright, colourful and empty it is.

Shapes: H, W pixels of a picture made smaller, L grey levels; rgb_HW3 and grey_HW (luma) are uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from mmdata.media.image import ANY_SIZE, open_upright, to_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float64]

# All is measured at one scale: a large photograph is as sharp as it looks on a page, not as its pixels are.
SIDE_PX: Final = 512
# Crété-Roffet et al., "The blur effect" (2007): neighbours are compared before and after a mean over so many pixels.
_BLUR_PX: Final = 11
# Colours that differ by so little, of 255, in every channel are one: what JPEG does to a white ground.
_SAME_COLOUR: Final = 8
_COLOUR_BITS: Final = 4
_LEVELS: Final = 256
_LIGHT: Final = np.arange(_LEVELS) / (_LEVELS - 1)


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
    opened = open_upright(data, ANY_SIZE, SIDE_PX)
    width, height = opened.size
    small = _reduced(opened.image)
    rgb = to_rgb(small)
    rgb_HW3 = np.asarray(rgb)
    # ITU-R BT.601, as JPEG and Pillow have it.
    grey_HW = np.asarray(rgb.convert("L"))
    shares_L = np.bincount(grey_HW.ravel(), minlength=_LEVELS) / grey_HW.size
    brightness = float(shares_L @ _LIGHT)
    return Picture(
        aspect=width / height,
        sharpness=sharpness(grey_HW),
        entropy=entropy_bits(shares_L),
        brightness=brightness,
        contrast=float(shares_L @ np.square(_LIGHT - brightness)) ** 0.5,
        flat=flat_share(rgb_HW3),
        colourfulness=colourfulness(rgb_HW3),
        transparency=_transparency(small),
    )


def sharpness(grey_HW: Bytes) -> float | None:
    """One less the blur effect of Crété-Roffet et al. (2007), equations 1 to 5; None where nothing varies.

    How much of the difference between neighbours a strong blur takes away: nearly all of a sharp picture's, little of
    what was blurred already. Unlike the variance of the Laplacian it does not ask how much contrast there is.
    """
    # Down a column and along a row; memory is read in order in both.
    wide_HW = grey_HW.astype(np.int16)
    kept = [share for one in (wide_HW, wide_HW.T.copy()) if (share := _lost_by_blur(one)) is not None]
    return min(kept) if kept else None


def _lost_by_blur(grey_HW: NDArray[np.int16]) -> float | None:
    """Share of the variation from row to row that a mean over `_BLUR_PX` of them takes away; in whole numbers."""
    before = np.abs(np.diff(grey_HW, axis=0)) * _BLUR_PX
    there = int(before.sum())
    if there == 0:
        return None
    # The border's pixels go on beyond it. What a sum over a window gains with a step is what comes in less what goes.
    reach = _BLUR_PX // 2
    rows = np.pad(grey_HW, ((reach, reach), (0, 0)), mode="edge")
    after = np.abs(rows[_BLUR_PX:] - rows[:-_BLUR_PX])
    return float(np.maximum(before - after, 0).sum()) / there


def entropy_bits(shares_L: Floats) -> float:
    """Shannon's entropy of grey levels, bits."""
    there = shares_L[shares_L > 0]
    return float(max(0.0, -(there * np.log2(there)).sum()))


def flat_share(rgb_HW3: Bytes) -> float:
    """Share of the area that has the most common colour, up to `_SAME_COLOUR` of 255 in each channel."""
    coarse_3HW = (rgb_HW3 >> (8 - _COLOUR_BITS)).astype(np.uint16).transpose(2, 0, 1)
    number_HW = (coarse_3HW[0] << 2 * _COLOUR_BITS) | (coarse_3HW[1] << _COLOUR_BITS) | coarse_3HW[2]
    common = rgb_HW3[number_HW == np.bincount(number_HW.ravel()).argmax()]
    colour_3 = common.mean(axis=0)
    lower_3, upper_3 = np.ceil(colour_3 - _SAME_COLOUR), np.floor(colour_3 + _SAME_COLOUR)
    same_HW = np.ones(number_HW.shape, dtype=bool)
    for channel in range(3):
        values_HW = rgb_HW3[:, :, channel]
        same_HW &= (values_HW >= max(lower_3[channel], 0)) & (values_HW <= min(upper_3[channel], _LEVELS - 1))
    return float(same_HW.mean())


def colourfulness(rgb_HW3: Bytes) -> float:
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
