"""Taking media in: what is measured, every limit, and the slug and sentence of every failure."""

from __future__ import annotations

import io
import json
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pictures

from mmdata.engine.ingest import Slice, ingest_part
from mmdata.errors import SampleError
from mmdata.media.text import count_words, detect_language
from mmdata.sample import Member, sample_id
from mmdata.steps.base import Ingest
from mmdata.steps.exchange import Ref
from mmdata.steps.ingest.audio import Audio
from mmdata.steps.ingest.image import Image
from mmdata.steps.ingest.text import Text
from mmdata.store.parts import iter_samples, read_base_rows


def image(kind: str = "PNG", size: tuple[int, int] = (6, 4), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Pictures.new("RGB", size, (9, 8, 7)).save(buffer, kind, **options)
    return buffer.getvalue()


def sound(seconds: float = 0.5, rate: int = 8000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\x10\x00" * channels * int(seconds * rate))
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """A PNG of 100,000 by 100,000 pixels in a few hundred bytes."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def decode(step: Ingest, data: bytes, **ref: Any) -> Member:
    return step.decode(Ref("m", step.modality, **ref), data)


def reason(step: Ingest, data: bytes, **ref: Any) -> tuple[str, str]:
    with pytest.raises(SampleError) as caught:
        decode(step, data, **ref)
    return caught.value.reason, str(caught.value)


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mime", "extension"),
    [
        ("PNG", "image/png", "png"),
        ("JPEG", "image/jpeg", "jpg"),
        ("WEBP", "image/webp", "webp"),
        ("GIF", "image/gif", "gif"),
        ("BMP", "image/bmp", "bmp"),
        ("TIFF", "image/tiff", "tif"),
    ],
)
def test_an_image_is_told_by_its_content_and_kept_as_it_came(kind: str, mime: str, extension: str) -> None:
    data = image(kind)
    assert decode(Image(), data) == Member("m", "image", mime, extension, data, None, {"width": 6, "height": 4})


def test_width_and_height_are_those_of_the_upright_image() -> None:
    exif = Pictures.Exif()
    exif[0x0112] = 6
    assert decode(Image(), image("JPEG", exif=exif)).measures == {"width": 4, "height": 6}


@pytest.mark.parametrize("start", ["", "<?xml version='1.0'?>\n", "\ufeff", "<!-- drawn -->\n"])
def test_svg_becomes_png(start: str) -> None:
    svg = f'{start}<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><rect width="9" height="9"/></svg>'
    member = decode(Image(svg_side_px=64), svg.encode())
    assert (member.mime, member.extension, member.measures) == ("image/png", "png", {"width": 64, "height": 32})
    assert Pictures.open(io.BytesIO(member.data)).format == "PNG"


def test_svg_loads_nothing_from_outside(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(image())
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9" height="9">'
    empty = decode(Image(), f"{head}</svg>".encode()).data
    for href in (f"file://{tmp_path}/red.png", str(tmp_path / "red.png")):
        svg = f'{head}<image xlink:href="{href}" width="9" height="9"/></svg>'
        assert decode(Image(), svg.encode()).data == empty


@pytest.mark.parametrize(
    ("data", "slug", "sentence"),
    [
        (b"this is a text", "not_an_image", "not an image: it begins with b'this is a text'"),
        (image(size=(600, 400))[:-40], "bad_image", ""),
        (image()[:40], "not_an_image", "not an image: it begins with b'\\x89PNG"),
        (image("JPEG")[:-40], "bad_image", ""),
        (image("GIF", (60, 40))[:-8], "bad_image", ""),
        (b"<svg>", "bad_image", "SVG that "),
        (bomb(), "too_many_pixels", "100000 x 100000 = 10000000000 pixels, more than max_pixels: 50000000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image", "not an image: it begins with"),
    ],
)
def test_an_image_that_cannot_be_used(data: bytes, slug: str, sentence: str) -> None:
    found, message = reason(Image(), data)
    assert (found, message[: len(sentence)]) == (slug, sentence)
    assert "\n" not in message


def test_the_limit_of_pixels_is_inclusive() -> None:
    assert decode(Image(max_pixels=24), image()).measures == {"width": 6, "height": 4}
    assert reason(Image(max_pixels=23), image()) == (
        "too_many_pixels",
        "6 x 4 = 24 pixels, more than max_pixels: 23",
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_an_image_cut_anywhere_fails_only_in_our_words(kind: str) -> None:
    data = image(kind, (40, 30))
    for length in range(1, len(data), max(len(data) // 40, 1)):
        try:
            decode(Image(), data[:length])
        except SampleError as error:
            assert error.reason in {"not_an_image", "bad_image"}  # noqa: PT017 - some cuts leave a whole image


# --- audio ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2), (48000, 6)])
def test_audio_is_measured_and_kept_as_it_came(rate: int, channels: int) -> None:
    data = sound(0.5, rate, channels)
    member = decode(Audio(), data, lang="en")
    measures = {"duration_s": 0.5, "sample_rate": rate, "channels": channels}
    assert member == Member("m", "audio", "audio/wav", "wav", data, "en", measures)


@pytest.mark.parametrize(
    ("kind", "subtype", "mime", "extension"),
    [
        ("FLAC", "PCM_16", "audio/flac", "flac"),
        ("OGG", "VORBIS", "audio/ogg", "ogg"),
        ("MP3", "MPEG_LAYER_III", "audio/mpeg", "mp3"),
        ("AIFF", "PCM_16", "audio/aiff", "aiff"),
    ],
)
def test_audio_of_other_formats(kind: str, subtype: str, mime: str, extension: str) -> None:
    import numpy as np
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(16_000) / 20) / 2, 16_000, format=kind, subtype=subtype)
    member = decode(Audio(), buffer.getvalue())
    assert (member.mime, member.extension, member.data) == (mime, extension, buffer.getvalue())
    assert member.measures["duration_s"] == pytest.approx(1.0, abs=0.08)
    assert (member.measures["sample_rate"], member.measures["channels"]) == (16_000, 1)


def test_audio_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(sound())
    playlist = f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/a.wav\n".encode()
    assert reason(Audio(), b"this is a text")[0] == "not_audio"
    assert reason(Audio(), image())[0] == "not_audio"
    assert reason(Audio(), playlist)[0] == "not_audio"
    assert reason(Audio(), f"ffconcat version 1.0\nfile '{tmp_path}/a.wav'\n".encode())[0] == "not_audio"
    assert reason(Audio(), sound(0)) == ("no_audio", "0.00 s of audio")
    assert reason(Audio(), sound()[:30])[0] in {"not_audio", "bad_audio", "no_audio"}


def test_the_limit_of_seconds_is_inclusive() -> None:
    assert decode(Audio(max_duration_s=0.5), sound(0.5)).measures["duration_s"] == 0.5
    assert reason(Audio(max_duration_s=0.5), sound(0.501)) == ("too_long", "more than max_duration_s: 0.5")


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "content", "words"),
    [
        (b"a cat", "a cat", 2),
        (b"\xef\xbb\xbf  a cat\r\n", "a cat", 2),
        ("cafe\u0301".encode(), "caf\u00e9", 1),
        ("猫と犬".encode(), "猫と犬", 3),
        ("한국어 말".encode(), "한국어 말", 4),
    ],
)
def test_text_is_composed_stripped_and_measured(data: bytes, content: str, words: int) -> None:
    member = decode(Text(detect_language=False), data)
    measures = {"text": content, "chars": len(content), "words": words}
    assert member == Member("m", "text", "text/plain", "txt", content.encode(), None, measures)
    assert count_words(content) == words


@pytest.mark.parametrize(
    ("data", "line", "content"),
    [
        (b"one\ntwo\n", 1, "one"),
        (b"one\r\ntwo", 2, "two"),
        (b"\xef\xbb\xbfone\n", 1, "one"),
        (b"cat\nfr.utf8=un chat\nes.utf8=un gato\n", "es.utf8={text}", "un gato"),
        (b"a={text}=b\nx (1) = y\n", "x (1) = {text}", "y"),
        (b"\xff\ngood\n", 2, "good"),
    ],
)
def test_one_line_of_many(data: bytes, line: int | str, content: str) -> None:
    assert decode(Text(), data, line=line).text == content


@pytest.mark.parametrize(
    ("data", "ref", "expected"),
    [
        (b" \n\t", {}, ("empty_text", "the text is empty")),
        (b"ab\xff", {}, ("not_utf8", "not UTF-8 at byte 2 (0xff)")),
        ("grün".encode("latin-1"), {}, ("not_utf8", "not UTF-8 at byte 2 (0xfc)")),
        (b"a\0b", {}, ("control_characters", "NUL at character 1: this is no text")),
        (b"one", {"line": 2}, ("no_such_line", "line 2 of 1")),
        (b"one", {"line": "fr={text}"}, ("no_such_line", "no line like 'fr={text}'")),
        (b"fr=\n", {"line": "fr={text}"}, ("empty_text", "the text is empty")),
    ],
)
def test_text_that_cannot_be_used(data: bytes, ref: dict[str, Any], expected: tuple[str, str]) -> None:
    assert reason(Text(), data, **ref) == expected


def test_the_language_is_that_of_the_source_else_a_guess_else_unknown() -> None:
    english = b"the quick brown fox jumps over the lazy dog"
    assert decode(Text(), english, lang="xx").lang == "xx"
    assert decode(Text(), english).lang == "en"
    assert decode(Text(), english).measures["lang_guessed"] is True
    assert decode(Text(), english, lang="xx").measures["lang_guessed"] is False
    assert "lang_guessed" not in decode(Text(), b"1234").measures
    assert decode(Text(), "Der schnelle braune Fuchs springt über den Hund".encode()).lang == "de"
    assert decode(Text(detect_language=False), english).lang is None
    assert detect_language("1234 !?") is None
    assert detect_language("two\nlines of an English text") == "en"


# --- a part ---------------------------------------------------------------------------------------------------------


def listing(path: Path, *inputs: dict[str, Any]) -> tuple[int, int]:
    path.write_text("".join(json.dumps({"attributes": {}, "problem": None, **found}) + "\n" for found in inputs))
    return 0, path.stat().st_size


def ref(name: str, modality: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "modality": modality, "version": "1", **more}


HOW: dict[Any, Ingest] = {"image": Image(max_bytes=1000), "text": Text(), "audio": Audio()}


def test_a_part_holds_a_row_for_every_input_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(image())
    (tmp_path / "large.png").write_bytes(bytes(1001))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "bad.wav").write_bytes(b"none")
    good = ref("image", "image", url=str(tmp_path / "good.png"))
    inputs = {
        "good": [good, ref("caption", "text", text=" a cat ", lang="en")],
        "large": [ref("image", "image", url=str(tmp_path / "large.png"))],
        "empty": [ref("image", "image", url=str(tmp_path / "empty.png"))],
        "gone": [ref("image", "image", url=str(tmp_path / "gone.png"))],
        "missing": [good, ref("caption", "text", url="missing.txt", version=None)],
        "optional": [
            good,
            ref("sound", "audio", url=str(tmp_path / "bad.wav"), required=False),
            ref("caption_fr", "text", text="x", line="fr={text}", required=False),
            ref("named", "image", url="gone.png", version=None, required=False, problem=["missing_member", "named"]),
        ],
        "nothing": [ref("caption_fr", "text", text="x", line="fr={text}", required=False)],
        "video": [ref("video", "video", url=str(tmp_path / "good.png"))],
        "killer": [good],
    }
    span = listing(
        tmp_path / "listing",
        *({"key": key, "refs": refs} for key, refs in inputs.items()),
        {"key": "row", "refs": [], "problem": ["no_key", "the row has no key"]},
    )
    chunk = Slice("s", tmp_path / "listing", *span)
    assert [found.key for found in chunk.inputs()] == [*inputs, "row"]
    done = ingest_part(chunk, HOW, tmp_path / "p.parquet", {"killer": "it died"})
    rows = {row["key"]: row for row in read_base_rows(tmp_path / "p.parquet")}
    assert {key: (row["failed_step"], row["reason"]) for key, row in rows.items()} == {
        "good": (None, None),
        "large": ("ingest", "too_large"),
        "empty": ("ingest", "empty_file"),
        "gone": ("ingest", "unreadable"),
        "missing": ("ingest", "missing_member"),
        "optional": (None, None),
        "nothing": ("ingest", "no_members"),
        "video": ("ingest", "no_reader"),
        "killer": ("ingest", "worker_died"),
        "row": ("ingest", "no_key"),
    }
    assert rows["large"]["detail"] == f"image 'image' ({tmp_path}/large.png): more than max_bytes: 1000"
    assert rows["missing"]["detail"] == "text 'caption' (missing.txt): not there"
    assert rows["good"]["sample_id"] == sample_id("s", "good")
    assert (done.samples, done.failed, done.reasons()["too_large"]) == (10, 8, 1)
    names = frozenset({"image", "caption"})
    good_sample, optional = iter_samples(tmp_path / "p.parquet", rows.values(), names)
    assert {name: member.data for name, member in good_sample.members.items()} == {
        "image": image(),
        "caption": b"a cat",
    }
    assert sorted(optional.members) == ["image"]
    bad = {member["name"]: member["error"] for member in rows["optional"]["members"] if member["error"]}
    assert list(bad) == ["sound", "named"]
    assert bad["sound"].startswith("not_audio: ")
    assert bad["named"] == "missing_member: named"


@pytest.mark.parametrize(
    ("given", "how", "kept"),
    [
        ("caf\u0065\u0301", {}, "café"),
        ("a\u200bb\u202ec\x07d\ufeffe\x85", {}, "abcde"),
        ("a\u200bb", {"controls": "keep"}, "a\u200bb"),
        ("one\ntwo\tthree", {}, "one\ntwo\tthree"),
        ("family \U0001f468\u200d\U0001f469", {}, "family \U0001f468\u200d\U0001f469"),
        ("caf&eacute; &amp; &#233;&#xe9; &quot;x&quot;", {}, 'café & éé "x"'),
        ("AT&T, R&D, &c; a &b", {}, "AT&T, R&D, &c; a &b"),
        ("caf&eacute;", {"entities": False}, "caf&eacute;"),
        ("&#0;&#x202e;x", {}, "\ufffdx"),
        ("&amp;lt;", {}, "&lt;"),
    ],
)
def test_texts_are_what_people_see(given: str, how: dict[str, Any], kept: str) -> None:
    assert decode(Text.model_validate(how), given.encode()).data.decode() == kept
