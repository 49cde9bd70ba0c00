"""What is told of pictures by their pixels: drawn ones by hand; that blur, size and encoding tell as they should."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mmdata.errors import SampleError
from mmdata.media.image import to_rgb
from mmdata.media.picture import SIDE_PX, measure_picture


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def plain(colour: tuple[int, ...], size: tuple[int, int] = (30, 20)) -> np.ndarray:
    return np.full((size[1], size[0], len(colour)), colour, dtype=np.uint8)


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    return np.concatenate([plain(left), plain(right)], axis=1)


BLACK, WHITE, RED, GREY = (0, 0, 0), (255, 255, 255), (255, 0, 0), (128, 128, 128)


@pytest.mark.parametrize(
    ("pixels", "column", "value"),
    [
        (plain(RED), "aspect", 1.5),
        (plain(RED), "sharpness", None),
        (plain(RED), "entropy", 0.0),
        (plain(RED), "flat", 1.0),
        (plain(RED), "brightness", 76 / 255),
        (plain(WHITE), "brightness", 1.0),
        (plain(WHITE), "contrast", 0.0),
        (halves(BLACK, WHITE), "entropy", 1.0),
        (halves(BLACK, WHITE), "contrast", 0.5),
        (halves(BLACK, WHITE), "flat", 0.5),
        (halves(BLACK, WHITE), "colourfulness", 0.0),
        # rg = 255, yb = 127.5, neither varies: 0.3 times the length of the mean.
        (plain(RED), "colourfulness", 0.3 * np.hypot(255, 127.5)),
        # rg is 255 and -255, yb 127.5: their spread, and 0.3 times the mean.
        (halves(RED, (0, 255, 0)), "colourfulness", 255 + 0.3 * 127.5),
        (plain(RED), "transparency", 0.0),
        (plain((255, 0, 0, 51)), "transparency", 0.8),
        # What is seen through lies on white.
        (plain((0, 0, 0, 0)), "brightness", 1.0),
        # Noise of JPEG around one colour is that colour; another shade is not.
        (halves((250, 250, 250), (255, 255, 255)), "flat", 1.0),
        (halves((200, 200, 200), (240, 240, 240)), "flat", 0.5),
    ],
)
def test_a_measure_of_a_drawn_picture(pixels: np.ndarray, column: str, value: float | None) -> None:
    assert getattr(measure_picture(png(pixels)), column) == (
        None if value is None else pytest.approx(value, rel=1e-5, abs=1e-6)
    )


def test_an_edge_is_sharp_and_a_slope_is_not() -> None:
    edge = np.zeros((64, 64, 3), np.uint8)
    edge[:, 32:] = 255
    slope = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 64, 3))
    # Of an edge of one pixel ten elevenths of the difference are lost to a mean over eleven.
    assert measure_picture(png(edge)).sharpness == pytest.approx(10 / 11, abs=1e-5)
    assert (measure_picture(png(np.ascontiguousarray(slope))).sharpness or 0) < 0.15


def test_sharpness_does_not_ask_for_contrast() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    sharp, faint = (measure_picture(png(pixels)).sharpness or 0 for pixels in (noise, 118 + noise // 12))
    assert faint == pytest.approx(sharp, abs=0.02)


def test_what_moved_while_it_was_taken_is_not_sharp() -> None:
    """Blurred along one side alone: the worse direction counts, as the paper has it."""
    noise = np.random.default_rng(1).integers(0, 256, (120, 120), dtype=np.uint8)
    moved = noise
    for _ in range(3):
        moved = np.mean([np.roll(moved, n, axis=1) for n in range(5)], axis=0).astype(np.uint8)
    sharp, *smeared = (measure_picture(png(pixels)).sharpness or 0 for pixels in (noise, moved, moved.T.copy()))
    assert sharp > 0.85
    assert smeared == pytest.approx([smeared[0]] * 2)
    assert smeared[0] < 0.65


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_pictures_of_any_kind_are_measured(mode: str) -> None:
    pixels = np.tile(np.arange(0, 256, dtype=np.uint8), (600, 3))
    image = Image.fromarray(pixels.astype(np.uint16) << 8) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    found = measure_picture(buffer.getvalue())
    assert found.brightness == pytest.approx(0.5, abs=0.01)
    assert found.aspect == pytest.approx(768 / 600)
    assert found.transparency == 0


def test_what_is_no_picture_says_so() -> None:
    with pytest.raises(SampleError) as caught:
        measure_picture(b"no picture")
    assert caught.value.reason == "not_an_image"


@pytest.mark.slow
def test_of_stamps_a_blurred_copy_is_less_sharp_and_a_larger_or_recoded_one_measures_the_same(stamps_dir: Path) -> None:
    stamps = random.Random(7).sample(sorted(stamps_dir.rglob("*.png")), 8)
    for path in stamps:
        image = to_rgb(Image.open(path))
        own = measure_picture(_encoded(image))
        shades = [own, *(measure_picture(_encoded(image.filter(ImageFilter.GaussianBlur(s)))) for s in (1, 2, 4))]
        sharpness = [shade.sharpness or 0.0 for shade in shades]
        assert sharpness == sorted(sharpness, reverse=True)
        assert sharpness[0] - sharpness[2] > 0.1
        large = image.resize((4 * SIDE_PX, round(4 * SIDE_PX * image.height / image.width)), Image.Resampling.LANCZOS)
        for copy in (_encoded(image, "JPEG", quality=90), _encoded(large, "JPEG", quality=90)):
            again = measure_picture(copy)
            assert again.brightness == pytest.approx(own.brightness, abs=0.01)
            assert again.contrast == pytest.approx(own.contrast, abs=0.02)
            assert again.colourfulness == pytest.approx(own.colourfulness, abs=6)


def _encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
