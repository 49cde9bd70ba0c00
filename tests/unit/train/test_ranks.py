"""Two ranks and one compute the same: gradients, losses, and a training that changes from one to the other."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist
from torch import multiprocessing
from torch.multiprocessing import ProcessExitedException

from mmdata.train import data
from mmdata.train.config import load_config
from mmdata.train.dataset import train_loader
from mmdata.train.export import limits_of
from mmdata.train.growth import all_sets
from mmdata.train.launch import rank, whole, world_size
from mmdata.train.loop import Trainer
from mmdata.train.model.fused import FusedModel
from mmdata.train.order import StepSampler
from mmdata.train.parallel import average_whole, clip_gradients
from mmdata.train.run import train
from mmdata.train.stages import make_stages, settle_modes
from mmdata.train.tokens import fit_tokenizer


def on_ranks(function: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Run `function(*arguments)` on so many ranks over gloo, forked from here."""
    # They meet in a file: a port that is free here may be another process's before they listen on it.
    with TemporaryDirectory() as folder:
        given = (ranks, f"file://{folder}/store", function, arguments)
        multiprocessing.start_processes(_rank, given, ranks, start_method="fork")


def _rank(number: int, ranks: int, store: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(number), WORLD_SIZE=str(ranks), LOCAL_RANK=str(number))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=number, world_size=ranks)
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()


def gradients(path: Path, overrides: list[str], out: Path) -> None:
    """The gradients of the first step of a training, written by the first rank."""
    config = load_config(path, overrides)
    sets = data.open_sets(config, all_sets(config))
    tokenizer = fit_tokenizer(data.texts(sets, config.data), 400)
    dataset = data.train_set(sets, config, tokenizer)
    stages = make_stages(config, config.optim.batch_size, len(dataset), {"": 1.0})
    torch.manual_seed(0)
    model = FusedModel(config.architecture(), tuple(config.data.modalities), limits_of(config, tokenizer))
    trainer = Trainer(config, model, stages[0], 0, 1)
    settle_modes(model)
    mix = data.make_mix(sets, dataset, stages, 0, config.optim.batch_size, config.seed)
    sampler = StepSampler(mix, config.optim.batch_size, range(1), rank(), world_size())
    (batch,) = train_loader(dataset, config, sampler)
    loss, _ = trainer._losses(batch)
    loss.backward()
    average_whole(model)
    norm = clip_gradients(model, 1e9)
    found = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    present = torch.zeros(world_size(), 3)
    present[rank()] = batch.present_BM.sum(dim=0)
    if world_size() > 1:
        dist.all_reduce(present)
    if rank() == 0:
        torch.save({"norm": torch.tensor(norm), "present": present.sum(dim=0), "by_rank": present, **found}, out)


@pytest.fixture
def silent_shards(write_shards: Callable[..., Path], shapes) -> Path:
    """Two of three samples have no sound."""
    samples = [
        files if number % 3 == 1 else {k: v for k, v in files.items() if k != "tone.ogg"}
        for number, files in enumerate(shapes(24, 0))
    ]
    return write_shards({"train": [samples], "val": [shapes(6, 1)]})


@pytest.mark.parametrize("pieces", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_have_the_gradients_of_one(
    write_config, silent_shards: Path, tmp_path: Path, strategy: str, pieces: int
):
    """Also where one of them has no sample with sound, and where a rank's batch goes through the model in pieces."""
    path = write_config(silent_shards)
    gradients(path, ["optim.batch_size=6", "seed=4"], tmp_path / "one.pt")
    overrides = [f"strategy={strategy}", "optim.batch_size=6", "seed=4", f"optim.accumulate={pieces}"]
    on_ranks(gradients, 2, path, overrides, tmp_path / "two.pt")
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert min(two.pop("by_rank")[:, 2].tolist()) == 0 < one.pop("by_rank")[0, 2]
    untouched = two.keys() - one.keys()
    assert not any(two[name].any() for name in untouched)
    # Of the size of the gradient, where that is above 1: what is lost is float32's last digits.
    worst = {name: float((one[name] - two[name]).abs().max() / one[name].abs().max().clamp(min=1)) for name in one}
    assert max(worst.values()) < 1e-5
    assert one["norm"] > 1


def train_there(path: Path, overrides: list[str], out: Path, die_at: str = "") -> None:
    """A training that is killed where the first rank says a line that begins so."""

    def say(line: str) -> None:
        if die_at and line.startswith(die_at):
            os.kill(os.getpid(), signal.SIGKILL)

    train(path, overrides, out, say)


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_training_killed_on_two_ranks_goes_on_on_one(write_config, shape_shards: Path, tmp_path: Path, strategy: str):
    path = write_config(shape_shards)
    overrides = [f"strategy={strategy}", "optim.ema_decay=0.9", "checkpoint_every=2"]
    train(path, overrides, tmp_path / "one", lambda _: None)
    with pytest.raises(ProcessExitedException):
        on_ranks(train_there, 2, path, overrides, tmp_path / "two", "step 5/6")
    assert len(losses(tmp_path / "two")) == 5
    again: list[str] = []
    result = train(path, overrides, tmp_path / "two", again.append)
    assert any("going on after step 4" in line for line in again)
    assert (result["status"], result["step"]) == ("finished", 6)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-3


@pytest.mark.slow
def test_a_training_killed_on_one_rank_goes_on_on_two(write_config, shape_shards: Path, tmp_path: Path):
    path = write_config(shape_shards)
    overrides = ["strategy=fsdp", "optim.ema_decay=0.9", "checkpoint_every=2", "steps=4"]
    train(path, overrides, tmp_path / "one", lambda _: None)
    with pytest.raises(ProcessExitedException):
        on_ranks(train_there, 1, path, overrides, tmp_path / "two", "step 3/4")
    on_ranks(train_there, 2, path, overrides, tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["status"] == "finished"
