from __future__ import annotations

import io

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from mmdata.errors import SampleError
from mmdata.near.content import of_audio, of_image, of_text


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_another_lossless_format_and_other_metadata_are_the_same_picture() -> None:
    noted = PngImagePlugin.PngInfo()
    noted.add_text("comment", "taken by nobody")
    own = of_image(saved(picture(), "PNG"))
    for other in (
        saved(picture(), "PNG", compress_level=0, pnginfo=noted),
        saved(picture(), "WEBP", lossless=True),
        saved(picture(), "BMP"),
        saved(picture(), "TIFF"),
        saved(picture().convert("RGBA"), "PNG"),
    ):
        assert of_image(other) == own
    changed = picture()
    changed.putpixel((3, 4), (1, 2, 3))
    assert of_image(saved(changed, "PNG")) != own
    assert of_image(saved(picture().crop((0, 0, 29, 20)), "PNG")) != own


def test_a_picture_that_exif_turns_is_the_turned_one() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = picture().transpose(Image.Transpose.ROTATE_90)
    assert of_image(saved(lying, "PNG", exif=exif)) == of_image(saved(picture(), "PNG"))


def test_srgb_said_by_a_profile_is_srgb() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert of_image(saved(picture(), "PNG", icc_profile=profile)) == of_image(saved(picture(), "PNG"))
    assert of_image(saved(picture(), "PNG", icc_profile=b"no profile")) == of_image(saved(picture(), "PNG"))


def test_what_is_wholly_transparent_has_no_colour() -> None:
    red, blue = (Image.new("RGBA", (4, 4), (*colour, 0)) for colour in ((255, 0, 0), (0, 0, 255)))
    assert of_image(saved(red, "PNG")) == of_image(saved(blue, "PNG"))
    assert of_image(saved(red, "PNG")) != of_image(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 9)), "PNG"))


def test_sixteen_bits_of_grey_count() -> None:
    one, other = (Image.fromarray(np.full((4, 4), value, np.uint16)) for value in (1000, 1001))
    assert of_image(saved(one, "PNG")) == of_image(saved(one, "TIFF")) != of_image(saved(other, "PNG"))


def written(kind: str, codec: str, sample_format: str, samples: np.ndarray, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        stream.codec_context.format = sample_format
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, None
        for one in av.AudioResampler(format=sample_format, layout="mono", rate=rate).resample(frame):
            out.mux(stream.encode(one))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def test_another_lossless_encoding_is_the_same_sound() -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 4000, dtype=np.int16)
    own = of_audio(written("wav", "pcm_s16le", "s16", samples))
    assert of_audio(written("flac", "flac", "s16", samples)) == own
    assert of_audio(written("wav", "pcm_s24le", "s32", samples)) == own
    assert of_audio(written("wav", "pcm_s16le", "s16", samples, rate=8000)) != own
    samples[7] += 1
    assert of_audio(written("wav", "pcm_s16le", "s16", samples)) != own


def test_text_without_case_and_with_single_blanks() -> None:
    assert of_text("A  Red ball\n") == of_text("a red \uff22\uff21\uff2c\uff2c") != of_text("a red, ball")


@pytest.mark.parametrize("digest", [of_image, of_audio])
def test_what_cannot_be_decoded_has_none(digest) -> None:
    with pytest.raises(SampleError):
        digest(b"nothing of the kind")
