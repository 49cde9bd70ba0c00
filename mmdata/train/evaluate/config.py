"""What is evaluated, as frozen models. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from mmdata.document import Keys, read_yaml
from mmdata.errors import SpecError
from mmdata.spec import Frozen, explain
from mmdata.train.config import Folder
from mmdata.train.model.sizes import PretrainedTower

Task = Literal["retrieval", "missing", "consistency", "zero_shot", "probe", "captions", "images", "detector"]
TASKS: tuple[Task, ...] = (
    "retrieval", "missing", "consistency", "zero_shot", "probe", "captions", "images", "detector",
)  # fmt: skip


class LabelConfig(Frozen):
    """Where classes come from; name one of the two."""

    member: str | None = Field(None, description="a text member of the shards that is the class of its sample")
    attribute: str | None = Field(None, description="a path in the samples' JSON, `attributes.shape`")
    templates: list[str] = Field(
        ["{}"], min_length=1, description="texts that a class is told by, `{}` stands for its name; their mean counts"
    )


class EvalConfig(Frozen):
    """How a run is evaluated."""

    tasks: list[Task] = Field([], description="default: all that the run and these settings have something for")
    shards: Folder | None = Field(None, description="folder or URL of shards; default: those of the training")
    split: str | None = Field(None, description="split that is measured on; default: the training's val_split")
    ks: list[int] = Field([1, 5, 10], min_length=1, description="the k of recall@k")
    seed: int = Field(0, ge=0, description="seed of every random choice")
    resamples: int = Field(1000, ge=100, le=100_000, description="resamples of a bootstrap interval; shares have none")
    labels: LabelConfig | None = Field(None, description="classes, for zero_shot and probe")
    feature: PretrainedTower | None = Field(None, description="image network whose features FID and KID compare")
    learn_split: str | None = Field(
        None,
        description="split that the detector and the probe learn from; default: the training's train_split. A detector "
        "is better off with one that the model was not trained on",
    )
    train_samples: int = Field(20_000, ge=2, description="most samples that the detector and the probe learn from")
    image_samples: int = Field(2048, ge=2, description="most images that are made, to be compared")
    detect: bool = Field(False, description="write how likely each sample is forged, instead of tasks")
    device: str | None = Field(None, description="default: the training's")
    workers: int = Field(0, ge=0, le=256, description="processes that decode")


def load_settings(path: Path | None, overrides: Sequence[str] = ()) -> EvalConfig:
    """Read the settings of an evaluation, or take the overrides alone. Raises SpecError with a line for each fault."""
    document = read_yaml(path, overrides)
    if not isinstance(document.value, dict):
        raise SpecError([document.problem((), "settings of an evaluation are a mapping, `tasks: [retrieval]`")])
    try:
        config = EvalConfig.model_validate(document.value)
    except ValidationError as error:
        raise SpecError(explain(document, (), EvalConfig, error)) from None
    if lines := [document.problem(keys, message) for keys, message in _problems(config)]:
        raise SpecError(lines)
    return config


def _problems(config: EvalConfig) -> Iterator[tuple[Keys, str]]:
    labels = config.labels
    if labels and bool(labels.member) == bool(labels.attribute):
        yield ("labels",), "classes come from a member or an attribute; name one of the two"
    for index, template in enumerate(labels.templates if labels else ()):
        if template.count("{}") != 1:
            yield ("labels", "templates", index), f"'{template}' has no place for a class; write `{{}}` once"
    for number, task in enumerate(config.tasks):
        if task in ("zero_shot", "probe") and not labels:
            yield ("tasks", number), f"{task} needs classes; add `labels: {{attribute: attributes.class}}`"
        if task == "images" and not config.feature:
            yield ("tasks", number), "images are compared by features; add `feature: {kind: timm, model: NAME}`"
    if any(k < 1 for k in config.ks):
        yield ("ks",), "k counts from 1"
