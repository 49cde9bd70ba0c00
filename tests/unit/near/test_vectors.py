from __future__ import annotations

import numpy as np
import pytest

from mmdata.near import vectors
from mmdata.near.pairs import joined
from mmdata.near.vectors import search


def units(rows: int, length: int = 32, seed: int = 0) -> np.ndarray:
    vector_ND = np.random.default_rng(seed).normal(size=(rows, length)).astype(np.float32)
    return vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)


def with_copies(rows: int, copies: int) -> np.ndarray:
    """The last ones are near copies of the first."""
    vector_ND = units(rows)
    vector_ND[rows - copies :] = vector_ND[:copies] + 0.02 * units(copies, seed=1)
    return vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)


def test_near_ones_are_paired_once_with_their_distance() -> None:
    vector_ND = with_copies(300, 20).astype(np.float16)
    found = joined(search(vector_ND, 0.01))
    assert list(zip(found.left_P.tolist(), found.right_P.tolist(), strict=True)) == [(n, 280 + n) for n in range(20)]
    true = 1 - (vector_ND[:20].astype(float) * vector_ND[280:].astype(float)).sum(1)
    assert found.distance_P == pytest.approx(true, abs=2e-5)


def test_of_two_sets_pairs_go_across() -> None:
    vector_ND = with_copies(300, 20)
    found = joined(search(vector_ND[:30], 0.01, vector_ND[290:]))
    assert list(zip(found.left_P.tolist(), found.right_P.tolist(), strict=True)) == [(10 + n, n) for n in range(10)]


def test_of_none_there_are_none() -> None:
    assert list(search(units(0), 0.1)) == []
    assert list(search(units(3), 0.1, units(0))) == []


def test_beyond_some_rows_cells_are_made_and_near_copies_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_FLAT_ROWS", 1000)
    vector_ND = with_copies(4000, 200)
    found = joined(search(vector_ND, 0.01))
    assert len(found) >= 196
    assert set(zip(found.left_P.tolist(), found.right_P.tolist(), strict=True)) <= {(n, 3800 + n) for n in range(200)}
    again = joined(search(vector_ND, 0.01))
    assert (found.left_P.tolist(), found.distance_P.tolist()) == (again.left_P.tolist(), again.distance_P.tolist())
