"""Calibration against mixtures whose truth is known."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mmdata.models.two_groups import apply, calibrate, from_json, joint_match, pair_strength, to_json


def mixture(noise, count=4000, seed=0, location=2.0, scale=1.0, null_of=lambda z: z):
    """Scores, null scores [N, 10] and which pairs are true; `null_of` bends the scale."""
    rng = np.random.default_rng(seed)
    true_N = rng.random(count) >= noise
    z_N = np.where(true_N, rng.normal(location, scale, count), rng.normal(size=count))
    return null_of(z_N), null_of(rng.normal(size=(count, 10))), true_N


def calibration_error(match_N, true_N, bins=15):
    """Expected calibration error, bins of equal counts."""
    parts = np.array_split(np.argsort(match_N, kind="stable"), bins)
    return sum(len(part) * abs(match_N[part].mean() - true_N[part].mean()) for part in parts) / len(match_N)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.4, 0.6])
@pytest.mark.parametrize(
    ("location", "scale", "bend"),
    [(2.5, 1.0, None), (1.8, 1.2, None), (2.0, 1.0, np.exp), (3.0, 1.4, lambda z: np.tanh(z / 6) - 7)],
    ids=["apart", "overlapping", "skewed", "bounded"],
)
def test_noise_and_match_of_mixtures(noise, location, scale, bend):
    scores_N, null_NR, true_N = mixture(noise, location=location, scale=scale, null_of=bend or (lambda z: z))
    found = calibrate(scores_N, null_NR)
    assert found.enough
    assert found.why == ""
    assert abs(found.noise - (1 - true_N.mean())) < 0.05
    assert found.noise_low <= found.noise <= found.noise_high
    assert calibration_error(found.match_N, true_N) < 0.06
    assert (found.scores, found.null) == (4000, 40_000)


def test_interval_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for seed in range(20):
        scores_N, null_NR, true_N = mixture(0.3, count=600, seed=seed)
        found = calibrate(scores_N, null_NR)
        held += found.noise_low <= 1 - true_N.mean() <= found.noise_high
    assert held >= 17


def test_true_pairs_that_a_model_cannot_judge_are_no_noise_where_strength_tells_them():
    rng = np.random.default_rng(3)
    count, noise = 4000, 0.4
    strength_N = rng.normal(size=count)
    true_N = rng.random(count) >= noise
    lost_N = rng.random(count) < 1 / (1 + np.exp(1.5 + 1.3 * strength_N))
    scores_N = np.where(true_N & ~lost_N, rng.normal(2.2, 1.1, count), rng.normal(size=count))
    null_NR = rng.normal(size=(count, 10))
    told = calibrate(scores_N, null_NR, strength_N=strength_N)
    untold = calibrate(scores_N, null_NR)
    assert abs(told.noise - (1 - true_N.mean())) < 0.05
    assert untold.noise > told.noise + 0.05
    assert calibration_error(told.match_N, true_N) < 0.05
    assert told.curve.strength_S


def test_strength_that_tells_nothing_is_not_used():
    scores_N, null_NR, _ = mixture(0.3)
    strength_N = np.random.default_rng(1).normal(size=len(scores_N))
    plain = calibrate(scores_N, null_NR)
    for strength in (strength_N, np.full(len(scores_N), np.nan), np.ones(len(scores_N))):
        assert calibrate(scores_N, null_NR, strength_N=strength).noise == plain.noise


def test_percentile_is_the_share_of_null_scores_below():
    scores_N, null_NR, _ = mixture(0.2)
    found = calibrate(scores_N, null_NR)
    below_N = np.searchsorted(np.sort(null_NR.ravel()), scores_N) / null_NR.size
    assert np.abs(found.percentile_N - below_N).max() < 2e-3


def test_scores_that_repeat():
    scores_N, null_NR, true_N = mixture(0.3, null_of=lambda z: np.round(z * 2))
    found = calibrate(scores_N, null_NR)
    assert abs(found.noise - (1 - true_N.mean())) < 0.05
    assert calibration_error(found.match_N, true_N) < 0.06


@pytest.mark.parametrize(
    ("scores", "null", "why"),
    [
        (99, 5000, "99 scores, needs at least 100 to calibrate"),
        (500, 399, "399 scores of mismatched pairs, needs at least 400 to calibrate"),
        (0, 0, "0 scores, needs at least 100 to calibrate"),
    ],
)
def test_too_few_samples_say_so(scores, null, why):
    rng = np.random.default_rng(0)
    found = calibrate(rng.normal(size=scores), rng.normal(size=null))
    assert not found.enough
    assert found.why == why
    assert np.isnan(found.match_N).all()
    assert np.isnan([found.noise, found.noise_low, found.noise_high]).all()


def test_too_few_samples_take_the_percentile_of_a_reference():
    scores_N, null_NR, _ = mixture(0.2)
    reference = calibrate(scores_N, null_NR).curve
    found = calibrate(scores_N[:5], [0.0, 1.0], reference=reference)
    assert found.percentile_N == pytest.approx(apply(reference, scores_N[:5])[0])
    assert np.isnan(found.match_N).all()


def test_scores_that_tell_nothing_say_so():
    rng = np.random.default_rng(0)
    found = calibrate(rng.normal(0.1, 1.0, 300), rng.normal(size=3000))
    assert not found.enough
    assert found.why.startswith("the scores are like those of mismatched pairs")
    assert np.isnan(found.match_N).all()
    assert calibrate(rng.normal(0.5, 1.0, 150), rng.normal(size=3000)).why.startswith("the scores do not tell how many")
    same = calibrate(rng.normal(size=300), np.zeros(3000))
    assert same.why == "all mismatched pairs have the same score"


def test_missing_scores_stay_missing():
    scores_N, null_NR, _ = mixture(0.2, count=1000)
    whole = calibrate(scores_N, null_NR)
    holes_N, holes_NR = np.insert(scores_N, [0, 500], np.nan), np.insert(null_NR, [0, 500], np.nan, axis=0)
    found = calibrate(holes_N, holes_NR)
    assert np.flatnonzero(np.isnan(found.match_N)).tolist() == [0, 501]
    assert found.match_N[~np.isnan(holes_N)].tolist() == whole.match_N.tolist()
    assert (found.scores, found.null) == (1000, 10_000)


def test_a_curve_stored_gives_the_same():
    scores_N, null_NR, true_N = mixture(0.2)
    strength_N = np.random.default_rng(1).normal(size=len(scores_N)) + 0.5 * scores_N * true_N
    found = calibrate(scores_N, null_NR, strength_N=strength_N)
    assert found.curve.ratio_SK
    curve = from_json(to_json(found.curve))
    assert curve == found.curve
    again = apply(curve, scores_N, strength_N)
    assert [values.tolist() for values in again] == [
        v.tolist() for v in (found.percentile_N, found.match_N, found.ratio_N)
    ]
    few = calibrate(scores_N[:9], null_NR).curve
    assert np.isnan(from_json(to_json(few)).noise)
    for text in ("{}", "[]", "no JSON"):
        with pytest.raises(ValueError, match=r".+"):
            from_json(text)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"scores have shape \(2, 2\)"):
        calibrate(np.zeros((2, 2)), np.zeros(9))
    with pytest.raises(ValueError, match=r"null scores have shape \(9,\), with a strength they need \[5, R\]"):
        calibrate(np.zeros(5), np.zeros(9), strength_N=np.zeros(5))
    with pytest.raises(ValueError, match=r"strengths have shapes \(4,\) and \(9,\), need \(5,\) and \(9,\)"):
        calibrate(np.zeros(5), np.zeros(9), strength_N=np.zeros(4), null_strength_M=np.zeros(9))


def test_a_million_scores_take_seconds():
    scores_N, null_NR, true_N = mixture(0.3, count=1_000_000)
    started = time.process_time()
    found = calibrate(scores_N, null_NR[:, :1])
    assert time.process_time() - started < 10
    assert abs(found.noise - (1 - true_N.mean())) < 0.01


def test_strength_is_high_where_something_fits_whether_or_not_the_partner_does():
    rng = np.random.default_rng(0)
    topic_NT = np.eye(20)[rng.integers(0, 20, 400)]
    vague_N = rng.random(400) < 0.5
    left_ND = np.hstack([topic_NT * ~vague_N[:, None], rng.normal(size=(400, 20)) * 0.2])
    right_ND = np.hstack([np.roll(topic_NT, 7, axis=0), rng.normal(size=(400, 20)) * 0.2])
    left_N, right_N = pair_strength(left_ND, right_ND, np.zeros(400))
    assert left_N[~vague_N].mean() > left_N[vague_N].mean() + 1
    partner_changed_ND = right_ND.copy()
    partner_changed_ND[0] = left_ND[0]
    assert pair_strength(left_ND, partner_changed_ND, np.zeros(400))[0][0] == pytest.approx(left_N[0], abs=0.1)
    assert right_N.shape == (400,)


def test_strength_leaves_the_own_partner_out():
    rng = np.random.default_rng(0)
    left_ND, right_ND = rng.normal(size=(2, 40, 16))
    before_N, _ = pair_strength(left_ND, right_ND, np.zeros(40))
    weakest = int(before_N.argmin())
    right_ND[weakest] = left_ND[weakest]
    after_N, _ = pair_strength(left_ND, right_ND, np.zeros(40))
    assert after_N[weakest] == before_N.min()


# Three modalities: edges of a triangle.
TRIANGLE = [("image", "caption"), ("image", "audio"), ("caption", "audio")]
FOREIGN_OF = {"all": (), "audio": ("audio",), "caption": ("caption",), "image": ("image",), "none": "aci"}


def triangles(count=6000, seed=0, location=2.0):
    rng = np.random.default_rng(seed)
    truth_N = rng.choice(list(FOREIGN_OF), size=count, p=[0.6, 0.15, 0.1, 0.1, 0.05])
    matched_NE = np.array([[t == "all" or (t != "none" and t not in edge) for edge in TRIANGLE] for t in truth_N])
    z_NE = rng.normal(size=(count, 3)) + location * matched_NE
    return np.exp(location * z_NE - location**2 / 2), truth_N


def test_joint_match_of_three_modalities_is_calibrated_and_names_the_foreign_one():
    ratio_NE, truth_N = triangles()
    match_N, foreign_NQ = joint_match(ratio_NE, TRIANGLE)
    assert calibration_error(match_N, truth_N == "all") < 0.03
    for column, member in enumerate(["audio", "caption", "image"]):
        truly_N = (truth_N == member) | (truth_N == "none")
        assert calibration_error(foreign_NQ[:, column], truly_N) < 0.03
    odd_N = np.isin(truth_N, ["audio", "caption", "image"])
    named_N = np.array(["audio", "caption", "image"])[foreign_NQ.argmax(axis=1)]
    assert (named_N == truth_N)[odd_N].mean() > 0.75


def test_joint_match_beats_its_weakest_edge_and_the_product_of_posteriors():
    ratio_NE, truth_N = triangles()
    match_N, _ = joint_match(ratio_NE, TRIANGLE)
    true_N = truth_N == "all"
    single_NE = 0.75 * ratio_NE / (0.25 + 0.75 * ratio_NE)
    for other_N in (single_NE.min(axis=1), single_NE.prod(axis=1)):
        assert calibration_error(match_N, true_N) < calibration_error(other_N, true_N)


def test_joint_match_of_what_is_there():
    ratio_NE, _ = triangles(count=500)
    ratio_NE[0] = np.nan
    ratio_NE[1] = [50.0, np.nan, np.nan]
    match_N, foreign_NQ = joint_match(ratio_NE, TRIANGLE)
    assert np.isnan(match_N[0])
    assert np.isnan(foreign_NQ[0]).all()
    assert match_N[1] > 0.9
    assert np.isnan(foreign_NQ[1]).tolist() == [True, False, False]
    assert not np.isnan(match_N[1:]).any()


def test_joint_match_of_one_edge_is_its_posterior():
    rng = np.random.default_rng(0)
    true_N = rng.random(20_000) < 0.7
    ratio_NE = np.exp(2 * (rng.normal(size=20_000) + 2 * true_N) - 2)[:, None]
    match_N, foreign_NQ = joint_match(ratio_NE, [("image", "caption")])
    assert match_N == pytest.approx(0.7 * ratio_NE[:, 0] / (0.3 + 0.7 * ratio_NE[:, 0]), abs=0.03)
    assert foreign_NQ[:, 0] == pytest.approx(1 - match_N)


def test_joint_match_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match=r"need \[N, 3\]"):
        joint_match(np.ones((5, 2)), TRIANGLE)
    with pytest.raises(ValueError, match="with itself"):
        joint_match(np.ones((5, 1)), [("image", "image")])
    match_N, foreign_NQ = joint_match(np.ones((0, 3)), TRIANGLE)
    assert (match_N.shape, foreign_NQ.shape) == ((0,), (0, 3))
