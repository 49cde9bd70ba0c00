"""What is told of sounds by their samples: tones, noise and silence whose values are known, and prompts with noise."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmdata.errors import SampleError
from mmdata.media.audio import decode_mono
from mmdata.media.sound import Sound, measure_sound

RATE = 48_000


def wav(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def tone(dbfs: float, seconds: float = 3, hertz: float = 997, rate: int = RATE) -> np.ndarray:
    return 10 ** (dbfs / 20) * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def measured(data: bytes, max_duration_s: float = 600) -> Sound:
    return measure_sound(data, max_duration_s, -60)


@pytest.mark.parametrize("dbfs", [-10, -23, -40])
def test_loudness_is_that_of_the_recommendation(dbfs: float) -> None:
    """ITU-R BS.1770-4: a tone of 997 Hz in one channel at 0 dBFS is -3.01 LKFS; in both of stereo 3 dB more."""
    assert measured(wav(tone(dbfs))).loudness_lufs == pytest.approx(dbfs - 3.01, abs=0.05)
    stereo = np.stack([tone(dbfs)] * 2, axis=1)
    assert measured(wav(stereo)).loudness_lufs == pytest.approx(dbfs, abs=0.05)
    assert measured(wav(tone(dbfs, rate=8000), 8000)).loudness_lufs == pytest.approx(dbfs - 3.01, abs=0.1)


def test_loudness_of_silence_and_of_a_moment_is_unknown() -> None:
    assert measured(wav(np.zeros(RATE))).loudness_lufs is None
    assert measured(wav(tone(-10, 0.3))).loudness_lufs is None


def test_loudness_leaves_out_the_pauses() -> None:
    talk = np.concatenate([tone(-20), np.zeros(3 * RATE), tone(-20)])
    assert measured(wav(talk)).loudness_lufs == pytest.approx(-23.01, abs=0.3)


@pytest.mark.parametrize(
    ("samples", "column", "value", "within"),
    [
        (tone(-6), "peak_dbfs", -6.0, 0.01),
        (np.zeros(RATE), "peak_dbfs", None, 0),
        (np.zeros(RATE), "silence", 1.0, 0),
        (np.zeros(RATE), "snr_db", None, 0),
        (np.zeros(RATE), "bandwidth_hz", None, 0),
        (np.concatenate([tone(-20, 1), tone(-70, 3)]), "silence", 0.75, 0.01),
        (tone(-20), "clipping", 0.0, 0),
        # |2 sin| is over full scale but for asin(1/2) at either side of zero: two thirds of the time.
        (np.clip(2 * tone(0), -1, 1), "clipping", 1 - 2 / math.pi * math.asin(0.999 / 2), 0.002),
        (tone(-20) + 0.05, "dc_offset", 0.05, 1e-4),
        (tone(-20), "bandwidth_hz", 997, 150),
        (tone(-20) + tone(-60, hertz=15_000), "bandwidth_hz", 15_000, 150),
        # What is 80 dB below is what a resampler leaves.
        (tone(-10) + tone(-95, hertz=15_000), "bandwidth_hz", 997, 150),
    ],
)
def test_a_measure_of_a_made_sound(samples: np.ndarray, column: str, value: float | None, within: float) -> None:
    assert getattr(measured(wav(samples)), column) == (None if value is None else pytest.approx(value, abs=within))


def test_one_clipped_channel_of_two_is_half() -> None:
    stereo = np.stack([np.clip(2 * tone(0), -1, 1), tone(-20)], axis=1)
    assert measured(wav(stereo)).clipping == pytest.approx(1 / 3, abs=0.002)


def test_a_dc_offset_that_cancels_out_is_still_one() -> None:
    stereo = np.stack([tone(-20) - 0.1, tone(-20) + 0.02], axis=1)
    assert measured(wav(stereo)).dc_offset == pytest.approx(-0.1, abs=1e-4)


def test_only_the_beginning_is_measured() -> None:
    assert measured(wav(np.concatenate([tone(-20, 2), np.zeros(8 * RATE)])), 2).silence < 0.03


def test_formats_agree() -> None:
    found = [measured(wav(tone(-20), kind=k, subtype=s)) for k, s in (("FLAC", "PCM_16"), ("OGG", "VORBIS"))]
    assert all(one.loudness_lufs == pytest.approx(-23.01, abs=0.1) for one in found)


def test_what_is_no_sound_says_so() -> None:
    for data, reason in ((b"no sound", "not_audio"), (wav(np.zeros(0)), "no_audio")):
        with pytest.raises(SampleError) as caught:
            measured(data)
        assert caught.value.reason == reason


@pytest.mark.slow
@pytest.mark.parametrize("decibels", [0, 10, 20])
def test_noise_put_into_speech_is_estimated(prompts_dir: Path, decibels: int) -> None:
    """White noise in 30 studio prompts: the median is off by less than 3 dB."""
    with (prompts_dir / "prompts.csv").open(encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file)][:150:5]
    rng = np.random.default_rng(decibels)
    found = []
    for path in paths:
        speech = decode_mono((prompts_dir / path).read_bytes(), 60, 8000).astype(np.float64)
        noise = rng.normal(size=len(speech)) * math.sqrt(float(np.square(speech).mean()) / 10 ** (decibels / 10))
        found.append(measured(wav((speech + noise) / 8, 8000)).snr_db)
    assert np.median(np.array(found, dtype=float)) == pytest.approx(decibels, abs=3)
