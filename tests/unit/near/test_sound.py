from __future__ import annotations

import numpy as np
import pytest

from mmdata.near import sound
from mmdata.near.pairs import joined
from mmdata.near.sound import HOP, RATE_HZ, Prints, distance, fingerprint, outline, pairs_within


def tune(seed: int, seconds: float = 2.0) -> np.ndarray:
    """Notes of a fifth of a second, each of some partials."""
    rng = np.random.default_rng(seed)
    note = np.arange(int(0.2 * RATE_HZ)) / RATE_HZ
    notes = [
        sum(rng.random() * np.sin(2 * np.pi * hz * note) for hz in rng.uniform(300, 3000, 6))
        for _ in range(round(seconds / 0.2))
    ]
    return (np.concatenate(notes) * 0.1).astype(np.float32)


def test_gain_changes_nothing() -> None:
    assert fingerprint(tune(0)).tolist() == fingerprint(tune(0) * 0.1).tolist()


def test_a_fingerprint_has_a_word_for_each_hop_and_none_for_silence_around() -> None:
    audio_T = tune(0, 2.0)
    words = len(fingerprint(audio_T))
    assert words == pytest.approx(2.0 * RATE_HZ / HOP, abs=16)
    silent_T = np.zeros(RATE_HZ * 3, np.float32)
    assert len(fingerprint(np.concatenate([silent_T, audio_T, silent_T]))) == pytest.approx(words, abs=16)


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda a: a[400:], 0.1),
        (lambda a: np.concatenate([np.zeros(1500, np.float32), a]), 0.1),
        (lambda a: (a + np.random.default_rng(0).normal(0, 0.02 * a.std(), len(a))).astype(np.float32), 0.2),
        (lambda a: np.round(a * 100).astype(np.float32) / 100, 0.2),
    ],
    ids=["cut", "silence before", "noise", "seven bits"],
)
def test_the_same_sound_is_near(change, most: float) -> None:
    assert distance(fingerprint(tune(1)), fingerprint(change(tune(1))), 25) <= most


def test_other_sounds_are_far() -> None:
    prints = [fingerprint(tune(seed)) for seed in range(12)]
    apart = [distance(one, other, 25) for n, one in enumerate(prints) for other in prints[n + 1 :]]
    assert min(apart) > 0.3
    assert np.mean(apart) == pytest.approx(0.45, abs=0.06)


@pytest.mark.parametrize("audio_T", [np.zeros(0), np.zeros(RATE_HZ), tune(0, 0.2), np.full(RATE_HZ, 0.5)], ids=str)
def test_what_is_silent_or_too_short_has_none(audio_T: np.ndarray) -> None:
    assert len(fingerprint(audio_T.astype(np.float32))) == 0


def test_the_lowest_bits_are_silence_and_a_quiet_tune_is_not() -> None:
    noise_T = np.random.default_rng(0).integers(-2, 3, RATE_HZ * 3) / 2**15
    assert len(fingerprint(noise_T.astype(np.float32))) == 0
    quiet_T = tune(0) / np.abs(tune(0)).max() * 0.003  # -50 dBFS
    assert distance(fingerprint(tune(0)), fingerprint(quiet_T.astype(np.float32)), 25) < 0.05


def test_too_little_in_common_is_no_evidence() -> None:
    word_F = fingerprint(tune(0))
    assert distance(word_F, word_F[:8], 25) == 1.0
    assert distance(word_F, word_F, 0) == 0.0


def test_an_outline_has_length_1_and_is_near_for_the_same_sound() -> None:
    same, other = outline(fingerprint(tune(0)[300:])), outline(fingerprint(tune(5)))
    own = outline(fingerprint(tune(0)))
    assert np.linalg.norm(own) == pytest.approx(1)
    assert own @ same > 0.8
    assert own @ other < 0.4


def stored(seeds: list[int], start: int = 0) -> Prints:
    words = [fingerprint(tune(seed)[start:]) for seed in seeds]
    length_N = np.array([len(word_F) for word_F in words])
    outline_ND = np.stack([outline(word_F) for word_F in words]).astype(np.float16)
    return Prints(np.concatenate(words), np.cumsum(length_N) - length_N, length_N, outline_ND)


def test_pairs_of_near_sounds() -> None:
    prints = stored([0, 1, 2, 1, 3])
    found = joined(pairs_within(prints, 0.2, 20))
    assert list(zip(found.left_P, found.right_P, found.distance_P, strict=True)) == [(1, 3, 0.0)]
    across = joined(pairs_within(prints, 0.2, 20, stored([7, 3], start=500)))
    assert list(zip(across.left_P.tolist(), across.right_P.tolist(), strict=True)) == [(4, 1)]
    assert prints[np.array([4, 0])].word_F(0).tolist() == fingerprint(tune(3)).tolist()


def test_constants_are_those_that_the_text_says() -> None:
    assert 1000 * HOP / RATE_HZ == 24
    assert 1000 * sound._WINDOW / RATE_HZ == 384
