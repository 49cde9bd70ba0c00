from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmdata.errors import SampleError
from mmdata.train.decode import decode_audio, decode_image, decode_text
from mmdata.train.tokens import END, START, encode, fit_tokenizer, text_hash


def save(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_fitted_on_white(kind):
    pixels = decode_image(save(Image.new("RGB", (80, 40), (200, 0, 0)), kind), 16, 10_000)
    assert (pixels.shape, pixels.dtype) == ((3, 16, 16), np.uint8)
    assert (pixels[:, [0, 3, 12, 15]] == 255).all()
    assert np.abs(pixels[:, 4:12].astype(int) - np.array([200, 0, 0])[:, None, None]).max() <= 3


def test_transparent_is_white():
    pixels = decode_image(save(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG"), 8, 64)
    assert (pixels == 255).all()


def test_an_image_of_too_many_pixels_is_refused_before_decoding():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(SampleError) as caught:
        decode_image(bomb, 16, 1000)
    assert caught.value.reason in {"image_too_large", "bad_image"}
    with pytest.raises(SampleError, match="40 x 30 px, at most 1000 pixels"):
        decode_image(save(Image.new("L", (40, 30)), "PNG"), 16, 1000)


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", save(Image.new("L", (40, 30)), "PNG")[:45], b"GIF89a" + bytes(99)],
    ids=["nothing", "nonsense", "cut", "zeros"],
)
def test_what_is_no_image_is_a_failure(data):
    with pytest.raises(SampleError, match="cannot be decoded"):
        decode_image(data, 16, 10_000)


def sound(kind: str, rate_hz: int, channels: int) -> bytes:
    time_T1 = np.arange(rate_hz)[:, None] / rate_hz
    buffer = io.BytesIO()
    wave = np.repeat(0.5 * np.sin(2 * np.pi * 440 * time_T1), channels, axis=1)
    soundfile.write(buffer, wave, rate_hz, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "rate_hz", "channels"), [("WAV", 8000, 1), ("FLAC", 44100, 2), ("OGG", 22050, 2)])
def test_audio_is_16_khz_mono(kind, rate_hz, channels):
    whole = decode_audio(sound(kind, rate_hz, channels), 9.0)
    assert whole.dtype == np.int16
    assert len(whole) == pytest.approx(16_000, abs=400)
    spectrum = np.abs(np.fft.rfft(whole[2000:10_000].astype(float)))
    assert np.argmax(spectrum) * 16_000 / 8000 == pytest.approx(440, abs=3)
    assert len(decode_audio(sound(kind, rate_hz, channels), 0.25)) == 4000


@pytest.mark.parametrize(
    "data",
    [b"", b"OggS" + bytes(50), b"#EXTM3U\nfile:///etc/passwd\n", sound("OGG", 16_000, 1)[:90]],
    ids=["nothing", "zeros", "playlist", "cut"],
)
def test_what_is_no_audio_is_a_failure(data):
    with pytest.raises(SampleError):
        decode_audio(data, 1.0)


def test_text_is_utf8_without_blanks():
    assert decode_text(" grün \n".encode()) == "grün"
    assert decode_text("grün".encode()[:3]) == "gr"
    with pytest.raises(SampleError, match="not UTF-8 at byte 1"):
        decode_text(b"a\xff b")
    with pytest.raises(SampleError, match="blanks only"):
        decode_text(b" \n")


def test_tokens_are_bounded_and_repeat():
    texts = ["a red circle", "a green square", "ein grüner Kreis"] * 3
    tokenizer = fit_tokenizer(texts, 320)
    assert fit_tokenizer(texts, 320).to_str() == tokenizer.to_str()
    ids = encode(tokenizer, "a red 圆", 50)
    assert (ids[0], ids[-1]) == (START, END)
    assert tokenizer.decode(ids[1:-1].tolist()) == "a red 圆"
    assert len(encode(tokenizer, "z" * 10_000_000, 9)) == 9


def test_texts_are_equal_but_for_case_and_blanks():
    assert text_hash("A  red\ncircle ") == text_hash("a red circle") > 0
    assert text_hash("a red circle") != text_hash("a red circles")
