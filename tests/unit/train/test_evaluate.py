from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mmdata.cli import cli
from mmdata.errors import SpecError, TrainError
from mmdata.train.config import load_config
from mmdata.train.evaluate.config import EvalConfig, load_settings
from mmdata.train.evaluate.consistency import consistency, derangements, gram_volume
from mmdata.train.evaluate.detector import auc
from mmdata.train.evaluate.features import Features, subsets
from mmdata.train.evaluate.intervals import auc_figure, mean_figure, share_figure, statistic_figure
from mmdata.train.evaluate.labels import probe
from mmdata.train.evaluate.made import fid, kid, text_figure
from mmdata.train.evaluate.retrieval import missing, retrieval
from mmdata.train.run import train

NAMES = ("text", "image", "audio")


def features_of(single_MND: torch.Tensor, present_NM: torch.Tensor | None = None) -> Features:
    count = single_MND.shape[1]
    present_NM = torch.ones(count, len(single_MND), dtype=torch.bool) if present_NM is None else present_NM
    fused = {
        chosen: torch.nn.functional.normalize(single_MND[list(chosen)].sum(dim=0), dim=1)
        for chosen in subsets(len(single_MND))
    }
    return Features(torch.arange(count), present_NM, torch.zeros(count, dtype=torch.int64), single_MND, fused, [])


def run_cli(*args: str):
    return CliRunner().invoke(cli, ["eval", *args], catch_exceptions=False)


@pytest.fixture
def run(tmp_path: Path, write_config: Callable[..., Path], shape_shards: Path) -> Path:
    train(write_config(shape_shards), say=lambda _: None)
    return tmp_path / "run"


def test_a_mean_s_interval_is_the_bootstrap_s():
    values = np.repeat([0.0, 1.0, 5.0], [10, 20, 10])
    rng = np.random.default_rng(3)
    drawn = [rng.choice(values, len(values)).mean() for _ in range(4000)]
    found = mean_figure(values, 0, 4000, 0.1)
    assert (found["value"], found["chance"]) == (1.75, 0.1)
    assert [found["low"], found["high"]] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])), abs=0.08)
    other = statistic_figure(lambda rows: float(values[rows].mean()), len(values), 1, 2000)
    assert [other["low"], other["high"]] == pytest.approx([found["low"], found["high"]], abs=0.08)
    assert found == mean_figure(values, 0, 4000, 0.1)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(400):
        found = mean_figure(rng.normal(0.3, 1, 200), trial, 400)
        held += found["low"] <= 0.3 <= found["high"]
    assert 0.91 <= held / 400 <= 0.98


@pytest.mark.parametrize(("truth", "count"), [(0.3, 200), (0.95, 20), (0.02, 60)])
def test_intervals_of_shares_hold_the_truth_as_often_as_they_say(truth: float, count: int):
    rng = np.random.default_rng(0)
    found = [share_figure(rng.random(count) < truth) for _ in range(2000)]
    assert 0.92 <= np.mean([one["low"] <= truth <= one["high"] for one in found]) <= 0.985


def test_a_share_of_all_or_none_is_not_known_for_sure():
    """Wilson's, by hand: n / (n + z^2) with z = 1.96. The bootstrap's had no width."""
    some = share_figure([True] * 20, 0.5)
    assert (some["value"], some["high"], some["chance"]) == (1, 1, 0.5)
    assert some["low"] == pytest.approx(20 / (20 + 1.959964**2))
    none = share_figure(np.zeros(20))
    assert (none["value"], none["low"], none["high"]) == (0, 0, pytest.approx(1 - some["low"]))


def auc_of(real_N: np.ndarray, forged_N: np.ndarray, resamples: int = 300) -> dict[str, float]:
    return auc_figure(lambda row: auc(real_N[row], forged_N[row]), len(real_N), 0, resamples)


def test_an_auc_without_a_fault_is_not_known_for_sure():
    apart = auc_of(np.zeros(20), np.ones(20))
    assert (apart["value"], apart["high"], apart["chance"]) == (1, 1, 0.5)
    assert apart["low"] == pytest.approx(20 / (20 + 1.959964**2))
    turned = auc_of(np.ones(20), np.zeros(20))
    assert (turned["value"], turned["low"], turned["high"]) == (0, 0, pytest.approx(1 - apart["low"]))
    # One pair of 400 the wrong way round says no more.
    assert auc_of(np.r_[np.zeros(19), 2], np.r_[np.ones(19), 3])["low"] <= apart["low"]


def test_intervals_of_an_auc_near_1_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    # Of two normals this far apart: Phi(2.2 / sqrt(2)) = 0.940.
    found = [auc_of(rng.normal(size=15), rng.normal(2.2, size=15), 100) for _ in range(200)]
    assert np.mean([one["low"] <= 0.940 <= one["high"] for one in found]) >= 0.93


def test_volumes_of_equal_and_orthogonal_vectors_are_0_and_1():
    equal, orthogonal = torch.ones(2, 3, 4) / 2, torch.eye(4)[:3].expand(2, 3, 4)
    assert gram_volume(equal).tolist() == [0.0, 0.0]
    assert gram_volume(orthogonal).tolist() == [1.0, 1.0]
    sixty = torch.tensor([[[1.0, 0], [0.5, math.sqrt(0.75)]]])
    assert gram_volume(sixty).item() == pytest.approx(math.sin(math.pi / 3))


def test_derangements_leave_nobody_in_place_and_know_equal_texts():
    partner_NR = derangements(7, torch.zeros(7, dtype=torch.int64), 3, 0)
    for column in partner_NR.T:
        assert sorted(column.tolist()) == list(range(7))
    assert not (partner_NR == torch.arange(7)[:, None]).any()
    assert len(set(map(tuple, partner_NR.T.tolist()))) == 3
    assert (derangements(3, torch.tensor([5, 5, 5]), 2, 0) == -1).all()


def test_retrieval_in_both_directions_and_what_is_unseen():
    single_MND = torch.eye(8).repeat(3, 1, 1)
    single_MND[2] = single_MND[2].roll(1, dims=0)  # the sounds are all the next sample's
    found = retrieval(features_of(single_MND), NAMES, EvalConfig(ks=[1], resamples=100), [{1, 2}])
    assert [found[way]["recall@1"]["value"] for way in ("text->image", "image->text")] == [1.0, 1.0]
    assert [found[way]["recall@1"]["value"] for way in ("text->audio", "audio->image")] == [0.0, 0.0]
    assert found["text->audio"]["recall@1"]["chance"] == pytest.approx(1 / 8)
    assert [way for way, cell in found.items() if cell.get("unseen")] == ["image->audio", "audio->image"]
    assert found["fusion->text"]["queries"] == found["text->fusion"]["queries"] == 8


def test_missing_takes_every_set_of_the_others_on_the_samples_that_have_all():
    present_NM = torch.ones(6, 3, dtype=torch.bool)
    present_NM[0, 2] = False
    found = missing(features_of(torch.eye(6).repeat(3, 1, 1), present_NM), NAMES, EvalConfig(ks=[1], resamples=100))
    assert len(found) == 9
    assert "fusion(image+audio)->text" in found
    assert {cell["queries"] for cell in found.values()} == {5}


def test_consistency_of_noise_is_not_calibrated_and_of_pairs_is():
    torch.manual_seed(0)
    base_ND = torch.nn.functional.normalize(torch.randn(200, 16), dim=1)
    noisy = [torch.nn.functional.normalize(base_ND + 0.1 * torch.randn(200, 16), dim=1) for _ in range(2)]
    other_ND = torch.nn.functional.normalize(torch.randn(200, 16), dim=1)
    found = consistency(features_of(torch.stack([*noisy, other_ND])), NAMES, EvalConfig(resamples=100))
    assert found["text~image"]["match"]["value"] > 0.9
    assert found["text~image"]["mismatched_share"]["value"] < 0.1
    assert "like those of mismatched pairs" in found["text~audio"]["not_calibrated"]
    whole = found["text~image~audio"]["one_minus_volume"]
    assert whole["low"] > whole["chance"]


def test_settings_that_lead_nowhere_are_said():
    with pytest.raises(SpecError, match="needs classes"):
        load_settings(None, ['tasks=["probe"]'])
    with pytest.raises(SpecError, match="retrieval"):
        load_settings(None, ['tasks=["retreival"]'])
    with pytest.raises(SpecError, match=r"write `\{\}` once"):
        load_settings(None, ['labels={"member": "a", "templates": ["a"]}'])


def test_pairs_that_are_none_are_a_fault_of_the_file(write_config: Callable[..., Path], shape_shards: Path):
    path = write_config(shape_shards, loss={"without": ["audio~image"]})
    assert load_config(path).loss.apart("image", "audio")
    with pytest.raises(SpecError, match=r"loss.without\[0\]: 'audio~imge'.*did you mean 'audio~image'"):
        load_config(write_config(shape_shards, loss={"without": ["audio~imge"]}))


@pytest.mark.slow
def test_pairs_kept_apart_have_no_term_and_are_reported_unseen(
    tmp_path: Path, write_config: Callable[..., Path], shape_shards: Path
):
    train(write_config(shape_shards, loss={"without": ["audio~image"]}), say=lambda _: None)
    terms = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-2])
    assert "image~audio" not in json.dumps(terms)
    assert "text~audio" in json.dumps(terms)
    done = run_cli(str(tmp_path / "run"), "--tasks", "retrieval", "--name", "held")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "run" / "eval" / "held.json").read_text())["tasks"]["retrieval"]
    assert [way for way, cell in found.items() if cell.get("unseen")] == ["image->audio", "audio->image"]


@pytest.mark.slow
def test_the_command_writes_the_same_figures_twice_and_a_table(run: Path):
    first = run_cli(str(run))
    assert first.exit_code == 0, first.output
    assert "fusion(image+audio)->text recall@1" in first.output
    path = run / "eval" / "val.json"
    report = path.read_bytes()
    found = json.loads(report)
    assert (found["samples"], found["failed"], found["split"]) == (12, 0, "val")
    figures = json.loads((run / "metrics.json").read_text())["metrics"]
    for way in ("image->text", "text->audio", "fusion->image"):
        ours = found["tasks"]["retrieval"][way]["recall@5"]
        assert ours["value"] == pytest.approx(figures[way]["recall@5"]["value"])
        assert ours["low"] <= ours["value"] <= ours["high"]
    assert run_cli(str(run), "--split", "val").exit_code == 0
    assert path.read_bytes() == report
    assert run_cli(str(run), "--split", "train", "--tasks", "missing").exit_code == 0
    assert json.loads((run / "eval" / "train.json").read_text())["samples"] == 24


def test_one_task_does_not_take_away_what_others_measured(run: Path):
    """`--tasks detector` after an evaluation left the detector's figures alone in the file."""
    path = run / "eval" / "val.json"
    assert run_cli(str(run), "--tasks", "retrieval").exit_code == 0
    assert run_cli(str(run), "--tasks", "missing").exit_code == 0
    report = json.loads(path.read_text())
    assert list(report["tasks"]) == ["retrieval", "missing"]
    path.write_text(json.dumps({**report, "model": "another"}))
    assert run_cli(str(run), "--tasks", "consistency").exit_code == 0
    assert list(json.loads(path.read_text())["tasks"]) == ["consistency"]


def test_shards_of_other_members_are_told(run: Path, write_shards: Callable[..., Path], shapes):
    """That none of them `can be decoded` sent people to look for damage."""
    write_shards({"val": [[{"txt": files["txt"]} for files in shapes(4, 0)]]})
    expected = r"no sample of 'val' has two of what the run reads: .*text of caption.*; the shards hold .*caption"
    with pytest.raises(TrainError, match=expected):
        run_cli(str(run))


def test_equal_texts_score_100_and_others_less():
    from sacrebleu.metrics import BLEU, CHRF

    truth = ["a red circle on white", "a small green square there", "the blue bar is long", "a black ring and more"]
    for metric in (BLEU(), CHRF()):
        found = text_figure(metric, truth, truth, 100)
        assert found["value"] == pytest.approx(100)
        assert found["low"] == pytest.approx(100)
        assert found["chance"] < 40


def test_fid_is_refused_where_there_are_too_few_and_0_where_sets_are_equal():
    torch.manual_seed(0)
    few_NF, many_NF = torch.randn(8, 8), torch.randn(400, 8)
    assert "8 images cannot tell a covariance of 8 features" in fid(few_NF, few_NF)["refused"]
    assert fid(many_NF, many_NF)["value"] == pytest.approx(0, abs=1e-6)
    # A shift of the mean by 1 in one dimension is a distance of 1 (Heusel et al. 2017, equation 6).
    assert fid(many_NF, many_NF + torch.eye(8)[0])["value"] == pytest.approx(1, abs=1e-6)


def test_kid_of_samples_of_one_distribution_holds_0_and_of_others_does_not():
    torch.manual_seed(0)
    near = kid(torch.randn(300, 8), torch.randn(300, 8), 0)
    assert near["low"] < 0 < near["high"]
    far = kid(torch.randn(300, 8), torch.randn(300, 8) + 1, 0)
    assert far["low"] > near["high"]
    assert "refused" in kid(torch.randn(2, 8), torch.randn(2, 8), 0)


def test_a_probe_learns_classes_of_the_train_split_and_counts_unknown_ones_as_wrong():
    torch.manual_seed(0)
    side_N = torch.arange(60) % 2
    single_MND = torch.nn.functional.normalize(torch.eye(4)[side_N] + 0.1 * torch.randn(2, 60, 4), dim=2)
    features = features_of(single_MND)
    labels = ["left" if side == 0 else "right" for side in side_N.tolist()]
    found = probe((features, features), (labels, labels), ("text", "image"))
    assert [found[name]["accuracy"]["value"] for name in ("text", "image", "fusion")] == [1.0, 1.0, 1.0]
    assert found["text"]["accuracy"]["chance"] == 0.5
    new = ["left"] * 30 + ["never seen"] * 30
    found = probe((features, features), (labels, new), ("text", "image"))
    assert found["text"]["accuracy"]["value"] == pytest.approx(0.25)


@pytest.mark.slow
def test_a_run_with_decoders_is_measured_by_classes_and_captions(
    tmp_path: Path, write_config: Callable[..., Path], shape_shards: Path
):
    path = write_config(shape_shards, loss={"caption": 1.0})
    train(path, ['model.decoders=["text"]'], say=lambda _: None)
    labels = '{"member": "caption", "templates": ["{}", "this is {}"]}'
    done = run_cli(str(tmp_path / "run"), "--tasks", "zero_shot,probe,captions", "--set", f"labels={labels}")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "run" / "eval" / "val.json").read_text())["tasks"]
    assert list(found) == ["zero_shot", "probe", "captions"]
    assert set(found["zero_shot"]) == {"image", "audio", "fusion"}
    assert found["zero_shot"]["image"]["samples"] == 12
    assert found["captions"]["samples"] == 12
    assert 0 <= found["captions"]["chrf"]["value"] <= 100
    failed = CliRunner().invoke(
        cli, ["eval", str(tmp_path / "run"), "--tasks", "probe", "--set", "labels.attribute=nowhere"]
    )
    assert "no sample of 'train' has a class: nowhere is nowhere" in str(failed.exception)
