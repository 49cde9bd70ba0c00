"""Cut pairs into folds, copies together, and draw nulls within them.

A left or a right alone may stand in several folds: what other pairs say of it, a caption that thousands have, a picture
with five captions, is evidence like any other, and the same for a pair as for a null.

Shapes: N pairs, G groups, R nulls of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmdata.models.crossfit_heads import Ints

NO_PARTNER = -1
# Draws for a partner that shares neither end before all candidates are listed.
_DRAWS = 8


def ids_of(values: Sequence[str | bytes]) -> Ints:
    """Number the values, equal ones alike, in the order of their first appearance."""
    numbers: dict[str | bytes, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def number_pairs(ids_2N: Ints) -> Ints:
    """Number the pairs, those alike whose lefts and rights are both equal, int64 `[N]`."""
    return np.unique(ids_2N, axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)


def assign_folds(group_N: Ints, folds: int, seed: int) -> Ints:
    """Give each pair a fold, whole groups together, the largest group first to the smallest fold, int64 `[N]`."""
    groups_G, place_N, count_G = np.unique(group_N, return_inverse=True, return_counts=True)
    shuffled_G = np.random.default_rng([seed, 1]).permutation(len(groups_G))
    order_G = shuffled_G[np.argsort(-count_G[shuffled_G], kind="stable")]
    fold_G, size = np.zeros(len(groups_G), np.int64), [0] * folds
    for group in order_G:
        fold = size.index(min(size))
        fold_G[group] = fold
        size[fold] += int(count_G[group])
    return fold_G[place_N]


def cut_blocks(fold_N: Ints, stratum_N: Ints, seed: int, block: int) -> Ints:
    """Cut each stratum of each fold into random blocks of about equal size, at most `block` pairs, int64 `[N]`."""
    rng, block_N, made = np.random.default_rng([seed, 2]), np.zeros(len(fold_N), np.int64), 0
    _, part_N = np.unique(np.stack([fold_N, stratum_N]), axis=1, return_inverse=True)
    for part in range(int(part_N.max(initial=-1)) + 1):
        rows_N = rng.permutation(np.flatnonzero(part_N == part))
        pieces = -(-len(rows_N) // block)
        for piece in np.array_split(rows_N, pieces):
            block_N[piece] = made
            made += 1
    return block_N


def draw_partners(block_N: Ints, ids_2N: Ints, nulls: int, seed: int) -> Ints:
    """Draw for each pair R others of its block that have another left and another right.

    Returns:
        Row numbers, int64 `[N, R]`; `NO_PARTNER` where the block has none.
    """
    rng = np.random.default_rng([seed, 3])
    partner_NR = np.full((len(block_N), nulls), NO_PARTNER, np.int64)
    order_N = np.argsort(block_N, kind="stable")
    for rows_N in np.split(order_N, np.flatnonzero(np.diff(block_N[order_N])) + 1):
        for null in range(nulls):
            partner_NR[rows_N, null] = _derange(rows_N, ids_2N[:, rows_N], rng)
    return partner_NR


def _derange(rows_N: Ints, ids_2N: Ints, rng: np.random.Generator) -> Ints:
    place_N = np.arange(len(rows_N))

    def shares_end(own_N: Ints, other_N: Ints) -> npt.NDArray[np.bool_]:
        shared_N: npt.NDArray[np.bool_] = (ids_2N[:, own_N] == ids_2N[:, other_N]).any(axis=0)
        return shared_N

    given_N = rng.permutation(place_N)
    for _ in range(_DRAWS):
        same_N = np.flatnonzero(shares_end(place_N, given_N))
        if not len(same_N):
            return np.asarray(rows_N[given_N])
        given_N[same_N] = rng.choice(place_N, len(same_N))
    partner_N: Ints = rows_N[given_N]
    for place in np.flatnonzero(shares_end(place_N, given_N)):
        others_N = rows_N[~shares_end(np.array([place]), place_N)]
        partner_N[place] = rng.choice(others_N) if len(others_N) else NO_PARTNER
    return partner_N


def to_local(partner_NR: Ints, rows_N: Ints) -> Ints:
    """Row numbers as places in `rows_N` (ascending), in which all of them are; `NO_PARTNER` stays."""
    return np.where(partner_NR == NO_PARTNER, NO_PARTNER, np.searchsorted(rows_N, partner_NR))


def pick(values_N: npt.NDArray[np.int64], most: int, seed: int) -> Ints:
    """Choose rows, one of each distinct value and at most `most`, by the seed, in their order."""
    _, first_M = np.unique(values_N, return_index=True)
    if len(first_M) > most:
        first_M = np.random.default_rng([seed, 4]).permutation(np.sort(first_M))[:most]
    return np.sort(first_M).astype(np.int64)
