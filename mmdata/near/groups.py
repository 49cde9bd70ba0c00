"""Who stays of those that are close to each other, and who belongs together.

A group is a connected component: whoever is linked to a member is one. That is right for what must not be torn apart (a
split), and wrong for what is dropped: in a chain of small changes the ends have nothing in common. So nobody is dropped
but for a direct link to one who stays.

Dimensions: N samples, C classes, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmdata.near.pairs import Ints, Pairs

_NOBODY: Final = -1


@dataclass(frozen=True)
class Close:
    """What one method found.

    Attributes:
        links: pairs of samples; those of distance 0 are the same to this method, and stand for each other.
        limit: the largest distance at which one is dropped for the other.
    """

    links: Pairs
    limit: float


@dataclass(frozen=True)
class Dropped:
    """Samples that go, each for one that stays.

    Attributes:
        sample_P: the sample.
        kept_P: for whom.
        method_P: place of the method that links them.
        distance_P: by that method.
    """

    sample_P: Ints
    kept_P: Ints
    method_P: Ints
    distance_P: npt.NDArray[np.float64]


def components(rows: int, pairs: Sequence[Pairs]) -> Ints:
    """[N] the smallest row that each is connected with, by way of others if need be."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = (_ends(pairs, name) for name in ("left_P", "right_P"))
    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(rows, rows))
    count, label_N = connected_components(graph, directed=False)
    first_C = np.full(count, rows, np.int64)
    np.minimum.at(first_C, label_N, np.arange(rows))
    root_N: Ints = first_C[label_N]
    return root_N


def _ends(pairs: Sequence[Pairs], name: str) -> Ints:
    return np.concatenate([np.zeros(0, np.int64), *(getattr(found, name) for found in pairs)]).astype(np.int64)


def choose(rows: int, judged: int, methods: Sequence[Close]) -> Dropped:
    """Go through the samples from the best: who is linked to one that stays, by any method, goes; the others stay.

    Args:
        rows: how many samples; row 0 is the best.
        judged: the first so many are judged; the rest neither goes nor makes others go, but links may lead to it that
            stand for those of its equals.
        methods: what each method found, rows as above.

    Of several that stay a sample goes for the best; of several methods that link the two, for the first.
    """
    graphs = [_Graph(rows, close) for close in methods]
    kept, method, distance = [_NOBODY] * rows, [_NOBODY] * rows, [0.0] * rows
    linked = np.zeros(rows, bool)
    for graph in graphs:
        linked |= graph.linked_N
    for row in np.flatnonzero(linked[:judged]).tolist():
        for number, graph in enumerate(graphs):
            taker = graph.taker[graph.class_N[row]]
            if taker != _NOBODY and (kept[row] == _NOBODY or taker < kept[row]):
                kept[row], method[row] = taker, number
                distance[row] = graph.apart[graph.class_N[row]]
        if kept[row] == _NOBODY:
            for graph in graphs:
                graph.take(row)
    gone = np.array([row for row, taker in enumerate(kept) if taker != _NOBODY], np.int64)
    kept_N, method_N = np.array(kept, np.int64), np.array(method, np.int64)
    return Dropped(gone, kept_N[gone], method_N[gone], np.array(distance, float)[gone])


class _Graph:
    """The links of one method between classes of samples that are the same to it."""

    def __init__(self, rows: int, close: Close) -> None:
        near = close.links.where(close.links.distance_P <= close.limit)
        same_P = near.distance_P == 0
        self.class_N = components(rows, [near.where(same_P)]).tolist()
        self.linked_N = np.zeros(rows, bool)
        self.linked_N[near.left_P] = self.linked_N[near.right_P] = True
        self.taker, self.apart = [_NOBODY] * rows, [0.0] * rows
        class_N = np.array(self.class_N, np.int32)
        far = near.where(~same_P)
        self._neighbours = _Neighbours(rows, class_N[far.left_P], class_N[far.right_P], far.distance_P)

    def take(self, row: int) -> None:
        """`row` stays: its class, and those that are near, are taken."""
        own = self.class_N[row]
        if self.taker[own] == _NOBODY:
            self.taker[own] = row
        for other, distance in self._neighbours.of(own):
            if self.taker[other] == _NOBODY:
                self.taker[other], self.apart[other] = row, distance


class _Neighbours:
    """Of each row those it is linked with, in arrays: ten million links as tuples of Python are gigabytes."""

    def __init__(self, rows: int, left_P: Any, right_P: Any, distance_P: Any) -> None:
        from_P = np.concatenate([left_P, right_P])
        order_P = np.argsort(from_P, kind="stable")
        self._other_P = np.concatenate([right_P, left_P])[order_P]
        self._apart_P = np.concatenate([distance_P, distance_P])[order_P]
        self._first_N = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(from_P, minlength=rows))])

    def of(self, row: int) -> Iterator[tuple[int, float]]:
        """Each with its distance, in the order of the links."""
        span = slice(self._first_N[row], self._first_N[row + 1])
        return zip(self._other_P[span].tolist(), self._apart_P[span].tolist(), strict=True)
