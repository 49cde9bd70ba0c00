"""One run of `mmdata train` on one output folder: prepare, train, export, measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from mmdata.errors import TrainError
from mmdata.models.device import resolve_device
from mmdata.train import checkpoint
from mmdata.train.config import TrainConfig
from mmdata.train.dataset import SampleDataset, Split, eval_loader, iter_texts, open_split, steps_per_epoch
from mmdata.train.eval import embed, measure, table
from mmdata.train.export import limits_of, save_model, write_json
from mmdata.train.log import Say, TrainLog
from mmdata.train.loop import Trainer, is_complete
from mmdata.train.manifest import ShardFolder
from mmdata.train.model.fused import FusedModel
from mmdata.train.online import online_augment
from mmdata.train.stop import StopSignals
from mmdata.train.tokens import fit_tokenizer, load_tokenizer

# One sample has no negatives.
_MIN_SAMPLES = 2


class Session:
    """What a run holds on to. `prepare` before `train`, `train` before `finish`."""

    def __init__(self, config: TrainConfig, folder: ShardFolder, say: Say) -> None:
        """Look for what an earlier run left. Raises TrainError where that is of a run with other settings."""
        self.config, self.folder, self.say = config, folder, say
        self.output = Path(config.output)
        self.modalities = tuple(config.data.modalities)
        self.identity = checkpoint.identity_of(config, folder.digest)
        self.output.mkdir(parents=True, exist_ok=True)
        self._path = self.output / "checkpoint.pt"
        self._saved = checkpoint.load(self._path, self.identity) if self._path.exists() else None
        self.metrics: dict[str, Any] = {}
        self.val_failed = 0
        self.trainer: Trainer
        self.log: TrainLog

    def finished_before(self) -> dict[str, Any] | None:
        """The summary of an earlier run that left nothing to do, else None."""
        progress = self._saved.progress if self._saved else checkpoint.Progress()
        measured = _read_json(self.output / "metrics.json")
        total = measured.get("steps", 0)
        whole = (self.output / "model.safetensors").exists() and measured.get("ks") == self.config.eval_ks
        if not (whole and measured.get("step") == progress.step and is_complete(self.config, progress, total)):
            return None
        self.say(f"{self.output}: already trained, {progress.step} steps; nothing to do")
        return {**measured, "status": "already_finished", "output": str(self.output)}

    def prepare(self) -> None:
        """Index the shards, fit or load the tokenizer, make the model, restore it."""
        config = self.config
        train = open_split(self.folder, config.data.train_split, config.data)
        val = open_split(self.folder, config.data.val_split, config.data)
        self._splits = {"train": train, "val": val}
        for name, split in self._splits.items():
            self.say(f"{name}: {len(split.index)} samples in {len(split.index.shards)} shards{_left_out(split)}")
            if len(split.index) < _MIN_SAMPLES:
                raise TrainError(f"{self.folder.path}: {name} has {len(split.index)} usable samples; two are needed")
        tokenizer = self._tokenizer(train)
        online = online_augment(self.folder, train.index, config.data.member_max_bytes)
        self.train_set = SampleDataset(train, config.data, config.seed, tokenizer, config.cache_mib, online)
        self.val_set = SampleDataset(val, config.data, config.seed, tokenizer, config.cache_mib)
        self._limits = limits_of(config, tokenizer.get_vocab_size() if tokenizer else 0)
        self._make_trainer()

    def train(self) -> bool:
        """Train on; True where training is complete."""
        progress = self.trainer.progress
        self.log = TrainLog(self.output, self.say, progress.step)
        if progress.step:
            self.say(f"{self._path}: going on after step {progress.step}")
        if is_complete(self.config, progress, self.trainer.total_steps):
            return True
        with StopSignals() as stop:
            complete = self.trainer.run(self.train_set, self.log, lambda: stop.asked, self._measure)
        if not complete:
            self.say(f"stopped after step {self.trainer.progress.step}; the same command goes on from there")
        return complete

    def finish(self) -> None:
        """Export the model, measure it, write the metrics."""
        save_model(self.output, self.trainer.model, self.config, self._limits)
        self._measure()
        write_json(self.output / "metrics.json", {**self.summary("finished"), "ks": self.config.eval_ks})

    def summary(self, status: str) -> dict[str, Any]:
        """What `train` returns."""
        progress = self.trainer.progress
        return {
            "status": status,
            "output": str(self.output),
            "step": progress.step,
            "steps": self.trainer.total_steps,
            "seconds": round(progress.elapsed_s, 3),
            "samples": self._counts(),
            "bad_steps": progress.bad_steps,
            "metrics": self.metrics,
        }

    def _counts(self) -> dict[str, int]:
        train, val = self._splits["train"], self._splits["val"]
        return {
            "train": len(train.index),
            "train_with_one_modality": train.skipped,
            "train_members_failed": len(self.trainer.progress.failed_members),
            "val": len(val.index),
            "val_with_one_modality": val.skipped,
            "val_failed": self.val_failed,
        }

    def _measure(self) -> None:
        trainer, ks = self.trainer, self.config.eval_ks
        embedded = embed(trainer.model, eval_loader(self.val_set, self.config), trainer.device)
        self.val_failed = len(embedded.failures)
        self.metrics = measure(embedded, self.modalities, ks)
        self.log.measured(trainer.progress.step, self.metrics, table(self.metrics, ks))

    def _tokenizer(self, train: Split) -> Tokenizer | None:
        """That of the run that is resumed, else one fitted on the train split. None where text is no modality."""
        if "text" not in self.modalities:
            return None
        path = self.output / "tokenizer.json"
        if self._saved:
            return load_tokenizer(path)
        tokenizer = fit_tokenizer(iter_texts(train, self.config.data), self.config.data.vocab_size)
        checkpoint.write_whole(path, lambda scratch: tokenizer.save(str(scratch)))
        return tokenizer

    def _make_trainer(self) -> None:
        config = self.config
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        model = FusedModel(config.architecture(), self.modalities, self._limits).to(resolve_device(config.device))
        per_epoch = steps_per_epoch(len(self.train_set), config.optim.batch_size)
        total = config.steps or (config.epochs or 0) * per_epoch
        self.trainer = Trainer(config, model, total, self._path, self.identity)
        if self._saved:
            self.trainer.restore(self._saved)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.say(f"{parameters / 1e6:.2f}M parameters on {self.trainer.device}, {total} steps")


def _left_out(split: Split) -> str:
    return f"; {split.skipped} left out, of fewer than two modalities" if split.skipped else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
