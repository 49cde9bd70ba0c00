from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from mmdata.errors import SampleError
from mmdata.near.picture import hashes


def shapes(seed: int) -> Image.Image:
    """Thirty boxes of all sizes."""
    drawn = np.random.default_rng(seed)
    image = Image.new("RGB", (200, 200))
    for _ in range(30):
        (left, right), (top, bottom) = (sorted(drawn.integers(0, 200, 2).tolist()) for _ in "xy")
        ImageDraw.Draw(image).rectangle((left, top, right, bottom), tuple(drawn.integers(0, 256, 3).tolist()))
    return image


def png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def apart(left: bytes, right: bytes) -> int:
    return (int.from_bytes(left) ^ int.from_bytes(right)).bit_count()


def test_a_hash_survives_scaling_encoding_and_brightness() -> None:
    own, _, quality = hashes(png(shapes(0)))
    assert (len(own), quality) == (32, 100)
    for changed in (
        png(shapes(0).resize((90, 90))),
        png(shapes(0), "JPEG", quality=20),
        png(shapes(0).point(lambda value: value * 0.7 + 20)),
        png(shapes(0).filter(ImageFilter.GaussianBlur(1))),
    ):
        assert apart(own, hashes(changed)[0]) <= 20
    assert apart(own, hashes(png(shapes(1)))[0]) > 80


def test_the_second_is_that_of_the_mirror_image() -> None:
    own, mirror, _ = hashes(png(shapes(0)))
    flipped, back, _ = hashes(png(ImageOps.mirror(shapes(0))))
    assert apart(mirror, flipped) <= 4
    assert apart(own, back) <= 4
    assert apart(own, flipped) > 80


def test_a_flat_picture_has_no_quality() -> None:
    assert hashes(png(Image.new("RGB", (50, 50), (200, 10, 10))))[2] == 0


def test_what_is_no_picture_has_none() -> None:
    with pytest.raises(SampleError):
        hashes(b"no picture")
