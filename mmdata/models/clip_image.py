"""Prepare images for a CLIP model as open_clip's own transform does with torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmdata.media.image import to_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Beyond this aspect ratio only the part of the image that survives the centre crop is scaled up: the whole of a
# 10 x 50,000 px strip would be a 224 x 1,120,000 px image. Differs from open_clip by rounding between two passes.
_MAX_FULL_RESIZE_RATIO = 8
# Sides of the prepared image that a reduced JPEG must keep, so that what the decoder left out was to be lost anyhow.
# Measured on 98 JPEGs (43 wallpapers, 34 photos and textures of scikit-image, 21 stamps) with EfficientNet-Lite0 at
# 224 px, cosine to the full decode at worst: 0.986 for one side, 0.9984 for two, 0.9990 for three, 0.9993 for four.
_ENOUGH_SIDES = 3
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Images of so many pixels are scaled down by torch, whose vector instructions take a ninth of Pillow's time (0.65 ms of
# 5.8 for 1,000 x 800 px to 224) and round 0.1 to 0.4 % of the values to the next level. With smaller ones it would be
# long until that had paid for importing torch into a worker: 1.4 s and 290 MB.
_LARGE_PX = 1 << 18


@dataclass(frozen=True)
class ImageRecipe:
    """How a model wants its images; small and picklable, to be sent to worker processes.

    Attributes:
        side_px: height and width of the prepared image.
        mean: of each colour channel, on the scale 0 to 1.
        std: of each colour channel, on the scale 0 to 1.
        interpolation: `bicubic` or `bilinear`.
        resize_mode: `shortest` crops the longer side, `longest` pads the shorter one, `squash` changes the aspect.
        fill: grey level 0 to 255 of what `longest` pads with.
    """

    side_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill: int = 0

    @property
    def enough_px(self) -> int:
        """The shorter side a JPEG may be reduced to while it is decoded (`open_image`, `min_side_px`)."""
        return _ENOUGH_SIDES * self.side_px


def prepare_image(recipe: ImageRecipe, image: Image.Image) -> NDArray[np.uint8]:
    """Scale and crop or pad as open_clip's evaluation transform does, up to its normalisation.

    Transparent images are laid on white, where open_clip drops the alpha channel and shows whatever colour the
    transparent pixels happen to carry. Palette and CMYK images become RGB before scaling, not after it.

    Returns:
        uint8 `[3, side_px, side_px]`, RGB.
    """
    scale = {"shortest": _scale_shortest, "longest": _scale_longest, "squash": _scale_squash}[recipe.resize_mode]
    return np.ascontiguousarray(scale(recipe, to_rgb(image)).transpose(2, 0, 1))


def _scale_shortest(recipe: ImageRecipe, image: Image.Image) -> NDArray[np.uint8]:
    side_px = recipe.side_px
    short, long = sorted(image.size)
    long_px = int(side_px * long / short)  # torchvision truncates here
    start_px = round((long_px - side_px) / 2.0)
    if long > _MAX_FULL_RESIZE_RATIO * short:
        scale = long / long_px
        span = (start_px * scale, (start_px + side_px) * scale)
        box = (span[0], 0.0, span[1], short) if image.width == long else (0.0, span[0], short, span[1])
        strip = image.resize((side_px, side_px), _RESAMPLING[recipe.interpolation], box=box)
        return np.asarray(strip, dtype=np.uint8)
    if image.width <= image.height:
        return _scaled(recipe, image, (side_px, long_px))[start_px : start_px + side_px]
    return _scaled(recipe, image, (long_px, side_px))[:, start_px : start_px + side_px]


def _scale_longest(recipe: ImageRecipe, image: Image.Image) -> NDArray[np.uint8]:
    side_px = recipe.side_px
    ratio = max(image.size) / side_px
    width, height = max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
    left, top = (side_px - width) // 2, (side_px - height) // 2
    square_HWC = np.full((side_px, side_px, 3), recipe.fill, dtype=np.uint8)
    square_HWC[top : top + height, left : left + width] = _scaled(recipe, image, (width, height))
    return square_HWC


def _scale_squash(recipe: ImageRecipe, image: Image.Image) -> NDArray[np.uint8]:
    return _scaled(recipe, image, (recipe.side_px, recipe.side_px))


def _scaled(recipe: ImageRecipe, image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale to `size`, width and height. Shape `[H, W, 3]`."""
    if image.width * image.height < _LARGE_PX or size[0] > image.width or size[1] > image.height:
        return np.asarray(image.resize(size, _RESAMPLING[recipe.interpolation]), dtype=np.uint8)
    import torch
    from torch.nn.functional import interpolate

    # A copy: torch warns of the read-only memory that Pillow gives.
    pixels_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    scaled_1CHW = interpolate(pixels_1CHW, size[::-1], mode=recipe.interpolation, antialias=True)
    return np.asarray(scaled_1CHW[0].permute(1, 2, 0).numpy(), dtype=np.uint8)
