"""The line between two clocks: how subtitles' times map to the recording's, from what is seen of both.

Shapes: F frames of `GRID_S`, K cues, N observations, P pairs of observations, G lags.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

GRID_S = 0.096  # three frames of Silero's 32 ms
# Beyond all common mistakes of frame rates: 25 shown as 24000/1001 is 4.3 %.
MAX_DRIFT = 0.06
# Two lines whose cues differ by less than this everywhere are one candidate; also the step of the drifts tried.
_SAME_S = 2.0
_DRIFT_STEP_S = 0.5
# Cues that are correlated, evenly taken: a film has thousands, which show no more.
_MAX_SPANS = 200
# A pair nearer than this says little of the slope; more observations than this only cost time (P grows by the square).
_MIN_PAIR_S = 5.0
_MAX_OBSERVATIONS = 400
# The slope is known where observations span this long.
_MIN_SPAN_S = 30.0
_MIN_OBSERVATIONS_FOR_DRIFT = 5
# Normal consistency of the median absolute deviation; three deviations; bounds where cues are exact or very loose.
_MAD_TO_SIGMA = 1.4826
_INLIER_SIGMAS = 3.0
_INLIER_S = (0.15, 0.6)


class Clock(NamedTuple):
    """`true_s = offset_s + (1 + drift) * cue_s`."""

    offset_s: float
    drift: float

    def at(self, cue_s: float) -> float:
        """Place a time of the subtitles in the recording."""
        return self.offset_s + (1.0 + self.drift) * cue_s

    def then(self, other: Clock) -> Clock:
        """The line that places a time by this one, and the result by the other."""
        return Clock(other.at(self.offset_s), (1.0 + self.drift) * (1.0 + other.drift) - 1.0)


class Fit(NamedTuple):
    """A robust line.

    Attributes:
        clock: the line.
        residual_s: median distance of all observations from it, by weight.
        agreeing: share, by weight, of observations within the outlier bound.
    """

    clock: Clock
    residual_s: float
    agreeing: float


def candidates(
    speech_F: Floats, spans_K: Sequence[tuple[float, float]], max_offset_s: float, count: int
) -> list[Clock]:
    """Lines under which cues and speech coincide best, best first.

    The correlation of speech, less its mean, with the time that cues take, over a grid of offsets and drifts; of
    maxima whose cues lie within two seconds of each other the best is taken.

    Args:
        speech_F: probability of speech in each frame.
        spans_K: start and end of each cue, seconds.
        max_offset_s: limit of the shift of the cues' middle.
        count: how many to give.
    """
    first_s, last_s = spans_K[0][0], max(end for _, end in spans_K)
    middle_s, span_s = (first_s + last_s) / 2, last_s - first_s
    steps = int(MAX_DRIFT / (_DRIFT_STEP_S / span_s)) if span_s >= _MIN_SPAN_S else 0
    drifts = np.arange(-steps, steps + 1) * (_DRIFT_STEP_S / max(span_s, _MIN_SPAN_S))
    lags_G = np.arange(-round(max_offset_s / GRID_S), round(max_offset_s / GRID_S) + 1)
    values = np.stack([_correlation(speech_F, spans_K, middle_s, float(drift), lags_G) for drift in drifts])
    found: list[Clock] = []
    for index in np.argsort(-values, axis=None, kind="stable")[: 200 * count]:
        row, lag = divmod(int(index), lags_G.size)
        # The lag is the shift of the cues' middle, which the drift leaves where it is.
        clock = Clock(float(lags_G[lag] * GRID_S - drifts[row] * middle_s), float(drifts[row]))
        if all(max(abs(clock.at(t) - other.at(t)) for t in (first_s, last_s)) >= _SAME_S for other in found):
            found.append(clock)
        if len(found) == count:
            break
    return found


def fit_line(cue_N: Floats, seen_N: Floats, weight_N: Floats, slope: float = 1.0) -> Fit:
    """Theil-Sen (weighted median of slopes, then of offsets), then least squares over what lies near that line.

    Args:
        cue_N: seconds on the subtitles' clock, ascending; at least one.
        seen_N: the same moments in the recording.
        weight_N: how much each counts, above 0.
        slope: of the line where the observations are too few to tell it.
    """
    if cue_N.size > _MAX_OBSERVATIONS:
        kept = np.linspace(0, cue_N.size - 1, _MAX_OBSERVATIONS).round().astype(np.int64)
        cue_N, seen_N, weight_N = cue_N[kept], seen_N[kept], weight_N[kept]
    free = cue_N.size >= _MIN_OBSERVATIONS_FOR_DRIFT and float(np.ptp(cue_N)) >= _MIN_SPAN_S
    if free:
        slope = float(np.clip(_slope(cue_N, seen_N, weight_N), 1 - MAX_DRIFT, 1 + MAX_DRIFT))
    offset_s = weighted_median(seen_N - slope * cue_N, weight_N)
    distance_N = np.abs(seen_N - offset_s - slope * cue_N)
    sigma_s = _MAD_TO_SIGMA * weighted_median(distance_N, weight_N)
    near_N = distance_N <= np.clip(_INLIER_SIGMAS * sigma_s, *_INLIER_S)
    if free and near_N.sum() >= _MIN_OBSERVATIONS_FOR_DRIFT and np.ptp(cue_N[near_N]) >= _MIN_SPAN_S:
        slope, offset_s = _least_squares(cue_N[near_N], seen_N[near_N], weight_N[near_N])
    residual_s = weighted_median(np.abs(seen_N - offset_s - slope * cue_N), weight_N)
    return Fit(Clock(offset_s, slope - 1.0), residual_s, float(weight_N[near_N].sum() / weight_N.sum()))


def weighted_median(value_N: Floats, weight_N: Floats) -> float:
    """Give the lower weighted median: half of the weight lies at or below it."""
    order = np.argsort(value_N, kind="stable")
    below_N = np.cumsum(weight_N[order])
    return float(value_N[order][np.searchsorted(below_N, below_N[-1] / 2)])


def _slope(cue_N: Floats, seen_N: Floats, weight_N: Floats) -> float:
    left_P, right_P = np.triu_indices(cue_N.size, 1)
    apart_P = cue_N[right_P] - cue_N[left_P]
    far_P = apart_P >= _MIN_PAIR_S
    left_P, right_P, apart_P = left_P[far_P], right_P[far_P], apart_P[far_P]
    if not apart_P.size:
        return 1.0
    # A slope over a longer time is that much more exact.
    weight_P = weight_N[left_P] * weight_N[right_P] * apart_P
    return weighted_median((seen_N[right_P] - seen_N[left_P]) / apart_P, weight_P)


def _least_squares(cue_N: Floats, seen_N: Floats, weight_N: Floats) -> tuple[float, float]:
    cue_mean, seen_mean = np.average(cue_N, weights=weight_N), np.average(seen_N, weights=weight_N)
    centred_N = cue_N - cue_mean
    slope = float((weight_N * centred_N * (seen_N - seen_mean)).sum() / (weight_N * centred_N**2).sum())
    return slope, float(seen_mean - slope * cue_mean)


def _correlation(
    speech_F: Floats,
    spans_K: Sequence[tuple[float, float]],
    middle_s: float,
    drift: float,
    lags_G: npt.NDArray[np.int64],
) -> Floats:
    """Sum [G] of (speech - its mean) under the stretched cues, over the root of the time they take.

    Through the running sum of speech: a cue's sum is a difference of two of its values.
    """
    running = np.concatenate([[0.0], np.cumsum(speech_F - speech_F.mean())])
    spans_K2 = np.asarray(spans_K[:: math.ceil(len(spans_K) / _MAX_SPANS)])
    frames_K2 = np.rint((middle_s + (1 + drift) * (spans_K2 - middle_s)) / GRID_S).astype(np.int64)
    taken = max(int((frames_K2[:, 1] - frames_K2[:, 0]).sum()), 1)
    total_G = np.zeros(lags_G.size)
    for start, end in frames_K2.tolist():
        total_G += running[np.clip(end + lags_G, 0, speech_F.size)] - running[np.clip(start + lags_G, 0, speech_F.size)]
    correlation_G: Floats = total_G / np.sqrt(taken)
    return correlation_G
