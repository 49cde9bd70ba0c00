"""Prepare images for a CLIP model with Pillow and numpy alone, as open_clip's own transform does with torchvision."""

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
    square = scale(recipe, to_rgb(image))
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))


def _scale_shortest(recipe: ImageRecipe, image: Image.Image) -> Image.Image:
    side_px, resampling = recipe.side_px, _RESAMPLING[recipe.interpolation]
    short, long = sorted(image.size)
    long_px = int(side_px * long / short)  # torchvision truncates here
    start_px = round((long_px - side_px) / 2.0)
    if long > _MAX_FULL_RESIZE_RATIO * short:
        scale = long / long_px
        span = (start_px * scale, (start_px + side_px) * scale)
        box = (span[0], 0.0, span[1], short) if image.width == long else (0.0, span[0], short, span[1])
        return image.resize((side_px, side_px), resampling, box=box)
    if image.width <= image.height:
        scaled = image.resize((side_px, long_px), resampling)
        return scaled.crop((0, start_px, side_px, start_px + side_px))
    scaled = image.resize((long_px, side_px), resampling)
    return scaled.crop((start_px, 0, start_px + side_px, side_px))


def _scale_longest(recipe: ImageRecipe, image: Image.Image) -> Image.Image:
    side_px = recipe.side_px
    ratio = max(image.size) / side_px
    size = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))
    scaled = image.resize(size, _RESAMPLING[recipe.interpolation])
    square = Image.new("RGB", (side_px, side_px), (recipe.fill,) * 3)
    square.paste(scaled, ((side_px - size[0]) // 2, (side_px - size[1]) // 2))
    return square


def _scale_squash(recipe: ImageRecipe, image: Image.Image) -> Image.Image:
    return image.resize((recipe.side_px, recipe.side_px), _RESAMPLING[recipe.interpolation])
