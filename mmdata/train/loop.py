"""The training loop: one optimiser step after the other, from where the progress says.

Shapes: B samples in a batch, M modalities.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdata.errors import TrainError
from mmdata.train import checkpoint
from mmdata.train.batch import Batch
from mmdata.train.checkpoint import Progress
from mmdata.train.config import OptimConfig, TrainConfig
from mmdata.train.dataset import SampleDataset, train_loader
from mmdata.train.dice import Dice
from mmdata.train.log import TrainLog, Window
from mmdata.train.losses.objective import Objective
from mmdata.train.model.fused import FusedModel

_MAX_BAD_STEPS_IN_A_ROW = 10
# Below so many samples a share of failures says little.
_MIN_SEEN_TO_JUDGE = 64


def learning_rate(step: int, total: int, optim: OptimConfig) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter 2017), for the step numbered from 0."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    done = (step - optim.warmup) / max(1, total - optim.warmup)
    return optim.lr * (1 + math.cos(math.pi * done)) / 2


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only: a decayed gain, bias or temperature only costs accuracy (as in CLIP)."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2))


def is_complete(config: TrainConfig, progress: Progress, total: int) -> bool:
    """Whether nothing is left to train: by steps, or by the time limit."""
    out_of_time = config.max_minutes is not None and progress.elapsed_s >= config.max_minutes * 60
    return progress.step >= total or out_of_time


class Trainer:
    """Takes steps, saves, logs. What a step computes depends on the seed, the data and the step's number only."""

    def __init__(
        self,
        config: TrainConfig,
        model: FusedModel,
        total_steps: int,
        path: Path,
        identity: dict[str, Any],
    ) -> None:
        """`path` is the checkpoint's; `identity` says which run it is of."""
        self.config, self.model, self.total_steps = config, model, total_steps
        self.device = model.log_scale.device
        self.objective = Objective(model, config.loss)
        self.optimizer = make_optimizer(model, config.optim)
        self.progress = Progress()
        self._path, self._identity = path, identity
        self._bad_in_a_row = 0

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.progress = checkpoint.restore(saved, self.model, self.optimizer)

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint.save(self._path, self.progress, self.model, self.optimizer, self._identity)

    def run(
        self, dataset: SampleDataset, log: TrainLog, asked: Callable[[], bool], measure: Callable[[], None]
    ) -> bool:
        """Train until all is done, time is up, or a stop is asked for; save. True where nothing is left to do.

        Raises TrainError for numbers that are not finite many times in a row, or too many samples that fail.
        """
        self.model.train()
        window = Window()
        for batch, wait_s in self._batches(dataset):
            started = time.perf_counter()
            self._note_failures(batch, log)
            taken = self._step(batch)
            self.progress.step += 1
            window.add(len(batch), wait_s)
            self.progress.elapsed_s += wait_s + time.perf_counter() - started
            if taken and self._every(self.config.log_every):
                log.step(window.record(self.progress.step, *taken), self.total_steps)
                window = Window()
            if asked() or is_complete(self.config, self.progress, self.total_steps):
                break
            if self._every(self.config.checkpoint_every):
                self.save()
            if self.config.eval_every and self._every(self.config.eval_every):
                measure()
                window = Window()
        self.save()
        return is_complete(self.config, self.progress, self.total_steps)

    def _batches(self, dataset: SampleDataset) -> Iterator[tuple[Batch, float]]:
        """Batches, each with how long it was waited for."""
        started = time.perf_counter()
        for batch in train_loader(dataset, self.config, self.progress.step, self.total_steps):
            yield batch, time.perf_counter() - started
            started = time.perf_counter()

    def _every(self, steps: int) -> bool:
        return self.progress.step % steps == 0 or self.progress.step == self.total_steps

    def _step(self, batch: Batch) -> tuple[float, Tensor, dict[str, Tensor]] | None:
        """One update. (lr, loss, terms), or None where the batch had no pair or the numbers were not finite."""
        lr = learning_rate(self.progress.step, self.total_steps, self.config.optim)
        loss, terms = self._losses(batch)
        if loss is None:
            return None
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        if not torch.isfinite(loss + norm):
            self._note_bad_step(float(loss.detach()), float(norm))
            return None
        self._bad_in_a_row = 0
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return lr, loss.detach(), terms

    def _losses(self, batch: Batch) -> tuple[Tensor | None, dict[str, Tensor]]:
        batch = batch.to(self.device)
        dice = Dice.of(self.config.seed, self.progress.step, batch.row_B)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            losses: tuple[Tensor | None, dict[str, Tensor]] = self.objective(batch, dice)
        return losses

    def _note_bad_step(self, loss: float, norm: float) -> None:
        """Skip the update, and give up where it happens again and again; the last checkpoint stays as it is."""
        self.progress.bad_steps += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= _MAX_BAD_STEPS_IN_A_ROW:
            what = f"loss {loss}, gradient norm {norm} at step {self.progress.step + 1}"
            raise TrainError(f"{what}, not finite {self._bad_in_a_row} times in a row; lower optim.lr or clip_norm")

    def _note_failures(self, batch: Batch, log: TrainLog) -> None:
        progress = self.progress
        progress.seen += len(batch) + len(batch.failures)
        progress.failed += len(batch.failures)
        for failure in batch.failures:
            name = f"{failure.shard}/{failure.sample_id}/{failure.member}"
            if name not in progress.failed_members:
                progress.failed_members.append(name)
                log.failure(failure)
        if progress.seen >= _MIN_SEEN_TO_JUDGE and progress.failed > self.config.data.max_failed_share * progress.seen:
            share = f"{progress.failed} of {progress.seen} samples cannot be decoded"
            last = f"; the last: {batch.failures[-1]}" if batch.failures else ""
            raise TrainError(f"{share}, more than data.max_failed_share{last}")
