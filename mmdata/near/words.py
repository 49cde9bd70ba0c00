"""MinHash of texts: how much two texts share, from a few bytes of each, and the pairs that share much.

A text is the set of its shingles (runs of characters). The smallest of their hashes under a random function is equal in
two texts with the probability of their Jaccard similarity (Broder, SEQUENCES 1997). K functions are kept, eight bits of
each (b-bit minwise hashing: Li & König, WWW 2010). Texts are compared where a band of R of them is equal (locality
sensitive hashing: Indyk & Motwani, STOC 1998).

Dimensions: N texts, M others, K functions, S shingles, T code points, P pairs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mmdata.near.pairs import Ints, Pairs

Hashes: TypeAlias = npt.NDArray[np.uint64]
Signatures: TypeAlias = npt.NDArray[np.uint8]

FUNCTIONS: Final = 128
"""Standard error of the similarity: at most 0.044, and 0.035 at 0.8."""
# A pair as far apart as the limit is compared with this probability at least.
_RECALL: Final = 0.98
# Of texts with an equal band each is compared with so many at most.
_CROWD: Final = 1024
_BLOCK: Final = 1 << 16
_LETTERS: Final = re.compile(r"[\W_]+")
# Equal by chance: one in 2^8.
_CHANCE: Final = 1 / 256
_GENERATOR: Final = np.random.Generator(np.random.PCG64(0x6D6D))
# Multiply-shift (Dietzfelbinger et al., J. Algorithms 25, 1997): odd factors, the high bits.
_FACTOR_K: Final = _GENERATOR.integers(0, 1 << 63, FUNCTIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_ADDEND_K: Final = _GENERATOR.integers(0, 1 << 63, FUNCTIONS, dtype=np.uint64)
_SHINGLES_AT_ONCE: Final = 4096


def plain(text: str) -> str:
    """What counts of a text: letters and digits in compatibility form, case folded, single blanks between."""
    return " ".join(_LETTERS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split())


def shingles(text: str, chars: int) -> Hashes:
    """[S] hashes of all runs of so many characters of a text, each once, sorted; none where it has no letter.

    A blank stands before and after the text. Of scripts that write a word in one or two characters (Chinese, Japanese,
    Korean) runs are of two.
    """
    said = plain(text)
    if not said:
        return np.zeros(0, np.uint64)
    code_T = np.frombuffer(f" {said} ".encode("utf-32-le"), np.uint32).astype(np.uint64)
    length = min(2 if _is_wide(said) else chars, len(code_T))
    hash_S = np.zeros(len(code_T) - length + 1, np.uint64)
    for at in range(length):
        hash_S = _mixed(hash_S * np.uint64(0x9E3779B97F4A7C15) + code_T[at : at + len(hash_S)])
    return np.unique(hash_S)


def signature(hash_S: Hashes) -> Signatures:
    """[K] eight bits of the minimum of each function over the hashes of a text."""
    least_K = np.full(FUNCTIONS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(hash_S), _SHINGLES_AT_ONCE):
        part_S1 = hash_S[start : start + _SHINGLES_AT_ONCE, None]
        least_K = np.minimum(least_K, (part_S1 * _FACTOR_K + _ADDEND_K).min(0))
    # The smallest of many are small: mixed again, so that every bit of them is as good.
    return (_mixed(least_K) >> np.uint64(56)).astype(np.uint8)


def _mixed(hash_N: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    hash_N = (hash_N ^ (hash_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hash_N = (hash_N ^ (hash_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hash_N ^ (hash_N >> np.uint64(31))


def _is_wide(said: str) -> bool:
    wide = sum(unicodedata.east_asian_width(char) == "W" for char in said)
    return 2 * wide > len(said)


def similarity(equal_P: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Jaccard similarity, estimated from how many of the K are equal, less those equal by chance."""
    return np.clip((equal_P / FUNCTIONS - _CHANCE) / (1 - _CHANCE), 0.0, 1.0)


def band_rows(least_similarity: float) -> int:
    """Functions a band: the most with which a pair at the limit is still compared."""
    for rows in range(32, 1, -1):
        if 1 - (1 - least_similarity**rows) ** (FUNCTIONS // rows) >= _RECALL:
            return rows
    return 2


def pairs_within(signature_NK: Signatures, distance: float, other_MK: Signatures | None = None) -> Iterator[Pairs]:
    """Pairs of texts whose estimated similarity is at least 1 - `distance`, each found once or more, in no order.

    Args:
        signature_NK: of the texts; equal ones are best made one before (`pairs.classes`).
        distance: 1 - Jaccard similarity.
        other_MK: texts to compare them with; None: with each other, left row < right row.
    """
    if not len(signature_NK) or (other_MK is not None and not len(other_MK)):
        return
    rows = band_rows(1 - distance)
    for start in range(0, FUNCTIONS - rows + 1, rows):
        own = _Sorted(signature_NK, start, rows)
        other = own if other_MK is None else _Sorted(other_MK, start, rows)
        for left_P, right_P in _sharing(own, other):
            equal_P = (own.signature_NK[left_P] == other.signature_NK[right_P]).sum(1)
            # Six digits: what is beyond is noise, and reads badly.
            apart_P = np.round(1 - similarity(equal_P), 6)
            keep = np.flatnonzero(apart_P <= distance)
            if len(keep):
                ends = left_P[keep], right_P[keep]
                if own is other:
                    ends = np.minimum(*ends), np.maximum(*ends)
                yield Pairs(ends[0], ends[1], apart_P[keep])


class _Sorted:
    """Texts in the order of one band: `row_N` and its hash `key_N`."""

    def __init__(self, signature_NK: Signatures, start: int, rows: int) -> None:
        self.signature_NK = signature_NK
        key_N = np.zeros(len(signature_NK), np.uint64)
        for row in range(start, start + rows):
            key_N = _mixed(key_N * np.uint64(0x9E3779B97F4A7C15) + signature_NK[:, row])
        self.row_N: Ints = np.argsort(key_N, kind="stable").astype(np.int64)
        self.key_N: Hashes = key_N[self.row_N]


def _sharing(own: _Sorted, other: _Sorted) -> Iterator[tuple[Ints, Ints]]:
    """Rows with equal keys, a block at a time."""
    alone = own is other
    first_N = np.searchsorted(other.key_N, own.key_N, "left")
    size_N = np.searchsorted(other.key_N, own.key_N, "right") - first_N
    if alone:
        place_N = np.arange(len(first_N))
        size_N, first_N = size_N - (place_N - first_N) - 1, place_N + 1
    size_N = np.minimum(size_N, _CROWD)
    shared = np.flatnonzero(size_N)
    end_N = np.cumsum(size_N[shared])
    begin = 0
    while begin < len(shared):
        done = end_N[begin - 1] if begin else 0
        end = max(int(np.searchsorted(end_N, done + _BLOCK, "right")), begin + 1)
        rows = shared[begin:end]
        size = size_N[rows]
        at = np.repeat(first_N[rows] - (end_N[begin:end] - size - done), size) + np.arange(size.sum())
        yield np.repeat(own.row_N[rows], size), other.row_N[at]
        begin = end
