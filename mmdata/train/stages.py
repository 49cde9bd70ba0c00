"""The stages of a training, each with its own parameters, data, losses and schedule; one where the file names none.

A stage begins with a fresh optimiser and a learning rate of its own, on the weights that the one before left.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from mmdata.document import nearest
from mmdata.errors import TrainError
from mmdata.train.config import OptimConfig, StageConfig, TrainConfig
from mmdata.train.losses.config import LossConfig
from mmdata.train.model.fused import TRAINING_ONLY


@dataclass(frozen=True)
class Stage:
    """A stretch of steps.

    Attributes:
        name: of the stage, for people.
        first: its first step, counted over all stages.
        steps: how many.
        lr: highest learning rate.
        warmup: steps in which it rises.
        loss: weights of the terms.
        train: patterns of the names of parameters that are trained.
        freeze: patterns of those that are not, whatever `train` says.
        unseen: modalities that it does not look at.
        shares: of the data sets, by name.
    """

    name: str
    first: int
    steps: int
    lr: float
    warmup: int
    loss: LossConfig
    train: tuple[str, ...]
    freeze: tuple[str, ...]
    unseen: frozenset[str]
    shares: Mapping[str, float]

    @property
    def end(self) -> int:
        """The first step that is no longer of it."""
        return self.first + self.steps

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero (Loshchilov and Hutter 2017), for the step counted over all stages."""
        return learning_rate(step - self.first, self.steps, self.lr, self.warmup)


def learning_rate(step: int, total: int, lr: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter 2017), for the step numbered from 0."""
    if step < warmup:
        return lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return lr * (1 + math.cos(math.pi * done)) / 2


def make_stages(config: TrainConfig, batch: int, epoch_rows: int, shares: Mapping[str, float]) -> list[Stage]:
    """The stages one after the other.

    Args:
        config: the training file.
        batch: samples a step, over all ranks.
        epoch_rows: samples of a pass over the data, for `epochs`.
        shares: of the data sets, where a stage says nothing else.
    """
    if not config.stages:
        steps = config.steps or (config.epochs or 0) * max(1, epoch_rows // batch)
        return [_stage(config, _whole(config), 0, steps, shares)]
    stages: list[Stage] = []
    for stage in config.stages:
        first = stages[-1].end if stages else 0
        stages.append(_stage(config, stage, first, -(-stage.samples // batch), shares))
    return stages


def _whole(config: TrainConfig) -> StageConfig:
    grown = config.start.add_modality if config.start and config.start.freeze else None
    return StageConfig(name="train", samples=1, new_modality=grown)


def _stage(config: TrainConfig, stage: StageConfig, first: int, steps: int, shares: Mapping[str, float]) -> Stage:
    optim: OptimConfig = config.optim
    changes = stage.loss.model_dump(exclude_unset=True) if stage.loss else {}
    new = stage.new_modality
    return Stage(
        name=stage.name,
        first=first,
        steps=steps,
        lr=stage.lr or optim.lr,
        warmup=min(optim.warmup if stage.warmup is None else stage.warmup, max(0, steps - 1)),
        loss=LossConfig.model_validate({**config.loss.model_dump(), **changes}),
        train=modality_patterns(new) if new else tuple(stage.train),
        freeze=tuple(stage.freeze),
        unseen=frozenset(set(config.data.modalities) - set(stage.modalities)) if stage.modalities else frozenset(),
        shares=stage.mix or shares,
    )


def modality_patterns(modality: str) -> tuple[str, ...]:
    """The parameters that belong to one modality alone."""
    return tuple(f"{part}.{modality}.*" for part in ("towers", "adapters", "heads"))


def stage_at(stages: Sequence[Stage], step: int) -> int:
    """Number of the stage that the step is in; the last one where all are done."""
    return next((number for number, stage in enumerate(stages) if step < stage.end), len(stages) - 1)


def freeze(model: nn.Module, stage: Stage) -> int:
    """Let the stage's parameters be trained and no others; how many numbers are.

    What a tower froze for itself stays frozen; what serves a loss alone is trained whatever else is, and not counted.
    Raises TrainError for a pattern that no parameter matches, and where nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in (*stage.train, *stage.freeze):
        if not fnmatch.filter(names, pattern):
            near = nearest(pattern, _prefixes(names))
            raise TrainError(f"stage '{stage.name}': no parameter is named '{pattern}'{near}")
    unseen = [pattern for modality in stage.unseen for pattern in modality_patterns(modality)]
    for name, parameter in model.named_parameters():
        trained = matches(name, (*stage.train, f"{TRAINING_ONLY}*")) and not matches(name, (*stage.freeze, *unseen))
        parameter.requires_grad_(trained and parameter.requires_grad)
    kept = (part for name, part in model.named_parameters() if not name.startswith(TRAINING_ONLY))
    trained_count = sum(parameter.numel() for parameter in kept if parameter.requires_grad)
    if not trained_count:
        raise TrainError(f"stage '{stage.name}': all parameters are frozen; name some under train")
    return trained_count


def settle_modes(model: nn.Module) -> None:
    """What is trained in training mode, what is frozen as a whole in evaluation mode: nothing drops or moves."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns (`*`, `?`, `[...]`) fits the whole name."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _prefixes(names: Sequence[str]) -> Iterator[str]:
    """`a.*` and `a.b.*` for each `a.b.c`, and the names themselves."""
    seen: dict[str, None] = {}
    for name in names:
        pieces = name.split(".")
        seen.update(dict.fromkeys(f"{'.'.join(pieces[:end])}.*" for end in range(1, len(pieces))))
        seen[name] = None
    yield from seen
