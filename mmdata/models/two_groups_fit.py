"""Fit the two-groups model to scores and a null: the arithmetic of `two_groups`, which says what it means.

Dimensions: N scores, M null scores, S strata, C cells of z, B = C - 1 their edges, K knots, P parameters,
T shifts, G noise levels tried, X = S * C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Places: TypeAlias = npt.NDArray[np.intp]

_CELLS = 40
# An outer cell holds this many null scores, so that its share is known to 20 %.
_MIN_NULL_PER_CELL = 25
# Fall of logit(lost) over one deviation of strength, set together with the priors so that clip-art and stamps with 20
# to 60 % shuffled, scored by crossfit and by a linear aligner, come out right (slopes under 1.7: noise too low).
_LOST_SLOPE = 1.7
# Mean and deviation of the priors: log scale and log(shape - 1) of the shifts of true pairs, logit of the share that
# lies far beyond the null, the change of the log scale over one deviation of strength, logit(lost) at middle strength.
# The shape is the one that matters: scores hardly tell few true pairs near the null from some more noise, and 2.2 (thin
# near the null) has a mean error of 1 point with crossfit on clip-art, where 0.7 had 4. That few are lost is presumed
# too: at -4.5 and 1 the noise by crossfit of 84 shuffles (0 to 60 % of 600 to 3,875 drawings; cleaned titles, album
# titles, keywords) is 3.9 points off in the mean, at -3 and 1.5 it was 5.0.
_PRIOR_P2 = np.array([[1.0, 0.7], [2.2, 0.7], [-2.0, 2.0], [0.15, 0.3], [-4.5, 1.0]])
_PLAIN = 3  # parameters in use without strata
# Penalised log-likelihood that strength has to add. 800 to 4,000 pairs: 0 to 90 where it tells, -5 to 3 where it is
# random (above 0 in one case of three, which bends the noise by a point).
_STRENGTH_GAIN = 0.0
# Shifts of true pairs, in deviations of the null; a true pair further out than the last one lies beyond all null.
_SHIFT_T = np.arange(0.05, 9.0, 0.1)
_STEP, _ROUNDS, _TOLERANCE, _MOST_DAMPING = 1e-4, 40, 1e-4, 1e6
_COARSE_G = np.concatenate([[1e-4], np.arange(0.04, 0.99, 0.08), [0.9975]])
_FINE, _ENOUGH_POINTS, _MOST_GRIDS = 31, 10, 4
_DROP = 10.0  # a noise level whose log-likelihood lies this far below the best one weighs nothing
_NORMAL = NormalDist()
_inv_cdf = np.vectorize(_NORMAL.inv_cdf, otypes=[float])
_erfc = np.vectorize(math.erfc, otypes=[float])


@dataclass(frozen=True)
class Cells:
    """Counts by stratum and cell: `count_SC` of scores, `null_SC` shares of the null; `x_S1`: strength, normal.

    `shifted_STC`: shares of N(shift, 1) in the cells. `stratified`: true pairs differ by strength.
    """

    count_SC: Array
    null_SC: Array
    shifted_STC: Array
    x_S1: Array
    stratified: bool


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
    return Cells(count_SC, null_SC, shifted_STC, _inv_cdf(np.clip(middle_S, 1e-6, 1 - 1e-6))[:, None], strata > 1)


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
    """Weights of the shifts, [..., T]: Weibull, with a shape over 1, so that few true pairs are like null; or far out.

    Those far out beyond all null are one cell, which would else decide what the others' shape is near the null.
    """
    scale = np.exp(np.clip(theta_P[0] + theta_P[3] * x, -3, 3))
    shape = 1 + math.exp(min(theta_P[1], 4.0))
    above = np.exp(-((((_SHIFT_T[:-1] + _SHIFT_T[1:]) / 2) / scale) ** shape))
    far = 1 / (1 + math.exp(-np.clip(theta_P[2], -50, 50)))
    weight_T = (1 - far) * -np.diff(above, axis=-1, prepend=1.0, append=0.0)
    weight_T[..., -1] += far
    return np.asarray(weight_T)


def _lost(theta_P: Array, x: Any, stratified: bool) -> Any:
    """Share of true pairs that look like null; nothing tells it where there is one stratum: 0."""
    return 1 / (1 + np.exp(np.clip(_LOST_SLOPE * x - theta_P[4], -50, 50))) if stratified else 0.0


def _true_cells(theta_P: Array, cells: Cells) -> Array:
    """Shares of true pairs in each cell, [S, C]."""
    found_SC = np.einsum("st,stc->sc", _shifts(theta_P, cells.x_S1), cells.shifted_STC)
    lost = _lost(theta_P, cells.x_S1, cells.stratified)
    # An empty cell has no width; elsewhere a floor keeps the logarithm finite.
    return np.asarray(lost * cells.null_SC + (1 - lost) * found_SC + 1e-12)


def fit_noise(cells: Cells) -> Fit:
    """Profile the noise over a grid, then over finer ones of what is likely, until what is likely spans many points."""
    noise_G = _COARSE_G
    coarse = [_fit_at(float(noise), cells, _prior_mean(cells)) for noise in noise_G]
    value_G = np.array([value for value, _ in coarse])
    theta_P = coarse[int(value_G.argmax())][1]
    for _ in range(_MOST_GRIDS):
        near = np.flatnonzero(value_G > value_G.max() - _DROP)
        low, high = max(near[0] - 1, 0), min(near[-1] + 1, len(noise_G) - 1)
        first = float(noise_G[value_G.argmax()])
        noise_G = np.linspace(noise_G[low], noise_G[high], _FINE)
        value_G, theta_P = _sweep(noise_G, first, cells, theta_P)
        if len(near) >= _ENOUGH_POINTS:
            break
    return _summarise(noise_G, value_G, cells, theta_P)


def _sweep(noise_G: Array, first: float, cells: Cells, theta_P: Array) -> tuple[Array, Array]:
    """Values along the grid, from the likeliest out, each from where the last one ended; the best parameters."""
    middle = int(np.abs(noise_G - first).argmin())
    value_G = np.full(len(noise_G), -np.inf)
    thetas: dict[int, Array] = {}
    for way in (range(middle, len(noise_G)), range(middle - 1, -1, -1)):
        start_P = thetas.get(middle, theta_P)
        for g in way:
            value_G[g], thetas[g] = _fit_at(float(noise_G[g]), cells, start_P)
            start_P = thetas[g]
            if value_G[g] < value_G.max() - _DROP:
                break
    return value_G, thetas[int(value_G.argmax())]


def _prior_mean(cells: Cells) -> Array:
    return _PRIOR_P2[:, 0] * (np.arange(len(_PRIOR_P2)) < _free(cells))


def _free(cells: Cells) -> int:
    return len(_PRIOR_P2) if cells.stratified else _PLAIN


def _summarise(noise_G: Array, value_G: Array, cells: Cells, theta_P: Array) -> Fit:
    weight_G = np.exp(value_G - value_G.max())
    mass_G = np.concatenate([[0.0], np.cumsum((weight_G[1:] + weight_G[:-1]) / 2 * np.diff(noise_G))])
    noise = float(np.average(noise_G, weights=weight_G))
    low, high = np.interp([0.025, 0.975], mass_G / mass_G[-1], noise_G)
    theta_P = _fit_at(noise, cells, theta_P)[1]
    null_only = float((cells.count_SC * np.log(cells.null_SC + 1e-12)).sum())
    return Fit(noise, min(float(low), noise), max(float(high), noise), theta_P, float(value_G.max()) - null_only)


def strength_tells(cells: Cells, fit: Fit) -> bool:
    """Whether true pairs differ by strength: else strata would only split what chance made, and bend the noise."""
    return cells.stratified and fit.gain - fit_noise(replace(cells, stratified=False)).gain > _STRENGTH_GAIN


def _fit_at(noise: float, cells: Cells, theta_P: Array) -> tuple[float, Array]:
    """Best penalised log-likelihood at this noise, and where: Fisher scoring, damped (Levenberg-Marquardt)."""
    free = _free(cells)
    damping, value = 1e-2, _objective(noise, cells, theta_P)
    for _ in range(_ROUNDS):
        gradient_P, information_PP = _slopes(noise, cells, theta_P)
        gain = 0.0
        while damping < _MOST_DAMPING:
            damped_PP = information_PP + damping * np.diag(np.diag(information_PP))
            step_P = np.linalg.solve(damped_PP, gradient_P)
            trial_P = theta_P.copy()
            trial_P[:free] += np.clip(step_P, -1, 1)
            gain = _objective(noise, cells, trial_P) - value
            if gain > 0:
                theta_P, value, damping = trial_P, value + gain, damping / 5
                break
            damping *= 5
        if gain < _TOLERANCE:
            break
    return value, theta_P


def _objective(noise: float, cells: Cells, theta_P: Array) -> float:
    free = _free(cells)
    share_SC = noise * cells.null_SC + (1 - noise) * _true_cells(theta_P, cells)
    away_P = ((theta_P - _PRIOR_P2[:, 0]) / _PRIOR_P2[:, 1])[:free]
    return float((cells.count_SC * np.log(share_SC + 1e-300)).sum() - 0.5 * away_P @ away_P)


def _slopes(noise: float, cells: Cells, theta_P: Array) -> tuple[Array, Array]:
    """Gradient [P] and expected information [P, P] of the objective."""
    free, true_SC = _free(cells), _true_cells(theta_P, cells)
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
