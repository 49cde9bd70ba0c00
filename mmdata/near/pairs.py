"""What a search for close fingerprints gives, and what keeps it linear.

Dimensions: N fingerprints of the corpus, C classes of equal ones, M others (a reference set), P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

# Pairs that are kept whatever they are; and, beyond them, of each row: of ten thousand almost equal pictures all fifty
# million pairs say no more than these.
_FREE: Final = 10_000_000
_MOST: Final = 64


@dataclass(frozen=True)
class Pairs:
    """Pairs that are close.

    Attributes:
        left_P: row of one.
        right_P: row of the other; of the other set, where two sets were compared.
        distance_P: how far apart.
    """

    left_P: Ints
    right_P: Ints
    distance_P: Floats

    def __len__(self) -> int:
        """How many."""
        return len(self.left_P)

    def where(self, keep_P: npt.NDArray[Any]) -> Pairs:
        """Those of a mask or an index."""
        return Pairs(self.left_P[keep_P], self.right_P[keep_P], self.distance_P[keep_P])


NO_PAIRS: Final = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True)
class Classes:
    """Rows that are equal, as one.

    Attributes:
        first_C: the first row of each class, ascending.
        class_N: which class a row is of.
    """

    first_C: Ints
    class_N: Ints

    def stars(self) -> Pairs:
        """Each row of a class but the first, paired with the first: distance 0."""
        first_N = self.first_C[self.class_N]
        rest = np.flatnonzero(first_N != np.arange(len(first_N)))
        return Pairs(first_N[rest], rest, np.zeros(len(rest)))


def classes(row_NB: npt.NDArray[Any]) -> Classes:
    """Put equal rows of a contiguous [N, B] array together."""
    if not len(row_NB):
        return Classes(np.zeros(0, np.int64), np.zeros(0, np.int64))
    whole_N = np.ascontiguousarray(row_NB).view(np.dtype((np.void, row_NB[0].nbytes))).reshape(-1)
    _, first_C, class_N = np.unique(whole_N, return_index=True, return_inverse=True)
    order_C = np.argsort(first_C, kind="stable")
    place_C = np.empty_like(order_C)
    place_C[order_C] = np.arange(len(order_C))
    return Classes(first_C[order_C].astype(np.int64), place_C[class_N.reshape(-1)].astype(np.int64))


def bounded(found: Iterable[Pairs], rows: int, free: int = _FREE, most: int = _MOST) -> Iterator[Pairs]:
    """After `free` pairs leave out those both of whose rows have `most` already: there are at most free + rows x most.

    Whoever has fewer keeps all: only within a crowd of mutually close ones are pairs left out.
    """
    count_N = np.zeros(rows, np.int64)
    total = 0
    for pairs in found:
        few_P = (count_N[pairs.left_P] < most) | (count_N[pairs.right_P] < most)
        kept = pairs.where(few_P) if total > free else pairs
        count_N += np.bincount(kept.left_P, minlength=rows) + np.bincount(kept.right_P, minlength=rows)
        total += len(kept)
        yield kept


def joined(found: Iterable[Pairs]) -> Pairs:
    """All of them in one; a pair that was found several times has its smallest distance."""
    blocks = list(found)
    if not blocks:
        return NO_PAIRS
    left_P, right_P = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("left_P", "right_P"))
    distance_P = np.concatenate([block.distance_P for block in blocks])
    order_P = np.lexsort((distance_P, right_P, left_P))
    left_P, right_P, distance_P = left_P[order_P], right_P[order_P], distance_P[order_P]
    new_P = np.ones(len(left_P), bool)
    new_P[1:] = (left_P[1:] != left_P[:-1]) | (right_P[1:] != right_P[:-1])
    return Pairs(left_P[new_P], right_P[new_P], distance_P[new_P])


def nearest(found: Iterable[Pairs], rows: int) -> Pairs:
    """Of each left row only its nearest partner; of several the first."""
    best_N, of_N = np.full(rows, np.inf), np.full(rows, -1, np.int64)
    for pairs in found:
        order_P = np.lexsort((pairs.right_P, pairs.distance_P))[::-1]
        left_P, right_P, distance_P = (part[order_P] for part in (pairs.left_P, pairs.right_P, pairs.distance_P))
        # Assigned in order: the last of a row, its nearest, stays.
        new_N, with_N = np.full(rows, np.inf), np.full(rows, -1, np.int64)
        new_N[left_P], with_N[left_P] = distance_P, right_P
        better_N = (new_N < best_N) | ((new_N == best_N) & (with_N >= 0) & (with_N < of_N))
        best_N[better_N], of_N[better_N] = new_N[better_N], with_N[better_N]
    there = np.flatnonzero(of_N >= 0)
    return Pairs(there, of_N[there], best_N[there])
