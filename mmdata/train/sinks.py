"""Numbers of a training for TensorBoard and for Weights & Biases, beside `log.jsonl`."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdata.errors import MissingExtraError
from mmdata.train.config import TrainConfig
from mmdata.train.log import Sink


class TensorBoard:
    """Events in `<output>/tensorboard`."""

    def __init__(self, folder: Path, from_step: int) -> None:
        """Events of later steps than `from_step` are of work that is done again, and count no more."""
        if importlib.util.find_spec("tensorboard") is None:
            raise MissingExtraError("tensorboard: true", "tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name.replace("->", "_to_").replace("~", "_"), value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a project; a training that goes on goes on in it."""

    def __init__(self, folder: Path, project: str, config: TrainConfig) -> None:
        """The run's id follows from the folder."""
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError(f"wandb: {project}", "wandb", "wandb") from error
        run_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        settings = config.model_dump(mode="json")
        self._run: Any = wandb.init(project=project, id=run_id, resume="allow", dir=str(folder), config=settings)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Hand over what is left."""
        self._run.finish()


def make_sinks(config: TrainConfig, folder: Path, from_step: int) -> list[Sink]:
    """Those that the file asks for. Raises MissingExtraError where one is not installed."""
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(folder, from_step))
    if config.wandb:
        sinks.append(WeightsAndBiases(folder, config.wandb, config))
    return sinks
