"""What is stored of an image, in every way that a pipeline can ask for."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pictures
from PIL import ImageCms, ImageOps

from mmdata.errors import SampleError
from mmdata.sample import Member
from mmdata.steps.exchange import Ref
from mmdata.steps.ingest.image import Image

GPS = {1: "N", 2: (52.0, 31.0, 0.0), 3: "E", 4: (13.0, 24.0, 0.0)}


def scene(width: int = 60, height: int = 40, mode: str = "RGB") -> Pictures.Image:
    """Smooth enough for JPEG; no two corners alike."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, 255 - 255 * x / width], axis=-1).astype(np.uint8)
    return Pictures.fromarray(pixels).convert(mode)


def encoded(image: Pictures.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def private_exif(orientation: int = 1) -> Pictures.Exif:
    exif = Pictures.Exif()
    exif[0x0112], exif[0x013B] = orientation, "Jane Roe"
    exif.get_ifd(0x8825).update(GPS)
    return exif


def stored(data: bytes, **how: Any) -> Member:
    return Image.model_validate(how).decode(Ref("m", "image"), data)


def opened(member: Member) -> Pictures.Image:
    image = Pictures.open(io.BytesIO(member.data))
    image.load()
    assert (image.width, image.height) == (member.measures["width"], member.measures["height"])
    return image


def pixels(image: Pictures.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_metadata_is_cut_out_and_no_pixel_changes(kind: str):
    options: dict[str, Any] = {"exif": private_exif()}
    if kind == "JPEG":
        options |= {"comment": b"by Jane Roe", "progressive": True}
    if kind == "WEBP":
        options |= {"xmp": b"<x:xmpmeta>Jane Roe</x:xmpmeta>", "lossless": True}
    data = encoded(scene(), kind, **options)
    assert b"Jane Roe" in data
    member = stored(data)
    assert b"Jane Roe" not in member.data
    assert not opened(member).getexif().get_ifd(0x8825)
    np.testing.assert_array_equal(pixels(opened(member)), pixels(Pictures.open(io.BytesIO(data))))
    assert stored(data, keep_metadata=True).data == data


def test_what_follows_the_end_of_a_jpeg_goes():
    plain = encoded(scene(), "JPEG")
    assert stored(plain + b"a video with a voice").data == plain
    assert stored(plain).data == plain


def test_png_texts_go():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Author", "Jane Roe")
    info.add_itxt("XML:com.adobe.xmp", "<x>Jane Roe</x>")
    member = stored(encoded(scene(), "PNG", pnginfo=info, dpi=(72, 72)))
    assert b"Jane" not in member.data
    assert b"pHYs" in member.data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_are_stored_upright(kind: str, orientation: int):
    data = encoded(scene(), kind, exif=private_exif(orientation))
    upright = ImageOps.exif_transpose(Pictures.open(io.BytesIO(data)))
    found = opened(stored(data))
    assert found.getexif().get(0x0112, 1) == 1
    assert found.size == upright.size
    assert np.abs(pixels(found) - pixels(upright)).mean() < 4


@pytest.mark.parametrize(
    ("how", "size"),
    [
        ({"resize": "keep_ratio", "side_px": 20}, (30, 20)),
        ({"resize": "keep_ratio", "side_px": 80}, (120, 80)),
        ({"resize": "keep_ratio", "side_px": 80, "only_if_bigger": True}, (60, 40)),
        ({"resize": "longest", "side_px": 30}, (30, 20)),
        ({"resize": "longest", "side_px": 60}, (60, 40)),
        ({"resize": "center_crop", "side_px": 20}, (20, 20)),
        ({"resize": "center_crop", "side_px": 40}, (40, 40)),
        ({"resize": "center_crop", "side_px": 50, "only_if_bigger": True}, (60, 40)),
        ({"resize": "border", "side_px": 30}, (30, 30)),
        ({"resize": "border", "side_px": 60}, (60, 60)),
        ({"resize": "border", "side_px": 90, "only_if_bigger": True}, (60, 40)),
    ],
)
def test_sizes(how: dict[str, Any], size: tuple[int, int]):
    assert opened(stored(encoded(scene(), "PNG"), **how)).size == size


def test_a_crop_is_of_the_middle_and_a_border_has_all_of_it():
    data = encoded(scene(80, 40), "PNG")
    crop = pixels(opened(stored(data, resize="center_crop", side_px=40)))
    np.testing.assert_array_equal(crop, pixels(scene(80, 40))[:, 20:60])
    border = pixels(opened(stored(data, resize="border", side_px=80, alpha_ground="#102030")))
    np.testing.assert_array_equal(border[20:60], pixels(scene(80, 40)))
    assert (border[:20] == (0x10, 0x20, 0x30)).all()


def test_smaller_is_the_mean_over_what_a_pixel_covers():
    data = encoded(scene(64, 64), "PNG")
    expected = pixels(scene(64, 64)).reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    found = pixels(opened(stored(data, resize="keep_ratio", side_px=16)))
    assert np.abs(found - expected).max() <= 1


def test_a_large_jpeg_is_decoded_at_a_reduced_scale_and_looks_the_same():
    data = encoded(scene(1600, 1200), "JPEG", quality=95)
    found = opened(stored(data, resize="keep_ratio", side_px=100, encode="png"))
    assert found.size == (133, 100)
    expected = scene(1600, 1200).resize((133, 100), Pictures.Resampling.BOX)
    assert np.abs(pixels(found) - pixels(expected)).max() <= 3


@pytest.mark.parametrize(("encode", "mime"), [("jpeg", "image/jpeg"), ("webp", "image/webp"), ("png", "image/png")])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_becomes_every_other(kind: str, encode: str, mime: str):
    member = stored(encoded(scene(), kind), encode=encode)
    assert (member.mime, opened(member).size) == (mime, (60, 40))
    assert np.abs(pixels(opened(member)) - pixels(scene())).mean() < (40 if kind == "GIF" else 4)
    assert stored(encoded(scene(), kind), encode=encode).data == member.data


def test_an_image_that_has_the_format_already_is_not_encoded_again():
    data = encoded(scene(), "JPEG", quality=70)
    assert stored(data, encode="jpeg", quality=95).data == data


def test_rarer_formats_become_png_where_pixels_change():
    for kind in ("GIF", "BMP", "TIFF"):
        assert stored(encoded(scene(), kind), resize="longest", side_px=30).mime == "image/png"


def test_transparent_pixels_lie_on_the_ground_that_was_asked_for():
    data = encoded(Pictures.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG")
    assert opened(stored(data)).mode == "RGBA"
    assert opened(stored(data, resize="longest", side_px=2)).mode == "RGBA"
    assert (pixels(opened(stored(data, encode="jpeg"))) >= 254).all()
    assert (pixels(opened(stored(data, alpha_ground="black"))) == 0).all()
    assert (pixels(opened(stored(data, alpha_ground="#0000ff"))) == (0, 0, 255)).all()


def test_other_colours_become_srgb():
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    broken = encoded(scene(), "PNG", icc_profile=b"no profile at all")
    np.testing.assert_array_equal(pixels(opened(stored(broken, encode="webp", quality=100))).shape, (40, 60, 3))
    # A profile of another colour space is as good as none.
    assert opened(stored(encoded(scene(), "PNG", icc_profile=wide), encode="jpeg")).size == (60, 40)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    member = stored(encoded(scene(), "PNG", icc_profile=srgb), resize="longest", side_px=30)
    assert "icc_profile" not in opened(member).info
    # Pixels that stay as they are keep what says what they mean.
    assert opened(stored(encoded(scene(), "PNG", icc_profile=srgb))).info["icc_profile"] == srgb


def test_cmyk_and_deep_grey_become_what_they_look_like():
    cmyk = opened(stored(encoded(scene(mode="CMYK"), "JPEG", quality=95), encode="png"))
    assert np.abs(pixels(cmyk) - pixels(scene())).mean() < 4
    deep = Pictures.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert (pixels(opened(stored(encoded(deep, "PNG"), encode="jpeg"))) == 128).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_resized(kind: str):
    frames = [Pictures.new("RGB", (40, 40), colour) for colour in ("red", "blue", "green")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    found = pixels(opened(stored(data, resize="longest", side_px=20, encode="png")))
    assert np.abs(found - (255, 0, 0)).max() < 10


def tiled(side_px: int, tile_px: int) -> bytes:
    """A TIFF of one tile, which is larger than what it shows of it."""
    tile = zlib.compress(bytes(tile_px * tile_px))
    short, long = 3, 4
    tags = [
        *((256, short, side_px), (257, short, side_px), (258, short, 8), (259, short, 8), (262, short, 1)),
        *((277, short, 1), (322, long, tile_px), (323, long, tile_px), (324, long, 8), (325, long, len(tile))),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\x00" + struct.pack("<I", 8 + len(tile)) + tile + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_a_tile_is_not_larger_than_a_picture_may_be():
    assert stored(tiled(64, 256)).measures["width"] == 64
    with pytest.raises(SampleError, match="a tile of 1048576 pixels, more than max_pixels: 1000000") as caught:
        stored(tiled(64, 1024), max_pixels=1_000_000)
    assert caught.value.reason == "too_many_pixels"


def test_a_strip_is_not_blown_up_to_a_bomb():
    data = encoded(Pictures.new("RGB", (3, 60_000)), "PNG")
    with pytest.raises(SampleError) as caught:
        stored(data, resize="keep_ratio", side_px=256)
    assert caught.value.reason == "too_many_pixels"
    assert "256 x 5120000" in str(caught.value)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_is_cut_off_fails_in_our_words(kind: str, share: float):
    data = encoded(scene(), kind, exif=private_exif())
    with pytest.raises(SampleError):
        stored(data[: int(len(data) * share)])


def test_laughs_and_entities_in_an_svg_end_soon():
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "lol"}">' for n in range(12))
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">'
    with pytest.raises(SampleError):
        stored(f"<!DOCTYPE svg [{laughs}]>{head}<text>&l11;</text></svg>".encode())


def test_resize_and_its_side_go_together():
    for how in ({"resize": "keep_ratio"}, {"side_px": 5}):
        with pytest.raises(ValueError, match="go together"):
            Image.model_validate(how)


@pytest.mark.parametrize(("encode", "sides"), [("webp", (2, 17_000)), ("jpeg", (66_000, 2))])
def test_a_side_that_a_format_does_not_have_costs_its_picture(encode: str, sides: tuple[int, int]):
    buffer = io.BytesIO()
    Pictures.new("RGB", sides).save(buffer, "PNG")
    step = Image.model_validate({"encode": encode})
    with pytest.raises(SampleError, match=f"{sides[0]} x {sides[1]}: {encode.upper()} has sides of") as caught:
        step.decode(Ref("image", "image", "a.png"), buffer.getvalue())
    assert caught.value.reason == "too_long_a_side"
