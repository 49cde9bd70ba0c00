"""One run of `mmdata train` on one output folder: prepare, train stage after stage, export, measure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mmdata.train import checkpoint, data, growth
from mmdata.train.batch import Lesson, told_failures
from mmdata.train.checkpoint import Checkpoint, Progress
from mmdata.train.config import SetConfig, TrainConfig
from mmdata.train.data import OpenSet
from mmdata.train.dataset import MixedDataset, eval_loader
from mmdata.train.eval import embed, measure, table
from mmdata.train.export import limits_of, save_model, write_json
from mmdata.train.launch import barrier, is_main, rank, rank_device, world_size
from mmdata.train.log import Say, TrainLog
from mmdata.train.loop import Trainer, autocast, is_complete
from mmdata.train.model.fused import FusedModel
from mmdata.train.model.vocabulary import tower_tokenizer
from mmdata.train.sinks import make_sinks
from mmdata.train.stages import make_stages, stage_at
from mmdata.train.stop import StopSignals
from mmdata.train.teacher import load_teacher
from mmdata.train.tokens import fit_tokenizer, load_tokenizer


class Session:
    """What a run holds on to. `prepare` before `train`, `train` before `finish`; all ranks do the same together."""

    def __init__(self, config: TrainConfig, sets: Sequence[OpenSet], say: Say) -> None:
        """Look for what an earlier run left. Raises TrainError where that is of a run with other settings."""
        self.config, self.sets, self._say = config, sets, say
        self.output = Path(config.output)
        self.modalities = tuple(config.data.modalities)
        self.identity = checkpoint.identity_of(config, {one.name or "data": one.folder.digest for one in sets})
        self.output.mkdir(parents=True, exist_ok=True)
        self._checkpoints = self.output / "checkpoints"
        self._saved = checkpoint.newest(self._checkpoints, self.identity)
        self.metrics: dict[str, Any] = {}
        self.val_failed = 0
        self.trainer: Trainer
        self.log: TrainLog

    def say(self, line: str) -> None:
        """Say something, once for all ranks."""
        if is_main():
            self._say(line)

    def finished_before(self) -> dict[str, Any] | None:
        """The summary of an earlier run that left nothing to do, else None."""
        progress = self._saved.progress if self._saved else Progress()
        measured = _read_json(self.output / "metrics.json")
        total = measured.get("steps", 0)
        whole = (self.output / "model.safetensors").exists() and measured.get("ks") == self.config.eval_ks
        if not (whole and measured.get("step") == progress.step and is_complete(self.config, progress, total)):
            return None
        self.say(f"{self.output}: already trained, {progress.step} steps; nothing to do")
        return {**measured, "status": "already_finished", "output": str(self.output)}

    def prepare(self) -> None:
        """Fit or load the tokenizer, decode nothing yet, make the model, restore it."""
        config = self.config
        growth.check_start(config)
        for one in self.sets:
            self._say_counts(one)
        tokenizer = self._tokenizer()
        self.train_set = data.train_set(self.sets, config, tokenizer)
        self.val_set = data.val_set(self.sets, config, tokenizer, replay=False)
        self.old_val_set = data.val_set(self.sets, config, tokenizer, replay=True)
        self._limits = limits_of(config, tokenizer)
        self._batch = data.batch_size(self.train_set, config)
        if self._batch < config.optim.batch_size:
            few = f"optim.batch_size is {config.optim.batch_size}, but there are {self._batch} samples to train on"
            self.say(f"{few}: each step sees all of them")
        shares = {one.name: one.share for one in self.sets}
        self.stages = make_stages(config, self._batch, len(self.train_set), shares)
        if config.threads:
            torch.set_num_threads(config.threads)
        self._device = rank_device(config.device)
        self._teacher = load_teacher(config, self._device)
        self._make_trainer(self._saved)
        parameters = sum(parameter.numel() for parameter in self.trainer.model.parameters())
        ranks = f" x {world_size()} ({config.strategy})" if world_size() > 1 else ""
        self.say(f"{parameters / 1e6:.2f}M parameters on {self._device}{ranks}, {self.total_steps} steps")

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return self.stages[-1].end

    def train(self) -> bool:
        """Train on; True where training is complete."""
        progress = self.trainer.progress
        sinks = make_sinks(self.config, self.output, progress.step) if is_main() else []
        self.log = TrainLog(self.output, self._say, progress.step, sinks, rank(), progress.failed_members)
        if self._saved:
            self.say(f"{self._saved.path}: going on after step {progress.step}")
        self._measure_before()
        with StopSignals() as stop:
            while not is_complete(self.config, self.trainer.progress, self.total_steps):
                self._enter_stage()
                if self._train_stage(stop):
                    break
        self.log.close()
        complete = is_complete(self.config, self.trainer.progress, self.total_steps)
        if not complete:
            self.say(f"stopped after step {self.trainer.progress.step}; the same command goes on from there")
        return complete

    def finish(self) -> None:
        """Export the model, measure it, write the metrics."""
        weights = self.trainer.weights()
        if is_main():
            replayed = {
                one.name: SetConfig(shards=str(one.folder.place), share=one.share)
                for one in self.sets
                if one.is_replay and one.share
            }
            save_model(self.output, weights, self.modalities, self.config, self._limits, replayed)
            self._measure_with(weights)
            self._report_forgetting(weights)
            write_json(self.output / "metrics.json", {**self.summary("finished"), "ks": self.config.eval_ks})
        barrier()

    def summary(self, status: str) -> dict[str, Any]:
        """What `train` returns."""
        progress = self.trainer.progress
        return {
            "status": status,
            "output": str(self.output),
            "step": progress.step,
            "steps": self.total_steps,
            "stage": self.trainer.stage.name,
            "seconds": round(progress.elapsed_s, 3),
            "wait_share": round(progress.wait_s / progress.elapsed_s, 4) if progress.elapsed_s else 0.0,
            "samples": self._counts(),
            "bad_steps": progress.bad_steps,
            "metrics": self.metrics,
        }

    def _counts(self) -> dict[str, int]:
        trains = [one.train for one in self.sets if one.train]
        vals = [one.val for one in self.sets if one.val and not one.is_replay]
        return {
            "train": sum(len(split.index) for split in trains),
            "train_with_one_modality": sum(split.skipped for split in trains),
            "train_members_failed": len(self.trainer.progress.failed_members),
            "val": sum(len(split.index) for split in vals),
            "val_with_one_modality": sum(split.skipped for split in vals),
            "val_failed": self.val_failed,
        }

    def _say_counts(self, one: OpenSet) -> None:
        for name, split in (("train", one.train), ("val", one.val)):
            if split:
                left_out = f"; {split.skipped} left out, of fewer than two modalities" if split.skipped else ""
                counts = f"{len(split.index)} samples in {len(split.index.shards)} shards{left_out}"
                self.say(f"{one.name + ' ' if one.name else ''}{name}: {counts}")

    def _enter_stage(self) -> None:
        """Have the trainer of the stage that the next step is in."""
        number = stage_at(self.stages, self.trainer.progress.step)
        if number != self.trainer.number:
            self._make_trainer(self._save())
        stage = self.stages[number]
        if len(self.stages) > 1:
            counts = f"{self.trainer.trained / 1e6:.2f}M parameters trained"
            self.say(f"stage '{stage.name}': steps {stage.first + 1} to {stage.end}, {counts}")

    def _train_stage(self, stop: StopSignals) -> bool:
        """True where a stop was asked for."""
        trainer = self.trainer
        mix = data.make_mix(self.sets, self.train_set, self.stages, trainer.number, self._batch, self.config.seed)
        order = (self.train_set, mix, self._batch)
        stopped = trainer.run(order, self.log, lambda: stop.asked, self._save, self._measure)
        self._save()
        return stopped

    def _save(self) -> Checkpoint:
        return self.trainer.save(self._checkpoints, self.identity)

    def _measure(self) -> None:
        weights = self.trainer.weights()
        if is_main():
            self._measure_with(weights)
        barrier()

    def _measure_with(self, weights: Mapping[str, Tensor]) -> None:
        ks = self.config.eval_ks
        self.metrics, self.val_failed = self._recalls(weights, self.val_set)
        self.log.measured(self.trainer.progress.step, self.metrics, table(self.metrics, ks))

    def _recalls(self, weights: Mapping[str, Tensor], dataset: MixedDataset | None) -> tuple[dict[str, Any], int]:
        assert dataset is not None
        # As it is trained: an accelerator would else measure in other bits than the file asks for.
        with autocast(self.config, self._device):
            embedded = embed(self._plain_model(weights), eval_loader(dataset, self.config), self._device)
        if embedded.failures:
            self.say(told_failures(embedded.failures, len(dataset)))
        return measure(embedded, self.modalities, self.config.eval_ks), len(embedded.failures)

    def _plain_model(self, weights: Mapping[str, Tensor]) -> FusedModel:
        """A model with these weights that is neither sharded, nor wrapped, nor trained."""
        if world_size() == 1 and not self.trainer.ema:
            return self.trainer.model
        model = self._fresh_model()
        model.load_state_dict(dict(weights))
        return model

    def _measure_before(self) -> None:
        """What the run that is continued recalls of its own held-out samples, before a step is taken."""
        if self.old_val_set is None or self.trainer.progress.step:
            return
        weights = self.trainer.weights()
        if is_main():
            write_json(self.output / "before.json", self._recalls(weights, self.old_val_set)[0])
        barrier()

    def _report_forgetting(self, weights: Mapping[str, Tensor]) -> None:
        if self.old_val_set is None:
            return
        after, _ = self._recalls(weights, self.old_val_set)
        report = growth.forgetting(_read_json(self.output / "before.json"), after, self.config.eval_ks)
        write_json(self.output / "forgetting.json", report)
        for line in growth.forgetting_table(report, max(self.config.eval_ks)):
            self.say(line)

    def _tokenizer(self) -> Tokenizer | None:
        """That of this run, of the run to begin with, of the teacher, else one fitted on what is trained on.

        None where text is no modality.
        """
        if "text" not in self.modalities:
            return None
        path = self.output / "tokenizer.json"
        if is_main() and not self._saved:
            tokenizer = self._first_tokenizer()
            checkpoint.write_whole(path, lambda scratch: tokenizer.save(str(scratch)))
        barrier()
        return load_tokenizer(path)

    def _first_tokenizer(self) -> Tokenizer:
        config = self.config
        for run in (config.start.run if config.start else None, config.teacher.run if config.teacher else None):
            if run and (Path(run) / "tokenizer.json").exists():
                return load_tokenizer(Path(run) / "tokenizer.json")
        if "text" in config.model.towers:
            return tower_tokenizer(config.model.towers["text"])
        return fit_tokenizer(data.texts(self.sets, config.data), config.data.vocab_size)

    def _fresh_model(self) -> FusedModel:
        torch.manual_seed(self.config.seed)
        return FusedModel(self.config.architecture(), self.modalities, self._limits, self._mimicked()).to(self._device)

    def _mimicked(self) -> tuple[Lesson, ...]:
        """What is taught by vectors that a stage has foretold; nothing where no stage does."""
        if not any(loss.mimic for loss in self.config.losses()):
            return ()
        return self._teacher.lessons if self._teacher else self.train_set.lessons

    def _make_trainer(self, saved: Checkpoint | None) -> None:
        """The trainer of the stage that the next step is in, from a checkpoint or from the start."""
        model = self._fresh_model()
        if saved is None and self.config.start:
            growth.begin_with(model, self.config.start)
        number = stage_at(self.stages, saved.progress.step if saved else 0)
        stage = self.stages[number]
        self.trainer = Trainer(self.config, model, stage, number, self.total_steps, self._teacher)
        if saved:
            self.trainer.restore(saved)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
