"""Pairs of bit strings within a Hamming distance, without comparing all: multi-index hashing.

A string is cut into bands. Two strings that differ in at most r bits differ in at most t_b bits of some band b, if the
t_b + 1 add up to r + 1 (Norouzi, Punjani & Fleet, CVPR 2012, have equal t_b; that they may differ, and be -1, is the
general pigeonhole principle of Qin et al., ICDE 2018). So each band is sorted, its values with up to t_b bits flipped
are looked up, and what shares a bucket is compared in full. Every pair within r is found, where no bucket is crowded.

Dimensions: N strings, M others, B bytes, W words of 64 bits, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mmdata.near.pairs import Pairs

Words: TypeAlias = npt.NDArray[np.uint64]
Keys: TypeAlias = npt.NDArray[np.uint16]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Flips: TypeAlias = npt.NDArray[np.int64]
Places: TypeAlias = npt.NDArray[np.int64]

BAND_BITS: Final = 16
# Beyond two bits a band has 697 values to look up, and comparing all pairs is as fast.
MOST_FLIPS: Final = 2
# A bucket is a crowd from so many strings on, and from so many times the mean. There a string is compared with some
# only, its neighbours when the bucket is sorted: so many of its own bucket, and of each that differs in a bit.
CROWD: Final = 1024
_CROWD_TIMES: Final = 16
_NEIGHBOURS, _NEIGHBOURS_BEYOND = 256, 16
# Pairs compared at a time: their words fit a core's cache.
_BLOCK: Final = 1 << 17


def max_distance(bits: int) -> int:
    """The largest distance that `pairs_within` takes for strings of so many bits."""
    return (MOST_FLIPS + 1) * (bits // BAND_BITS) - 1


def pairs_within(hash_NB: Bytes, distance: int, other_MB: Bytes | None = None) -> Iterator[Pairs]:
    """Pairs of rows that differ in at most `distance` bits, in no order; each once, where no bucket is crowded.

    Args:
        hash_NB: the strings; a multiple of 8 bytes each. Equal ones are best made one before (`pairs.classes`).
        distance: bits.
        other_MB: strings to compare them with; None: with each other, left row < right row.

    Raises ValueError where the distance is beyond `max_distance`.
    """
    if not 0 <= distance <= max_distance(8 * hash_NB.shape[1]):
        raise ValueError(f"distance {distance}: must be between 0 and {max_distance(8 * hash_NB.shape[1])}")
    if not len(hash_NB) or (other_MB is not None and not len(other_MB)):
        return
    own_NW = _mixed(hash_NB)
    other_MW = None if other_MB is None else _mixed(other_MB)
    bands = 8 * hash_NB.shape[1] // BAND_BITS
    # Hermite's identity: these, each and one, add up to distance + 1.
    flips = [(distance + 1 + band) // bands - 1 for band in range(bands)]
    complete = np.full(bands, -1)
    for band in range(bands):
        if flips[band] >= 0:
            left = _Band.of(own_NW, band)
            right = left if other_MW is None else _Band.of(other_MW, band)
            yield from _of_band(left, right, flips[band], complete[:band], distance)
            if not (left.crowded_K.any() or right.crowded_K.any()):
                complete[band] = flips[band]


def distances(left_PW: Words, right_PW: Words) -> npt.NDArray[np.int64]:
    """Bits in which rows differ."""
    counts: npt.NDArray[np.int64] = np.bitwise_count(left_PW ^ right_PW).sum(1, dtype=np.int64)
    return counts


def _mixed(hash_NB: Bytes) -> Words:
    """Words with their bits in an order that is always the same: neighbours (of a DCT, say) have much in common."""
    bits = 8 * hash_NB.shape[1]
    order = np.random.Generator(np.random.PCG64(0)).permutation(bits)
    mixed = [np.packbits(np.unpackbits(block, axis=1)[:, order], axis=1) for block in _blocks(hash_NB)]
    return np.ascontiguousarray(np.concatenate(mixed)).view(np.uint64)


def _blocks(hash_NB: Bytes) -> Iterator[Bytes]:
    for start in range(0, len(hash_NB), _BLOCK):
        yield hash_NB[start : start + _BLOCK]


@dataclass(frozen=True)
class _Band:
    """Strings sorted by one band.

    Attributes:
        number: of the band.
        row_N: the row of each.
        key_N: its band.
        word_WN: its words, each contiguous.
        start_K: where the bucket of each of 2^16 keys begins, and at last N.
        crowded_K: which of the 2^16 buckets are crowds.
    """

    number: int
    row_N: npt.NDArray[np.int64]
    key_N: Keys
    word_WN: Words
    start_K: npt.NDArray[np.int64]
    crowded_K: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, word_NW: Words, band: int) -> _Band:
        key_N = np.ascontiguousarray(word_NW.view(np.uint16)[:, band])
        row_N = np.argsort(key_N, kind="stable")
        size_K = np.bincount(key_N, minlength=1 << BAND_BITS)
        crowded_K = size_K > max(CROWD, _CROWD_TIMES * len(key_N) >> BAND_BITS)
        if crowded_K.any():
            by: list[npt.NDArray[Any]] = [*word_NW.T, key_N]
            row_N = np.lexsort(by)
        key_N = key_N[row_N]
        start_K = np.searchsorted(key_N, np.arange((1 << BAND_BITS) + 1)).astype(np.int64)
        return cls(band, row_N, key_N, np.ascontiguousarray(word_NW[row_N].T), start_K, crowded_K)


def _of_band(left: _Band, right: _Band, flips: int, complete: Flips, distance: int) -> Iterator[Pairs]:
    """Pairs whose bands differ in at most `flips` bits, less those that earlier, `complete` bands have found."""
    alone = left is right
    for flipped in range(flips + 1):
        for bits in combinations(range(BAND_BITS), flipped):
            mask = np.uint16(sum(1 << bit for bit in bits))
            partner_N = left.key_N ^ mask
            start_N, size_N = right.start_K[partner_N], np.diff(right.start_K)[partner_N]
            if alone and not flipped:
                place_N = np.arange(len(start_N))
                size_N, start_N = size_N - (place_N - start_N) - 1, place_N + 1
                size_N = np.where(right.crowded_K[partner_N], np.minimum(size_N, _NEIGHBOURS), size_N)
            else:
                size_N = np.where(partner_N > left.key_N, size_N, 0) if alone else size_N
                start_N, size_N = _windows(left, right, partner_N, start_N, size_N)
            yield from _compared(left, right, (start_N, size_N), complete, distance)


def _windows(left: _Band, right: _Band, partner_N: Keys, start_N: Places, size_N: Places) -> tuple[Places, Places]:
    """Of a crowd, or for each of a crowd, only a part: at about the place that the string has in its own bucket."""
    crowded_N = right.crowded_K[partner_N] | left.crowded_K[left.key_N]
    if not crowded_N.any():
        return start_N, size_N
    own_N = np.diff(left.start_K)[left.key_N]
    share_N = (np.arange(len(start_N)) - left.start_K[left.key_N]) / np.maximum(own_N, 1)
    most = _NEIGHBOURS if left is not right else _NEIGHBOURS_BEYOND
    shift_N = np.clip((share_N * size_N).astype(np.int64) - most // 2, 0, np.maximum(size_N - most, 0))
    return np.where(crowded_N, start_N + shift_N, start_N), np.where(crowded_N, np.minimum(size_N, most), size_N)


def _compared(left: _Band, right: _Band, windows: tuple[Any, Any], complete: Flips, distance: int) -> Iterator[Pairs]:
    """Compare each string with its window of the other side, block by block."""
    start_N, size_N = windows
    words = len(left.word_WN)
    # In the band's own word they hardly differ: two of the others rule out nearly all that are far apart.
    checks = sorted({(left.number * BAND_BITS // 64 + step) % words for step in (1, 2)})
    end_N = np.cumsum(size_N)
    begin = 0
    while begin < len(size_N):
        done = end_N[begin - 1] if begin else 0
        end = max(int(np.searchsorted(end_N, done + _BLOCK, "right")), begin + 1)
        size, before = size_N[begin:end], end_N[begin:end] - size_N[begin:end] - done
        at = np.repeat(start_N[begin:end] - before, size)
        at += np.arange(len(at))
        far = np.zeros(len(at), np.uint8)
        for word in checks:
            far += np.bitwise_count(np.repeat(left.word_WN[word, begin:end], size) ^ right.word_WN[word][at])
        near = np.flatnonzero(far <= distance)
        if len(near):
            places = np.repeat(np.arange(begin, end), size)[near]
            yield from _verified(left, right, (places, at[near]), complete, distance)
        begin = end


def _verified(left: _Band, right: _Band, places: tuple[Any, Any], complete: Flips, distance: int) -> Iterator[Pairs]:
    left_PW, right_PW = left.word_WN[:, places[0]].T, right.word_WN[:, places[1]].T
    differing_PW = np.ascontiguousarray(left_PW ^ right_PW)
    apart_P = np.bitwise_count(differing_PW).sum(1, dtype=np.int64)
    earlier_Pb = np.bitwise_count(differing_PW.view(np.uint16)[:, : left.number])
    keep = np.flatnonzero((apart_P <= distance) & ~(earlier_Pb <= complete).any(1))
    if len(keep):
        rows = left.row_N[places[0][keep]], right.row_N[places[1][keep]]
        if left is right:
            rows = np.minimum(*rows), np.maximum(*rows)
        yield Pairs(rows[0], rows[1], apart_P[keep].astype(float))
