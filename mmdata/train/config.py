"""The training file as frozen models. Imports neither torch nor anything else that is heavy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from mmdata.errors import SpecError
from mmdata.spec import Document, Frozen, Keys, explain, nearest, read_yaml
from mmdata.train.losses.config import LossConfig
from mmdata.train.model.sizes import Architecture, ModelConfig
from mmdata.train.model.sizes import problems as model_problems

# One modality alone has nothing to agree with.
MIN_MODALITIES = 2
# The modalities that have a tower.
MODALITIES = ("text", "image", "audio")


class DataConfig(Frozen):
    """Which shards are read, and how each member becomes a tensor."""

    shards: str = Field(description="folder with manifest.json and the shards; relative to the working directory")
    modalities: dict[str, list[str]] = Field(
        min_length=MIN_MODALITIES,
        json_schema_extra={"propertyNames": {"enum": list(MODALITIES)}},
        description="members of the shards by modality; where a sample has several of one modality, training draws "
        "one of them each time and evaluation takes the first",
    )
    train_split: str = Field("train", description="split that is trained on")
    val_split: str = Field("val", description="held-out split that is measured on")
    image_side_px: int = Field(64, ge=8, le=1024, description="images are fitted into a square of this side, on white")
    image_max_pixels: int = Field(64_000_000, ge=1, description="an image with more pixels is not decoded")
    audio_max_s: float = Field(4.0, gt=0, le=600, description="audio is cut to its first so many seconds")
    text_max_tokens: int = Field(32, ge=4, le=4096, description="texts are cut to so many tokens, both ends included")
    vocab_size: int = Field(4096, ge=320, le=65_536, description="most entries of the byte-level BPE vocabulary")
    member_max_bytes: int = Field(64 << 20, ge=1, description="a member with more bytes is not read")
    max_failed_share: float = Field(
        0.5, ge=0, le=1, description="training stops where a larger share of the samples seen cannot be decoded"
    )

    @field_validator("modalities")
    @classmethod
    def _in_one_order(cls, modalities: dict[str, list[str]]) -> dict[str, list[str]]:
        """The order of the keys in the file means nothing, so it must not shift the random choices either."""
        rank = {name: place for place, name in enumerate(MODALITIES)}
        return dict(sorted(modalities.items(), key=lambda item: rank.get(item[0], len(rank))))


class OptimConfig(Frozen):
    """AdamW, and the learning rate's way: linear warm-up, then a cosine down to zero."""

    batch_size: int = Field(128, ge=2, description="samples a step")
    lr: float = Field(1e-3, gt=0, description="highest learning rate")
    warmup: int = Field(20, ge=0, description="steps in which the learning rate rises from zero")
    weight_decay: float = Field(0.05, ge=0, description="decay of the weight matrices; biases and gains have none")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean of gradients")
    beta2: float = Field(0.98, ge=0, lt=1, description="AdamW's decay of the mean of squared gradients")
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")


class TrainConfig(Frozen):
    """A training file."""

    data: DataConfig = Field(description="what is read")
    model: ModelConfig = Field(ModelConfig(), description="how large the model is")
    optim: OptimConfig = Field(OptimConfig(), description="how it is optimised")
    loss: LossConfig = Field(LossConfig(), description="what is optimised")
    steps: int | None = Field(None, ge=1, description="steps of training; either this or epochs")
    epochs: int | None = Field(None, ge=1, description="passes over the train split; either this or steps")
    max_minutes: float | None = Field(
        None, gt=0, description="training ends after so many minutes over all resumed runs; the schedule ignores it"
    )
    seed: int = Field(0, ge=0, description="seed of the weights, the order and every random choice")
    output: str = Field(description="folder of model, checkpoint, log and metrics; relative to the working directory")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    workers: int = Field(1, ge=0, le=256, description="processes that decode; 0 decodes in the training process")
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="threads of the model on a CPU; 0: as torch chooses. Their number shows in the "
        "last bits of the weights, and more than there are idle cores slow each other down",
    )
    cache_mib: int = Field(256, ge=0, description="decoded members kept in memory, for each worker")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    log_every: int = Field(10, ge=1, description="steps between lines of the log")
    eval_every: int = Field(0, ge=0, description="steps between measurements on the held-out split; 0: only at the end")
    eval_ks: list[int] = Field([1, 5, 10], min_length=1, description="the k of recall@k")

    def architecture(self) -> Architecture:
        """Every width and depth, with the size's own where nothing else is said."""
        return self.model.architecture()


# What may differ between a run and its continuation: none of it changes what a step computes.
RESUMABLE_CHANGES = frozenset(
    {"output", "workers", "cache_mib", "max_minutes", "checkpoint_every", "log_every", "eval_every", "eval_ks"}
)


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training file with `a.b=c` overrides.

    Raises SpecError with a line for each fault: `file:line:column path: what; nearest name or fix`.
    """
    return load_document(path, overrides)[0]


def load_document(path: Path, overrides: Sequence[str] = ()) -> tuple[TrainConfig, Document]:
    """As `load_config`, with the places of the values beside it, for faults that only the shards show."""
    document = read_yaml(path, overrides)
    _settle_overrides(document)
    if not isinstance(document.value, dict):
        raise SpecError([document.problem((), "a training file is a mapping with at least `data:` and `output:`")])
    try:
        config = TrainConfig.model_validate(document.value)
    except ValidationError as error:
        raise SpecError(explain(document, (), TrainConfig, error)) from None
    if found := [document.problem(keys, message) for keys, message in _problems(config)]:
        raise SpecError(found)
    return config, document


def _settle_overrides(document: Document) -> None:
    """Say of each value that an override made where it comes from.

    The mappings that only the override made (`optim` of `optim.lr=1`) take its place; what the file holds below an
    overridden value is no longer there, and neither is its place.
    """
    for keys, typed in list(document.overridden.items()):
        for length in range(1, len(keys)):
            if keys[:length] not in document.places:
                document.overridden.setdefault(keys[:length], typed)
        for below in [place for place in document.places if place[: len(keys)] == keys and len(place) > len(keys)]:
            del document.places[below]


def _problems(config: TrainConfig) -> Iterator[tuple[Keys, str]]:
    """Faults between values that are each right by themselves."""
    if (config.steps is None) == (config.epochs is None):
        given = "both are given; remove one" if config.steps else "neither is given; add `steps: 500`"
        yield ("steps",), f"a training runs for steps or for epochs, {given}"
    if config.steps is not None and config.optim.warmup >= config.steps:
        yield ("optim", "warmup"), f"{config.optim.warmup} steps of warm-up leave none of {config.steps}; make it fewer"
    yield from _member_problems(config.data)
    yield from model_problems(config.model, config.data.image_side_px)


def _member_problems(data: DataConfig) -> Iterator[tuple[Keys, str]]:
    seen: set[str] = set()
    for modality, members in data.modalities.items():
        keys: Keys = ("data", "modalities", modality)
        if modality not in MODALITIES:
            yield keys, f"unknown modality '{modality}'{nearest(modality, MODALITIES)}"
        if not members:
            yield keys, "names no member; list at least one, or remove the modality"
        for index, member in enumerate(members):
            if member in seen:
                yield (*keys, index), f"the member '{member}' is named twice; remove one"
            seen.add(member)


def unknown_members(config: TrainConfig, document: Document, known: dict[str, str]) -> list[str]:
    """A line for each configured member that the shards lack or hold as another modality.

    Args:
        config: the training file.
        document: its places.
        known: the members of the shards, with their modality.
    """
    lines = []
    for modality, members in config.data.modalities.items():
        for index, member in enumerate(members):
            keys: Keys = ("data", "modalities", modality, index)
            if member not in known:
                lines.append(document.problem(keys, f"the shards have no member '{member}'{nearest(member, known)}"))
            elif known[member] != modality:
                fix = f"list it under '{known[member]}'"
                lines.append(document.problem(keys, f"the member '{member}' is of modality '{known[member]}'; {fix}"))
    return lines
