"""What is told of films by their frames: made of scenes that stand, move or are black, cut at known times."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from film import write_film

from mmdata.errors import SampleError
from mmdata.media.film import measure_film
from mmdata.media.video import Limits

LIMITS = Limits(60, 10_000, 1 << 20)
FPS = 20


def film(path: Path, scenes: list[tuple[str, float]]) -> bytes:
    """Scenes that are `black`, `still` or `move`, of such lengths, without sound."""
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=FPS, width=96, height=64, pix_fmt="yuv420p")
        stream.codec_context.bit_rate = 4_000_000
        for number, (kind, seconds) in enumerate(scenes):
            base = rng.integers(60, 250, (4, 6, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
            for frame in range(round(seconds * FPS)):
                moved = np.roll(base, 4 * frame, axis=1) if kind == "move" else base
                pixels = np.zeros_like(base) if kind == "black" else moved if number % 2 else 255 - moved
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        out.mux(stream.encode(None))
    return path.read_bytes()


def test_the_share_that_stands_still(tmp_path: Path) -> None:
    found = measure_film(film(tmp_path / "f.mp4", [("move", 2), ("still", 2)]), LIMITS, 27)
    assert found.static == pytest.approx(0.5, abs=0.1)
    assert found.black == 0
    assert found.fps == pytest.approx(FPS, abs=0.01)
    assert found.loudness_lufs is None


def test_a_little_grain_is_no_movement(tmp_path: Path) -> None:
    """One pixel of fifty a grey level brighter, each time others: less than -60 dB. One of two: more."""
    for share, static in ((0.02, 1.0), (0.5, 0.0)):
        rng = np.random.default_rng(2)
        with av.open(str(tmp_path / "f.mkv"), "w") as out:
            stream = out.add_stream("ffv1", rate=FPS, width=96, height=64, pix_fmt="yuv444p")
            for _ in range(FPS):
                grain = (rng.random((64, 96, 1)) < share).astype(np.uint8)
                pixels = np.full((64, 96, 3), 120, np.uint8) + grain
                out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            out.mux(stream.encode(None))
        found = measure_film((tmp_path / "f.mkv").read_bytes(), LIMITS, 27)
        # The first frame has none before it.
        assert found.static == pytest.approx(static, abs=1.01 / FPS)


def test_the_share_that_is_black(tmp_path: Path) -> None:
    found = measure_film(film(tmp_path / "f.mp4", [("move", 3), ("black", 1)]), LIMITS, 27)
    assert found.black == pytest.approx(0.25, abs=0.02)
    assert measure_film(film(tmp_path / "g.mp4", [("move", 1)]), LIMITS, 27).static < 0.1


def test_films_of_two_sizes_one_behind_the_other_are_one_film(tmp_path: Path) -> None:
    films = []
    for number, height in enumerate((64, 48)):
        with av.open(str(tmp_path / f"{number}.ts"), "w") as out:
            picture = out.add_stream("mpeg4", rate=25, width=64, height=height, pix_fmt="yuv420p")
            for _ in range(25):
                pixels = np.full((height, 64, 3), 200, np.uint8)
                out.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            out.mux(picture.encode(None))
        films.append((tmp_path / f"{number}.ts").read_bytes())
    found = measure_film(b"".join(films), LIMITS, 27)
    assert (found.black, found.static) == (0, pytest.approx(1, abs=0.1))


def test_cuts_of_a_minute_and_the_loudness_of_the_sound(tmp_path: Path) -> None:
    found = measure_film(write_film(tmp_path / "f.mp4", [1.0, 1.0, 1.0, 1.0]).read_bytes(), LIMITS, 27)
    assert found.cuts_per_minute == pytest.approx(3 / 4 * 60, rel=0.02)
    # A tone of 0.4 in one channel: -7.96 dBFS at its peak; 300 to 1,200 Hz weigh about 0 dB.
    assert found.loudness_lufs == pytest.approx(20 * np.log10(0.4) - 3.01, abs=1.0)
    uncut = measure_film(write_film(tmp_path / "g.mp4", [4.0]).read_bytes(), LIMITS, 27)
    assert uncut.cuts_per_minute == 0


def test_what_is_no_film_or_is_too_long_says_so(tmp_path: Path) -> None:
    data = write_film(tmp_path / "f.mp4", [1.0, 1.0]).read_bytes()
    for given, limits, reason in ((b"no film", LIMITS, "not_video"), (data, Limits(1, 10_000, 1 << 20), "too_long")):
        with pytest.raises(SampleError) as caught:
            measure_film(given, limits, 27)
        assert caught.value.reason == reason
