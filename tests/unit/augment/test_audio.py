"""Sounds: exact times, ratios and lengths; what speech allows; the table; seeds."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.augment import libraries
from mmdata.augment.audio import _table, audio_operator, audio_operators
from mmdata.augment.audio_own import resampled
from mmdata.augment.base import EFFECTS, Change, Sound, Text, VetoError, View, WordTime

RATE = 16_000
TONE = (0.3 * np.sin(2 * np.pi * 220 * np.arange(2 * RATE) / RATE)).astype(np.float32)[None]
WORDS = (WordTime("hello", 0.1, 0.4), WordTime("big", 0.6, 0.9), WordTime("world", 1.2, 1.6))
NEEDED: dict[str, dict[str, Any]] = {"ShiftAug": {"duration": 0.5}, "AdjustDuration": {"duration_seconds": 1.0}}


def view(audio_CT: np.ndarray = TONE, *, spoken: bool = False, words: tuple[WordTime, ...] | None = WORDS) -> View:
    return View(
        sounds={"speech": Sound(audio_CT, RATE)},
        texts={"caption": Text("Hello, big world!", "en")},
        words={} if words is None else {"speech": words},
        spoken={"speech": ("caption",) if spoken else ()},
    )


def done(name: str, params: dict[str, Any] | None = None, seed: int = 1, of: View | None = None) -> Change:
    return audio_operator(name, params or NEEDED.get(name, {}))(of or view(), np.random.default_rng(seed))


def audio(change: Change) -> np.ndarray:
    return change.view.sounds["speech"].audio_CT


@pytest.fixture
def recordings(tmp_path):
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, RATE), RATE)
    return str(tmp_path)


def test_every_transform_is_in_the_table_or_left_out_with_its_reason() -> None:
    data = libraries.table("audio_effects.yaml")
    waveform = libraries.without_torch("audiomentations.core.transforms_interface").BaseWaveformTransform
    library = libraries.without_torch("audiomentations")
    theirs = {n for n, cls in vars(library).items() if inspect.isclass(cls) and issubclass(cls, waveform)}
    assert theirs == set(data["audiomentations"]) | set(data["left_out"]) - {"Compose", "OneOf", "SomeOf"}
    nlpaug = libraries.without_torch("nlpaug.augmenter.audio")
    assert {n for n in vars(nlpaug) if n.endswith("Aug")} == set(data["nlpaug"])
    assert all(kind.effects <= EFFECTS for kind in _table().values())


@pytest.mark.parametrize("name", audio_operators())
@pytest.mark.parametrize("channels", [1, 2])
def test_each_gives_a_sound_and_the_same_one_for_the_same_seed(name: str, channels: int, recordings: str) -> None:
    kind = _table().get(name)
    params = {kind.folder: recordings} if kind and kind.folder else NEEDED.get(name, {})
    sample = view(TONE.repeat(channels, axis=0))
    try:
        first = done(name, params, of=sample)
    except VetoError as veto:
        # Some of audiomentations' know one channel only, and say so.
        assert (channels, veto.reason) == (2, "not_applicable")  # noqa: PT017
        return
    np.random.rand(5)
    again = done(name, params, of=sample)
    assert audio(first).dtype == np.float32
    assert audio(first).shape[0] == channels
    assert np.abs(audio(first)).max() <= 1.0
    assert np.array_equal(audio(first), audio(again))
    assert np.array_equal(sample.sounds["speech"].audio_CT, TONE.repeat(channels, axis=0))


@settings(max_examples=60)
@given(st.integers(500, 2000))
def test_speed_and_its_inverse_give_the_word_times_back(thousandths: int) -> None:
    factor = thousandths / 1000
    faster = done("speed", {"factor": [factor, factor]})
    assert faster.drawn == {"factor": factor}
    back = [WordTime(w.word, w.start_s * factor, w.end_s * factor) for w in faster.view.words["speech"]]
    for before, after in zip(WORDS, back, strict=True):
        assert after.start_s == pytest.approx(before.start_s, abs=1e-3)
        assert after.end_s == pytest.approx(before.end_s, abs=1e-3)
    assert audio(faster).shape[1] == pytest.approx(2 * RATE / factor, abs=1.5)


def test_speed_changes_the_pitch_as_it_changes_the_length() -> None:
    spectrum = np.abs(np.fft.rfft(resampled(TONE, 1.25)[0]))
    assert np.argmax(spectrum) * RATE / resampled(TONE, 1.25).shape[1] == pytest.approx(275, abs=1)


@pytest.mark.parametrize("colour", ["white", "pink"])
def test_noise_has_the_ratio_that_was_asked_for(colour: str) -> None:
    noisy = audio(done("add_noise", {"snr_db": [12, 12], "colour": colour}))
    noise = noisy - TONE
    ratio_db = 10 * np.log10(np.mean(TONE**2) / np.mean(noise**2))
    assert ratio_db == pytest.approx(12, abs=0.1)


def test_pink_noise_falls_by_three_decibels_an_octave() -> None:
    quiet = view(np.full((1, 8 * RATE), 0.01, np.float32), words=None)
    noise = audio(done("add_noise", {"snr_db": [0, 0], "colour": "pink"}, of=quiet))[0] - 0.01
    power = np.abs(np.fft.rfft(noise)) ** 2
    low, high = power[800:1600].mean(), power[6400:12800].mean()
    assert 10 * np.log10(low / high) == pytest.approx(9, abs=1.0)


def test_silence_takes_no_noise_in_proportion() -> None:
    with pytest.raises(VetoError) as caught:
        done("add_noise", {}, of=view(np.zeros((1, RATE), np.float32)))
    assert caught.value.reason == "silent"


def test_a_room_keeps_the_length_and_rings_after_the_sound() -> None:
    click = np.zeros((1, RATE), np.float32)
    click[0, 100] = 0.9
    rung = audio(done("reverb", {"rt60_s": [0.3, 0.3], "wet_db": [-6, -6]}, of=view(click, words=None)))
    assert rung.shape == click.shape
    assert np.abs(rung[0, :100]).max() < 1e-6
    early, late = (float(np.sum(rung[0, at : at + 800] ** 2)) for at in (200, 4000))
    assert early > 10 * late > 0


def test_stretching_moves_words_by_the_rate_that_was_drawn() -> None:
    change = done("TimeStretch")
    rate = change.drawn["rate"]
    assert [w.start_s for w in change.view.words["speech"]] == pytest.approx([w.start_s / rate for w in WORDS])
    assert audio(change).shape[1] == pytest.approx(2 * RATE / rate, rel=0.02)
    slow = {"min_rate": 0.8, "max_rate": 0.8, "leave_length_unchanged": True}
    assert [w.word for w in done("TimeStretch", slow).view.words["speech"]] == ["hello", "big", "world"]
    with pytest.raises(VetoError) as caught:
        done("TimeStretch", slow, of=view(spoken=True))
    assert caught.value.reason == "cut_speech"


@pytest.mark.parametrize("name", [name for name, kind in _table().items() if kind.times == "cut"])
def test_what_cuts_or_reverses_is_not_for_speech(name: str) -> None:
    with pytest.raises(VetoError) as caught:
        done(name, of=view(spoken=True))
    assert caught.value.reason == "cut_speech"
    assert done(name).view.words["speech"] == ()


def test_a_crop_in_time_is_cut_between_words() -> None:
    change = done("time_crop", {"min_s": 0.6, "max_s": 1.2}, of=view(spoken=True))
    start_s, end_s = change.drawn["speech"]
    inside = [w for w in WORDS if start_s <= w.start_s and w.end_s <= end_s]
    assert [(w.word, pytest.approx(w.start_s + start_s)) for w in change.view.words["speech"]] == [
        (w.word, w.start_s) for w in inside
    ]
    assert not any(w.start_s < edge < w.end_s for w in WORDS for edge in (start_s, end_s))
    assert audio(change).shape[1] == pytest.approx((end_s - start_s) * RATE, abs=2)
    assert len(change.view.texts["caption"].text.split()) == len(inside)


def test_too_short_is_a_veto() -> None:
    for name in ("speed", "Gain"):
        with pytest.raises(VetoError) as caught:
            done(name, of=view(TONE[:, :50]))
        assert caught.value.reason == "too_short"


def test_a_sound_of_which_nothing_is_left_is_a_veto() -> None:
    # Its default shifts by up to 3 s: all of a second goes out.
    with pytest.raises(VetoError, match="ShiftAug left nothing of 'speech'") as caught:
        done("ShiftAug", {"duration": 30.0, "direction": "left"}, of=view(TONE))
    assert caught.value.reason == "silent"


def test_what_is_too_loud_is_cut_and_said() -> None:
    change = done("Gain", {"min_gain_db": 20, "max_gain_db": 20})
    assert np.abs(audio(change)).max() == 1.0
    assert change.drawn["clipped_peak"] == pytest.approx(3.0, abs=0.01)
