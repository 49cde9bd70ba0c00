from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from mmdata.cli import cli
from mmdata.errors import TrainError
from mmdata.train.batch import Inputs
from mmdata.train.evaluate import features
from mmdata.train.evaluate.config import EvalConfig
from mmdata.train.evaluate.detector import (
    REAL,
    Shown,
    agreement,
    assess,
    auc,
    fit,
    load_detector,
    probabilities,
    save_detector,
)
from mmdata.train.evaluate.forgeries import donors, kinds, shift_sound, splice_image, splice_sound, stripped, swap
from mmdata.train.model.fused import Encoded, FusedModel
from mmdata.train.run import train


def sounds(*values: torch.Tensor) -> Inputs:
    lengths = torch.tensor([len(value) for value in values])
    padded = torch.nn.utils.rnn.pad_sequence([value.to(torch.int16) for value in values], batch_first=True)
    return Inputs(torch.arange(len(values)), padded, lengths)


def test_silence_at_the_edges_goes_and_what_is_between_stays():
    loud = torch.full((1000,), 5000)
    loud[400:600] = 0
    quiet = torch.full((300,), 40)
    found = stripped(sounds(torch.cat([quiet, loud, quiet]), torch.zeros(900), torch.full((500,), 9)))
    assert found.length_N.tolist() == [1000, 900, 500]
    assert torch.equal(found.values[0], loud.to(torch.int16))


def test_donors_are_others_with_other_texts():
    inputs = Inputs(torch.tensor([0, 2, 3, 4]), torch.zeros(4, 1), torch.ones(4))
    assert donors(inputs, torch.tensor([7, 99, 7, 8, 0])).tolist() == [2, 2, 3, 0]
    assert donors(inputs, torch.tensor([7, 7, 7, 7, 7])).tolist() == [-1] * 4


def test_swaps_shifts_and_splices_do_what_they_say():
    first, second = torch.arange(1, 2001), torch.full((3000,), -300)
    inputs, donor_N = sounds(first, second), torch.tensor([1, 0])
    swapped = swap(inputs, donor_N, np.random.default_rng(0))
    assert swapped.length_N.tolist() == [3000, 2000]
    shifted = shift_sound(inputs, donor_N, np.random.default_rng(0))
    start = int(shifted.values[0, 0]) - 1
    assert 500 <= start <= 1500
    assert torch.equal(shifted.values[0, :2000], first.to(torch.int16).roll(-start))
    spliced = splice_sound(inputs, donor_N, np.random.default_rng(0))
    changed = spliced.values[0, :2000] != first
    assert 600 <= changed.sum() <= 1200
    piece = first[changed].double().square().mean().sqrt()
    assert spliced.values[0, :2000][changed].double().square().mean().sqrt() == pytest.approx(float(piece), rel=0.01)
    black, white = torch.zeros(3, 20, 20), torch.full((3, 20, 20), 255)
    images = Inputs(torch.arange(2), torch.stack([black, white]).to(torch.uint8), torch.tensor([20, 20]))
    pasted = splice_image(images, donor_N, np.random.default_rng(0)).values[0]
    assert 64 <= int((pasted[0] == 255).sum()) <= 196
    assert images.values[0].sum() == 0


def test_auc_counts_pairs_and_halves_ties():
    assert auc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1.0
    assert auc(np.array([0.0, 1.0]), np.array([0.5, -1.0])) == 0.25
    assert auc(np.ones(3), np.ones(2)) == 0.5


def shown(count: int, seed: int) -> dict[str, Shown]:
    """Swaps agree far less in the first of five pairs, splices half as far; shifts are like real ones."""
    torch.manual_seed(seed)
    row_N = torch.arange(count)
    off = {REAL: 0.0, "swap.audio": 4.0, "splice.audio": 2.0, "shift.audio": 0.0}
    return {kind: Shown(row_N, pairs(torch.randn(count, 5) - far * torch.eye(5)[0])) for kind, far in off.items()}


def pairs(cosine_NP: torch.Tensor) -> torch.Tensor:
    return torch.cat([cosine_NP, torch.ones_like(cosine_NP)], dim=1)


@pytest.mark.slow
def test_the_detector_is_measured_by_kind_also_on_families_it_was_not_shown():
    head, found = assess(shown(300, 0), shown(300, 1), EvalConfig(resamples=100))
    assert found["swap.audio"]["auc"]["low"] > 0.9
    assert found["splice.audio"]["auc_not_trained_on"]["value"] > 0.8
    assert found["shift.audio"]["auc"]["low"] < 0.5 < found["shift.audio"]["auc"]["high"] + 0.05
    again, _ = assess(shown(300, 0), shown(300, 1), EvalConfig(resamples=100))
    assert torch.equal(head.weight_PH, again.weight_PH)


def test_a_saved_head_says_the_same(tmp_path: Path):
    head = fit(shown(100, 0), ["swap"], 0)
    save_detector(tmp_path, head, ("text", "audio"))
    part = shown(20, 2)["swap.audio"]
    assert probabilities(load_detector(tmp_path, ("text", "audio")), part) == probabilities(head, part)
    with pytest.raises(TrainError, match="no detector that can be read: of text, audio"):
        load_detector(tmp_path, ("text", "image"))
    with pytest.raises(TrainError, match="--tasks detector"):
        load_detector(tmp_path / "elsewhere", ("text", "audio"))


def test_what_can_be_forged_follows_from_the_modalities():
    assert list(kinds(("text", "tensor"))) == ["swap.text", "swap.tensor"]
    assert list(kinds(("image", "audio"))) == [
        "swap.image", "swap.audio", "shift.audio", "splice.audio", "splice.image",
    ]  # fmt: skip


def test_agreement_is_the_cosine_of_each_pair_that_is_there():
    left, right = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.8, 0.6], [0.0, 0.0]])
    present = torch.tensor([[True, True], [True, False]])
    encoded = Encoded([], [], [left, right], present)
    found = agreement(cast(FusedModel, SimpleNamespace(modalities=("text", "image"))), encoded)
    assert torch.allclose(found, torch.tensor([[0.8, 1.0], [0.0, 0.0]]))


def test_less_agreement_is_never_surer_to_be_real():
    """Also not where it learned of forgeries that happen to agree more."""
    wrong = {REAL: shown(100, 0)[REAL], "splice.audio": Shown(torch.arange(100), pairs(torch.randn(100, 5) + 3))}
    head = fit(wrong, ["splice"], 0)
    steps = head(pairs(torch.linspace(3, -3, 20)[:, None].expand(-1, 5)))
    assert (steps.diff() >= 0).all()
    # Of a pair that a sample lacks, the cosine says nothing.
    lacking = pairs(torch.randn(4, 5))
    lacking[:, 5] = 0
    other = lacking.clone()
    other[:, 0] = 9.0
    assert torch.equal(head(lacking), head(other))


def test_what_is_exchanged_stays_within_its_data_set(monkeypatch: pytest.MonkeyPatch):
    drawn: list[list[int]] = []
    monkeypatch.setattr(features, "eval_loader", lambda _, __, rows: drawn.append(rows.tolist()) or [])
    sources = [range(5), range(7)]
    dataset = type("Mixed", (), {"sources": sources, "__len__": lambda _: 12})()
    list(features.batches(cast(Any, SimpleNamespace(config=None)), cast(Any, SimpleNamespace(dataset=dataset)), 10))
    assert [set(rows) <= set(part) for rows, part in zip(drawn, (range(5), range(5, 12)), strict=True)] == [True, True]
    assert len({row for rows in drawn for row in rows}) == 10
    assert drawn != [sorted(rows) for rows in drawn]


@pytest.mark.slow
def test_a_run_s_detector_is_trained_measured_and_used(
    tmp_path: Path, write_config: Callable[..., Path], shape_shards: Path
):
    train(write_config(shape_shards), say=lambda _: None)
    run = tmp_path / "run"
    early = CliRunner().invoke(cli, ["eval", str(run), "--detect"])
    assert isinstance(early.exception, TrainError)
    arguments = ["eval", str(run), "--tasks", "detector", "--set", "resamples=100"]
    for _ in range(2):
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        report = (run / "eval" / "val.json").read_bytes()
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    other = CliRunner().invoke(cli, [*arguments, "--set", "learn_split=tune"])
    assert isinstance(other.exception, TrainError)
    assert "no split 'tune'" in str(other.exception)
    assert (run / "eval" / "val.json").read_bytes() == report
    found = json.loads(report)["tasks"]["detector"]
    assert list(found) == list(kinds(("text", "image", "audio")))
    assert all(0 <= cell["auc_not_trained_on"]["value"] <= 1 for cell in found.values())
    assert CliRunner().invoke(cli, ["eval", str(run), "--detect"], catch_exceptions=False).exit_code == 0
    table = pq.read_table(run / "eval" / "val.detected.parquet")
    assert table.column_names == ["sample_id", "probability"]
    assert len(set(table["sample_id"].to_pylist())) == 12
    assert all(0 < value < 1 for value in table["probability"].to_pylist())
