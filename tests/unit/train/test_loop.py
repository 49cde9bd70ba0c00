"""What a step does beside the loss: pieces, averages, spikes, checkpoints by the clock, weights of samples."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmdata.errors import MissingExtraError, TrainError
from mmdata.train import checkpoint
from mmdata.train.batch import Batch, Failure
from mmdata.train.checkpoint import Progress
from mmdata.train.config import load_config
from mmdata.train.data import open_sets
from mmdata.train.ema import Ema
from mmdata.train.growth import all_sets
from mmdata.train.log import TrainLog
from mmdata.train.loop import Trainer
from mmdata.train.run import train


def quiet(_: str) -> None:
    pass


def losses(folder: Path) -> list[float]:
    return [r["loss"] for line in (folder / "log.jsonl").read_text().splitlines() if "loss" in (r := json.loads(line))]


@pytest.mark.slow
@pytest.mark.parametrize("override", ["optim.accumulate=3", "checkpoint_activations=true", "compile=true"])
def test_less_memory_or_time_is_the_same_training(
    write_config, shape_shards: Path, tmp_path: Path, override: str, monkeypatch: pytest.MonkeyPatch
):
    """Pieces see all negatives: contrastive terms too are those of the whole batch."""
    # The eager backend compiles nothing: what is tested is that blocks are compiled where they stand.
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: compiled.append(module))
    path = write_config(shape_shards)
    settings = ["model.dropout=0", "optim.clip_norm=1e9", "steps=3"]
    train(path, settings, tmp_path / "plain", quiet)
    train(path, [*settings, override], tmp_path / "other", quiet)
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert bool(compiled) is (override == "compile=true")


@pytest.mark.slow
def test_pieces_keep_less_for_the_way_back(write_config, shape_shards: Path, tmp_path: Path):
    def kept(*overrides: str) -> int:
        """Bytes that autograd keeps of the first step, at its peak."""
        sizes: list[int] = []
        peaks: list[int] = []
        real = Trainer._losses

        def counted(trainer: Trainer, batch):
            def pack(tensor: torch.Tensor) -> torch.Tensor:
                sizes.append(tensor.numel() * tensor.element_size())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                found = real(trainer, batch)
            peaks.append(sum(sizes))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_losses", counted)
            out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            train(write_config(shape_shards), ["steps=1", "optim.warmup=0", *overrides], out, quiet)
        return peaks[0]

    plain = kept()
    assert kept("optim.accumulate=4") < 0.6 * plain
    assert kept("checkpoint_activations=true") < 0.6 * plain


def test_the_average_follows_its_formula():
    model = nn.Linear(2, 1)
    frozen = model.bias.requires_grad_(requires_grad=False)
    ema = Ema(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            model.weight.fill_(float(step))
            frozen.fill_(9.0)
        ema.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert torch.allclose(ema.averages["weight"], expected)
    assert not torch.equal(ema.averages["bias"], frozen)


def test_the_average_is_what_is_exported(write_config, shape_shards: Path, tmp_path: Path):
    train(write_config(shape_shards), ["optim.ema_decay=0.9"], tmp_path / "run", quiet)
    (file,) = (tmp_path / "run" / "checkpoints" / "step-00000006").glob("*.safetensors")
    saved, exported = load_file(file), load_file(tmp_path / "run" / "model.safetensors")
    for name, value in exported.items():
        assert torch.equal(value, saved.get(f"ema.{name}", saved[f"model.{name}"]))
    name = "fusion.latents"
    assert not torch.equal(exported[name], saved[f"model.{name}"])


@pytest.mark.slow
def test_a_spike_is_not_taken_and_is_counted(write_config, shape_shards: Path, tmp_path: Path, monkeypatch):
    real, calls = checkpoint.save, []
    norms = iter([1.0] * 18 + [500.0] + [1.0] * 99)
    monkeypatch.setattr("mmdata.train.loop.clip_gradients", lambda *_: next(norms))
    monkeypatch.setattr("mmdata.train.loop.checkpoint.save", lambda *a: calls.append(a[1].step) or real(*a))
    lines: list[str] = []
    result = train(write_config(shape_shards), ["steps=20"], tmp_path / "run", lines.append)
    assert (result["bad_steps"], len(losses(tmp_path / "run"))) == (1, 19)
    spikes = [line for line in lines if "is not taken" in line]
    assert len(spikes) == 1
    assert spikes[0].startswith("step 19 is not taken: loss ")
    assert spikes[0].endswith("gradient norm 500: gradient norm above 10 times its median")


@pytest.mark.slow
def test_checkpoints_come_by_the_clock_and_the_newest_stay(write_config, shape_shards: Path, tmp_path: Path):
    train(write_config(shape_shards), ["checkpoint_every_s=0.000001", "keep_checkpoints=3"], tmp_path / "run", quiet)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005", "step-00000006"]


def test_nothing_in_a_checkpoint_is_pickled(write_config, shape_shards: Path, tmp_path: Path):
    train(write_config(shape_shards), ["steps=2", "optim.warmup=1"], tmp_path / "run", quiet)
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]


def test_numbers_go_to_tensorboard(write_config, shape_shards: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(write_config(shape_shards), ["tensorboard=true", "steps=3"], tmp_path / "run", quiet)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(tmp_path / "run"))
    assert "image_to_text/recall@5" in events.Tags()["scalars"]


def test_numbers_go_to_weights_and_biases(write_config, shape_shards: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    overrides = ["wandb=stamps", "steps=2", "optim.warmup=1"]
    with pytest.raises(MissingExtraError, match=r"wandb: stamps needs .*pip install 'mmdata\[wandb\]'"):
        train(write_config(shape_shards), overrides, tmp_path / "run", quiet)
    told: list[tuple[int, dict[str, float]]] = []
    ended: list[bool] = []
    one = SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: ended.append(True))
    asked: list[dict[str, object]] = []
    fake = SimpleNamespace(init=lambda **settings: asked.append(settings) or one)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(write_config(shape_shards), overrides, tmp_path / "run", quiet)
    assert (asked[0]["project"], asked[0]["resume"]) == ("stamps", "allow")
    assert [values["loss"] for _, values in told if "loss" in values] == pytest.approx(losses(tmp_path / "run"))
    assert any("image->text/recall@5" in values for _, values in told)
    assert ended == [True]


def with_weights(shards: Path, weights: list[object], split: str = "train") -> None:
    """Write `attributes.weight` into the records of the first shard."""
    path = shards / f"{split}-000000.tar"
    with tarfile.open(path) as tar:
        files = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    remaining = iter(weights)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in files:
            is_record = info.name.endswith(".json")
            record = json.dumps({**json.loads(data), "attributes": {"weight": next(remaining)}}) if is_record else ""
            content = record.encode() or data
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["splits"][split]["shards"][0]["bytes"] = path.stat().st_size
    (shards / "manifest.json").write_text(json.dumps(manifest))


def test_a_sample_is_seen_as_often_as_its_record_says(write_config, shape_shards: Path):
    with_weights(shape_shards, ["2.5", 0, *[1] * 9, 0.5])
    config = load_config(write_config(shape_shards), ["data.weight_by=attributes.weight"])
    (one,) = open_sets(config, all_sets(config))
    assert one.train is not None
    assert one.train.weight_N is not None
    assert one.train.weight_N.tolist() == [2.5, 0, *[1] * 9, 0.5, *[1] * 12]


def test_failures_are_looked_up_and_not_looked_through(tmp_path: Path):
    """With a hundred thousand of them each one that was met took longer than its step."""

    class Unsearched(list[str]):
        def __contains__(self, _: object) -> bool:
            raise AssertionError

    trainer = Trainer.__new__(Trainer)
    trainer.progress, trainer._failed = Progress(failed_members=Unsearched()), set()
    failures = [Failure("a.tar", str(number % 3), "key", "image", "bad", "no image") for number in range(6)]
    none = torch.zeros(0, dtype=torch.int64)
    trainer._note_failures(Batch(none, none, none, {}, failures), TrainLog(tmp_path, lambda _: None, 0))
    assert list(trainer.progress.failed_members) == ["a.tar/0/image", "a.tar/1/image", "a.tar/2/image"]


def test_what_is_measured_is_not_weighed(write_config, shape_shards: Path):
    """Held-out samples that must not be trained on may well weigh 0."""
    with_weights(shape_shards, [2] * 12)
    with_weights(shape_shards, [0] * 12, "val")
    config = load_config(write_config(shape_shards), ["data.weight_by=attributes.weight"])
    (one,) = open_sets(config, all_sets(config))
    assert one.val is not None
    assert one.val.weight_N is None


def test_a_weight_that_is_none_is_named_with_shard_and_key(write_config, shape_shards: Path):
    with_weights(shape_shards, [1, -2, *[1] * 10])
    config = load_config(write_config(shape_shards), ["data.weight_by=attributes.weight"])
    with pytest.raises(TrainError, match=r"attributes\.weight of key-1 in train-000000\.tar is -2, which is no weight"):
        open_sets(config, all_sets(config))


def test_a_weight_that_no_sample_has_is_told_with_the_nearest(write_config, shape_shards: Path):
    """A slip of the pen trained on all samples alike, and nobody was told."""
    with_weights(shape_shards, [1] * 12)
    config = load_config(write_config(shape_shards), ["data.weight_by=attributes.weigth"])
    expected = r"no sample has 'attributes\.weigth' in its JSON; did you mean 'attributes\.weight'\?"
    with pytest.raises(TrainError, match=expected):
        open_sets(config, all_sets(config))


@pytest.mark.slow
def test_several_sets_are_mixed_and_measured_together(
    write_config: Callable[..., Path], write_shards: Callable[..., Path], shapes, tmp_path: Path
):
    first = write_shards({"train": [shapes(12, 0)], "val": [shapes(6, 1)]}).rename(tmp_path / "first")
    second = write_shards({"train": [shapes(30, 2)]})
    path = write_config(second)
    sets = f"data.sets={{a: {{shards: {first}, share: 3}}, b: {{shards: {second}, share: 1}}}}"
    lines: list[str] = []
    result = train(path, ["data.shards=null", sets], tmp_path / "run", lines.append)
    assert (result["samples"]["train"], result["samples"]["val"]) == (42, 6)
    assert {
        "a train: 12 samples in 1 shards",
        "b train: 30 samples in 1 shards",
        "a val: 6 samples in 1 shards",
    } <= set(lines)
    again = train(path, ["data.shards=null", sets, "workers=2"], tmp_path / "again", quiet)
    assert again["metrics"] == result["metrics"]
    assert losses(tmp_path / "again") == losses(tmp_path / "run")
