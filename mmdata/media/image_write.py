"""What is stored of an image: its pixels as they came or in another size and format, and nothing about its owner.

Nothing is encoded anew that need not be. What says where, when and by whom a picture was taken is cut out of JPEG, PNG
and WebP files without touching a pixel.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from PIL import Image, ImageCms, ImageOps

from mmdata.errors import SampleError
from mmdata.media.image import open_upright, to_rgb

Resize = Literal["keep", "keep_ratio", "longest", "center_crop", "border"]
Encode = Literal["keep", "jpeg", "webp", "png"]

# A JPEG is decoded at a reduced scale as long as so many pixels are left for each that is wanted, in each direction:
# what the decoder then leaves out, the mean over pixels leaves out too. 8.9 instead of 9.3 ms an image of 600 x 800.
_DECODED_SIDES: Final = 2
_KEPT_FORMATS: Final = frozenset({"JPEG", "PNG", "WEBP"})
_SRGB: Final = ImageCms.createProfile("sRGB")


@dataclass(frozen=True)
class Target:
    """How an image is stored.

    Attributes:
        resize: `keep`; the shorter side (`keep_ratio`) or the `longest` becomes `side_px`; a square cut out of the
            middle (`center_crop`), or the whole on a square (`border`).
        side_px: see `resize`.
        only_if_bigger: smaller images stay as they are.
        encode: the format; `keep` is that of the file, for the rarer ones PNG where pixels change.
        quality: of JPEG and WebP.
        ground: what transparent pixels lie on, RGB; None keeps them transparent where the format can.
        reduced_decode: whether large JPEG files are decoded at a smaller scale, where that costs no quality.
        keep_metadata: whether a file whose pixels do not change stays byte for byte.
    """

    resize: Resize = "keep"
    side_px: int = 0
    only_if_bigger: bool = False
    encode: Encode = "keep"
    quality: int = 95
    ground: tuple[int, int, int] | None = None
    reduced_decode: bool = True
    keep_metadata: bool = False


@dataclass(frozen=True)
class Stored:
    """An image as it is stored: a name of `FORMATS`, the payload and its size."""

    format: str
    data: bytes
    width: int
    height: int


# What a picture becomes before it is resized; None: it stays.
Retouch = Callable[[Image.Image], Image.Image | None]


def normalise(data: bytes, target: Target, max_pixels: int, retouch: Retouch | None = None) -> Stored:
    """Decode once, change what the target and `retouch` ask for, and encode only if anything changed.

    Raises SampleError as `open_upright` does, `too_many_pixels` where the result would have more than `max_pixels`, and
    `too_long_a_side` where its format has none so long.
    """
    least = _DECODED_SIDES * target.side_px if target.resize != "keep" and target.reduced_decode else None
    opened = open_upright(data, max_pixels, least)
    image, kind = opened.image, str(opened.image.format)
    retouched = retouch(image) if retouch else None
    image = retouched or image
    scaled = _scaled(target, opened.size)
    encoded = kind if target.encode == "keep" else target.encode.upper()
    grounded = target.ground is not None and image.has_transparency_data
    if scaled is None and encoded == kind and not grounded and not opened.turned and retouched is None:
        return Stored(kind, data if target.keep_metadata else without_metadata(data, image), *image.size)
    return stored_pixels(image, target, opened.size, encoded, max_pixels)


def stored_pixels(image: Image.Image, target: Target, size: tuple[int, int], encoded: str, max_pixels: int) -> Stored:
    """Encode pixels anew: `size` is that of the whole image, where `image` was decoded at a reduced scale."""
    scaled = _scaled(target, size)
    encoded = encoded if encoded in _KEPT_FORMATS else "PNG"
    pixels = _colours(image, target, encoded)
    if scaled is not None:
        pixels = _resized(pixels, target, scaled, max_pixels)
    return Stored(encoded, _encode(pixels, encoded, target.quality), *pixels.size)


def _scaled(target: Target, size: tuple[int, int]) -> tuple[int, int] | None:
    """The size before the image is cut or laid on a square; None where nothing is to be done."""
    if target.resize == "keep":
        return None
    by = max(size) if target.resize in {"longest", "border"} else min(size)
    if target.only_if_bigger and by <= target.side_px:
        return None
    scaled = max(1, round(size[0] * target.side_px / by)), max(1, round(size[1] * target.side_px / by))
    square = target.resize in {"center_crop", "border"}
    done = scaled == size and (not square or size[0] == size[1])
    return None if done else scaled


def _colours(image: Image.Image, target: Target, encoded: str) -> Image.Image:
    """sRGB, 8 bits; alpha only where the format has it and no ground was asked for."""
    profile = image.info.get("icc_profile")
    if profile:
        image = _to_srgb(image, profile)
    if image.has_transparency_data and encoded != "JPEG" and target.ground is None:
        return image.convert("RGBA")
    return to_rgb(image, target.ground or (255, 255, 255))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """By its colour profile; a profile that is broken or of other colours is as good as none."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    plain = image if image.mode in {"RGB", "CMYK", "L"} else image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        found = ImageCms.profileToProfile(plain, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    if found is None:
        return image
    if alpha is not None:
        found.putalpha(alpha)
    return found


def _resized(image: Image.Image, target: Target, size: tuple[int, int], max_pixels: int) -> Image.Image:
    if size[0] * size[1] > max_pixels:
        raise SampleError(
            "too_many_pixels", f"it would become {size[0]} x {size[1]}, more than max_pixels: {max_pixels}"
        )
    # Smaller: the mean over what a pixel covers, as OpenCV's INTER_AREA. Larger: Lanczos.
    shrinks = size[0] <= image.width
    scaled = image if size == image.size else image.resize(size, _SHRINK if shrinks else _GROW)
    if target.resize == "center_crop":
        return _middle(scaled, target.side_px)
    if target.resize == "border":
        return ImageOps.pad(scaled, (target.side_px,) * 2, color=target.ground or (255, 255, 255))
    return scaled


_SHRINK: Final = Image.Resampling.BOX
_GROW: Final = Image.Resampling.LANCZOS


def _middle(image: Image.Image, side_px: int) -> Image.Image:
    left, top = (image.width - side_px) // 2, (image.height - side_px) // 2
    return image.crop((left, top, left + side_px, top + side_px))


# Of libjpeg (JPEG_MAX_DIMENSION) and libwebp (WEBP_MAX_DIMENSION).
_MOST_SIDE_PX: Final = {"JPEG": 65_500, "WEBP": 16_383}


def _encode(image: Image.Image, kind: str, quality: int) -> bytes:
    if max(image.size) > _MOST_SIDE_PX.get(kind, sys.maxsize):
        most = f"{kind} has sides of {_MOST_SIDE_PX[kind]} pixels at most"
        raise SampleError("too_long_a_side", f"{image.width} x {image.height}: {most}; `encode: png` has no such limit")
    buffer = io.BytesIO()
    options: dict[str, Any] = {} if kind == "PNG" else {"quality": quality}
    # Pillow would write the old profile and comments: the pixels are sRGB now.
    image.info.clear()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- metadata --------------------------------------------------------------------------------------------------------


def without_metadata(data: bytes, image: Image.Image) -> bytes:
    """The same pixels without EXIF, XMP, IPTC, comments and whatever follows the image's end.

    Colour profiles stay: they say what the pixels mean. GIF and BMP have no such fields worth the name; a TIFF that
    has some is written anew without loss, its first image.
    """
    kind = image.format
    try:
        if kind == "JPEG":
            return b"".join(_jpeg_segments(data))
        if kind == "PNG":
            return b"".join(_png_chunks(data))
        if kind == "WEBP":
            return _webp(data)
    except (IndexError, struct.error, ValueError):
        # Pillow could read it and we cannot walk it: then it is written anew.
        return _encode(image, str(kind), 100)
    if kind == "TIFF" and _has_private_tags(data):
        # A copy is no TIFF any more, whose fields Pillow would carry over.
        plain, buffer = image.copy(), io.BytesIO()
        plain.info = {}
        plain.save(buffer, "TIFF", compression="tiff_adobe_deflate", icc_profile=image.info.get("icc_profile"))
        return buffer.getvalue()
    return data


# TIFF 6.0, section 8, and its extensions: description, maker, model, software, time, artist, host, XMP, copyright,
# IPTC, Photoshop, EXIF, GPS.
_TIFF_PRIVATE: Final = {270, 271, 272, 305, 306, 315, 316, 700, 33432, 33723, 34377, 34665, 34853}


def _has_private_tags(data: bytes) -> bool:
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as tiff:
        return bool(_TIFF_PRIVATE & set(tiff.getexif()))


_EOI, _SOS = 0xD9, 0xDA
_STANDS_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})
_APP0, _APP2, _APP14, _APP15, _COMMENT = 0xE0, 0xE2, 0xEE, 0xEF, 0xFE


def _jpeg_segments(data: bytes) -> list[bytes]:
    """ISO 10918-1, annex B: markers, most with a length; after the scans the end."""
    kept, at = [data[:2]], 2
    while True:
        if data[at] != 0xFF:  # noqa: PLR2004 - what every marker begins with
            raise ValueError("no marker")
        marker = data[at + 1]
        if marker == 0xFF:  # noqa: PLR2004 - a fill byte
            at += 1
            continue
        if marker == _EOI:
            return [*kept, data[at : at + 2]]
        end = at + 2 if marker in _STANDS_ALONE else at + 2 + int(struct.unpack_from(">H", data, at + 2)[0])
        if marker == _SOS:
            end = _end_of_scan(data, end)
        if _says_how_to_decode(marker, data[at + 4 : at + 16]):
            kept.append(data[at:end])
        at = end


def _end_of_scan(data: bytes, at: int) -> int:
    """Where the next marker is: in coded data 0xFF is followed by 0, or by a restart marker."""
    while True:
        at = data.index(b"\xff", at)
        if data[at + 1] != 0 and data[at + 1] not in _STANDS_ALONE:
            return at
        at += 2


def _says_how_to_decode(marker: int, begins: bytes) -> bool:
    if marker == _APP2:
        return begins.startswith(b"ICC_PROFILE\0")
    return marker in {_APP0, _APP14} or not (_APP0 <= marker <= _APP15 or marker == _COMMENT)


_PNG_PRIVATE: Final = frozenset({b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME"})
_PNG_HEAD: Final = 8


def _png_chunks(data: bytes) -> list[bytes]:
    """ISO 15948: length, type, data, checksum, until IEND."""
    kept, at = [data[:_PNG_HEAD]], _PNG_HEAD
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + int(length)
        if end > len(data):
            raise ValueError("cut off")
        if kind not in _PNG_PRIVATE:
            kept.append(data[at:end])
        if kind == b"IEND":
            return kept
        at = end


_WEBP_PRIVATE: Final = frozenset({b"EXIF", b"XMP "})
_WEBP_FLAGS: Final = 0x0C  # of VP8X: has EXIF, has XMP


def _webp(data: bytes) -> bytes:
    """RFC 9649: a RIFF file, whose VP8X chunk says what else there is."""
    end = min(len(data), 8 + int(struct.unpack_from("<I", data, 4)[0]))
    kept, at = [], 12
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        chunk = data[at : at + 8 + length + length % 2]
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_FLAGS]) + chunk[9:]
        if kind not in _WEBP_PRIVATE:
            kept.append(chunk)
        at += 8 + length + length % 2
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body
