from __future__ import annotations

import errno
import json
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from traceback import StackSummary
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from mmdata.errors import SpecError, TrainError
from mmdata.train import checkpoint, launch
from mmdata.train import eval as measuring
from mmdata.train.dice import Dice
from mmdata.train.evaluate.run import evaluate
from mmdata.train.export import load_model
from mmdata.train.parallel import clip_gradients
from mmdata.train.run import train
from mmdata.train.stages import learning_rate
from mmdata.train.stop import StopSignals


class Lines(list[str]):
    """Takes the lines of a training; `at` a line that starts so, does something."""

    def __init__(self, at: str = "", then=lambda: None):
        super().__init__()
        self.at, self.then = at, then

    def __call__(self, line: str) -> None:
        self.append(line)
        if self.at and line.startswith(self.at):
            self.then()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal_weights(left: Path, right: Path) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def steps_of(folder: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


@pytest.fixture
def straight(tmp_path: Path, write_config: Callable[..., Path], shape_shards: Path):
    """An undisturbed run, with dropout, so that the random state counts."""
    path = write_config(shape_shards)
    return train(path, ["model.dropout=0.1"], tmp_path / "straight", Lines()), tmp_path / "straight", path


def test_a_run_leaves_model_log_and_metrics(straight, shape_shards: Path):
    result, folder, _ = straight
    assert (result["status"], result["step"], result["steps"]) == ("finished", 6, 6)
    assert result["samples"] == {
        "train": 24, "train_with_one_modality": 0, "train_members_failed": 0,
        "val": 12, "val_with_one_modality": 0, "val_failed": 0,
    }  # fmt: skip
    assert [step for step, _ in steps_of(folder)] == [1, 2, 3, 4, 5, 6]
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert metrics == result["metrics"]
    assert set(metrics) == {
        "image->text", "text->image", "image->audio", "audio->image", "text->audio", "audio->text",
        "fusion->image", "fusion->text", "fusion->audio",
    }  # fmt: skip
    assert metrics["image->text"]["candidates"] == 12
    assert metrics["image->audio"]["candidates"] == 9
    model, tokenizer = load_model(folder)
    assert torch.equal(model.state_dict()["fusion.latents"], weights(folder)["fusion.latents"])
    assert tokenizer is not None
    assert not list(folder.glob(".*"))


def test_it_is_measured_in_the_precision_that_it_is_trained_in(
    write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[bool] = []
    embed_batch = measuring._embed_batch

    def embed(*arguments: object) -> tuple[Tensor, ...]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return embed_batch(*arguments)

    monkeypatch.setattr(measuring, "_embed_batch", embed)
    path = write_config(shape_shards, steps=3)
    train(path, ["precision=bfloat16"], tmp_path / "half", Lines())
    assert set(seen) == {True}
    seen.clear()
    train(path, ["precision=float32"], tmp_path / "whole", Lines())
    assert set(seen) == {False}


def test_the_same_seed_gives_the_same_weights_and_another_does_not(straight, tmp_path: Path):
    _, folder, path = straight
    train(path, ["model.dropout=0.1", "workers=2"], tmp_path / "again", Lines())
    assert_equal_weights(folder, tmp_path / "again")
    train(path, ["model.dropout=0.1", "seed=1"], tmp_path / "other", Lines())
    assert not torch.equal(weights(folder)["fusion.latents"], weights(tmp_path / "other")["fusion.latents"])


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on_to_the_same_weights(straight, tmp_path: Path, which):
    _, folder, path = straight
    before = signal.getsignal(which)
    interrupted = Lines("step 2/6", lambda: os.kill(os.getpid(), which))
    first = train(path, ["model.dropout=0.1"], tmp_path / "parts", interrupted)
    assert (first["status"], first["step"]) == ("stopped", 2)
    assert signal.getsignal(which) is before
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    lines = Lines()
    assert train(path, ["model.dropout=0.1"], tmp_path / "parts", lines)["status"] == "finished"
    assert any("going on after step 2" in line for line in lines)
    assert_equal_weights(folder, tmp_path / "parts")
    assert steps_of(folder) == steps_of(tmp_path / "parts")


@pytest.mark.parametrize(("which", "rank"), [(signal.SIGTERM, None), (signal.SIGINT, "0"), (signal.SIGTERM, "0")])
def test_a_signal_that_is_sent_again_ends_nothing_before_it_is_saved(
    monkeypatch: pytest.MonkeyPatch, which: signal.Signals, rank: str | None
):
    """torchrun passes on to its ranks what they have got already; the checkpoint was lost."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    before, heard = signal.getsignal(which), []
    signal.signal(which, lambda *_: heard.append(which))
    try:
        with StopSignals() as stop:
            assert not stop.asked
            for _ in range(3):
                signal.raise_signal(which)
            assert stop.asked
        assert heard == []
        signal.raise_signal(which)
        assert heard == [which]
    finally:
        signal.signal(which, before)


def test_a_second_ctrl_c_of_a_person_ends_it_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    # As at a terminal: what a shell starts behind itself ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_signal_to_all_its_processes_saves_as_one_to_itself_does(
    write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path
):
    """torchrun sends SIGTERM to the whole group: workers died of it, and the training of them, without a checkpoint."""

    def stop() -> None:
        for process in [*psutil.Process().children(recursive=True), psutil.Process()]:
            process.send_signal(signal.SIGTERM)

    path = write_config(shape_shards, workers=1)
    stopped = train(path, ["steps=2000"], tmp_path / "run", Lines("step 3/", stop))
    assert stopped["status"] == "stopped"
    assert (tmp_path / "run" / "checkpoints" / f"step-{stopped['step']:08d}" / "state.json").exists()


def test_a_checkpoint_that_the_disk_does_not_take_leaves_the_one_before(
    straight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, folder, path = straight
    overrides, calls = ["model.dropout=0.1", "checkpoint_every=2"], []
    save_tensors = checkpoint.save_tensors

    def full(*arguments: Any, storage_writer: Any, **others: Any) -> None:
        calls.append(storage_writer)
        if len(calls) == 2:
            (tmp_path / "full" / "checkpoints" / ".step-00000004" / "half").write_bytes(b"x")
            raise CheckpointException("save", {0: (OSError(errno.ENOSPC, "No space left on device"), StackSummary())})
        save_tensors(*arguments, storage_writer=storage_writer, **others)

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(TrainError, match=r"step-00000004: a checkpoint cannot be written: .*No space left.*make room"):
        train(path, overrides, tmp_path / "full", Lines())
    assert [one.name for one in (tmp_path / "full" / "checkpoints").iterdir()] == ["step-00000002"]
    train(path, overrides, tmp_path / "full", Lines())
    assert_equal_weights(folder, tmp_path / "full")


def test_a_checkpoint_is_not_taken_away_to_be_written_again(straight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The end of a stage is asked for twice: a kill between removing and renaming would have lost it."""
    _, _, path = straight
    written: list[str] = []
    save_tensors = checkpoint.save_tensors

    def noted(*arguments: Any, storage_writer: Any, **others: Any) -> None:
        written.append(Path(storage_writer.path).name)
        save_tensors(*arguments, storage_writer=storage_writer, **others)

    monkeypatch.setattr(checkpoint, "save_tensors", noted)
    stages = "stages=[{name: one, samples: 16}, {name: two, samples: 16}]"
    result = train(path, ["steps=null", stages, "optim.batch_size=8"], tmp_path / "stages", Lines())
    assert (result["step"], written) == (4, [".step-00000002", ".step-00000004"])


def test_one_training_at_a_time_in_a_folder(
    write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two would take each other's checkpoints away, and mix their lines in one log."""
    path, output = write_config(shape_shards), tmp_path / "once"
    monkeypatch.setattr(launch, "_LOCK_PATIENCE_S", 0.1)
    with launch.alone_in(output), pytest.raises(TrainError, match=r"once: another training runs here; wait for it"):
        train(path, [], output, Lines())
    with launch.alone_in(output):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match=r"output: .*file cannot be made a folder: .*; name another"):
        train(path, [], tmp_path / "file", Lines())


class Killed(BaseException):
    pass


def die():
    raise Killed


def test_a_kill_between_checkpoints_loses_only_what_came_after(straight, tmp_path: Path):
    _, folder, path = straight
    overrides = ["model.dropout=0.1", "checkpoint_every=3"]
    with pytest.raises(Killed):
        train(path, overrides, tmp_path / "killed", Lines("step 5/6", die))
    assert [step for step, _ in steps_of(tmp_path / "killed")] == [1, 2, 3, 4, 5]
    lines = Lines()
    train(path, overrides, tmp_path / "killed", lines)
    assert any("going on after step 3" in line for line in lines)
    assert_equal_weights(folder, tmp_path / "killed")
    assert steps_of(folder) == steps_of(tmp_path / "killed")


def test_a_finished_run_says_so_and_does_nothing(straight):
    result, folder, path = straight
    stamps = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    lines = Lines()
    again = train(path, ["model.dropout=0.1"], folder, lines)
    assert again["status"] == "already_finished"
    assert again["metrics"] == result["metrics"]
    assert lines == [f"{folder}: already trained, 6 steps; nothing to do"]
    assert stamps == {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_a_run_killed_before_it_was_measured_is_measured(straight):
    result, folder, path = straight
    (folder / "metrics.json").unlink()
    again = train(path, ["model.dropout=0.1"], folder, Lines())
    assert (again["status"], again["metrics"]) == ("finished", result["metrics"])


def test_other_settings_do_not_continue_a_run(straight, shape_shards: Path):
    _, folder, path = straight
    with pytest.raises(TrainError, match=r"of a run with other settings: optim\.lr was 0\.002, is 0\.5; use another"):
        train(path, ["model.dropout=0.1", "optim.lr=0.5"], folder, Lines())
    manifest = shape_shards / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(TrainError, match=r"data\.digest was .*; shards that were built again .* --continue"):
        train(path, ["model.dropout=0.1"], folder, Lines())


def test_what_changes_no_step_may_differ_when_a_run_goes_on(straight, tmp_path: Path):
    _, folder, path = straight
    changes = ["data.cache_gib=3", f"data.cache_dir={tmp_path}", "data.max_failed_share=0.9", "log_every=3"]
    assert train(path, ["model.dropout=0.1", *changes], folder, Lines())["status"] == "already_finished"


def test_a_damaged_checkpoint_is_named(straight):
    _, folder, path = straight
    (tensors,) = (folder / "checkpoints" / "step-00000006").glob("*.safetensors")
    tensors.write_bytes(b"no tensors")
    (folder / "metrics.json").unlink()
    with pytest.raises(TrainError, match=r"step-00000006: not a checkpoint that can be read .*; delete that folder"):
        train(path, ["model.dropout=0.1"], folder, Lines())


def test_time_ends_a_training_and_more_time_goes_on(
    write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path
):
    path = write_config(shape_shards)
    first = train(path, ["max_minutes=0.00001"], tmp_path / "timed", Lines())
    assert (first["status"], first["step"]) == ("finished", 1)
    assert train(path, ["max_minutes=0.00001"], tmp_path / "timed", Lines())["status"] == "already_finished"
    second = train(path, ["max_minutes=10"], tmp_path / "timed", Lines())
    assert (second["status"], second["step"]) == ("finished", 6)


def test_a_member_that_the_shards_lack_is_named_with_its_place(write_config: Callable[..., Path], shape_shards: Path):
    path = write_config(shape_shards)
    with pytest.raises(SpecError) as caught:
        train(path, ["data.modalities.text=[captoin]"], None, Lines())
    expected = "--set data.modalities.text=[captoin]: the shards have no member 'captoin'; did you mean 'caption'?"
    assert caught.value.problems == [expected]
    path.write_text(path.read_text().replace("- tone", "- image2").replace("- caption", "- tone"))
    with pytest.raises(SpecError) as caught:
        train(path, [], None, Lines())
    first, second = sorted(problem.split("train.yaml:")[1] for problem in caught.value.problems)
    assert first == "10:7 data.modalities.text[0]: the member 'tone' is of modality 'audio'; list it under 'audio'"
    assert second == "6:7 data.modalities.audio[0]: the shards have no member 'image2'; did you mean 'image'?"


def spoil(shards: Path, ending: str, count: int, split: str = "train") -> None:
    """Overwrite the first members of a kind in the first shard of a split, leaving sizes as they are."""
    tar_path = shards / f"{split}-000000.tar"
    with tarfile.open(tar_path) as tar:
        members = [info for info in tar if info.name.endswith(ending)][:count]
    with tar_path.open("r+b") as file:
        for info in members:
            file.seek(info.offset_data)
            file.write(b"\xff" * info.size)


def test_what_cannot_be_decoded_is_counted_once_and_named(
    write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path
):
    spoil(shape_shards, ".png", 1)
    spoil(shape_shards, ".tone.ogg", 1)
    lines = Lines()
    result = train(write_config(shape_shards), ["steps=9"], tmp_path / "run", lines)
    assert result["samples"]["train_members_failed"] == 2
    records = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert sorted((record["shard"], record["key"], record["member"]) for record in records) == [
        ("train-000000.tar", "key-0", "image"),
        ("train-000000.tar", "key-1", "tone"),
    ]
    assert sum(line.startswith("skipped ") for line in lines) == len(records)
    assert any("of key-0 (" in line and "in train-000000.tar)" in line for line in lines)


def test_what_cannot_be_decoded_is_named_once_also_after_a_kill(
    write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path
):
    spoil(shape_shards, ".png", 6)
    path, overrides = write_config(shape_shards), ["steps=9", "checkpoint_every=2", "log_every=1"]
    with pytest.raises(Killed):
        train(path, overrides, tmp_path / "run", Lines("step 3/9", die))
    result = train(path, overrides, tmp_path / "run", Lines())
    keys = [json.loads(line)["key"] for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert sorted(keys) == [f"key-{number}" for number in range(6)]
    assert result["samples"]["train_members_failed"] == 6


def test_held_out_samples_that_cannot_be_decoded_are_told_by_train_and_eval(
    write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path
):
    """Figures of a remnant looked like those of the split."""
    spoil(shape_shards, ".png", 5, "val")
    expected = "5 of 12 held-out samples cannot be decoded and are not measured; the first: 'image' of key-"
    lines, evaluated = Lines(), Lines()
    train(write_config(shape_shards), [], tmp_path / "run", lines)
    evaluate(tmp_path / "run", None, ["tasks=[retrieval]"], None, evaluated)
    for told in (lines, evaluated):
        assert [line[: len(expected)] for line in told if "held-out samples cannot" in line] == [expected]


def test_steps_that_teach_nothing_are_told_of_once(
    write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path
):
    """Of two modalities that never meet, say: all steps went by without a line, as if all were well."""
    two = "data.modalities={image: [image], text: [caption]}"
    lines = Lines()
    train(write_config(shape_shards), [two, "loss.without=[image~text]", "steps=25"], tmp_path / "run", lines)
    told = [line for line in lines if line.startswith("nothing was learnt in the last 10 steps of stage 'train'")]
    assert len(told) == 1
    assert "no term of the loss (pair, fusion) had" in told[0]


def test_too_many_failures_stop_with_the_last_of_them(
    write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path
):
    spoil(shape_shards, ".png", 12)
    with pytest.raises(TrainError, match=r"of \d+ samples cannot be decoded, more than data\.max_failed_share"):
        train(write_config(shape_shards), ["steps=40", "data.max_failed_share=0.3"], tmp_path / "run", Lines())


def test_numbers_that_are_not_finite_never_reach_the_weights(
    write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def second_is_not(model, most):
        calls.append(model)
        return float("nan") if len(calls) == 2 else clip_gradients(model, most)

    monkeypatch.setattr("mmdata.train.loop.clip_gradients", second_is_not)
    result = train(write_config(shape_shards), [], tmp_path / "run", Lines())
    assert result["bad_steps"] == 1
    assert [step for step, _ in steps_of(tmp_path / "run")] == [1, 3, 4, 5, 6]
    monkeypatch.setattr("mmdata.train.loop.clip_gradients", lambda *_: float("inf"))
    with pytest.raises(TrainError, match=r"not finite 10 times in a row; lower optim\.lr"):
        train(write_config(shape_shards, steps=40), [], tmp_path / "nan", Lines())


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, 24, 1.0, 4) for step in range(24)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[14] == pytest.approx(0.5)
    assert rates[23] < 0.01
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_dice_are_thrown_anew_for_each_step_and_again_alike(
    write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    thrown = []

    def record(seed: int, step: int, row_B: Tensor) -> Dice:
        thrown.append((seed, step))
        return dice_of(seed, step, row_B)

    dice_of = Dice.of
    monkeypatch.setattr("mmdata.train.loop.Dice.of", record)
    path = write_config(shape_shards)
    train(path, [], tmp_path / "run", Lines("step 2/6", lambda: os.kill(os.getpid(), signal.SIGTERM)))
    train(path, [], tmp_path / "run", Lines())
    assert thrown == [(0, step) for step in range(6)]
