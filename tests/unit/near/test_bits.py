from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.near import bits
from mmdata.near.bits import max_distance, pairs_within
from mmdata.near.pairs import Pairs, joined


def flipped(row_B: np.ndarray, places: list[int]) -> np.ndarray:
    bits_b = np.unpackbits(row_B)
    bits_b[places] ^= 1
    return np.packbits(bits_b)


def brute(left_NB: np.ndarray, right_MB: np.ndarray, distance: int, *, alone: bool) -> set[tuple[int, int, int]]:
    apart_NM = np.bitwise_count(left_NB[:, None] ^ right_MB[None]).sum(2)
    near = zip(*np.nonzero(apart_NM <= distance), strict=True)
    return {(int(i), int(j), int(apart_NM[i, j])) for i, j in near if i < j or not alone}


def as_set(found: Pairs) -> set[tuple[int, int, int]]:
    return {(int(i), int(j), int(d)) for i, j, d in zip(found.left_P, found.right_P, found.distance_P, strict=True)}


def planted(seed: int, rows: int, bytes_each: int = 32) -> np.ndarray:
    """Random strings, half of them copies of the others with some bits flipped."""
    rng = np.random.default_rng(seed)
    hash_NB = rng.integers(0, 256, (rows, bytes_each), dtype=np.uint8)
    for row in range(rows // 2):
        count = int(rng.integers(0, 60))
        hash_NB[rows - 1 - row] = flipped(hash_NB[row], rng.choice(8 * bytes_each, count, replace=False).tolist())
    return hash_NB


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from([0, 1, 9, 15, 16, 31, 32, 47]))
def test_every_pair_within_the_distance_is_found_once_and_no_other(seed: int, distance: int) -> None:
    hash_NB = planted(seed, 60)
    found = list(pairs_within(hash_NB, distance))
    assert as_set(joined(found)) == brute(hash_NB, hash_NB, distance, alone=True)
    assert sum(map(len, found)) == len(joined(found))


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from([0, 9, 31]))
def test_of_two_sets_every_pair_across_is_found_once(seed: int, distance: int) -> None:
    hash_NB = planted(seed, 60)
    own_NB, other_MB = hash_NB[:37], hash_NB[20:]
    found = list(pairs_within(own_NB, distance, other_MB))
    assert as_set(joined(found)) == brute(own_NB, other_MB, distance, alone=False)
    assert sum(map(len, found)) == len(joined(found))


def test_strings_of_64_bits_too() -> None:
    hash_NB = planted(1, 200, 8)
    assert as_set(joined(pairs_within(hash_NB, 7))) == brute(hash_NB, hash_NB, 7, alone=True)


def test_of_none_there_are_none() -> None:
    nothing_NB = np.zeros((0, 32), np.uint8)
    assert list(pairs_within(nothing_NB, 31)) == []
    assert list(pairs_within(planted(0, 4), 31, nothing_NB)) == []


def test_a_distance_beyond_what_bands_can_promise_is_refused() -> None:
    assert max_distance(256) == 47
    with pytest.raises(ValueError, match="must be between 0 and 47"):
        list(pairs_within(planted(0, 4), 48))


def test_a_crowd_is_compared_with_its_neighbours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three thousand almost equal strings: each is compared with some, and all hang together."""
    monkeypatch.setattr(bits, "CROWD", 64)
    monkeypatch.setattr(bits, "_NEIGHBOURS", 8)
    monkeypatch.setattr(bits, "_NEIGHBOURS_BEYOND", 1)
    rng = np.random.default_rng(0)
    one_B = rng.integers(0, 256, 32, dtype=np.uint8)
    crowd_NB = np.stack([flipped(one_B, rng.choice(256, 3, replace=False).tolist()) for _ in range(3000)])
    found = joined(pairs_within(crowd_NB, 31))
    assert len(found) < 3000 * (8 + 16) * 16
    from mmdata.near.groups import components

    assert set(components(3000, [found]).tolist()) == {0}


def test_pairs_outside_of_a_crowd_are_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "CROWD", 8)
    rng = np.random.default_rng(0)
    crowd_NB = np.repeat(rng.integers(0, 256, (1, 32), dtype=np.uint8), 100, 0)
    crowd_NB[:, 16:] = rng.integers(0, 256, (100, 16), dtype=np.uint8)  # far apart, but equal in half of the bands
    near_B = flipped(crowd_NB[50], [200, 201])
    found = as_set(joined(pairs_within(np.vstack([crowd_NB, near_B]), 31)))
    assert (50, 100, 2) in found
