"""Images by Pillow; SVG by librsvg, which loads nothing external from a buffer."""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from dataclasses import dataclass
from typing import Any, Final
from xml.parsers import expat

from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from mmdata.errors import SampleError

# The formats that training data comes in. Pillow's rarer parsers are a needless way in for hostile files. Of AVIF a
# header tells nothing: libavif decodes frames of up to 2^28 pixels where it says 64 x 64.
FORMATS: Final = {
    "PNG": ("image/png", "png"),
    "JPEG": ("image/jpeg", "jpg"),
    "WEBP": ("image/webp", "webp"),
    "GIF": ("image/gif", "gif"),
    "BMP": ("image/bmp", "bmp"),
    "TIFF": ("image/tiff", "tif"),
}
# Limits are ours (`max_pixels`), checked before a pixel is decoded; Pillow's own guard would speak first, and vaguely.
Image.MAX_IMAGE_PIXELS = None
# What libjpeg can shrink by while it decodes an 8 x 8 block, and Pillow offers.
_DCT_SHRINKS: Final = (8, 4, 2)
_SVG_START: Final = re.compile(rb"^(\xef\xbb\xbf)?\s*(<\?xml|<!--|<!DOCTYPE svg|<svg)", re.IGNORECASE)
_SVG_SNIFF_BYTES: Final = 4096


def is_svg(data: bytes) -> bool:
    """Whether the payload begins as an SVG document does."""
    return bool(_SVG_START.match(data)) and b"<svg" in data[:_SVG_SNIFF_BYTES]


def rasterise_svg(data: bytes, side_px: int, max_pixels: int) -> bytes:
    """SVG to PNG, the longer side `side_px` pixels, transparency kept.

    Raises SampleError: `bad_image` where librsvg cannot read it, `too_many_pixels` where a picture embedded in it is
    larger than `max_pixels`: librsvg would decode it whole, whatever the size it is drawn at.
    """
    import pyvips

    _check_embedded(data, max_pixels)
    pyvips.cache_set_max(0)
    try:
        natural = pyvips.Image.svgload_buffer(data)
        scale = side_px / max(natural.width, natural.height, 1)
        # Always RGBA, so that equal drawings give equal bytes whatever librsvg thinks of their ground.
        png: bytes = pyvips.Image.svgload_buffer(data, scale=scale).write_to_buffer(".png", strip=True)
    except pyvips.Error as error:
        raise SampleError("bad_image", f"SVG that librsvg cannot read: {_first_line(error)}") from None
    return png


def _check_embedded(data: bytes, max_pixels: int) -> None:
    """Look at the header of every `data:` picture of an SVG, as an XML parser reads its attributes."""

    def start(_: str, attributes: dict[str, str]) -> None:
        for name, value in attributes.items():
            if name.rpartition(":")[-1] == "href" and value.lstrip().startswith("data:"):
                _check_data_url(value, max_pixels)

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    try:
        parser.Parse(data, True)
    # The last two are of encodings that expat does not know, or cannot read.
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise SampleError("bad_image", f"SVG that is no XML: {error}") from None


def _check_data_url(url: str, max_pixels: int) -> None:
    try:
        payload = base64.b64decode(url.partition(",")[-1])
        with Image.open(io.BytesIO(payload), formats=list(FORMATS)) as embedded:
            pixels = embedded.width * embedded.height
    except (UnidentifiedImageError, ValueError, OSError, SyntaxError):
        raise SampleError("bad_image", "SVG with embedded data that is no picture") from None
    if pixels > max_pixels:
        raise SampleError(
            "too_many_pixels", f"SVG with a picture of {pixels} pixels, more than max_pixels: {max_pixels}"
        )


ANY_SIZE: Final = 1 << 40
"""As `max_pixels`, for what was taken in: its limit was kept then."""


@dataclass(frozen=True)
class Opened:
    """A decoded image.

    Attributes:
        image: its first frame, upright as EXIF says.
        size: of the whole image, upright; that of `image` is less where a JPEG was decoded at a reduced scale.
        turned: whether EXIF had it lie otherwise than its pixels do.
    """

    image: Image.Image
    size: tuple[int, int]
    turned: bool


def open_image(data: bytes, max_pixels: int, min_side_px: int | None = None) -> Image.Image:
    """The image of `open_upright`."""
    return open_upright(data, max_pixels, min_side_px).image


def open_upright(data: bytes, max_pixels: int, min_side_px: int | None = None) -> Opened:
    """Decode an image in full.

    With `min_side_px` a larger JPEG is decoded at a half, a quarter or an eighth of its size, whichever is the smallest
    whose shorter side still has so many pixels: the decoder leaves out the high frequencies, and most of the work.

    Raises SampleError: `not_an_image`, `too_many_pixels` (before decoding), `bad_image` (truncated or corrupt).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image: Image.Image = Image.open(io.BytesIO(data), formats=list(FORMATS))
        except UnidentifiedImageError:
            raise SampleError("not_an_image", f"not an image: it begins with {data[:16]!r}") from None
        except Exception as error:  # noqa: BLE001 - whatever a parser of hostile bytes raises
            raise SampleError("bad_image", f"header cannot be read: {_first_line(error)}") from None
        kind, (width, height) = image.format, image.size
        if width * height > max_pixels:
            size = f"{width} x {height} = {width * height} pixels"
            raise SampleError("too_many_pixels", f"{size}, more than max_pixels: {max_pixels}")
        if (tile := _tile_pixels(image)) > max_pixels:
            raise SampleError("too_many_pixels", f"a tile of {tile} pixels, more than max_pixels: {max_pixels}")
        try:
            if min_side_px is not None:
                _decode_reduced(image, min_side_px)
            image.load()
            lies = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
            if lies != _UPRIGHT:
                image = ImageOps.exif_transpose(image)
        except Exception as error:  # noqa: BLE001 - see the next line
            # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ... on corrupt data.
            raise SampleError("bad_image", f"cannot be decoded: {_first_line(error)}") from None
    image.format = kind
    return Opened(image, (height, width) if lies in _ON_A_SIDE else (width, height), lies in _TURNED)


def _tile_pixels(image: Image.Image) -> int:
    """Of one tile of a TIFF, which is decoded whole, however small the image is that shows a corner of it."""
    tags = getattr(image, "tag_v2", {})
    sides = [tags.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
    return math.prod(sides) if all(isinstance(side, int) for side in sides) else 0


_UPRIGHT: Final = 1
_TURNED: Final = frozenset(range(2, 9))
_ON_A_SIDE: Final = frozenset(range(5, 9))


def to_rgb(image: Image.Image, ground: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """RGB, with transparency on a ground and 16-bit grey scaled to 8 bits (Pillow would clip it)."""
    if image.mode.startswith("I;16"):
        import numpy as np

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*ground, 255)), layer).convert("RGB")


def small_rgb(data: bytes, longest_px: int) -> Image.Image:
    """What was taken in, as RGB, the longer side at most `longest_px`; large JPEG files are decoded at a reduced scale.

    Raises SampleError as `open_upright` does.
    """
    image = to_rgb(open_image(data, ANY_SIZE, longest_px))
    # Its own reduction would round sides otherwise than a decoder does.
    image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS, reducing_gap=None)
    return image


def _decode_reduced(image: Image.Image, min_side_px: int) -> None:
    """Choose the scale at which a JPEG will be decoded; other formats have no such choice, and Pillow ignores it."""
    shrink = min(image.size) // max(min_side_px, 1)
    if shrink < _DCT_SHRINKS[-1]:
        return
    by = next(known for known in _DCT_SHRINKS if known <= shrink)
    # Pillow takes the largest scale at which no side is below what is asked for; it rounds the sides up.
    image.draft(None, (image.width // by, image.height // by))


def encode_like(image: Image.Image, extension: str) -> bytes:
    """Encode in the format that `extension` names: JPEG at quality 95, else lossless."""
    buffer = io.BytesIO()
    name = {kind[1]: name for name, kind in FORMATS.items()}[extension]
    known: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
    image.save(buffer, format=name, **known.get(name, {}))
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
