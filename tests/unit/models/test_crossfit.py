from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from mmdata.errors import WeightsError
from mmdata.models.crossfit import (
    Aligner,
    Crossfit,
    CrossfitConfig,
    Examples,
    Features,
    can_hold_out,
    crossfit,
    fit_fold,
    match_prob,
    mismatched_share,
)
from mmdata.models.crossfit_aligner import load_aligner, save_aligner
from mmdata.models.crossfit_bank import WIDTHS, evidence, kernels, make_bank, null_evidence
from mmdata.models.crossfit_folds import NO_PARTNER, assign_folds, cut_blocks, draw_partners, ids_of, number_pairs, pick
from mmdata.models.crossfit_heads import fit_heads, fit_space, fit_weighing, unit_rows

SMALL = CrossfitConfig(rounds=2, nulls=4, components=32, embed_dim=8)
ids = arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 12))


def pairs(count: int = 500, share: float = 0.3, seed: int = 0) -> tuple[Features, np.ndarray]:
    """Two noisy views of 12 kinds of things, with a share of the rights rotated; and which are wrong now."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 12, count)
    centre_left, centre_right = rng.normal(size=(12, 40)), rng.normal(size=(12, 30))
    left = np.tanh(centre_left[kind] + rng.normal(size=(count, 40))).astype(np.float32)
    right = (centre_right[kind] + 0.8 * rng.normal(size=(count, 30))).astype(np.float32) + 1
    chosen = rng.permutation(count)[: round(share * count)]
    given_n = np.arange(count)
    given_n[chosen] = np.roll(chosen, 1)
    rows = np.arange(count)
    return Features(left, right[given_n], rows, rows[given_n]), kind[given_n] != kind


@pytest.fixture(scope="module")
def noisy() -> tuple[Features, np.ndarray, Crossfit]:
    features, wrong = pairs()
    return features, wrong, crossfit(features, SMALL)


def examples_of(features: Features, config: CrossfitConfig) -> Examples:
    left_space = fit_space(features.left_NF, config.components, 0.25)
    right_space = fit_space(features.right_NE, config.components, 0.0, shift=False)
    fold = assign_folds(number_pairs(features.ids()), config.folds, 0)
    block = cut_blocks(fold, features.strata(), 0, 1024)
    partner = draw_partners(block, features.ids(), 3, 0)
    return Examples(
        make_bank(left_space(features.left_NF), right_space(features.right_NE)), fold, block, partner, config
    )


def test_mismatched_pairs_score_lower_and_as_nulls_do(noisy):
    _, wrong, result = noisy
    assert roc_auc_score(~wrong, result.score_N) > 0.93
    for quantile in (0.5, 0.9):
        above = (result.score_N[wrong] > np.quantile(result.null_NR, quantile)).mean()
        assert above == pytest.approx(1 - quantile, abs=0.12)
    assert result.mismatched_share == pytest.approx(wrong.mean(), abs=0.08)
    assert result.match_prob_N[~wrong].mean() > 0.8
    assert result.match_prob_N[wrong].mean() < 0.4


def test_noise_alone_is_seen_as_noise():
    features, _ = pairs(share=0.0)
    shuffled = np.random.default_rng(5).permutation(len(features.right_NE))
    result = crossfit(replace(features, right_NE=features.right_NE[shuffled]), SMALL)
    assert result.mismatched_share > 0.8
    labels = np.arange(len(result.score_N) + result.null_NR.size) < len(result.score_N)
    assert roc_auc_score(labels, np.append(result.score_N, result.null_NR)) == pytest.approx(0.5, abs=0.05)


def test_clean_pairs_are_believed():
    assert crossfit(pairs(share=0.0)[0], SMALL).mismatched_share < 0.1


def test_rounds_find_what_one_pass_believes():
    features, wrong = pairs(share=0.6, seed=3)
    once, thrice = (
        roc_auc_score(~wrong, crossfit(features, replace(SMALL, rounds=rounds)).score_N) for rounds in (1, 3)
    )
    assert thrice > once


def test_heads_of_a_fold_do_not_see_its_pairs():
    features, _ = pairs(200)
    examples = examples_of(features, SMALL)
    weight = np.ones(200, np.float32)
    before = fit_fold(examples, 1, weight)
    own = np.append(examples.fold_M == 1, False)
    left, right = examples.bank.left_MP.copy(), examples.bank.right_MP.copy()
    left[own], right[own] = np.roll(left[own], 1, axis=0), 0
    after = fit_fold(replace(examples, bank=replace(examples.bank, left_MP=left, right_MP=right)), 1, weight)
    np.testing.assert_array_equal(before.heads.left_PD, after.heads.left_PD)
    np.testing.assert_array_equal(before.heads.right_PD, after.heads.right_PD)
    # What the other folds' pairs are believed by, to judge this one with, does not know it either.
    np.testing.assert_allclose(before.rest_MS[~own[:-1]], after.rest_MS[~own[:-1]], atol=1e-4)
    assert not np.allclose(before.observed_NS, after.observed_NS)
    other = fit_fold(replace(examples, bank=replace(examples.bank, left_MP=left, right_MP=right)), 0, weight)
    assert not np.allclose(fit_fold(examples, 0, weight).heads.left_PD, other.heads.left_PD)


def test_a_pair_does_not_speak_for_itself():
    features, _ = pairs(120)
    bank = examples_of(features, SMALL).bank
    own, weight = np.arange(120), np.append(np.ones(120), 0).astype(np.float32)
    alone = weight.copy()
    alone[7] = 0
    near = kernels(bank, bank.left_MP[:120], bank.right_MP[:120], own)
    left_out = kernels(bank, bank.left_MP[7:8], bank.right_MP[7:8], np.array([-1]))
    np.testing.assert_allclose(evidence(near, weight)[7:8], evidence(left_out, alone), rtol=1e-3, atol=1e-3)


def test_a_null_is_scored_as_a_pair_of_its_ends_would_be():
    features, _ = pairs(120)
    bank = examples_of(features, SMALL).bank
    weight = np.append(np.linspace(0.2, 1, 120), 0).astype(np.float32)
    near = kernels(bank, bank.left_MP[:120], bank.right_MP[:120], np.arange(120))
    found = null_evidence(near, weight, np.roll(np.arange(120), 1))
    without = weight.copy()
    without[[8, 7]] = 0
    slow = evidence(kernels(bank, bank.left_MP[8:9], bank.right_MP[7:8], np.array([-1])), without)
    np.testing.assert_allclose(found[8], slow[0], rtol=1e-3, atol=1e-3)


def test_evidence_is_kernel_mutual_information_computed_plainly():
    rng = np.random.default_rng(0)
    left, right = unit_rows(rng.normal(size=(9, 4))), unit_rows(rng.normal(size=(9, 5)))
    bank = make_bank(left[:8], right[:8])
    weight = np.append(rng.uniform(0.1, 1, 8), 0).astype(np.float32)
    found = evidence(kernels(bank, left[8:], right[8:], np.array([-1])), weight)[0]
    for kind, (left_width, right_width) in enumerate(WIDTHS):
        k = np.exp(left[8] @ left[:8].T / (left_width * bank.left_spread))
        v = np.exp(right[8] @ right[:8].T / (right_width * bank.right_spread))
        w = weight[:8]
        ratio = w.sum() * (w * k * v).sum() / ((w * k).sum() * (w * v).sum())
        assert found[kind] == pytest.approx(np.log(ratio + 0.02), abs=1e-4)


def test_aligner_scores_as_the_fit_did(noisy):
    features, _, result = noisy
    scored = result.aligner.score(features.left_NF, features.right_NE, result.fold_N, result.own_N)
    np.testing.assert_allclose(scored, result.score_N, atol=1e-4)
    some = np.array([3, 77, 401])
    few = result.aligner.score(features.left_NF[some], features.right_NE[some], result.fold_N[some], result.own_N[some])
    np.testing.assert_allclose(few, result.score_N[some], atol=1e-4)


def test_nulls_are_scored_as_pairs_are(noisy):
    features, _, result = noisy
    rows, partner = np.flatnonzero(result.fold_N == 2), result.partner_NR[result.fold_N == 2, 0]
    without_own = result.aligner.score(features.left_NF[rows], features.right_NE[partner], result.fold_N[rows], rows)
    # The partner's own pair is an example here; it hardly speaks for another left.
    assert np.corrcoef(without_own, result.null_NR[rows, 0])[0, 1] > 0.95


def test_new_pairs_are_told_apart():
    every, wrong = pairs(900)
    fitted = Features(*(values[:500] for values in (every.left_NF, every.right_NE, every.left_id_N, every.right_id_N)))
    aligner = crossfit(fitted, SMALL).aligner
    score = aligner.score(every.left_NF[500:], every.right_NE[500:], np.full(400, aligner.everyone))
    assert roc_auc_score(~wrong[500:], score) > 0.93


def test_embeddings_are_unit_and_of_the_folds_heads(noisy):
    features, _, result = noisy
    left = result.aligner.embed_left(features.left_NF, result.fold_N)
    right = result.aligner.embed_right(features.right_NE, result.fold_N)
    assert left.shape == right.shape == (500, 8)
    np.testing.assert_allclose(np.linalg.norm(left, axis=1), 1, atol=1e-5)
    row = 13
    heads = result.aligner.models[result.fold_N[row]].heads
    own = heads.embed_left(result.aligner.left_space(features.left_NF[row : row + 1]))[0]
    np.testing.assert_allclose(left[row], own, atol=1e-6)


def test_save_and_load(noisy, tmp_path: Path):
    features, _, result = noisy
    save_aligner(tmp_path / "a", result.aligner, {"towers": ["x", "y"]})
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["crossfit.json", "crossfit.safetensors"]
    loaded = load_aligner(tmp_path / "a")
    fold = np.full(500, loaded.everyone)
    before = result.aligner.score(features.left_NF, features.right_NE, fold)
    np.testing.assert_allclose(loaded.score(features.left_NF, features.right_NE, fold), before, atol=0.01)
    np.testing.assert_array_equal(
        loaded.embed_left(features.left_NF, fold), result.aligner.embed_left(features.left_NF, fold)
    )


@pytest.mark.parametrize("damage", ["no_json", "no_tensors", "cut", "format", "missing_tensor"])
def test_a_damaged_aligner_is_a_weights_error(noisy, tmp_path: Path, damage: str):
    save_aligner(tmp_path, noisy[2].aligner, {})
    facts, tensors = tmp_path / "crossfit.json", tmp_path / "crossfit.safetensors"
    if damage == "no_json":
        facts.unlink()
    elif damage == "no_tensors":
        tensors.unlink()
    elif damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:1000])
    elif damage == "format":
        facts.write_text(facts.read_text().replace('"format": 1', '"format": 99'))
    else:
        facts.write_text(facts.read_text().replace('"biases": [', '"biases": [0.0, '))
    with pytest.raises(WeightsError, match=str(tmp_path)):
        load_aligner(tmp_path)


def test_processes_and_repetition_give_the_same(noisy):
    features, _, result = noisy
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        again = crossfit(features, SMALL, pool.map)
    np.testing.assert_array_equal(again.partner_NR, result.partner_NR)
    np.testing.assert_allclose(again.score_N, result.score_N, atol=1e-4)
    np.testing.assert_allclose(again.null_NR, result.null_NR, atol=1e-4)


def test_copies_are_one_example_and_do_not_speak_for_each_other():
    features, _ = pairs(300)
    twice = np.append(np.arange(300), np.arange(40))
    doubled = Features(
        *(values[twice] for values in (features.left_NF, features.right_NE)), twice, features.right_id_N[twice]
    )
    result = crossfit(doubled, SMALL)
    assert len(result.aligner.bank.left_MP) == 301
    np.testing.assert_array_equal(result.own_N[300:], result.own_N[:40])
    np.testing.assert_array_equal(result.fold_N[300:], result.fold_N[:40])
    np.testing.assert_allclose(result.score_N[300:], result.score_N[:40], atol=1e-4)


def test_more_pairs_than_examples_and_half_precision():
    features, wrong = pairs(600)
    half = replace(features, left_NF=features.left_NF.astype(np.float16), right_NE=features.right_NE.astype(np.float16))
    result = crossfit(half, replace(SMALL, max_examples=300))
    assert len(result.aligner.bank.left_MP) == 301
    assert (result.own_N < 0).sum() == 300
    assert roc_auc_score(~wrong, result.score_N) > 0.88


def test_languages_do_not_mix_and_one_group_alone_has_no_null():
    features, _ = pairs(300)
    stratum = np.arange(300) % 2
    stratum[0] = 9
    result = crossfit(replace(features, stratum_N=stratum), SMALL)
    assert (result.partner_NR[0] == NO_PARTNER).all()
    assert np.isnan(result.null_NR[0]).all()
    assert np.isfinite(result.score_N).all()
    there = result.partner_NR[1:]
    assert (stratum[there] == stratum[1:, None]).all()
    assert np.isfinite(result.null_NR[1:]).all()


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="too few different pairs"):
        crossfit(pairs(9)[0], SMALL)


def test_constant_features_do_not_break():
    features, _ = pairs(60)
    flat = replace(features, left_NF=np.ones_like(features.left_NF))
    assert np.isfinite(crossfit(flat, SMALL).score_N).all()


@given(ids, st.integers(2, 5), st.integers(0, 3))
def test_copies_share_a_fold_and_partners_no_end(left, folds, seed):
    right = np.random.default_rng(seed).permutation(left) % 7
    fold = assign_folds(number_pairs(np.stack([left, right])), folds, seed)
    for ends in np.unique(np.stack([left, right]), axis=1).T:
        assert len(np.unique(fold[(left == ends[0]) & (right == ends[1])])) == 1
    block = cut_blocks(fold, np.zeros_like(left), seed, 10)
    partner = draw_partners(block, np.stack([left, right]), 3, seed)
    for row, partners in enumerate(partner):
        others = (block == block[row]) & (left != left[row]) & (right != right[row])
        assert ((partners == NO_PARTNER) == (not others.any())).all()
        assert others[partners[partners != NO_PARTNER]].all()


def test_pairs_are_alike_where_both_ends_are():
    numbers = number_pairs(np.array([[0, 0, 1, 0, 3], [5, 6, 6, 5, 8]]))
    np.testing.assert_array_equal(numbers, [0, 1, 2, 0, 3])


@pytest.mark.parametrize("labels", [2, 5])
def test_captions_that_are_labels(labels):
    """Hundreds of pairs have one caption: each is judged by the others that have it."""
    features, _ = pairs(600, share=0.0)
    rng = np.random.default_rng(2)
    kind, centre = rng.integers(0, labels, 600), rng.normal(size=(labels, 40))
    left = np.tanh(centre[kind] + rng.normal(size=(600, 40))).astype(np.float32)
    given = np.where(rng.random(600) < 0.2, rng.integers(0, labels, 600), kind)
    found = crossfit(Features(left, features.right_NE[given], np.arange(600), given), SMALL)
    assert roc_auc_score(given == kind, found.score_N) > 0.95
    assert np.isfinite(found.null_NR).all()


@pytest.mark.parametrize(
    ("left", "right", "enough"),
    [
        (np.arange(11), np.arange(11), True),
        (np.arange(10), np.arange(10), False),
        (np.arange(40), np.zeros(40, np.int64), False),
        (np.arange(40), (np.arange(40) < 10).astype(np.int64), True),
        (np.repeat(np.arange(3), 40), np.repeat(np.arange(3), 40), False),
    ],
)
def test_what_can_be_held_out(left, right, enough):
    features = Features(np.eye(len(left), dtype=np.float32), np.eye(len(left), dtype=np.float32), left, right)
    assert can_hold_out(features, SMALL) == enough
    if enough:
        assert np.isfinite(crossfit(features, SMALL).score_N).all()


def test_folds_are_balanced_and_blocks_hold_their_size():
    fold = assign_folds(np.arange(1003) // 3, 5, 0)
    assert np.ptp(np.bincount(fold)) <= 3
    block = cut_blocks(fold, np.arange(1003) % 2, 0, 50)
    assert np.bincount(block).max() <= 50
    assert all(len(np.unique(fold[block == b])) == 1 for b in range(block.max() + 1))


def test_ids_and_picks():
    np.testing.assert_array_equal(ids_of(["b", "a", "b"]), [0, 1, 0])
    np.testing.assert_array_equal(pick(np.array([4, 2, 4, 1]), 10, 0), [0, 1, 3])
    assert len(pick(np.arange(100), 30, 0)) == 30
    assert not np.array_equal(pick(np.arange(100), 30, 0), pick(np.arange(100), 30, 1))


def test_space_is_standardised_and_the_shiftless_one_has_none():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(200, 6)) * [1, 2, 3, 4, 5, 100] + 7).astype(np.float32)
    space, bare = fit_space(rows, 6, 1.0), fit_space(rows, 6, 1.0, shift=False)
    assert np.cov(space(rows).T).std() < 0.1
    assert not bare.shift_P.any()
    np.testing.assert_allclose(bare(3 * rows), bare(rows), atol=1e-5)
    np.testing.assert_allclose((rows.mean(axis=0) @ bare.map_XP), 0, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(space(rows), axis=1), 1, atol=1e-5)


def test_heads_find_the_shared_direction_and_weights_decide():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(400, 1))
    left = np.hstack([shared, rng.normal(size=(400, 4))]).astype(np.float32)
    right = np.hstack([rng.normal(size=(400, 3)), -shared]).astype(np.float32)
    left[200:] = rng.normal(size=(200, 5))
    heads = fit_heads(left, right, (np.arange(400) < 200).astype(np.float32), 1, 0.1)
    assert abs(heads.left_PD[0, 0]) > 5 * np.abs(heads.left_PD[1:]).max()
    assert np.sign(heads.left_PD[0, 0]) == -np.sign(heads.right_PD[3, 0])


def test_weighing_is_the_log_likelihood_ratio():
    rng = np.random.default_rng(0)
    observed, null = rng.normal(1, 1, (20_000, 1)), rng.normal(-1, 1, (60_000, 1))
    weighing = fit_weighing(observed.astype(np.float32), null.astype(np.float32))
    # Two unit normals at +1 and -1: the log ratio is 2 x.
    np.testing.assert_allclose(weighing(np.array([[0.0], [1.0]], np.float32)), [0, 2], atol=0.15)


def test_share_and_probability():
    rng = np.random.default_rng(0)
    null = rng.normal(0, 1, 5000).astype(np.float32)
    score = np.concatenate([rng.normal(0, 1, 300), rng.normal(9, 1, 700)]).astype(np.float32)
    assert mismatched_share(score, null) == pytest.approx(0.3, abs=0.03)
    assert mismatched_share(score, null[:0]) == 0
    np.testing.assert_allclose(match_prob(np.array([-9, 0, 9], np.float32), 0.3), [0, 0.7, 1], atol=1e-3)


def test_importing_loads_no_torch():
    code = (
        "import sys, mmdata.models.crossfit, mmdata.models.crossfit_clip, mmdata.models.towers;"
        "assert not {'torch', 'timm', 'transformers', 'open_clip', 'whisper'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_aligner_is_what_it_says(noisy):
    aligner = noisy[2].aligner
    assert isinstance(aligner, Aligner)
    assert aligner.everyone == SMALL.folds == len(aligner.models) - 1
