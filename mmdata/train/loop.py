"""The training loop: one optimiser step after the other through a stage, from where the progress says.

Shapes: B samples in a batch, M modalities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdata.errors import TrainError
from mmdata.train import checkpoint
from mmdata.train.batch import Batch
from mmdata.train.checkpoint import Checkpoint, Parts, Progress
from mmdata.train.config import OptimConfig, TrainConfig
from mmdata.train.dataset import MixedDataset, train_loader
from mmdata.train.dice import Dice
from mmdata.train.ema import Ema
from mmdata.train.guard import Guard
from mmdata.train.launch import is_main, rank, summed, whole, world_size
from mmdata.train.log import TrainLog, Window
from mmdata.train.losses.config import TERM_NAMES
from mmdata.train.losses.objective import Objective
from mmdata.train.model.fused import FusedModel
from mmdata.train.order import Mix, StepSampler
from mmdata.train.parallel import (
    LossModule,
    average_whole,
    checkpoint_activations,
    clip_gradients,
    compile_blocks,
    encode_in_pieces,
    wrapped,
)
from mmdata.train.stages import Stage, freeze, settle_modes
from mmdata.train.teacher import Teacher

# So many steps in a row without a loss are told of.
_MOST_SILENT = 10
# Below so many samples a share of failures says little.
_MIN_SEEN_TO_JUDGE = 64


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW of what is trained; it decays matrices only: a decayed gain or bias only costs accuracy (as in CLIP).

    Single numbers are a group of their own, as FSDP2 does not shard them.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [part for part in trained if min(part.ndim, 2) == axes], "weight_decay": decay}
        for axes, decay in ((2, optim.weight_decay), (1, 0.0), (0, 0.0))
    ]
    groups = [group for group in groups if group["params"]]
    # Fused: one pass over each parameter and its moments instead of a dozen, on processors too.
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), fused=True)


def is_complete(config: TrainConfig, progress: Progress, total: int) -> bool:
    """Whether nothing is left to train: by steps, or by the time limit."""
    return progress.step >= total or _out_of_time(config, progress)


def _out_of_time(config: TrainConfig, progress: Progress) -> bool:
    return config.max_minutes is not None and progress.elapsed_s >= config.max_minutes * 60


@dataclass(frozen=True)
class Taken:
    """What came of a step, over all ranks.

    Attributes:
        loss: its value; NaN where the batch had nothing to say.
        terms: this rank's share of each.
        lr: the learning rate.
        stop: somebody asked to stop.
        out_of_time: the time limit is reached.
        save: a checkpoint is due by the clock.
        done: the weights were changed.
    """

    loss: float
    terms: Mapping[str, Tensor]
    lr: float
    stop: bool
    out_of_time: bool
    save: bool
    done: bool


class Trainer:
    """Takes the steps of a stage. What a step computes depends on the seed, the data and its number only."""

    def __init__(
        self,
        config: TrainConfig,
        model: FusedModel,
        stage: Stage,
        number: int,
        total_steps: int,
        teacher: Teacher | None = None,
    ) -> None:
        """`number` is the stage's, `total_steps` those of all stages."""
        self.config, self.model, self.stage, self.number = config, model, stage, number
        self.total_steps, self._teacher = total_steps, teacher
        self.device = model.log_scale.device
        self.trained = freeze(model, stage)
        if config.checkpoint_activations:
            checkpoint_activations(model)
        if config.compile:
            compile_blocks(model)
        encode_in_pieces(model, config.optim.accumulate)
        self._module = wrapped(LossModule(Objective(model, stage.loss)), config.strategy)
        self.optimizer = make_optimizer(model, config.optim)
        self.ema = Ema(model, config.optim.ema_decay) if config.optim.ema_decay else None
        self.progress = Progress()
        # The same names as in `progress`, to look one up.
        self._failed: set[str] = set()
        self._guard = Guard(config.spike_factor)
        self._saved_at = time.monotonic()
        self._silent = 0

    @property
    def parts(self) -> Parts:
        """What a checkpoint has tensors of."""
        return Parts(self.model, self.optimizer, self.ema)

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint: of this stage with its optimiser, of the one before with a fresh one."""
        same = saved.stage == self.number
        checkpoint.restore(saved, self.parts, optimizer=same)
        self.progress = saved.progress
        self._failed = set(self.progress.failed_members)
        self._guard = Guard(self.config.spike_factor, self.progress.guard if same else None)

    def save(self, folder: Path, identity: Mapping[str, Any]) -> Checkpoint:
        """Write a checkpoint."""
        self.progress.guard = self._guard.state()
        self._saved_at = time.monotonic()
        keep = self.config.keep_checkpoints
        saved = checkpoint.save(folder, self.progress, self.number, self.parts, identity, keep)
        self._failed = set(self.progress.failed_members)  # those of the other ranks too, now
        return saved

    def weights(self) -> dict[str, Tensor]:
        """What is measured and exported: every weight in full, averaged where that is wanted; all ranks together."""
        tensors = dict(self.model.state_dict())
        return {name: whole(tensor) for name, tensor in (self.ema.lay_over(tensors) if self.ema else tensors).items()}

    def run(
        self,
        data: tuple[MixedDataset, Mix, int],
        log: TrainLog,
        asked: Callable[[], bool],
        save: Callable[[], object],
        measure: Callable[[], None],
    ) -> bool:
        """Train until the stage is done, time is up, or a stop is asked for; True where a stop was.

        Args:
            data: the samples, their order, and how many are a step over all ranks.
            log: takes what happens.
            asked: whether to stop.
            save: writes a checkpoint.
            measure: measures on the held-out split.

        Raises TrainError for bad steps many times in a row, or too many samples that fail.
        """
        settle_modes(self.model)
        window = Window()
        for batch, wait_s in self._batches(*data):
            started = time.perf_counter()
            taken = self._step(batch, log, asked())
            self.progress.step += 1
            window.add(len(batch), wait_s)
            self.progress.wait_s += wait_s
            self.progress.elapsed_s += wait_s + time.perf_counter() - started
            if taken.done and self._every(self.config.log_every):
                shares = summed([float(term) for term in taken.terms.values()], self.device)
                terms = {name: share / world_size() for name, share in zip(taken.terms, shares, strict=True)}
                record = window.record(self.progress.step, self.stage.name, taken, terms, world_size())
                log.step(record, self.total_steps)
                window = Window()
            # One process need not ask the others, and can say it a step earlier.
            alone = world_size() == 1
            if taken.out_of_time or (alone and _out_of_time(self.config, self.progress)):
                return False
            if taken.stop or (alone and asked()):
                return True
            if taken.save or self._every(self.config.checkpoint_every):
                save()
            if self.config.eval_every and self._every(self.config.eval_every):
                measure()
                settle_modes(self.model)
                window = Window()
        return False

    def _batches(self, dataset: MixedDataset, mix: Mix, batch: int) -> Iterator[tuple[Batch, float]]:
        """Batches of this rank, each with how long it was waited for."""
        # The order of a stage begins at its own place 0.
        steps = range(self.progress.step - self.stage.first, self.stage.steps)
        sampler = StepSampler(mix, batch, steps, rank(), world_size())
        started = time.perf_counter()
        for loaded in train_loader(dataset, self.config, sampler):
            yield loaded, time.perf_counter() - started
            started = time.perf_counter()

    def _every(self, steps: int) -> bool:
        return self.progress.step % steps == 0 or self.progress.step == self.total_steps

    def _step(self, batch: Batch, log: TrainLog, asked: bool) -> Taken:
        """One update, or none where the batch has nothing to say or its numbers are bad."""
        self._note_failures(batch, log)
        lr = self.stage.learning_rate(self.progress.step)
        # Before the forward pass, which else has to find room beside the last step's gradients.
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = self._losses(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        average_whole(self.model)
        norm = clip_gradients(self.model, self.config.optim.clip_norm)
        mine = [float(loss.detach()) / world_size(), asked, *self._clock(), len(batch) + len(batch.failures)]
        value, stop, out_of_time, save, seen, failed = summed([*mine, len(batch.failures)], self.device)
        self._judge_failures(int(seen), int(failed), batch)
        self._note_silence(bool(terms), log)
        done = bool(terms) and self._take(value, norm, lr, log)
        return Taken(value, terms, lr, stop > 0, out_of_time > 0, save > 0, done)

    def _clock(self) -> tuple[bool, bool]:
        """Whether time is up, and whether a checkpoint is due: as the first rank's clock says."""
        every_s = self.config.checkpoint_every_s
        due = every_s is not None and time.monotonic() - self._saved_at >= every_s
        return is_main() and _out_of_time(self.config, self.progress), is_main() and due

    def _losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        # What is drawn without dice (dropout) follows from the step too: nothing random has to be saved.
        draw = np.random.SeedSequence([self.config.seed, self.progress.step, rank()])
        torch.manual_seed(int(draw.generate_state(1, np.uint64)[0] >> 1))
        batch = batch.to(self.device)
        if self._teacher:
            batch = self._teacher.teach(batch)
        batch = batch.without(self.stage.unseen, self.model.modalities)
        dice = Dice.of(self.config.seed, self.progress.step, batch.row_B)
        with autocast(self.config, self.device):
            losses: tuple[Tensor, dict[str, Tensor]] = self._module(batch, dice)
        return losses

    def _take(self, loss: float, norm: float, lr: float, log: TrainLog) -> bool:
        """Change the weights, unless the numbers are bad."""
        step = self.progress.step
        if problem := self._guard.problem(loss, norm, step + 1):
            self.progress.bad_steps += 1
            log.note(f"step {step + 1} is not taken: loss {loss:.4g}, gradient norm {norm:.4g}: {problem}")
            return False
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.model, step)
        return True

    def _note_silence(self, said: bool, log: TrainLog) -> None:
        """Tell, once, of so many steps in a row that taught nothing."""
        self._silent = 0 if said else self._silent + 1
        if self._silent == _MOST_SILENT:
            weighed = ", ".join(name for name in TERM_NAMES if getattr(self.stage.loss, name))
            why = f"no term of the loss ({weighed}) had two samples to compare, or anything to make"
            log.note(f"nothing was learnt in the last {_MOST_SILENT} steps of stage '{self.stage.name}': {why}")

    def _note_failures(self, batch: Batch, log: TrainLog) -> None:
        for failure in batch.failures:
            if failure.name not in self._failed:
                self._failed.add(failure.name)
                self.progress.failed_members.append(failure.name)
                log.failure(failure)

    def _judge_failures(self, seen: int, failed: int, batch: Batch) -> None:
        progress = self.progress
        progress.seen += seen
        progress.failed += failed
        if progress.seen >= _MIN_SEEN_TO_JUDGE and progress.failed > self.config.data.max_failed_share * progress.seen:
            share = f"{progress.failed} of {progress.seen} samples cannot be decoded"
            last = f"; the last: {batch.failures[-1]}" if batch.failures else ""
            raise TrainError(f"{share}, more than data.max_failed_share{last}")


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Matrix products in bfloat16, where that is wanted, or native."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    enabled = config.precision == "bfloat16" or (config.precision == "auto" and native)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
