"""Which sample stands at which place of the training: a function of the seed, the stage and the place alone.

So it does not matter how many ranks or workers share the places, and a training goes on anywhere without reading what
came before. Each data set is an endless sequence of epochs; a mix says for every place which of them is asked next.

Shapes: N samples of a data set, P places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

# A mix keeps its shares within every so many places.
_BLOCK = 1024


class Pick(NamedTuple):
    """A sample that is asked for: of which data set, in which of its epochs (None: no random choice), which row."""

    source: int
    epoch: int | None
    row: int


@dataclass(frozen=True)
class Endless:
    """A data set, epoch after epoch, each in an order of its own.

    Attributes:
        rows: its samples.
        batch: samples a step; where it fits, an epoch's remainder is left out, so that no batch sees a sample twice.
        seed: of the order.
        weight_N: how often a sample is seen beside others; None: all once an epoch.
        first_epoch: number of the first.
    """

    rows: int
    batch: int
    seed: int
    weight_N: npt.NDArray[np.float64] | None = None
    first_epoch: int = 0
    _orders: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def epoch_rows(self) -> int:
        """Places of an epoch."""
        return max(1, self.rows // self.batch) * min(self.batch, self.rows)

    def epochs(self, draws: int) -> int:
        """Epochs that so many places begin."""
        return -(-draws // self.epoch_rows)

    def picks(self, source: int, draw_P: npt.NDArray[np.int64]) -> Iterator[Pick]:
        """The samples at these places of the sequence, which rise."""
        for draw in draw_P.tolist():
            epoch, at = divmod(draw, self.epoch_rows)
            yield Pick(source, self.first_epoch + epoch, int(self._order(self.first_epoch + epoch)[at]))

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            # Only the newest is kept: it takes eight bytes a sample.
            self._orders.clear()
            self._orders[epoch] = self._new_order(epoch)
        return self._orders[epoch]

    def _new_order(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, epoch])
        if self.weight_N is None:
            return np.asarray(rng.permutation(self.rows), dtype=np.int64)
        # A new neighbourhood each time: what is rounded up must not follow from where a sample stands.
        shuffled_N = rng.permutation(self.rows)
        chosen_N = systematic(self.weight_N[shuffled_N], float(rng.random()))
        return np.asarray(rng.permutation(shuffled_N[chosen_N]), dtype=np.int64)


def systematic(weight_N: npt.NDArray[np.float64], start: float) -> npt.NDArray[np.int64]:
    """N rows, each as often as its weight says, rounded up or down (systematic sampling, Madow and Madow 1944).

    Args:
        weight_N: not negative, one at least positive.
        start: in [0, 1), where the comb of N teeth begins.
    """
    rows = len(weight_N)
    edge_N = np.cumsum(weight_N)
    tooth_N = (np.arange(rows) + start) * (edge_N[-1] / rows)
    # Rounding may push the last tooth onto the last edge; a row without weight is never met there.
    last = int(np.flatnonzero(weight_N)[-1])
    return np.asarray(np.minimum(np.searchsorted(edge_N, tooth_N, side="right"), last), dtype=np.int64)


@dataclass(frozen=True)
class Mix:
    """Several sequences, of each a share of the places.

    Attributes:
        sequences: at most 32.
        shares: not negative, their sum positive.
        seed: of the order in which they take turns.
    """

    sequences: Sequence[Endless]
    shares: Sequence[float]
    seed: int

    def picks(self, first: int, last: int) -> list[Pick]:
        """The samples at the places from `first` up to `last`."""
        picks: list[Pick] = []
        for block in range(first // _BLOCK, self.blocks(last)):
            source_P = self._turns(block)
            start, stop = max(first - block * _BLOCK, 0), min(last - block * _BLOCK, _BLOCK)
            before = self.drawn(block)
            picks += self._block_picks(source_P, before, start, stop)
        return picks

    @staticmethod
    def blocks(places: int) -> int:
        """Blocks that so many places begin."""
        return -(-places // _BLOCK)

    def drawn(self, blocks: int) -> list[int]:
        """Places that each sequence has had in the first so many blocks."""
        total = sum(self.shares)
        drawn = [int(share / total * _BLOCK * blocks) for share in self.shares]
        # What rounding leaves goes to the largest, which is always large enough to give it up again.
        largest = max(range(len(self.shares)), key=lambda source: self.shares[source])
        drawn[largest] += _BLOCK * blocks - sum(drawn)
        return drawn

    def _turns(self, block: int) -> npt.NDArray[np.int64]:
        counts = np.subtract(self.drawn(block + 1), self.drawn(block))
        source_P = np.repeat(np.arange(len(self.sequences)), counts)
        return source_P if len(counts) == 1 else np.random.default_rng([self.seed, 1, block]).permutation(source_P)

    def _block_picks(self, source_P: npt.NDArray[np.int64], before: list[int], start: int, stop: int) -> list[Pick]:
        found: dict[int, Iterator[Pick]] = {}
        for source, sequence in enumerate(self.sequences):
            skipped = before[source] + int((source_P[:start] == source).sum())
            wanted = int((source_P[start:stop] == source).sum())
            found[source] = sequence.picks(source, np.arange(skipped, skipped + wanted))
        return [next(found[int(source)]) for source in source_P[start:stop]]


class StepSampler(Sampler[list[Pick]]):
    """The picks of one rank for the steps from `start` up to `stop`: every so manieth place of each batch."""

    def __init__(self, mix: Mix, batch: int, steps: range, rank: int = 0, ranks: int = 1) -> None:
        """`batch` counts the samples of all ranks."""
        self._mix, self._batch, self._steps, self._rank, self._ranks = mix, batch, steps, rank, ranks

    def __len__(self) -> int:
        """Steps."""
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Pick]]:
        """Batches."""
        for step in self._steps:
            yield self._mix.picks(step * self._batch, (step + 1) * self._batch)[self._rank :: self._ranks]
