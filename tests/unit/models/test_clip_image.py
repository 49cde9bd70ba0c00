"""JPEGs decoded at a reduced scale, as far as a model's input allows."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmdata.errors import SampleError
from mmdata.media.image import open_image, rasterise_svg, to_rgb
from mmdata.models.clip_image import ImageRecipe, prepare_image

ANY = 1 << 40


def picture(width: int, height: int) -> Image.Image:
    """Smooth, so that scaling loses little; each corner has a colour of its own."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray((np.stack([x, y, 1 - x], axis=-1) * 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "min_side_px", "expected"),
    [
        ((1600, 1200), None, (1600, 1200)),
        ((1600, 1200), 1200, (1600, 1200)),
        ((1600, 1200), 601, (1600, 1200)),
        ((1600, 1200), 600, (800, 600)),
        ((1600, 1200), 301, (800, 600)),
        ((1600, 1200), 300, (400, 300)),
        ((1600, 1200), 1, (200, 150)),
        ((1203, 1601), 600, (602, 801)),
        ((1203, 1601), 150, (151, 201)),
        ((5, 3000), 2, (3, 1500)),
    ],
)
def test_the_smallest_scale_that_keeps_the_side(size: Any, min_side_px: int | None, expected: Any):
    assert open_image(encoded(picture(*size)), ANY, min_side_px).size == expected


@pytest.mark.parametrize("side_px", range(240, 4000, 97))
def test_the_shorter_side_is_never_below_what_is_asked_for(side_px: int):
    assert min(open_image(encoded(Image.new("L", (side_px, side_px + 31))), ANY, 224).size) >= 224


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_the_mode_stays(mode: str):
    image = open_image(encoded(picture(800, 640).convert(mode)), ANY, 150)
    assert (image.mode, image.size, image.format) == (mode, (200, 160), "JPEG")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_are_decoded_whole(kind: str):
    data = encoded(picture(640, 480), kind)
    whole, asked = open_image(data, ANY), open_image(data, ANY, 60)
    assert whole.size == asked.size == (640, 480)
    np.testing.assert_array_equal(np.asarray(whole.convert("RGB")), np.asarray(asked.convert("RGB")))


def test_limits_and_faults_are_those_of_the_full_decode():
    data = encoded(picture(1600, 1200))
    with pytest.raises(SampleError, match="1600 x 1200 = 1920000 pixels") as caught:
        open_image(data, 1_000_000, 150)
    assert caught.value.reason == "too_many_pixels"
    with pytest.raises(SampleError) as caught:
        open_image(data[: len(data) // 2], ANY, 150)
    assert caught.value.reason == "bad_image"


def test_a_turned_jpeg_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    data = encoded(picture(1600, 1200), exif=exif)
    reduced = open_image(data, ANY, 300)
    assert reduced.size == (300, 400)
    np.testing.assert_allclose(np.asarray(reduced), np.asarray(open_image(data, ANY).resize((300, 400))), atol=6)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_the_model_sees_nearly_the_same(resize_mode: str):
    recipe = ImageRecipe(96, (0.5,) * 3, (0.5,) * 3, resize_mode=resize_mode)
    data = encoded(picture(1600, 1200), quality=90)
    assert open_image(data, ANY, recipe.enough_px).size == (400, 300)
    whole, reduced = (prepare_image(recipe, open_image(data, ANY, px)) for px in (None, recipe.enough_px))
    np.testing.assert_allclose(whole.astype(int), reduced.astype(int), atol=4)


@pytest.mark.slow
def test_embeddings_of_real_drawings_stay(stamps_dir: Path, lite_dir: Path):
    import torch

    from mmdata.models.clip import Clip

    torch.set_num_threads(1)
    clip = Clip.load(str(lite_dir), device="cpu")
    drawings = sorted(stamps_dir.rglob("*.svg"))[::24]
    assert len(drawings) >= 8
    jpegs = [encoded(to_rgb(open_image(rasterise_svg(path.read_bytes(), 2000, ANY), ANY))) for path in drawings]
    images_N = [[open_image(data, ANY, px) for data in jpegs] for px in (None, clip.recipe.enough_px)]
    assert sum(r.width < w.width for w, r in zip(*images_N, strict=True)) >= len(jpegs) // 2
    whole_ND, reduced_ND = (clip.embed_images(np.stack([prepare_image(clip.recipe, i) for i in n])) for n in images_N)
    assert (whole_ND * reduced_ND).sum(axis=1).min() >= 0.999


class TestCheckpoint:
    """An architecture with a local checkpoint file."""

    @pytest.fixture
    def architecture(self, tmp_path: Path) -> str:
        """A small architecture, registered as a user's package would."""
        import open_clip

        text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
        vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
        path = tmp_path / "mmdata-tiny.json"
        path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
        open_clip.add_model_config(path)
        return path.stem

    def test_is_loaded_as_plain_tensors(self, architecture: str, tmp_path: Path):
        import open_clip
        import torch

        from mmdata.models.clip import _build

        torch.manual_seed(0)
        model = open_clip.create_model(architecture)
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "epoch.pt")
        loaded = _build(open_clip, architecture, str(tmp_path / "epoch.pt"), None)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name]), name

    def test_that_runs_code_is_refused(self, tmp_path: Path):
        import torch

        from mmdata.errors import WeightsError
        from mmdata.models.clip import Clip

        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "ran",)

        torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(WeightsError, match="does not load"):
            Clip.load("RN50", str(tmp_path / "evil.pt"), device="cpu")
        assert not (tmp_path / "ran").exists()
