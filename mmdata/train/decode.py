"""From a member's bytes to numbers, within limits.

Shapes: T samples in time at 16 kHz; C = 3 colours, H and W pixels.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mmdata.errors import SampleError

SAMPLE_RATE_HZ = 16_000
# Only decoders that shards need: Pillow and FFmpeg know many more, and some of FFmpeg's follow links in the data.
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
# (offset, first bytes, FFmpeg's name of the container).
_AUDIO_MAGIC = (
    (0, b"OggS", "ogg"),
    (8, b"WAVE", "wav"),
    (0, b"fLaC", "flac"),
    (0, b"ID3", "mp3"),
    (0, b"\xff\xfb", "mp3"),
    (0, b"\xff\xf3", "mp3"),
    (4, b"ftyp", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
)
# What Pillow raises on damaged files, over its formats.
_IMAGE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
_WHITE = (255, 255, 255, 255)


def decode_text(data: bytes) -> str:
    """UTF-8 text without the blanks around it; a character cut in two at the end is left out.

    Raises SampleError where it is not UTF-8 or nothing is left.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            raise SampleError("bad_text", f"not UTF-8 at byte {error.start}") from None
        text = data[: error.start].decode("utf-8")
    text = text.strip()
    if not text:
        raise SampleError("empty_text", "a text of blanks only")
    return text


def decode_image(data: bytes, side_px: int, max_pixels: int) -> npt.NDArray[np.uint8]:
    """An image, fitted into a square on white and centred; what is transparent is white. Shape (3, side, side).

    Raises SampleError where it is no PNG, JPEG or WebP, is damaged, or has more than `max_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # oddities that Pillow reads all the same
            return _square(data, side_px, max_pixels)
    except _IMAGE_ERRORS as error:
        raise SampleError("bad_image", f"cannot be decoded: {error}") from None


def _square(data: bytes, side_px: int, max_pixels: int) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise SampleError("image_too_large", f"{image.width} x {image.height} px, at most {max_pixels} pixels")
        image.draft("RGB", (side_px, side_px))
        picture = _opaque(ImageOps.exif_transpose(image))
    return fitted(picture, side_px)


def fitted(picture: Image.Image, side_px: int) -> npt.NDArray[np.uint8]:
    """An opaque picture, fitted into a square on white and centred. Shape (3, side, side)."""
    scale = side_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    square = Image.new("RGB", (side_px, side_px), _WHITE[:3])
    square.paste(picture, ((side_px - size[0]) // 2, (side_px - size[1]) // 2))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")


def decode_audio(data: bytes, max_s: float) -> npt.NDArray[np.int16]:
    """The first `max_s` seconds of a clip as 16 kHz mono. Shape (T,).

    Raises SampleError where it is no Ogg, WAV, FLAC, MP3, MP4 or WebM, is damaged, or holds no sound.
    """
    known = (name for offset, magic, name in _AUDIO_MAGIC if data[offset : offset + len(magic)] == magic)
    container_format = next(known, None)
    if container_format is None:
        raise SampleError("bad_audio", "cannot be decoded: no Ogg, WAV, FLAC, MP3, MP4 or WebM")
    limit = max(1, round(max_s * SAMPLE_RATE_HZ))
    try:
        with av.open(io.BytesIO(data), format=container_format, metadata_errors="replace") as container:
            chunks = list(_chunks(container, limit))
    except (av.FFmpegError, ValueError, IndexError, MemoryError) as error:
        raise SampleError("bad_audio", f"cannot be decoded: {error}") from None
    if not chunks:
        raise SampleError("empty_audio", "no audio in it")
    return np.concatenate(chunks)[:limit]


def _chunks(container: Any, limit: int) -> Iterator[npt.NDArray[np.int16]]:
    """Resampled pieces, until there are `limit` samples."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
    found = 0
    for frame in container.decode(audio=0):
        for piece in resampler.resample(frame):
            found += piece.samples
            yield piece.to_ndarray()[0]
        if found >= limit:
            return
    for piece in resampler.resample(None):
        yield piece.to_ndarray()[0]
