from __future__ import annotations

import dataclasses
import io
import struct
import time
import types
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from mmdata.errors import SampleError
from mmdata.media.audio import decode_mono, frames_of, resampled
from mmdata.media.audio_write import Target, normalise

RATE = 16_000


def steps(
    seconds: float = 3.0, rate: int = RATE, channels: int = 1, subtype: str = "PCM_16", kind: str = "WAV"
) -> bytes:
    """Sound whose every tenth of a second has a level of its own."""
    times = np.arange(round(seconds * rate)) / rate
    wave = (0.02 * (1 + np.floor(times * 10) % 40)) * np.sin(2 * np.pi * 400 * times)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.repeat(wave[:, None], channels, axis=1), rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def read(data: bytes) -> tuple[np.ndarray, int]:
    found, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return found, rate


def film(data: bytes, *, cover: bool = False, kind: str = "matroska") -> bytes:
    """The sound with moving pictures."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as sound, av.open(buffer, "w", format=kind) as out:
        mpeg = kind == "mpeg"
        video = out.add_stream(
            "mpeg2video" if mpeg else "mpeg4", rate=25 if mpeg else 10, width=32, height=32, pix_fmt="yuv420p"
        )
        audio = out.add_stream("mp2" if mpeg else "pcm_s16le", rate=RATE, layout="mono")
        for n in range(0 if cover else 30):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), n, np.uint8), format="rgb24")
            out.mux(video.encode(frame))
        for frame in sound.decode(audio=0):
            frame.pts = None
            out.mux(audio.encode(frame))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    return buffer.getvalue()


def test_a_piece_of_an_mpeg_recording_is_of_its_time():
    # It begins at 0.5 s by its own clock, and a seek ends within a frame.
    data = film(steps(6.0), kind="mpeg")
    for begin in (2.2, 5.2):
        found, rate = read(normalise(data, Target(), 10, (begin, begin + 0.6))[0])
        assert (len(found), rate) == (round(0.6 * RATE), RATE)
        levels = np.abs(found[:, 0]).reshape(6, -1)[:, 400:1200].max(axis=1)
        assert levels == pytest.approx([0.02 * (1 + (round(begin * 10) + n) % 40) for n in range(6)], abs=0.015)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sound_with_samples_that_are_no_numbers_is_none(value: float):
    wave = np.zeros(RATE, np.float32)
    wave[-1] = value
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(SampleError) as caught:
        normalise(buffer.getvalue(), Target(), 10)
    assert caught.value.reason == "not_finite"


def header(at: int, value: int, size: int) -> bytes:
    """A second of sound in a WAV file, with another value at an offset of its header."""
    data = bytearray(steps(1.0))
    data[at : at + size] = value.to_bytes(size, "little")
    return bytes(data)


@pytest.mark.parametrize("error", [av.error.ArgumentError(22, "Invalid argument"), IndexError("list index")])
def test_what_a_decoder_raises_within_costs_the_sound_alone(error: Exception):
    class Broken:
        """As PyAV does of damaged MPEG-TS and Matroska, a byte in ten thousand."""

        def __getattr__(self, _: str) -> Any:
            return lambda *_, **__: (_ for _ in ()).throw(error)

        streams = types.SimpleNamespace(audio=[types.SimpleNamespace(codec_context=1)])

        def resample(self, _: Any) -> Any:
            raise error

    with pytest.raises(SampleError, match="cannot be decoded: "):
        list(frames_of(Broken()))
    if isinstance(error, av.FFmpegError):
        with pytest.raises(SampleError, match="cannot be resampled: Invalid argument"):
            resampled(Broken(), None)


def test_tags_in_any_encoding_are_none_of_the_sound():
    name = b"Caf\xe9 M\xfcller\0".ljust(14, b"\0")
    info = b"INFOINAM" + struct.pack("<I", len(name)) + name
    data = steps(1.0) + b"LIST" + struct.pack("<I", len(info)) + info
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    for target in EACH:
        assert normalise(data, target, 10)[1].duration_s == pytest.approx(1, abs=0.1)
    assert len(decode_mono(data, 10)) == RATE


EACH = [Target(), Target("flac"), Target("opus"), Target(mono=True), Target(rate_hz=8000)]


@pytest.mark.parametrize(
    "data",
    [header(24, 1, 4), header(24, (1 << 31) - 1, 4), header(24, 1 << 20, 4), header(22, 0, 2), header(22, 32767, 2)],
    ids=["1 Hz", "2147483647 Hz", "1048576 Hz", "no channel", "32767 channels"],
)
@pytest.mark.parametrize("target", EACH, ids=str)
def test_a_header_that_lies_costs_the_sound_alone(data: bytes, target: Target):
    with pytest.raises(SampleError) as caught:
        normalise(data, target, 10**6)
    assert caught.value.reason == "bad_audio"


@pytest.mark.parametrize("rate", [100, (1 << 20) - 1])
@pytest.mark.parametrize("target", EACH, ids=str)
def test_the_bounds_of_rates_are_inclusive(rate: int, target: Target):
    _, info = normalise(header(24, rate, 4), target, 10**6)
    assert info.duration_s == pytest.approx(RATE / rate, rel=0.1)
    assert len(decode_mono(header(24, rate, 4), 1e6)) == pytest.approx(RATE * RATE / rate, rel=0.1)


@pytest.mark.parametrize("target", EACH, ids=str)
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (RATE, 2)])
def test_sounds_of_two_kinds_one_behind_the_other_are_told(target: Target, rate: int, channels: int):
    data = steps(1.0, kind="FLAC") + steps(1.0, rate, channels, kind="FLAC")
    with pytest.raises(SampleError, match=r"^it begins as 16000 Hz mono s16, and goes on as \d+ Hz (mono|stereo) s16$"):
        normalise(data, target, 10)
    with pytest.raises(SampleError, match="it begins as"):
        decode_mono(data, 10)


def test_long_sound_is_decoded_in_linear_time():
    # 20,000 frames, of which each once looked at all before it: ten seconds.
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for _ in range(20_000):
            frame = av.AudioFrame.from_ndarray(np.ones((1, 16), np.int16), format="s16", layout="mono")
            frame.sample_rate = RATE
            out.mux(stream.encode(frame))
    began = time.process_time()
    assert len(decode_mono(buffer.getvalue(), 100)) == 320_000
    assert time.process_time() - began < 4


def test_sound_is_kept_as_it_came():
    data = steps()
    assert normalise(data, Target(), 10)[0] == data


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_loses_nothing(subtype: str, channels: int):
    data = steps(channels=channels, subtype=subtype)
    stored, info = normalise(data, Target("flac"), 10)
    assert (info.mime, info.extension, info.sample_rate, info.channels, info.duration_s) == (
        "audio/flac", "flac", RATE, channels, 3.0,
    )  # fmt: skip
    np.testing.assert_array_equal(read(stored)[0], read(data)[0])
    assert len(stored) < len(data)
    assert normalise(data, Target("flac"), 10)[0] == stored


def test_opus_is_small_and_always_the_same():
    data = steps(4)
    stored, info = normalise(data, Target("opus", bitrate_kbps=32), 10)
    assert (info.mime, info.extension, info.sample_rate) == ("audio/ogg", "opus", RATE)
    assert info.duration_s == pytest.approx(4, abs=0.03)
    assert len(stored) < len(data) / 4
    assert normalise(data, Target("opus", bitrate_kbps=32), 10)[0] == stored
    assert len(decode_mono(stored, 10)) == pytest.approx(4 * RATE, abs=RATE * 0.03)
    assert normalise(steps(rate=44_100), Target("opus"), 10)[1].sample_rate == 48_000


@pytest.mark.parametrize("clip", [(0.0, 1.0), (0.5, 0.75), (1.2345, 2.5), (2.9, 3.0), (0.0, 9.0), (2.0, 9.0)])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "film"])
def test_a_piece_is_cut_to_the_sample(clip: tuple[float, float], kind: str):
    data = film(steps()) if kind == "film" else steps(kind=kind)
    whole = read(steps() if kind == "film" else data)[0]
    stored, info = normalise(data, Target(), 10, clip)
    expected = whole[round(clip[0] * RATE) : round(clip[1] * RATE)]
    np.testing.assert_array_equal(read(stored)[0], expected)
    assert info.duration_s == pytest.approx(len(expected) / RATE)


def test_a_piece_far_into_a_recording_is_found():
    data = steps(60, kind="FLAC")
    stored, _ = normalise(data, Target(), 10, (41.25, 42.0))
    np.testing.assert_array_equal(read(stored)[0], read(data)[0][round(41.25 * RATE) : 42 * RATE])


def packed(codec: str, kind: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as sound, av.open(buffer, "w", format=kind) as out:
        stream = out.add_stream(codec, rate=48_000, layout="mono")
        for frame in sound.decode(audio=0):
            frame.pts = None
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("target", [Target(), Target("flac"), Target("opus")])
@pytest.mark.parametrize(
    "data",
    [
        steps(),
        steps(subtype="PCM_24", channels=2),
        steps(subtype="IMA_ADPCM"),
        steps(kind="AIFF"),
        packed("libmp3lame", "mp3", steps(rate=48_000)),
        packed("libopus", "webm", steps(rate=48_000)),
    ],
    ids=["wav", "wav24", "adpcm", "aiff", "mp3", "webm"],
)
def test_sound_that_breaks_off_has_failed_as_pictures_do(data: bytes, target: Target):
    assert normalise(data, target, 10)[1].duration_s == pytest.approx(3, abs=0.1)
    for share in (0.5, 0.9):
        with pytest.raises(SampleError, match=r"s of the 3\.\d\d s that its header says") as caught:
            normalise(data[: int(len(data) * share)], target, 10)
        assert caught.value.reason == "truncated"
    kept = dataclasses.replace(target, whole=False)
    assert normalise(data[: len(data) // 2], kept, 10)[1].duration_s == pytest.approx(1.5, abs=0.1)
    # What is there of it can be cut out.
    assert normalise(data[: len(data) // 2], target, 10, (0.2, 0.9))[1].duration_s == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("share", [0.6, 0.8, 0.99])
def test_ogg_that_breaks_off_within_a_page_has_failed(subtype: str, share: float):
    data = steps(12.0, rate=48_000, kind="OGG", subtype=subtype)
    assert normalise(data, Target(), 20)[1].duration_s == pytest.approx(12, abs=0.01)
    with pytest.raises(SampleError, match=r"its last page ends at byte .*, after \d+\.\d\d s") as caught:
        normalise(data[: int(len(data) * share)], Target(), 20)
    assert caught.value.reason == "truncated"
    # Where a page ends nothing tells of it.
    pages = data[: data.rfind(b"OggS")]
    assert normalise(pages, Target(), 20)[1].duration_s < 12


@pytest.mark.parametrize("size", [0, 0x7FFF_FFFF, 0xFFFF_FFFF, 2 * 3 * RATE + 44])
def test_a_wav_written_to_a_pipe_knows_no_size(size: int):
    data = bytearray(steps())
    struct.pack_into("<I", data, data.index(b"data") + 4, size)
    assert normalise(bytes(data), Target(), 10)[1].duration_s == 3.0


def test_an_mp3_that_does_not_say_how_long_it_is_is_as_long_as_it_is():
    data = packed("libmp3lame", "mp3", steps(rate=48_000))
    data = data[data.index(b"\xff\xfb", data.index(b"Info")) :]
    assert normalise(data[: len(data) // 2], Target(), 10)[1].duration_s == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("codec", ["mp2", "ac3"])
def test_a_piece_of_an_mpeg_stream_of_large_pictures_is_what_the_whole_has_there(codec: str):
    # After a seek FFmpeg takes frames for one too late until a packet says when it is.
    rate, buffer, rng = 48_000, io.BytesIO(), np.random.default_rng(0)
    with av.open(io.BytesIO(steps(6.0, rate))) as sound, av.open(buffer, "w", format="mpeg") as out:
        video = out.add_stream("mpeg2video", rate=25, width=128, height=128, pix_fmt="yuv420p")
        audio = out.add_stream(codec, rate=rate, layout="mono")
        for heard in sound.decode(audio=0):
            out.mux(audio.encode(heard))
            if int(heard.time * 25) != int((heard.time + heard.samples / rate) * 25):
                noise = rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)
                out.mux(video.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    whole, _ = read(normalise(buffer.getvalue(), Target(), 10)[0])
    for begin_s in (1.5, 2.2, 3.3, 4.4, 5.2):
        found, _ = read(normalise(buffer.getvalue(), Target(), 10, (begin_s, begin_s + 0.6))[0])
        first = round(begin_s * rate)
        np.testing.assert_allclose(found, whole[first : first + len(found)], atol=1e-3)


def test_the_sound_of_a_film_is_not_the_film():
    data = film(steps())
    stored, info = normalise(data, Target(), 10)
    assert (info.mime, info.has_video) == ("audio/flac", False)
    np.testing.assert_array_equal(read(stored)[0], read(steps())[0])


def test_rate_and_channels():
    _, info = normalise(steps(channels=2, rate=48_000), Target(rate_hz=8000, mono=True), 10)
    assert (info.sample_rate, info.channels) == (8000, 1)
    assert info.duration_s == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize(
    ("clip", "limit", "reason"), [((5.0, 6.0), 10, "no_audio"), (None, 2, "too_long"), ((0.0, 2.5), 2, "too_long")]
)
def test_what_cannot_be_cut_says_why(clip: tuple[float, float] | None, limit: float, reason: str):
    for target in (Target(), Target("opus")):
        with pytest.raises(SampleError) as caught:
            normalise(steps(), target, limit, clip)
        assert caught.value.reason == reason


def test_a_piece_of_a_long_recording_may_be_short_enough():
    assert normalise(steps(5), Target(), 2, (1.0, 2.0))[1].duration_s == 1.0


@pytest.mark.parametrize(
    "data", [b"", b"no sound", b"#EXTM3U\nhttp://x/y.ts\n", b"ffconcat version 1.0\nfile /etc/passwd\n"]
)
def test_no_sound(data: bytes):
    for target in (Target(), Target("flac")):
        with pytest.raises(SampleError):
            normalise(data, target, 10)
