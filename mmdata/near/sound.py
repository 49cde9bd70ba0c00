"""A fingerprint of sound that survives encoding, gain and a shift, and how far two of them are apart.

Haitsma & Kalker, "A Highly Robust Audio Fingerprinting System", ISMIR 2002: a bit for each two neighbouring bands of
each frame, whether the difference of their energies grows or falls from one frame to a later one; 33 bands from 300 to
3000 Hz (theirs: 2000) give words of 32 bits. Of the same sound a small share of bits differs, of others half of them.
Frames that are silent (their bits are noise) have the word 0 and count nowhere.

Chromaprint compares 2.6 s at a time, and so has nothing to say of a word, which is what many captions' sounds are.

Dimensions: T samples, F frames, B bands, N sounds, D = 32 x segments, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mmdata.near.pairs import Pairs
from mmdata.near.vectors import search

Words: TypeAlias = npt.NDArray[np.uint32]
Floats: TypeAlias = npt.NDArray[np.float32]

RATE_HZ: Final = 8_000
HOP: Final = 192
"""24 ms: half of it is the most that frames of two recordings lie apart, against a window of 384 ms."""
_WINDOW: Final = 3_072
_BANDS, _LOWEST_HZ, _HIGHEST_HZ = 33, 300.0, 3_000.0
# Frames between two whose energies are compared: neighbours share nearly all of their samples, and their difference
# is noise sooner.
_STEP: Final = 8
# Below the loudest frame by so much a frame is silent.
_SILENCE_DB: Final = 35.0
# Of the loudest frame: noise of -72 dBFS, some of the lowest bits of sixteen, which another recording of it has not.
_SILENCE: Final = 0.1
LEAST_FRAMES: Final = 12
"""Compared words, 384 bits: of other sounds, whose bits are far from independent, hardly any agree in 70 % of them."""
_SEGMENTS: Final = 8
# Outlines of a sound and of it at the lowest rates of Opus: 3 in 100 pairs are below; of other sounds 1 in 1000 is not.
_LEAST_COSINE: Final = 0.35


def fingerprint(audio_T: npt.NDArray[np.float32]) -> Words:
    """[F] words of mono sound at RATE_HZ; the silence around it is left out. Empty where it is too short or silent."""
    padded_T = np.pad(audio_T, _WINDOW // 2)
    frames = (len(padded_T) - _WINDOW) // HOP + 1
    energy_FB = _energies(padded_T, frames)
    loud_F = energy_FB.sum(1)
    most = loud_F.max(initial=0.0)
    if frames <= _STEP or most < _SILENCE:
        return np.zeros(0, np.uint32)
    log_FB = np.log(energy_FB + most * 1e-9)
    change_FB = np.diff(log_FB, axis=1)
    bits_FB = change_FB[_STEP:] > change_FB[:-_STEP]
    word_F = np.packbits(bits_FB, axis=1).view(">u4").reshape(-1).astype(np.uint32)
    limit = most * 10 ** (-_SILENCE_DB / 10)
    heard_F = (loud_F[_STEP:] > limit) & (loud_F[:-_STEP] > limit)
    word_F[heard_F & (word_F == 0)] = 1
    word_F[~heard_F] = 0
    heard = np.flatnonzero(heard_F)
    return word_F[heard[0] : heard[-1] + 1] if len(heard) >= LEAST_FRAMES else np.zeros(0, np.uint32)


def _energies(padded_T: npt.NDArray[np.float32], frames: int) -> npt.NDArray[np.float64]:
    edges = np.geomspace(_LOWEST_HZ, _HIGHEST_HZ, _BANDS + 1) * _WINDOW / RATE_HZ
    bins = np.round(edges).astype(int)
    window_T = np.hanning(_WINDOW).astype(np.float32)
    view_FT = np.lib.stride_tricks.sliding_window_view(padded_T, _WINDOW)[::HOP][:frames]
    energy_FB = np.empty((frames, _BANDS))
    for start in range(0, frames, 256):
        power_FK = np.abs(np.fft.rfft(view_FT[start : start + 256] * window_T, axis=1)) ** 2
        sums_FK = np.add.reduceat(power_FK, bins, axis=1)
        energy_FB[start : start + 256] = sums_FK[:, :_BANDS]
    return energy_FB


def distance(left_F: Words, right_F: Words, most_shift: int) -> float:
    """Share of bits that differ where both sound, at the best shift of at most so many frames; 1 where too few do."""
    best = 1.0
    for shift in range(-most_shift, most_shift + 1):
        left, right = left_F[max(shift, 0) :], right_F[max(-shift, 0) :]
        length = min(len(left), len(right))
        both = (left[:length] != 0) & (right[:length] != 0)
        heard = int(both.sum())
        # A shift that leaves little to compare would agree by chance.
        if heard < max(LEAST_FRAMES, min(len(left_F), len(right_F)) // 2):
            continue
        differing = int(np.bitwise_count(left[:length][both] ^ right[:length][both]).sum())
        best = min(best, differing / (32 * heard))
    return best


def outline(word_F: Words) -> Floats:
    """[D] of length 1: the mean of each bit in each eighth of the sound. Of the same sound nearly the same."""
    sign_FB = np.unpackbits(word_F.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1).astype(np.float32) * 2 - 1
    sign_FB[word_F == 0] = 0
    edges = np.linspace(0, len(word_F), _SEGMENTS + 1).astype(int)
    mean_SB = np.stack([_mean(sign_FB[edges[s] : max(edges[s + 1], edges[s] + 1)]) for s in range(_SEGMENTS)])
    vector_D = mean_SB.reshape(-1)
    unit_D: Floats = (vector_D / max(float(np.linalg.norm(vector_D)), 1e-9)).astype(np.float32)
    return unit_D


def _mean(sign_FB: Any) -> Any:
    return sign_FB.mean(0)


@dataclass(frozen=True)
class Prints:
    """Fingerprints of N sounds.

    Attributes:
        words: of all of them, one after the other; may lie on disk.
        start_N: where each begins.
        length_N: its words.
        outline_ND: of each; may lie on disk.
    """

    words: Words
    start_N: npt.NDArray[np.int64]
    length_N: npt.NDArray[np.int64]
    outline_ND: npt.NDArray[np.float16]

    def __len__(self) -> int:
        """How many sounds."""
        return len(self.start_N)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Prints:
        """Some of them."""
        return Prints(self.words, self.start_N[rows], self.length_N[rows], self.outline_ND[rows])

    def word_F(self, row: int) -> Words:
        """The fingerprint of one."""
        return self.words[self.start_N[row] : self.start_N[row] + self.length_N[row]]


def pairs_within(prints: Prints, most_distance: float, most_shift: int, other: Prints | None = None) -> Iterator[Pairs]:
    """Pairs of sounds whose bits differ in at most a share of `most_distance`, found once or twice.

    Those are compared whose outlines are near: of each the nearest 64.

    Args:
        prints: the sounds.
        most_distance: see `distance`.
        most_shift: frames.
        other: sounds to compare them with; None: with each other, left row < right row.
    """
    others = prints if other is None else other
    near = search(prints.outline_ND, 1 - _LEAST_COSINE, None if other is None else other.outline_ND)
    for pairs in near:
        ends = zip(pairs.left_P.tolist(), pairs.right_P.tolist(), strict=True)
        apart = [distance(prints.word_F(left), others.word_F(right), most_shift) for left, right in ends]
        apart_P = np.round(np.array(apart, float), 4)
        yield Pairs(pairs.left_P, pairs.right_P, apart_P).where(apart_P <= most_distance)
