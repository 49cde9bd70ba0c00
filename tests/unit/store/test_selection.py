"""How shards are cut: by split, by hash, within limits, the samples with most members first."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from candidates import Row, loaded

from mmdata.store.selection import _cut, _in_order, _leaders, decide_fates, write_decisions
from mmdata.store.tar import END_BYTES


@pytest.mark.parametrize(
    ("splits", "sizes", "samples", "room", "cuts"),
    [
        ([], [], 3, 100, []),
        ([0, 0, 0, 0, 0], [10] * 5, 2, 100, [(0, 2), (2, 4), (4, 5)]),
        ([0, 0, 0, 1, 1], [10] * 5, 9, 100, [(0, 3), (3, 5)]),
        ([0, 0, 0, 0], [40, 60, 1, 99], 9, 100, [(0, 2), (2, 4)]),
        ([0, 0, 0], [10, 500, 10], 9, 100, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_runs_are_of_one_split_and_within_both_limits(splits, sizes, samples, room, cuts):
    assert list(_cut(np.array(splits, np.int32), np.array(sizes, np.int64), samples, room)) == cuts


@pytest.mark.parametrize(("missing", "shards"), [(0, [3]), (1, [2, 1])])
def test_the_end_of_a_tar_counts_too(tmp_path, missing, shards):
    curation = loaded(tmp_path, [Row("a"), Row("b"), Row("c")])
    decide_fates(curation, 3)
    (tmp_path / "decided").mkdir()
    most = curation.one("SELECT sum(tar_bytes) FROM base") + END_BYTES - missing
    assert [plan.samples for plan in write_decisions(curation, tmp_path / "decided", 100, most)] == shards


def kept(split, shape, shuffled, offset):
    columns = {"split": split, "shape": shape, "offset": offset, "block": [0] * len(split)}
    table = {name: pa.array(values, pa.int32()) for name, values in columns.items()}
    return pa.table({**table, "shuffled": pa.array(shuffled, pa.uint64())})


def test_five_with_the_most_members_lead_each_split_and_the_rest_follow_by_hash():
    shapes = [1, 1, 0, 1, 1, 1, 0, 1]
    table = kept([0] * 8 + [1] * 2, [*shapes, 1, 0], [7, 6, 5, 4, 3, 2, 1, 0, 1, 2], range(10))
    # Two of shape 0 and the first three of shape 1, by hash; then who is left.
    assert _in_order(table).tolist() == [7, 6, 5, 4, 2, 3, 1, 0, 8, 9]
    assert _leaders(np.array([2, 2, 2, 2, 2, 2, 1], np.int32)) == [0, 1, 2, 3, 6]


def test_rows_come_in_any_order_and_equal_hashes_too():
    rng = np.random.default_rng(0)
    shuffled = rng.integers(0, 2**64, 500, dtype=np.uint64)
    shuffled[::7] = shuffled[0]
    rows = np.arange(500)
    first = kept(rows % 3, rows % 2, shuffled, rows)
    other = rng.permutation(500)
    again = first.take(pa.array(other))
    assert _in_order(first).tolist() == other[_in_order(again)].tolist()
