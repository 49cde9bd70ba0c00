"""What holds of a calibration whatever the scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.models.two_groups import apply, calibrate, from_json, joint_match, to_json

BOUNDED = settings(max_examples=12)
TRIANGLE = [("image", "caption"), ("image", "audio"), ("caption", "audio")]


@st.composite
def corpora(draw):
    """Scores and null scores of any shape: mixtures, ties, heavy tails, holes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, noise = draw(st.integers(120, 600)), draw(st.floats(0, 1))
    location, heavy = draw(st.floats(-1, 6)), draw(st.booleans())
    draws = rng.standard_t(2, size=(count, 7)) if heavy else rng.normal(size=(count, 7))
    scores_N = draws[:, 0] + location * (rng.random(count) >= noise)
    steps = draw(st.sampled_from([0, 1, 4]))
    scores_N, null_NR = (np.round(x * steps) / steps if steps else x for x in (scores_N, draws[:, 1:]))
    scores_N[rng.random(count) < draw(st.sampled_from([0, 0.05]))] = np.nan
    strength_N = rng.normal(size=count) + np.nan_to_num(scores_N) if draw(st.booleans()) else None
    return scores_N, null_NR, strength_N


@BOUNDED
@given(corpora())
def test_probabilities_rise_with_the_score_and_lie_in_0_1(corpus):
    scores_N, null_NR, strength_N = corpus
    found = calibrate(scores_N, null_NR, strength_N=strength_N)
    holes_N = np.isnan(scores_N)
    assert (np.isnan(found.percentile_N) == holes_N).all()
    assert (np.isnan(found.match_N) == (holes_N if found.enough else True)).all()
    grid_N = np.linspace(np.nanmin(scores_N) - 1, np.nanmax(scores_N) + 1, 200)
    for strength in (None, -1.0, 0.0, 2.0):
        given_N = None if strength is None else np.full(200, strength)
        percentile_N, match_N, ratio_N = apply(found.curve, grid_N, given_N)
        for value_N in (percentile_N, match_N) if found.enough else (percentile_N,):
            assert ((value_N >= 0) & (value_N <= 1)).all()
            assert (np.diff(value_N) >= -1e-12).all()
        assert np.isnan(ratio_N).all() or (ratio_N >= 0).all()
    if found.enough:
        assert 0 <= found.noise_low <= found.noise <= found.noise_high <= 1


@BOUNDED
@given(corpora(), st.sampled_from([0.25, 2.0, 64.0]), st.sampled_from([-8.0, 0.0, 128.0]))
@pytest.mark.slow
def test_a_linear_change_of_the_scores_changes_nothing(corpus, factor, offset):
    scores_N, null_NR, strength_N = corpus
    found = calibrate(scores_N, null_NR, strength_N=strength_N)
    moved = calibrate(scores_N * factor + offset, null_NR * factor + offset, strength_N=strength_N)
    np.testing.assert_allclose(moved.match_N, found.match_N, atol=1e-6)
    np.testing.assert_allclose(moved.percentile_N, found.percentile_N, atol=1e-6)
    np.testing.assert_allclose(moved.noise, found.noise, atol=1e-9)


@BOUNDED
@given(corpora(), st.randoms(use_true_random=False))
@pytest.mark.slow
def test_neither_the_order_nor_the_run_matters(corpus, random):
    scores_N, null_NR, strength_N = corpus
    order = list(range(len(scores_N)))
    random.shuffle(order)
    found = calibrate(scores_N, null_NR, strength_N=strength_N)
    mixed = calibrate(scores_N[order], null_NR[order], strength_N=None if strength_N is None else strength_N[order])
    assert mixed.curve == found.curve or np.isnan(found.noise)
    np.testing.assert_array_equal(mixed.match_N, found.match_N[order])
    assert to_json(from_json(to_json(found.curve))) == to_json(found.curve)


@BOUNDED
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0, 0.9))
def test_joint_match_lies_in_0_1_and_missing_edges_stay_missing(seed, count, missing):
    rng = np.random.default_rng(seed)
    ratio_NE = np.exp(rng.normal(size=(count, 3)) * rng.choice([1, 30]))
    ratio_NE[rng.random(ratio_NE.shape) < missing] = np.nan
    ratio_NE[rng.random(ratio_NE.shape) < 0.02] = 0.0
    match_N, foreign_NQ = joint_match(ratio_NE, TRIANGLE)
    empty_N = np.isnan(ratio_NE).all(axis=1)
    assert (np.isnan(match_N) == empty_N).all()
    for value in (match_N, foreign_NQ):
        known = value[~np.isnan(value)]
        assert ((known >= 0) & (known <= 1)).all()


@BOUNDED
@given(st.integers(0, 2**32 - 1), st.integers(0, 2), st.floats(1, 100))
def test_more_evidence_on_an_edge_never_lowers_the_match(seed, edge, factor):
    rng = np.random.default_rng(seed)
    ratio_NE = np.exp(rng.normal(size=(400, 3)) * 2)
    better_NE = ratio_NE.copy()
    better_NE[0, edge] *= factor
    # The corpus's shares are learnt: one sample of 400 moves them a little.
    assert joint_match(better_NE, TRIANGLE)[0][0] >= joint_match(ratio_NE, TRIANGLE)[0][0] - 0.01
