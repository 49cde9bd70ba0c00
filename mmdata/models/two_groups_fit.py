"""Fit the two-groups model to scores and a null: the arithmetic of `two_groups`, which says what it means.

Dimensions: N scores, M null scores, S strata, C cells of z, B = C - 1 their edges, K knots, P parameters,
T shifts, G noise levels tried, X = S * C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Places: TypeAlias = npt.NDArray[np.intp]

_CELLS = 40
# An outer cell holds this many null scores, so that its share is known to 20 %.
_MIN_NULL_PER_CELL = 25
# Fall of logit(lost) over one deviation of strength: 0.9 to 1.3 on clip-art and stamps with 0 to 60 % shuffled.
_LOST_SLOPE = 1.35
# Mean and deviation of the priors: log scale and log(shape - 1) of the shifts of true pairs, the change of the log
# scale over one deviation of strength, logit(lost) at middle strength. Wide beside what 1,000 pairs say, but for the
# last one.
_PRIOR_P2 = np.array([[1.0, 0.7], [0.7, 1.0], [0.15, 0.3], [-2.0, 1.0]])
_PLAIN = 2  # parameters in use without strata
# Shifts of true pairs, in deviations of the null; a true pair further out than the last one lies beyond all null.
_SHIFT_T = np.arange(0.05, 9.0, 0.1)
_STEP, _ROUNDS, _TOLERANCE, _MOST_DAMPING = 1e-4, 40, 1e-4, 1e6
_NOISE_G = np.concatenate([[1e-4, 5e-3], np.arange(0.01, 0.995, 0.01), [0.9975]])
_DROP = 10.0  # a noise level whose log-likelihood lies this far below the best one weighs nothing
_NORMAL = NormalDist()
_inv_cdf = np.vectorize(_NORMAL.inv_cdf, otypes=[float])
_erfc = np.vectorize(math.erfc, otypes=[float])


@dataclass(frozen=True)
class Cells:
    """Counts by stratum and cell: `count_SC` of scores, `null_SC` shares of the null; `x_S1`: strength, normal.

    `shifted_STC`: shares of N(shift, 1) in the cells.
    """

    count_SC: Array
    null_SC: Array
    shifted_STC: Array
    x_S1: Array


@dataclass(frozen=True)
class Fit:
    """Noise, its 95 % interval and the parameters at it; `gain`: log-likelihood over that of nothing but null."""

    noise: float
    low: float
    high: float
    theta_P: Array
    gain: float


def count_cells(score_N: Array, at_N: Places, null_M: Array, at_M: Places, strata: int) -> Cells:
    """Counts in cells of even width on the z of each stratum's own null."""
    rows = [_count_stratum(score_N[at_N == s], null_M[at_M == s]) for s in range(strata)]
    counts_S = np.array([row[0].sum() for row in rows])
    middle_S = (np.cumsum(counts_S) - counts_S / 2) / counts_S.sum()
    count_SC, null_SC, z_SB = (np.stack([row[part] for row in rows]) for part in range(3))
    shifted_STC = np.diff(_cdf(z_SB[:, None] - _SHIFT_T[:, None]), axis=2, prepend=0.0, append=1.0)
    return Cells(count_SC, null_SC, shifted_STC, _inv_cdf(np.clip(middle_S, 1e-6, 1 - 1e-6))[:, None])


def _count_stratum(score_N: Array, null_M: Array) -> tuple[Array, Array, Array]:
    null_M = np.sort(null_M)
    outer = _NORMAL.inv_cdf(min(0.2, _MIN_NULL_PER_CELL / max(len(null_M), 1)))
    share_B = _cdf(np.linspace(outer, -outer, _CELLS - 1))
    edge_B = null_M[np.minimum((share_B * len(null_M)).astype(int), len(null_M) - 1)]
    # Equal scores make equal edges: their cells stay empty, in the null and in the scores alike.
    count_C = np.bincount(np.searchsorted(edge_B, score_N, "left"), minlength=_CELLS).astype(float)
    null_C = np.bincount(np.searchsorted(edge_B, null_M, "left"), minlength=_CELLS) / len(null_M)
    return count_C, null_C, normal_of(np.cumsum(null_C)[:-1], len(null_M))


def _cdf(z: Array) -> Array:
    return np.asarray(0.5 * _erfc(-z / math.sqrt(2)))


def normal_of(share: Array, null: int) -> Array:
    """Normal quantile of a share of the null, half a score away from 0 and 1 at least."""
    return np.asarray(_inv_cdf(np.clip(share, 0.5 / null, 1 - 0.5 / null)))


def _shifts(theta_P: Array, x: Any) -> Array:
    """Weibull weights of the shifts, [..., T]; a shape over 1, so that few true pairs are like null."""
    scale = np.exp(np.clip(theta_P[0] + theta_P[2] * x, -3, 3))
    shape = 1 + math.exp(min(theta_P[1], 4.0))
    above = np.exp(-((((_SHIFT_T[:-1] + _SHIFT_T[1:]) / 2) / scale) ** shape))
    return np.asarray(-np.diff(above, axis=-1, prepend=1.0, append=0.0))


def _lost(theta_P: Array, x: Any, stratified: bool) -> Any:
    """Share of true pairs that look like null; nothing tells it where there is one stratum: 0."""
    return 1 / (1 + np.exp(np.clip(_LOST_SLOPE * x - theta_P[3], -50, 50))) if stratified else 0.0


def _true_cells(theta_P: Array, cells: Cells) -> Array:
    """Shares of true pairs in each cell, [S, C]."""
    found_SC = np.einsum("st,stc->sc", _shifts(theta_P, cells.x_S1), cells.shifted_STC)
    lost = _lost(theta_P, cells.x_S1, len(cells.x_S1) > 1)
    # An empty cell has no width; elsewhere a floor keeps the logarithm finite.
    return np.asarray(lost * cells.null_SC + (1 - lost) * found_SC + 1e-12)


def fit_noise(cells: Cells) -> Fit:
    """Profile the noise over its grid, from the best guess outwards, each start where the last one ended."""
    free = len(_PRIOR_P2) if len(cells.x_S1) > 1 else _PLAIN
    coarse = range(0, len(_NOISE_G), 10)
    tried = {g: _fit_at(float(_NOISE_G[g]), cells, _PRIOR_P2[:, 0] * _active(free), free) for g in coarse}
    first = max(tried, key=lambda g: tried[g][0])
    for step in (1, -1):
        theta_P, g = tried[first][1], first
        while 0 <= (g := g + step) < len(_NOISE_G):
            tried[g] = _fit_at(float(_NOISE_G[g]), cells, theta_P, free)
            theta_P = tried[g][1]
            if tried[g][0] < max(value for value, _ in tried.values()) - _DROP:
                break
    return _summarise(tried, cells, free)


def _active(free: int) -> Array:
    return (np.arange(len(_PRIOR_P2)) < free).astype(float)


def _summarise(tried: dict[int, tuple[float, Array]], cells: Cells, free: int) -> Fit:
    log_G = np.array([tried[g][0] if g in tried else -np.inf for g in range(len(_NOISE_G))])
    weight_G = np.exp(log_G - log_G.max()) * np.gradient(_NOISE_G)
    cumulative_G = np.cumsum(weight_G) / weight_G.sum()
    noise = float(weight_G @ _NOISE_G / weight_G.sum())
    low, high = np.interp([0.025, 0.975], cumulative_G, _NOISE_G)
    nearest = min(tried, key=lambda g: abs(_NOISE_G[g] - noise))
    value, theta_P = _fit_at(noise, cells, tried[nearest][1], free)
    null_only = float((cells.count_SC * np.log(cells.null_SC + 1e-12)).sum())
    return Fit(noise, min(float(low), noise), max(float(high), noise), theta_P, value - null_only)


def _fit_at(noise: float, cells: Cells, theta_P: Array, free: int) -> tuple[float, Array]:
    """Best penalised log-likelihood at this noise, and where: Fisher scoring, damped (Levenberg-Marquardt)."""
    damping, value = 1e-2, _objective(noise, cells, theta_P, free)
    for _ in range(_ROUNDS):
        gradient_P, information_PP = _slopes(noise, cells, theta_P, free)
        gain = 0.0
        while damping < _MOST_DAMPING:
            damped_PP = information_PP + damping * np.diag(np.diag(information_PP))
            step_P = np.linalg.solve(damped_PP, gradient_P)
            trial_P = theta_P.copy()
            trial_P[:free] += np.clip(step_P, -1, 1)
            gain = _objective(noise, cells, trial_P, free) - value
            if gain > 0:
                theta_P, value, damping = trial_P, value + gain, damping / 5
                break
            damping *= 5
        if gain < _TOLERANCE:
            break
    return value, theta_P


def _objective(noise: float, cells: Cells, theta_P: Array, free: int) -> float:
    share_SC = noise * cells.null_SC + (1 - noise) * _true_cells(theta_P, cells)
    away_P = ((theta_P - _PRIOR_P2[:, 0]) / _PRIOR_P2[:, 1])[:free]
    return float((cells.count_SC * np.log(share_SC + 1e-300)).sum() - 0.5 * away_P @ away_P)


def _slopes(noise: float, cells: Cells, theta_P: Array, free: int) -> tuple[Array, Array]:
    """Gradient [P] and expected information [P, P] of the objective."""
    true_SC = _true_cells(theta_P, cells)
    share_SC = noise * cells.null_SC + (1 - noise) * true_SC + 1e-300
    steps_PP = np.eye(len(theta_P))[:free] * _STEP
    slope_PSC = (1 - noise) * np.stack([_true_cells(theta_P + step, cells) - true_SC for step in steps_PP]) / _STEP
    slope_PX = slope_PSC.reshape(free, -1)
    gradient_P = slope_PX @ (cells.count_SC / share_SC).ravel()
    weight_X = (cells.count_SC.sum(1, keepdims=True) / share_SC).ravel()
    precision_P = 1 / _PRIOR_P2[:free, 1] ** 2
    gradient_P -= (theta_P[:free] - _PRIOR_P2[:free, 0]) * precision_P
    return gradient_P, (slope_PX * weight_X) @ slope_PX.T + np.diag(precision_P)


def ratio_at(theta_P: Array, z_K: Array, x: float, stratified: bool) -> Array:
    """f1 / f0 at each z: it rises, as that of every shift does."""
    log_KT = z_K[:, None] * _SHIFT_T - _SHIFT_T**2 / 2
    lost = _lost(theta_P, x, stratified)
    return np.asarray(lost + (1 - lost) * np.exp(log_KT) @ _shifts(theta_P, x))
