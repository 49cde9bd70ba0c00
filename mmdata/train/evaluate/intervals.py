"""Intervals of 95 %: of shares Wilson's (1927), of all else the bootstrap's (Efron and Tibshirani 1993, chapter 13).

What is drawn, or resampled, are the queries or samples that were measured; the model and the candidates stay as they
are. A share has no bootstrap: resamples of nothing but hits are nothing but hits, as if 20 of 20 were all there are.

Shapes: N samples, R resamples, U distinct values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

_LEVEL = 0.95
_TAILS = (0.025, 0.975)
# Numbers of a table of counts that are drawn at once.
_MOST_DRAWN = 1 << 22


def share_figure(hit_N: npt.ArrayLike, chance: float | None = None) -> dict[str, Any]:
    """`value`, `low`, `high` of a share of hits, and `chance` where there is one.

    Wilson's score interval, which holds what it says for few samples and for shares near 0 and 1 (Brown, Cai and
    DasGupta 2001, "Interval Estimation for a Binomial Proportion").
    """
    from scipy.stats import binomtest

    hits_N = np.asarray(hit_N, bool)
    interval = binomtest(int(hits_N.sum()), len(hits_N)).proportion_ci(_LEVEL, method="wilson")
    return _with_chance(float(hits_N.mean()), interval.low, interval.high, chance)


def mean_figure(values: npt.ArrayLike, seed: int, resamples: int, chance: float | None = None) -> dict[str, Any]:
    """`value`, `low`, `high` of a mean, and `chance` where there is one.

    How often each distinct value is drawn is multinomial: the bootstrap itself, at the cost of distinct values.
    """
    value_N = np.asarray(values, float)
    distinct_U, count_U = np.unique(value_N, return_counts=True)
    rng = np.random.default_rng(seed)
    rows = max(1, min(resamples, _MOST_DRAWN // len(distinct_U)))
    means = [
        rng.multinomial(len(value_N), count_U / len(value_N), size=min(rows, resamples - done)) @ distinct_U
        for done in range(0, resamples, rows)
    ]
    return figure(float(value_N.mean()), np.concatenate(means) / len(value_N), chance)


def statistic_figure(
    statistic: Callable[[npt.NDArray[np.intp]], float],
    count: int,
    seed: int,
    resamples: int,
    chance: float | None = None,
) -> dict[str, Any]:
    """The same of any statistic of rows, by number; resamples without a value (NaN) are left out."""
    rng = np.random.default_rng(seed)
    drawn_R = np.array([statistic(rng.integers(0, count, count)) for _ in range(resamples)])
    return figure(statistic(np.arange(count)), drawn_R, chance)


def auc_figure(auc: Callable[[npt.NDArray[np.intp]], float], count: int, seed: int, resamples: int) -> dict[str, Any]:
    """`value`, `low`, `high`, `chance` of an AUC over so many samples, each of which is drawn with its counterpart.

    Resamples of what is told apart without a fault are without a fault. The variance of an AUC is at most that of a
    share of as many (Birnbaum and Klose 1957, "Bounds for the Variance of the Mann-Whitney Statistic"), so Wilson's
    interval of a share without a fault is the surest that any AUC of so many samples can be.
    """
    found = statistic_figure(auc, count, seed, resamples, 0.5)
    surest = share_figure(np.ones(count, bool))["low"]
    return {**found, "low": min(found["low"], surest), "high": max(found["high"], 1 - surest)}


def figure(value: float, drawn_R: Array, chance: float | None = None) -> dict[str, Any]:
    """A value with the interval that its resamples give."""
    known_R = drawn_R[np.isfinite(drawn_R)]
    low, high = np.quantile(known_R, _TAILS) if len(known_R) else (np.nan, np.nan)
    return _with_chance(value, low, high, chance)


def _with_chance(value: float, low: float, high: float, chance: float | None) -> dict[str, Any]:
    found = {"value": value, "low": float(low), "high": float(high)}
    return found if chance is None else {**found, "chance": chance}
