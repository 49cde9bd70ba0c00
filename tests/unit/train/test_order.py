from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.train.order import Endless, Mix, StepSampler, systematic


def one(samples: int, batch: int, seed: int = 0) -> Mix:
    return Mix([Endless(samples, batch, seed)], [1.0], seed)


def batches(samples: int, batch: int, start: int, stop: int, seed: int = 0) -> list[list[tuple[int | None, int]]]:
    sampler = StepSampler(one(samples, batch, seed), min(batch, samples), range(start, stop))
    return [[(pick.epoch, pick.row) for pick in picks] for picks in sampler]


def test_every_epoch_has_each_sample_once_in_a_new_order():
    first, second = (
        [row for batch in half for _, row in batch] for half in np.split(np.array(batches(12, 4, 0, 6)), 2)
    )
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert [batch[0][0] for batch in batches(12, 4, 0, 6)] == [0, 0, 0, 1, 1, 1]


def test_the_order_is_a_function_of_seed_and_step():
    assert batches(13, 4, 4, 9) == batches(13, 4, 0, 9)[4:]
    assert batches(13, 4, 0, 9) != batches(13, 4, 0, 9, seed=1)
    assert [len(batch) for batch in batches(3, 8, 0, 2)] == [3, 3]


def test_an_epoch_s_remainder_is_left_out_so_no_batch_sees_a_sample_twice():
    assert all(len({row for _, row in batch}) == 4 for batch in batches(13, 4, 0, 40))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_same_batches(ranks: int):
    whole = list(StepSampler(one(50, 6), 6, range(3, 9)))
    parts = [list(StepSampler(one(50, 6), 6, range(3, 9), rank, ranks)) for rank in range(ranks)]
    for number, batch in enumerate(whole):
        assert sorted(batch) == sorted(pick for part in parts for pick in part[number])
        assert [batch[0]] == parts[0][number][:1]


def mixed(shares: list[float], seed: int = 0) -> Mix:
    return Mix([Endless(rows, 1, seed + rows) for rows in (40, 700, 9)], shares, seed)


def test_a_mix_keeps_its_shares_and_goes_through_every_set_in_epochs():
    picks = mixed([0.5, 0.3, 0.2]).picks(0, 4096)
    counts = Counter(pick.source for pick in picks)
    assert [round(counts[source] / 4096, 3) for source in range(3)] == [0.5, 0.3, 0.2]
    for source, rows in enumerate((40, 700, 9)):
        seen = Counter((pick.epoch, pick.row) for pick in picks if pick.source == source)
        assert set(seen.values()) == {1}
        assert {row for epoch, row in seen if epoch == 0} == set(range(rows))
    assert len({tuple(pick.source for pick in picks[at : at + 64]) for at in (0, 1024, 2048)}) == 3


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(any), st.integers(0, 5000), st.integers(1, 1500))
def test_any_stretch_of_a_mix_is_that_of_the_whole(shares: list[float], first: int, count: int):
    assert mixed(shares).picks(first, first + count) == mixed(shares).picks(0, first + count)[first:]
    assert all(shares[pick.source] > 0 for pick in mixed(shares).picks(first, first + count))


def test_weights_say_how_often_a_sample_is_seen():
    weight_N = np.array([0.0, 1.0, 2.5, 0.5] * 25)
    for start in (0.0, 0.37, 0.999):
        counts = np.bincount(systematic(weight_N, start), minlength=100)
        assert counts.sum() == 100
        assert (np.abs(counts - weight_N) < 1).all()
    mix = Mix([Endless(100, 10, 0, weight_N)], [1.0], 0)
    seen = Counter(pick.row % 4 for pick in mix.picks(0, 2000))
    assert [seen[kind] for kind in range(4)] == pytest.approx([0, 500, 1250, 250], abs=20)
    assert mix.picks(500, 600) == Mix([Endless(100, 10, 0, weight_N)], [1.0], 0).picks(0, 600)[500:]
