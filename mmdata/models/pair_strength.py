"""How high members of pairs score with anything at all: what tells a pair that a model cannot judge from a bad pair.

Dimensions: N pairs, D width of an embedding, O others compared with.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Embeddings: TypeAlias = npt.NDArray[np.floating]

_MOST_OTHERS, _ROWS = 1000, 4096
# High enough for what fits, low enough that a few other pairs of the same thing do not decide.
_QUANTILE = 0.98
_inv_cdf = np.vectorize(NormalDist().inv_cdf, otypes=[float])


def pair_strength(
    left_emb_ND: npt.ArrayLike, right_emb_ND: npt.ArrayLike, group_N: npt.ArrayLike
) -> tuple[Array, Array]:
    """How high each left and each right member scores with the best of the others: strength of a pair is their sum.

    Cosines to up to 1,000 members of other pairs of the same group (fold: embeddings of two folds cannot be compared),
    their 98 % quantile, as normal scores within the group. The own partner is left out, so that strength tells nothing
    about the match.

    Returns:
        left_N, right_N: [N] each. A pair of left i and right j, true or null, has strength left_N[i] + right_N[j].
    """
    left_ND, right_ND, at_N = (np.asarray(array) for array in (left_emb_ND, right_emb_ND, group_N))
    left_N, right_N = np.zeros(len(left_ND)), np.zeros(len(left_ND))
    for group in np.unique(at_N):
        rows = np.flatnonzero(at_N == group)
        left_N[rows] = _reach(left_ND, right_ND, rows)
        right_N[rows] = _reach(right_ND, left_ND, rows)
    return left_N, right_N


def _reach(from_ND: Embeddings, to_ND: Embeddings, rows: npt.NDArray[np.intp]) -> Array:
    others = rows[np.unique(np.linspace(0, len(rows) - 1, _MOST_OTHERS).astype(int))]
    to_DO = _unit(to_ND[others]).T
    rank = max(1, round(len(others) * (1 - _QUANTILE)))
    high = np.zeros(len(rows))
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        cosine = np.where(part[:, None] == others[None], -np.inf, _unit(from_ND[part]) @ to_DO)
        high[start : start + _ROWS] = np.partition(cosine, -rank, axis=1)[:, -rank]
    return np.asarray(_inv_cdf((_midrank(high) + 0.5) / len(high)))


def _unit(raw_ND: Embeddings) -> Embeddings:
    emb_ND = raw_ND.astype(np.float32)
    return np.asarray(emb_ND / np.maximum(np.linalg.norm(emb_ND, axis=1, keepdims=True), 1e-12))


def _midrank(value_N: Array) -> Array:
    sorted_N = np.sort(value_N)
    low_N = np.searchsorted(sorted_N, value_N, "left")
    return np.asarray((low_N + np.searchsorted(sorted_N, value_N, "right") - 1) / 2)
