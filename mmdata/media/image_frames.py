"""Pictures that move (GIF, APNG, WebP): some of their frames, evenly over their time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Final

from PIL import Image

from mmdata.errors import SampleError
from mmdata.media.image import FORMATS
from mmdata.media.image_write import Retouch, Stored, Target, stored_pixels

_MOVING: Final = ("GIF", "PNG", "WEBP")
_MOST_FRAMES: Final = 5000
# All frames up to one have to be drawn for it: so many times the pixels that a single picture may have.
_MOST_PICTURES: Final = 20
# What browsers take a frame for that says 0 or nearly so.
_LEAST_MS: Final = 20
_INSTEAD_MS: Final = 100


def frames(
    data: bytes, count: int, target: Target, max_pixels: int, retouch: Retouch | None = None
) -> Iterator[Stored]:
    """The frames shown in the middles of `count` equal spans of time, each once; none of a picture that stands still.

    They are stored as `target` says; where it keeps the format, as PNG. Raises SampleError: `too_many_frames`,
    `bad_image`.
    """
    with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
        # The pages of a TIFF are no frames.
        if image.format not in _MOVING or not getattr(image, "is_animated", False):
            return
        for number in _evenly(_lengths_ms(image, max_pixels), count):
            frame = _shown(image, number)
            frame = (retouch(frame) if retouch else None) or frame
            encoded = "PNG" if target.encode == "keep" else target.encode.upper()
            yield stored_pixels(frame, target, frame.size, encoded, max_pixels)


def _lengths_ms(image: Any, max_pixels: int) -> list[float]:
    """How long each frame is shown."""
    most = min(_MOST_FRAMES, _MOST_PICTURES * max_pixels // max(1, image.width * image.height))
    found: list[float] = []
    try:
        while True:
            image.seek(len(found))
            if image.format == "WEBP":
                image.load()  # which alone tells how long it is shown
            length = float(image.info.get("duration") or 0)
            found.append(length if length >= _LEAST_MS else _INSTEAD_MS)
            if len(found) > most:
                raise SampleError("too_many_frames", f"more than {most} frames of {image.width} x {image.height}")
    except EOFError:
        return found
    except SampleError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a parser of hostile bytes raises
        raise SampleError("bad_image", f"frame {len(found)} cannot be read: {error}") from None


def _evenly(lengths_ms: list[float], count: int) -> list[int]:
    """Numbers of the frames shown in the middles of equal spans."""
    ends = list(accumulate(lengths_ms))
    middles = [(n + 0.5) * ends[-1] / count for n in range(count)]
    return list(dict.fromkeys(next(n for n, end in enumerate(ends) if at < end) for at in middles))


def _shown(image: Any, number: int) -> Image.Image:
    try:
        image.seek(number)
        image.load()
        frame: Image.Image = image.copy()
    except Exception as error:  # noqa: BLE001 - whatever a parser of hostile bytes raises
        raise SampleError("bad_image", f"frame {number} cannot be decoded: {error}") from None
    return frame
