from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from film import COLOURS, FPS, phone_film, rising_film, write_film

from mmdata.errors import SampleError
from mmdata.media import audio_write
from mmdata.media.audio import decode_mono
from mmdata.media.video import (
    Limits,
    Target,
    frames_of_film,
    measure_video,
    normalise,
    redrawn,
    spread_stills,
    stills,
)

LIMITS = Limits(60, 5000, 1 << 20)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Three scenes of two seconds."""
    return write_film(tmp_path_factory.mktemp("film") / "a.mp4", [2.0, 2.0, 2.0]).read_bytes()


@pytest.fixture(scope="module", params=[("ts", 0.0), ("ts", 1000.0), ("mkv", 7.3)], ids="{0[0]}-{0[1]:g}".format)
def late(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> bytes:
    """The same, of which no packet says 0."""
    kind, start_s = request.param
    path = tmp_path_factory.mktemp("late") / f"a.{kind}"
    return write_film(path, [2.0, 2.0, 2.0], start_s=start_s).read_bytes()


def colours(data: bytes) -> list[int]:
    """Which scene each frame is of."""
    with av.open(io.BytesIO(data)) as container:
        means = [frame.to_ndarray(format="rgb24").mean(axis=(0, 1)) for frame in container.decode(video=0)]
    return [int(np.argmin([np.abs(mean - colour).sum() for colour in COLOURS])) for mean in means]


def tone_hz(data: bytes) -> float:
    with av.open(io.BytesIO(data)) as container:
        rate = container.streams.audio[0].rate
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    middle = sound[len(sound) // 3 : 2 * len(sound) // 3]
    return float(np.argmax(np.abs(np.fft.rfft(middle))) * rate / len(middle))


def test_video_is_kept_as_it_came(film: bytes):
    data, info = normalise(film, Target(), LIMITS)
    assert data == film
    assert (info.mime, info.extension, info.width, info.height, info.has_sound) == ("video/mp4", "mp4", 128, 64, True)
    assert info.duration_s == pytest.approx(6, abs=1 / FPS)


@pytest.mark.parametrize(
    ("clip", "scenes", "hertz"),
    [((2.0, 4.0), {1}, 600), ((4.5, 6.0), {2}, 900), ((0.0, 1.0), {0}, 300), ((2.3, 3.7), {1}, 600)],
)
def test_a_piece_has_its_pictures_and_its_sound(film: bytes, clip: tuple[float, float], scenes: set[int], hertz: float):
    data, info = normalise(film, Target(), LIMITS, clip)
    assert set(colours(data)) == scenes
    assert len(colours(data)) == round((clip[1] - clip[0]) * FPS)
    assert info.duration_s == pytest.approx(clip[1] - clip[0], abs=1.5 / FPS)
    assert tone_hz(data) == pytest.approx(hertz, rel=0.02)
    assert normalise(film, Target(), LIMITS, clip)[0] == data


def test_a_piece_over_a_cut_changes_where_the_film_does(film: bytes):
    data, _ = normalise(film, Target(), LIMITS, (1.5, 2.5))
    assert colours(data) == [0] * 10 + [1] * 10


def test_size_rate_and_sound(film: bytes):
    data, info = normalise(film, Target(fps=5, side_px=32, sound=False), LIMITS)
    assert (info.width, info.height, info.has_sound) == (64, 32, False)
    assert len(colours(data)) == 30
    assert info.duration_s == pytest.approx(6, abs=0.25)
    assert normalise(film, Target(side_px=500), LIMITS)[1].width == 128


def test_stills_are_those_shown_at_their_times(film: bytes):
    images = stills(io.BytesIO(film), [0.5, 2.5, 3.9, 4.1, 99.0], LIMITS)
    found = [np.asarray(image.convert("RGB"), dtype=float).mean(axis=(0, 1)) for image in images]
    assert [int(np.argmin([np.abs(mean - c).sum() for c in COLOURS])) for mean in found] == [0, 1, 1, 2, 2]


def test_spread_stills_are_from_the_middles_of_equal_pieces(film: bytes):
    found = [np.asarray(image.convert("RGB"), dtype=float).mean(axis=(0, 1)) for image in spread_stills(film, 6)]
    assert [int(np.argmin([np.abs(mean - c).sum() for c in COLOURS])) for mean in found] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(SampleError, match="not video"):
        spread_stills(b"no film", 2)


def bright_side(picture: np.ndarray) -> str:
    """Which half of a picture is bright."""
    grey = picture.mean(axis=2)
    down, across = np.diff([[half.mean() for half in np.array_split(grey, 2, axis)] for axis in (0, 1)])[:, 0]
    if abs(down) > abs(across):
        return "bottom" if down > 0 else "top"
    return "right" if across > 0 else "left"


@pytest.mark.parametrize(
    ("degrees", "mirrored", "side"),
    [
        (0, False, "top"),
        (90, False, "right"),
        (180, False, "bottom"),
        (270, False, "left"),
        (0, True, "top"),
        (90, True, "right"),
        (None, False, "top"),
    ],
)
def test_a_phones_film_is_seen_as_it_was_held(degrees: int | None, mirrored: bool, side: str):
    data = phone_film(degrees, mirrored=mirrored)
    size = (64, 128) if degrees in {90, 270} else (128, 64)
    info = measure_video(data, LIMITS)
    assert (info.width, info.height) == size
    (still,) = stills(io.BytesIO(data), [0.5], LIMITS)
    assert (still.size, bright_side(np.asarray(still))) == (size, side)
    for target, clip in ((Target(encode=True), None), (Target(), (0.2, 0.6)), (Target(side_px=32), None)):
        stored, info = normalise(data, target, LIMITS, clip)
        assert (info.width, info.height) == (tuple(n // 2 for n in size) if target.side_px else size)
        with av.open(io.BytesIO(stored)) as container:
            frame = next(container.decode(video=0))
        assert (frame.rotation, frame.width, frame.height) == (0, info.width, info.height)
        seen = np.asarray(still.resize((info.width, info.height)), dtype=float)
        assert np.abs(frame.to_ndarray(format="rgb24") - seen).mean() < 8
    frames = frames_of_film(data, LIMITS, 1 << 30)
    assert (frames[0].shape, bright_side(frames[0])) == ((size[1], size[0], 3), side)
    again = frames_of_film(redrawn(data, frames, LIMITS), LIMITS, 1 << 30)
    assert (again[0].shape, bright_side(again[0])) == (frames[0].shape, side)


def test_a_copied_piece_of_a_phones_film_is_turned_as_the_whole():
    data, info = normalise(phone_film(90), Target(copy=True), LIMITS, (0.2, 0.6))
    assert (info.width, info.height) == (64, 128)
    with av.open(io.BytesIO(data)) as container:
        assert next(container.decode(video=0)).rotation == -90


def test_pictures_whose_times_go_back_are_left_out():
    # AVI tells when pictures are decoded; where one is shown before another it is wrong.
    data, info = normalise(rising_film("avi", 40), Target(encode=True), LIMITS)
    with av.open(io.BytesIO(data)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert 20 < len(times) < 40
    assert times == sorted(set(times))
    assert info.duration_s == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(("clip", "scenes"), [((2.3, 3.7), [1] * 28), ((0.3, 2.5), [0] * 34 + [1] * 10)])
def test_times_count_from_the_beginning_whatever_packets_say(late: bytes, clip: tuple[float, float], scenes: list[int]):
    data, info = normalise(late, Target(), LIMITS, clip)
    # Of MPEG-TS the sound may begin a little before the pictures.
    assert colours(data)[2:-2] == scenes[2:-2]
    assert len(colours(data)) == pytest.approx(len(scenes), abs=2)
    assert info.duration_s == pytest.approx(clip[1] - clip[0], abs=3 / FPS)
    assert tone_hz(data) == pytest.approx(300 * (1 + scenes[len(scenes) // 3]), rel=0.02)
    heard, sound = audio_write.normalise(late, audio_write.Target(), 60, clip)
    assert sound.duration_s == pytest.approx(clip[1] - clip[0], abs=1e-3)
    assert tone_hz(heard) == pytest.approx(tone_hz(data), rel=0.02)
    images = stills(io.BytesIO(late), [0.5, 2.5, 3.8, 4.3, 99.0], LIMITS)
    found = [np.asarray(image, dtype=float).mean(axis=(0, 1)) for image in images]
    assert [int(np.argmin([np.abs(mean - c).sum() for c in COLOURS])) for mean in found] == [0, 1, 1, 2, 2]
    assert len(spread_stills(late, 6)) == 6


@pytest.mark.parametrize(("clip", "silent_s"), [((0.0, 3.0), 2.0), ((1.5, 4.0), 0.5), ((2.5, 4.0), 0.0), (None, 2.0)])
@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_sound_that_begins_after_the_pictures_does_so_in_what_is_encoded(
    tmp_path: Path, kind: str, clip: tuple[float, float] | None, silent_s: float
):
    film = write_film(tmp_path / f"a.{kind}", [2.0, 2.0], sound_after_s=2.0).read_bytes()
    shown, _ = normalise(film, Target(encode=True), LIMITS, clip)
    heard, info = audio_write.normalise(film, audio_write.Target(), 60, clip)
    assert info.duration_s == pytest.approx(clip[1] - clip[0] if clip else 6.0, abs=0.1)
    for data in (shown, heard):
        audio_T = decode_mono(data, 60)
        assert np.argmax(np.abs(audio_T) > 0.1) / 16_000 == pytest.approx(silent_s, abs=0.08)
    nothing = (0.0, 1.5)
    assert not normalise(film, Target(), LIMITS, nothing)[1].has_sound
    with pytest.raises(SampleError, match=r"0\.00 s of audio"):
        audio_write.normalise(film, audio_write.Target(), 60, nothing)


def test_sound_that_says_to_begin_after_years_makes_no_years_of_silence(tmp_path: Path):
    film = write_film(tmp_path / "a.mkv", [0.5], sound_after_s=1e8).read_bytes()
    with pytest.raises(SampleError) as caught:
        normalise(film, Target(encode=True), LIMITS)
    assert caught.value.reason == "too_long"


def test_a_film_that_begins_late_is_encoded_from_its_beginning_on(late: bytes):
    data, _ = normalise(late, Target(encode=True), LIMITS)
    with av.open(io.BytesIO(data)) as container:
        assert next(container.decode(video=0)).time == pytest.approx(0, abs=2 / FPS)
    assert len(colours(data)) == 6 * FPS


def test_a_piece_of_a_film_that_begins_late_is_copied_from_the_key_frame_before(late: bytes):
    data, info = normalise(late, Target(copy=True), LIMITS, (2.3, 3.9))
    # A key frame every half second.
    assert info.start_s == pytest.approx(2.0, abs=0.1)
    assert set(colours(data)) == {1}
    assert info.duration_s == pytest.approx(1.9, abs=0.15)
    assert tone_hz(data) == pytest.approx(600, rel=0.02)


@pytest.mark.parametrize(
    ("limits", "clip", "reason"),
    [
        (Limits(5, 5000, 1 << 20), None, "too_long"),
        (Limits(60, 100, 1 << 20), None, "too_many_frames"),
        (Limits(60, 5000, 1000), None, "too_many_pixels"),
        (LIMITS, (50.0, 60.0), "no_video"),
    ],
)
def test_limits(film: bytes, limits: Limits, clip: tuple[float, float] | None, reason: str):
    with pytest.raises(SampleError) as caught:
        normalise(film, Target(), limits, clip)
    assert caught.value.reason == reason


def test_a_piece_of_a_long_film_may_be_short_enough(film: bytes):
    assert normalise(film, Target(), Limits(2, 50, 1 << 20), (3.0, 4.0))[1].duration_s == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "data",
    [b"", b"no film", b"#EXTM3U\n#EXTINF:9,\nhttp://10.0.0.1/x.ts\n", b"ffconcat version 1.0\nfile /etc/passwd\n"],
)
def test_no_film(data: bytes):
    for target in (Target(), Target(encode=True)):
        with pytest.raises(SampleError):
            normalise(data, target, LIMITS)


def test_a_codec_that_nobody_knows_is_told(tmp_path: Path):
    data = write_film(tmp_path / "a.mkv", [1.0]).read_bytes()
    blind, deaf = data.replace(b"V_MPEG4/ISO/ASP", b"V_NOBODY/KNOWS/"), data.replace(b"A_AAC", b"A_XYZ")
    assert len({data, blind, deaf}) == 3
    for target in (Target(), Target(encode=True)):
        with pytest.raises(SampleError, match="its codec is none that FFmpeg knows"):
            normalise(blind, target, LIMITS)
    assert normalise(deaf, Target(), LIMITS)[1].duration_s == pytest.approx(1, abs=0.2)
    for encode in ("keep", "flac"):
        with pytest.raises(SampleError, match="its codec is none that FFmpeg knows"):
            audio_write.normalise(deaf, audio_write.Target(encode), 60)


@pytest.fixture(scope="module", params=["mkv", "avi", "ts", "mp4", "mov", "streamed mkv", "fragmented mp4"])
def container(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Four seconds."""
    kind = request.param.split()[-1]
    data = write_film(tmp_path_factory.mktemp("film") / f"a.{kind}", [2.0, 2.0]).read_bytes()
    options = {"streamed mkv": {"live": "1"}, "fragmented mp4": {"movflags": "frag_keyframe+empty_moov"}}
    return remuxed(data, kind, options[request.param]) if request.param in options else data


def remuxed(data: bytes, kind: str, options: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    names = {"mkv": "matroska"}
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", names.get(kind, kind), options) as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return buffer.getvalue()


def cut_off(data: bytes, share: float) -> bytes:
    """Within a packet of MPEG-TS, which is even: where one ends nothing tells of it."""
    return data[: int(len(data) * share) | 1]


@pytest.mark.parametrize("target", [Target(), Target(encode=True)], ids=["keep", "encode"])
def test_a_film_that_breaks_off_has_failed_as_sound_does(container: bytes, target: Target):
    assert normalise(container, target, LIMITS)[1].duration_s == pytest.approx(4, abs=0.2)
    for share in (0.3, 0.6, 0.97):
        with pytest.raises(SampleError, match=r"its .* ends at byte \d+, and the file at \d+") as caught:
            normalise(cut_off(container, share), target, LIMITS)
        assert caught.value.reason == "truncated"


@pytest.mark.parametrize("kind", ["mkv", "avi", "ts"])
def test_what_is_there_of_a_film_that_breaks_off_may_be_kept_and_cut(tmp_path: Path, kind: str):
    whole = write_film(tmp_path / f"a.{kind}", [2.0, 2.0]).read_bytes()
    half = cut_off(whole, 0.6)
    assert 1.5 < normalise(half, Target(whole=False), LIMITS)[1].duration_s < 3
    assert normalise(half, Target(), LIMITS, (0.5, 1.5))[1].duration_s == pytest.approx(1, abs=0.1)
    assert audio_write.normalise(half, audio_write.Target(), 60, (0.5, 1.5))[1].duration_s == pytest.approx(1, abs=0.1)
    # A piece whose words go on after the pictures is no pair.
    with pytest.raises(SampleError, match=r"\d\.\d\d s of a piece of 2\.50 s") as caught:
        normalise(half, Target(), LIMITS, (1.0, 3.5))
    assert caught.value.reason == "truncated"
    with pytest.raises(SampleError, match=r"\d\.\d\d s of a piece of 2\.50 s"):
        audio_write.normalise(half, audio_write.Target(), 60, (1.0, 3.5))
    # One that is longer than a film that is whole ends with it.
    assert normalise(whole, Target(), LIMITS, (3.0, 9.0))[1].duration_s == pytest.approx(1, abs=0.2)


def test_the_sound_of_a_film_that_breaks_off_has_failed_too(container: bytes):
    assert audio_write.normalise(container, audio_write.Target(), 60)[1].duration_s == pytest.approx(4, abs=0.2)
    with pytest.raises(SampleError) as caught:
        audio_write.normalise(cut_off(container, 0.97), audio_write.Target(), 60)
    assert caught.value.reason in {"truncated", "bad_audio", "not_audio"}


@pytest.mark.parametrize(
    ("clip", "start_s", "frames"),
    [((2.0, 4.0), 2.0, 40), ((2.3, 4.0), 2.0, 40), ((0.0, 1.0), 0.0, 20), ((4.7, 60.0), 4.5, 30)],
)
def test_a_piece_is_copied_from_a_key_frame_on(film: bytes, clip: tuple[float, float], start_s: float, frames: int):
    # A key frame every half second.
    data, info = normalise(film, Target(copy=True), LIMITS, clip)
    assert info.start_s == pytest.approx(start_s, abs=1e-3)
    assert info.has_sound
    with av.open(io.BytesIO(data)) as piece, av.open(io.BytesIO(film)) as whole:
        got = [frame.to_ndarray(format="rgb24") for frame in piece.decode(video=0)]
        first = round(start_s * FPS)
        expected = [frame.to_ndarray(format="rgb24") for frame in whole.decode(video=0)][first : first + frames]
    assert len(got) == frames
    assert all(np.array_equal(one, other) for one, other in zip(got, expected, strict=True))
    assert info.duration_s == pytest.approx(frames / FPS, abs=1e-3)
    assert normalise(film, Target(copy=True), LIMITS, clip)[0] == data


@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize(("begins_s", "key_s"), [(0.0, 0.0), (2.0, 2.0), (2.3, 2.0), (4.7, 4.0)])
def test_a_copied_piece_begins_at_the_key_frame_before_its_time_whatever_the_order(
    kind: str, begins_s: float, key_s: float
):
    # Matroska does not say when a picture is decoded, and FFmpeg not of the first ones: the key frame is one of them.
    film = rising_film(kind, 120)
    data, info = normalise(film, Target(copy=True), LIMITS, (begins_s, begins_s + 1))
    assert info.start_s == pytest.approx(key_s, abs=1e-6)
    with av.open(io.BytesIO(data)) as piece:
        light = [frame.to_ndarray(format="rgb24").mean() for frame in piece.decode(video=0)]
    assert light == sorted(light)
    (first,) = stills(io.BytesIO(film), [key_s + 0.5 / FPS], LIMITS)
    assert light[0] == pytest.approx(np.asarray(first).mean(), abs=0.5)


def test_the_sound_of_a_copied_piece_goes_with_its_pictures(film: bytes):
    data, _ = normalise(film, Target(copy=True), LIMITS, (2.0, 4.0))
    assert tone_hz(data) == pytest.approx(600, rel=0.02)
    assert not normalise(film, Target(copy=True, sound=False), LIMITS, (2.0, 4.0))[1].has_sound


def test_a_copied_piece_without_pictures_has_failed(film: bytes):
    with pytest.raises(SampleError) as caught:
        normalise(film, Target(copy=True), LIMITS, (-2.0, -1.0))
    assert caught.value.reason == "no_video"


def test_an_exact_piece_says_where_it_begins_too(film: bytes):
    assert normalise(film, Target(), LIMITS, (2.3, 3.0))[1].start_s == 2.3
    assert normalise(film, Target(), LIMITS)[1].start_s is None
