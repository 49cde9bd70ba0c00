from __future__ import annotations

import numpy as np

from mmdata.near.pairs import Pairs, bounded, classes, joined, nearest


def pairs(*rows: tuple[int, int, float]) -> Pairs:
    left, right, distance = zip(*rows, strict=True) if rows else ((), (), ())
    return Pairs(np.array(left, np.int64), np.array(right, np.int64), np.array(distance, float))


def listed(found: Pairs) -> list[tuple[int, int, float]]:
    return list(zip(found.left_P.tolist(), found.right_P.tolist(), found.distance_P.tolist(), strict=True))


def test_equal_rows_are_a_class_called_by_its_first() -> None:
    row_NB = np.array([[3, 1], [2, 2], [3, 1], [0, 9], [2, 2], [3, 1]], np.uint8)
    found = classes(row_NB)
    assert found.first_C.tolist() == [0, 1, 3]
    assert found.class_N.tolist() == [0, 1, 0, 2, 1, 0]
    assert listed(found.stars()) == [(0, 2, 0.0), (1, 4, 0.0), (0, 5, 0.0)]
    assert classes(np.zeros((0, 4), np.uint8)).first_C.tolist() == []


def test_pairs_are_joined_in_order_with_the_smallest_distance() -> None:
    blocks = [pairs((1, 2, 5.0), (0, 3, 1.0)), pairs((1, 2, 4.0)), pairs()]
    assert listed(joined(blocks)) == [(0, 3, 1.0), (1, 2, 4.0)]
    assert listed(joined([])) == []


def test_only_the_nearest_of_each_and_of_equals_the_first() -> None:
    blocks = [pairs((0, 7, 3.0), (0, 5, 2.0), (2, 9, 1.0)), pairs((0, 4, 2.0), (2, 1, 1.5)), pairs((0, 6, 2.0))]
    assert listed(nearest(blocks, 4)) == [(0, 4, 2.0), (2, 9, 1.0)]


def test_in_a_crowd_pairs_are_left_out_where_both_have_enough() -> None:
    crowd = [pairs((i, j, 1.0)) for i in range(10) for j in range(i + 1, 10)]
    assert sum(map(len, bounded(crowd, 11, free=45, most=2))) == 45
    kept = joined(bounded([*crowd, pairs((0, 10, 1.0))], 11, free=0, most=2))
    count = np.bincount(np.r_[kept.left_P, kept.right_P], minlength=11)
    assert len(kept) < 25
    assert count.min() >= 1
    assert (0, 10, 1.0) in listed(kept), "who has few keeps all"
