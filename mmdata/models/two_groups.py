"""What a score is worth: the probability that a pair belongs together, and the share of pairs that do not.

The two-groups model (Efron, Large-Scale Inference, 2010, ch. 2 and 5): a score comes from a mismatched pair with
probability `noise`, with density f0, else from a true one, with f1. f0 is known, from pairs mismatched on purpose (the
null). Then  match = (1 - noise) f1 / (noise f0 + (1 - noise) f1).

f0 is taken as found: scores are put on the scale z on which the null is N(0, 1) (z = normal quantile of the share of
null scores below), so that a linear change of the scores changes nothing. On this scale a true pair is a null pair
shifted up, z ~ N(shift, 1), near to the binormal model of ROC curves (Dorfman & Alf, J. Math. Psychol. 6, 1969); its
shift is Weibull with a shape over 1, which is one of many that few parameters make unimodal and thin at 0, or lies far
beyond all null. Shifts are not below 0, so that f1 / f0 rises with the score. The mixture is fitted to counts in cells
of z by penalised likelihood; `noise` is the mean, and `noise_low` to `noise_high` the 95 % interval, of the likelihood
profiled over everything else, under a flat prior. The interval knows chance only: where true pairs are not as the model
has them, the truth may lie outside.

What cannot be known from scores alone: true pairs that score just like mismatched ones (a drawing the model does not
understand) count as noise. A `strength` of each pair helps: how high its members score with *some* other member,
whether or not they match each other. It splits pairs into strata (covariate-modulated local fdr: Ferkingstad et al.,
Ann. Appl. Stat. 2, 2008; Scott et al., JASA 110, 2015): noise is the same in each, but the share `lost` of true pairs
that look like null falls with strength, so that the strong pairs tell the noise. It assumes that mismatches are as
common among strong pairs as among weak ones.

Dimensions: N scores, M null scores, R null scores of a pair, S strata, K knots.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mmdata.models.joint_match import joint_match, learn_shares
from mmdata.models.pair_strength import pair_strength
from mmdata.models.two_groups_fit import Cells, Fit, count_cells, fit_noise, normal_of, ratio_at, strength_tells

__all__ = [
    "Calibration",
    "Curve",
    "apply",
    "calibrate",
    "from_json",
    "joint_match",
    "learn_shares",
    "pair_strength",
    "to_json",
]

Array: TypeAlias = npt.NDArray[np.float64]

# Below these an interval of the noise is wider than 20 points even where matched and mismatched hardly overlap.
MIN_SCORES, MIN_NULL = 100, 400
# A wider 95 % interval of the noise says nothing: the scores do not tell matched pairs from mismatched ones.
MAX_WIDTH = 0.6
# Log-likelihood over that of mismatched pairs alone: chance reaches it once in 1,000 times (chi-square, 3 parameters).
MIN_GAIN = 8.1
_MAX_STRATA, _MIN_PER_STRATUM = 10, 150
_KNOTS, _OUTER_KNOTS = 1000, 100


@dataclass(frozen=True)
class Curve:
    """What turns scores into percentiles and matches; knots rise, between them lines.

    `ratio_SK` is f1 / f0 at `score_K`, in each stratum; `strength_S` holds the S - 1 strengths between the strata.
    `ratio_K` is for scores without a strength. No ratios: only the percentile is known.
    """

    score_K: tuple[float, ...]
    percentile_K: tuple[float, ...]
    ratio_K: tuple[float, ...] = ()
    noise: float = math.nan
    strength_S: tuple[float, ...] = ()
    ratio_SK: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Calibration:
    """Scores of a corpus, calibrated. `percentile_N`, `match_N`, `ratio_N` (f1 / f0): [N], NaN where the score is.

    `noise`: estimated share of mismatched pairs, 95 % interval `noise_low` to `noise_high`. Where not `enough`, `why`
    says what is missing, and match, ratio and noise are NaN. `scores` and `null` count what was not NaN.
    """

    percentile_N: Array
    match_N: Array
    ratio_N: Array
    noise: float
    noise_low: float
    noise_high: float
    enough: bool
    why: str
    scores: int
    null: int
    curve: Curve


@dataclass(frozen=True)
class _Pairs:
    """What can be compared: scores and null, each with its strength."""

    score_N: Array
    strength_N: Array
    null_M: Array
    null_strength_M: Array


def calibrate(
    scores_N: npt.ArrayLike,
    null_M: npt.ArrayLike,
    *,
    strength_N: npt.ArrayLike | None = None,
    null_strength_M: npt.ArrayLike | None = None,
    reference: Curve | None = None,
) -> Calibration:
    """Estimate the noise of a corpus and what each of its scores is worth.

    Args:
        scores_N: [N] of pairs as they come; higher agrees better. NaN are left out.
        null_M: of pairs mismatched on purpose, any shape; NaN are left out.
        strength_N: [N] of the pairs (see `pair_strength`); a pair without is left out of the fit, and judged by its
            score alone. Strengths that do not help to explain the scores are not used.
        null_strength_M: of the null pairs, in the shape of `null_M`. Without it `null_M` is [N, R], a row for each
            pair, which has the strength of its pair.
        reference: another corpus's curve, for the percentiles where there is too little null.

    Deterministic: nothing is drawn.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    score_N, all_M = np.asarray(scores_N, float), np.asarray(null_M, float)
    strong_N, strong_M = _strengths(score_N, all_M, strength_N, null_strength_M)
    flat_M = all_M.ravel()
    null = flat_M[np.isfinite(flat_M)]
    curve = _null_curve(null) if len(null) >= MIN_NULL or reference is None else reference
    kept_N, kept_M = np.isfinite(score_N + strong_N), np.isfinite(flat_M + strong_M)
    pairs = _Pairs(score_N[kept_N], strong_N[kept_N], flat_M[kept_M], strong_M[kept_M])
    why = _missing(len(pairs.score_N), pairs.null_M)
    fit = None
    if not why:
        edges_S, cells, fit = _fit(pairs)
        why = _vague(fit)
    if why or fit is None:
        return _report(
            score_N, strong_N, replace(curve, ratio_K=(), ratio_SK=(), strength_S=(), noise=math.nan), len(null), why
        )
    curve = _with_ratios(curve, pairs, cells, fit, edges_S)
    return _report(score_N, strong_N, curve, len(null), why, fit)


def apply(curve: Curve, scores_N: npt.ArrayLike, strength_N: npt.ArrayLike | None = None) -> tuple[Array, Array, Array]:
    """Percentile, match and ratio f1 / f0 of scores, [N] each, by a stored curve: of children, of new samples.

    Both rise with the score (at equal strength). NaN where the score is, and match and ratio where the curve has none.
    """
    score_N = np.asarray(scores_N, float)
    percentile_N = _interpolate(score_N, curve.score_K, curve.percentile_K)
    ratio_N = np.full(score_N.shape, np.nan)
    if curve.ratio_K:
        ratio_N = _ratios(curve, score_N, None if strength_N is None else np.asarray(strength_N, float))
    true_N = (1 - curve.noise) * ratio_N
    return percentile_N, true_N / (curve.noise + true_N), ratio_N


def to_json(curve: Curve) -> str:
    """One line of JSON (a noise that is not known is null); `from_json` gives an equal curve."""
    fields = asdict(curve)
    return json.dumps({**fields, "noise": None if math.isnan(curve.noise) else curve.noise}, allow_nan=False)


def from_json(text: str) -> Curve:
    """Read what `to_json` wrote; raises ValueError where it is something else."""
    try:
        fields: dict[str, Any] = json.loads(text)
        noise = math.nan if fields["noise"] is None else float(fields["noise"])
        rows = tuple(tuple(map(float, row)) for row in fields["ratio_SK"])
        flat = {name: tuple(map(float, fields[name])) for name in ("score_K", "percentile_K", "ratio_K", "strength_S")}
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a calibration curve: {error!r}") from error
    return Curve(**flat, noise=noise, ratio_SK=rows)


def _strengths(score_N: Array, null_M: Array, strength_N: Any, null_strength_M: Any) -> tuple[Array, Array]:
    """Check the shapes; strengths of the scores and, flat, of the null: all 0 where none is known."""
    if score_N.ndim != 1:
        raise ValueError(f"scores have shape {score_N.shape}, need [N]")
    if strength_N is None:
        return np.zeros(score_N.shape), np.zeros(null_M.size)
    strong_N = np.asarray(strength_N, float)
    if null_strength_M is None:
        if null_M.shape[:1] != score_N.shape:
            raise ValueError(f"null scores have shape {null_M.shape}, with a strength they need [{len(score_N)}, R]")
        null_strength_M = np.broadcast_to(strong_N[:, None], null_M.shape)
    strong_M = np.asarray(null_strength_M, float)
    if (strong_N.shape, strong_M.shape) != (score_N.shape, null_M.shape):
        raise ValueError(
            f"strengths have shapes {strong_N.shape} and {strong_M.shape}, need {score_N.shape} and {null_M.shape}"
        )
    if np.isnan(strong_N).all():
        return np.zeros(score_N.shape), np.zeros(null_M.size)
    return strong_N, strong_M.ravel()


def _missing(scores: int, null: Array) -> str:
    if scores < MIN_SCORES:
        return f"{scores} scores, needs at least {MIN_SCORES} to calibrate"
    if len(null) < MIN_NULL:
        return f"{len(null)} scores of mismatched pairs, needs at least {MIN_NULL} to calibrate"
    if null.min() == null.max():
        return "all mismatched pairs have the same score"
    return ""


def _vague(fit: Fit) -> str:
    if fit.gain < MIN_GAIN:
        return "the scores are like those of mismatched pairs: either all are mismatched, or the aligner cannot tell"
    if fit.high - fit.low <= MAX_WIDTH:
        return ""
    return (
        f"the scores do not tell how many pairs are mismatched: anything from {fit.low:.0%} to {fit.high:.0%} fits them"
    )


def _null_curve(null: Array) -> Curve:
    """Percentile curve: knots at 1,000 even quantiles of the null and at its 100 outermost scores on each side."""
    if not len(null):
        return Curve((), ())
    null = np.sort(null)
    outer = np.arange(min(_OUTER_KNOTS, len(null)))
    even = np.linspace(0, len(null) - 1, _KNOTS).astype(int)
    at = np.unique(np.concatenate([outer, even, len(null) - 1 - outer]))
    knot_K = np.unique(null[at])
    percentile_K = np.searchsorted(null, knot_K, "left") / len(null)
    # Just above the highest null score all of them lie below.
    above = np.nextafter(null[-1], np.inf)
    return Curve((*knot_K.tolist(), float(above)), (*percentile_K.tolist(), 1.0))


def _strata(strong_N: Array, strong_M: Array) -> Array:
    """Edges between strata of equal counts, [S - 1]; none where a stratum would have too little null."""
    strata = int(np.clip(len(strong_N) // _MIN_PER_STRATUM, 1, _MAX_STRATA))
    edges_S = np.unique(np.sort(strong_N)[(np.arange(1, strata) * len(strong_N)) // strata])
    edges_S = edges_S[edges_S > strong_N.min()]
    null_S = np.bincount(np.searchsorted(edges_S, strong_M, "right"), minlength=len(edges_S) + 1)
    return edges_S if null_S.min() >= MIN_NULL else np.zeros(0)


def _fit(pairs: _Pairs) -> tuple[Array, Cells, Fit]:
    """Edges between the strata that are in use, what is in them, the model."""
    edges_S = _strata(pairs.strength_N, pairs.null_strength_M)
    cells = _cells(pairs, edges_S)
    fit = fit_noise(cells)
    if len(edges_S) and not strength_tells(cells, fit):
        edges_S = np.zeros(0)
        cells = _cells(pairs, edges_S)
        fit = fit_noise(cells)
    return edges_S, cells, fit


def _cells(pairs: _Pairs, edges_S: Array) -> Cells:
    at_N, at_M = (np.searchsorted(edges_S, strong, "right") for strong in (pairs.strength_N, pairs.null_strength_M))
    return count_cells(pairs.score_N, at_N, pairs.null_M, at_M, len(edges_S) + 1)


def _with_ratios(curve: Curve, pairs: _Pairs, cells: Cells, fit: Fit, edges_S: Array) -> Curve:
    """Add f1 / f0 at the knots, by stratum and, weighted by what the strata hold, for all of them."""
    at_M = np.searchsorted(edges_S, pairs.null_strength_M, "right")
    score_K = np.array(curve.score_K)
    rows, weights = [], []
    for s in range(len(cells.x_S1)):
        own = np.sort(pairs.null_M[at_M == s])
        middle_K = (np.searchsorted(own, score_K, "left") + np.searchsorted(own, score_K, "right")) / 2
        rows.append(
            ratio_at(fit.theta_P, normal_of(middle_K / len(own), len(own)), float(cells.x_S1[s, 0]), cells.stratified)
        )
        weights.append(cells.count_SC[s].sum())
    ratio_K = np.average(np.stack(rows), axis=0, weights=weights)
    by_stratum = tuple(tuple(row.tolist()) for row in rows) if len(rows) > 1 else ()
    return replace(
        curve, ratio_K=tuple(ratio_K.tolist()), noise=fit.noise, strength_S=tuple(edges_S.tolist()), ratio_SK=by_stratum
    )


def _ratios(curve: Curve, score_N: Array, strength_N: Array | None) -> Array:
    ratio_N = _interpolate(score_N, curve.score_K, curve.ratio_K)
    if strength_N is None or not curve.ratio_SK:
        return ratio_N
    at_N = np.where(np.isnan(strength_N), -1, np.searchsorted(curve.strength_S, strength_N, "right"))
    for s, row in enumerate(curve.ratio_SK):
        ratio_N[at_N == s] = _interpolate(score_N[at_N == s], curve.score_K, row)
    return ratio_N


def _interpolate(score_N: Array, score_K: Sequence[float], value_K: Sequence[float]) -> Array:
    if not len(score_K):
        return np.full(score_N.shape, np.nan)
    return np.asarray(np.where(np.isfinite(score_N), np.interp(score_N, score_K, value_K), np.nan))


def _report(score_N: Array, strong_N: Array, curve: Curve, null: int, why: str, fit: Fit | None = None) -> Calibration:
    percentile_N, match_N, ratio_N = apply(curve, score_N, strong_N)
    noise, low, high = (fit.noise, fit.low, fit.high) if fit else (math.nan, math.nan, math.nan)
    scores = int(np.isfinite(score_N).sum())
    return Calibration(percentile_N, match_N, ratio_N, noise, low, high, not why, why, scores, null, curve)
