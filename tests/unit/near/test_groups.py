from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmdata.near.groups import Close, choose, components
from mmdata.near.pairs import Pairs, joined


def pairs(*rows: tuple[int, int, float]) -> Pairs:
    left, right, distance = zip(*rows, strict=True) if rows else ((), (), ())
    return Pairs(np.array(left, np.int64), np.array(right, np.int64), np.array(distance, float))


def dropped(rows: int, *closes: Close, judged: int | None = None) -> dict[int, tuple[int, int, float]]:
    gone = choose(rows, rows if judged is None else judged, closes)
    columns = (gone.sample_P, gone.kept_P, gone.method_P, gone.distance_P)
    return {row[0]: row[1:] for row in zip(*(column.tolist() for column in columns), strict=True)}


def test_components_are_called_by_their_smallest_row() -> None:
    found = [pairs((4, 5, 1), (1, 2, 1)), pairs((2, 5, 1))]
    assert components(7, found).tolist() == [0, 1, 1, 3, 1, 1, 6]
    assert components(3, []).tolist() == [0, 1, 2]


def test_in_a_chain_nobody_goes_who_is_not_linked_to_one_that_stays() -> None:
    chain = Close(pairs((0, 1, 5), (1, 2, 5), (2, 3, 5), (3, 4, 5)), 10)
    assert dropped(5, chain) == {1: (0, 0, 5.0), 3: (2, 0, 5.0)}


def test_the_best_stays_and_others_go_for_the_best_that_stays() -> None:
    star = Close(pairs((0, 2, 9), (1, 2, 3), (0, 3, 1)), 10)
    assert dropped(4, star) == {2: (0, 0, 9.0), 3: (0, 0, 1.0)}, "0 and 1 stay; 2 goes for the better one"


def test_links_beyond_the_limit_drop_nobody() -> None:
    assert dropped(3, Close(pairs((0, 1, 5), (1, 2, 11)), 10)) == {1: (0, 0, 5.0)}


def test_equals_stand_for_each_other() -> None:
    """3 is a copy of 1, and only 1 was compared with 2: the link is 3's too."""
    found = Close(pairs((1, 3, 0), (1, 2, 4)), 10)
    assert dropped(4, found) == {2: (1, 0, 4.0), 3: (1, 0, 0.0)}
    first = Close(pairs((3, 0, 0), (3, 2, 4)), 10)
    assert dropped(4, first) == {2: (0, 0, 4.0), 3: (0, 0, 0.0)}


def test_who_is_not_judged_still_stands_for_its_equals() -> None:
    """4, dropped before, is the first of its equals 0 and 2, and the one that was compared with 1."""
    found = Close(pairs((4, 0, 0), (4, 2, 0), (4, 1, 7), (4, 3, 11)), 10)
    assert dropped(5, found, judged=4) == {1: (0, 0, 7.0), 2: (0, 0, 0.0)}


def test_of_two_methods_the_first_is_named_and_both_count() -> None:
    picture, text = Close(pairs((0, 1, 3), (2, 3, 0)), 31), Close(pairs((0, 1, 0.1), (0, 2, 0.2)), 0.3)
    assert dropped(4, picture, text) == {1: (0, 0, 3.0), 2: (0, 1, 0.2)}, "3 stays: its twin 2 has gone for another"


LINKS = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11), st.integers(0, 20)), max_size=30)


@given(LINKS)
def test_who_goes_is_linked_to_one_that_stays_and_who_stays_is_not(links: list[tuple[int, int, int]]) -> None:
    # Distance 0 joins; else the plain statement of the rule.
    own = [(min(a, b), max(a, b), float(d + 1)) for a, b, d in links if a != b]
    found = joined([pairs(*own)])
    near = {(a, b): d for a, b, d in zip(found.left_P, found.right_P, found.distance_P, strict=True) if d <= 10}
    gone = dropped(12, Close(found, 10))
    for row, (kept, _, distance) in gone.items():
        assert kept not in gone
        assert near[kept, row] == distance, "the one that stays is better"
    for a, b in near:
        assert a in gone or b in gone


def test_a_crowd_takes_no_more_memory_than_its_links() -> None:
    """As tuples in lists a link was 300 bytes, and ten million of them more than a small machine has."""
    rows, links = 3_000, 300_000
    rng = np.random.default_rng(0)
    left_P, right_P = rng.integers(0, rows, links), rng.integers(0, rows, links)
    crowd = Close(Pairs(left_P, right_P, rng.uniform(0.1, 0.3, links)), 0.3)
    tracemalloc.start()
    try:
        gone = choose(rows, rows, [crowd])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(gone.sample_P) > rows / 2
    assert most < 150 * links
