"""The training file as frozen models. Imports neither torch nor anything else that is heavy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from mmdata.document import Document, Keys, nearest, read_yaml
from mmdata.errors import SpecError
from mmdata.spec import Frozen, Names, explain
from mmdata.train.losses.config import TERM_NAMES, LossConfig, apart_problems
from mmdata.train.model.sizes import Architecture, ModelConfig
from mmdata.train.model.sizes import problems as model_problems

# One modality alone has nothing to agree with.
MIN_MODALITIES = 2
# The modalities that have a tower.
MODALITIES = ("text", "image", "audio", "video", "tensor")
# How many sets can be mixed, see `mmdata.train.order`.
MAX_SETS = 32
# Name of the set, or the beginning of the names, of what a run that is continued was trained on.
REPLAY = "replay"


# A folder, or its URL; `~` is the home folder, as it is in a pipeline file.
Folder = Annotated[str, AfterValidator(os.path.expanduser)]


class SetConfig(Frozen):
    """One of several data sets."""

    shards: Folder = Field(description="folder or URL with manifest.json and the shards")
    share: float = Field(1.0, ge=0, description="its share of the samples beside those of the others")


class AnswerConfig(Frozen):
    """Questions and their answers, for a model that writes."""

    question: str = Field(description="the member that asks, a text that stands under no modality")
    answer: str = Field(description="the member that answers, another such text")

    @property
    def members(self) -> dict[str, str]:
        """Both, by what they are."""
        return {"question": self.question, "answer": self.answer}


class DataConfig(Frozen):
    """Which shards are read, and how each member becomes a tensor."""

    shards: Folder | None = Field(
        None, description="folder or URL with manifest.json and the shards; a path is relative to the working directory"
    )
    sets: dict[str, SetConfig] = Field({}, description="several folders of shards by name, instead of one")
    modalities: dict[str, list[str]] = Field(
        min_length=MIN_MODALITIES,
        json_schema_extra={"propertyNames": {"enum": list(MODALITIES)}},
        description="members of the shards by modality; where a sample has several of one modality, training draws "
        "one of them each time and evaluation takes the first",
    )
    answers: AnswerConfig | None = Field(None, description="members with questions and answers, for loss.answer")
    teachers: dict[str, Names] = Field(
        {},
        json_schema_extra={"propertyNames": {"enum": list(MODALITIES)}},
        description="by modality the stored vectors (`aligner.member`) that the model learns from by distillation; of "
        "several in one space a sample's first",
    )
    weight_by: str | None = Field(
        None,
        description="a number in the samples' JSON, by its path (`attributes.weight`), that says how often a sample "
        "is seen beside others; 1 where it is missing",
    )
    train_split: str = Field("train", description="split that is trained on")
    val_split: str = Field("val", description="held-out split that is measured on")
    image_side_px: int = Field(64, ge=8, le=1024, description="images are fitted into a square of this side, on white")
    image_max_pixels: int = Field(64_000_000, ge=1, description="an image with more pixels is not decoded")
    audio_max_s: float = Field(4.0, gt=0, le=600, description="audio is cut to its first so many seconds")
    video_frames: int = Field(8, ge=1, le=256, description="frames of a video that are seen, at even distances")
    video_max_s: float = Field(30.0, gt=0, le=3600, description="videos are cut to their first so many seconds")
    tensor_channels: int = Field(1, ge=1, le=4096, description="channels of a recording of sensors, a `.npy`")
    tensor_max_steps: int = Field(1024, ge=1, le=1 << 20, description="recordings are cut to their first steps")
    text_max_tokens: int = Field(32, ge=4, le=4096, description="texts are cut to so many tokens, both ends included")
    vocab_size: int = Field(4096, ge=320, le=65_536, description="most entries of the byte-level BPE vocabulary")
    member_max_bytes: int = Field(64 << 20, ge=1, description="a member with more bytes is not read")
    max_failed_share: float = Field(
        0.5, ge=0, le=1, description="training stops where a larger share of the samples seen cannot be decoded"
    )
    cache_dir: str | None = Field(
        None, description="folder that shards of an object store are fetched into, where all of a split fit"
    )
    cache_gib: float = Field(100.0, gt=0, description="most that a folder of shards may take there")

    @field_validator("modalities")
    @classmethod
    def _in_one_order(cls, modalities: dict[str, list[str]]) -> dict[str, list[str]]:
        """The order of the keys in the file means nothing, so it must not shift the random choices either."""
        rank = {name: place for place, name in enumerate(MODALITIES)}
        return dict(sorted(modalities.items(), key=lambda item: rank.get(item[0], len(rank))))

    def all_sets(self) -> dict[str, SetConfig]:
        """The data sets by name; the one of `shards` has none."""
        return self.sets or {"": SetConfig(shards=self.shards or "")}


class OptimConfig(Frozen):
    """AdamW, and the learning rate's way: linear warm-up, then a cosine down to zero."""

    batch_size: int = Field(128, ge=2, description="samples a step")
    lr: float = Field(1e-3, gt=0, description="highest learning rate")
    warmup: int = Field(20, ge=0, description="steps in which the learning rate rises from zero")
    weight_decay: float = Field(0.05, ge=0, description="decay of the weight matrices; biases and gains have none")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean of gradients")
    beta2: float = Field(0.98, ge=0, lt=1, description="AdamW's decay of the mean of squared gradients")
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    accumulate: int = Field(
        1, ge=1, description="pieces that a rank's batch goes through the model in; the step is that of the whole batch"
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which is then measured and exported; 0: none",
    )


class StageConfig(Frozen):
    """One of several stages, one after the other."""

    name: str = Field(min_length=1, description="of the stage, for people")
    samples: int = Field(ge=1, description="its length, in samples over all ranks")
    train: list[str] = Field(
        ["*"], min_length=1, description="patterns of the names of parameters that are trained; the others are frozen"
    )
    freeze: list[str] = Field([], description="patterns of those that are frozen, whatever `train` says")
    modalities: list[str] = Field(
        [], description="modalities that it looks at; what belongs to the others stays as it is. Default: all"
    )
    new_modality: str | None = Field(
        None,
        description="trains what belongs to this modality alone, instead of `train`; the others' embeddings stay",
    )
    mix: dict[str, float] = Field({}, description="share of each of the data sets; default: as data.sets says")
    loss: LossConfig | None = Field(None, description="what differs in the loss from the file's")
    lr: float | None = Field(None, gt=0, description="highest learning rate; default: optim.lr")
    warmup: int | None = Field(None, ge=0, description="steps in which it rises; default: optim.warmup")


class StartConfig(Frozen):
    """Begin with the model of a finished run instead of fresh weights; its tokenizer goes with it."""

    run: Folder = Field(description="folder of the run")
    add_modality: str | None = Field(None, description="a modality that the run lacks, and this training adds")
    freeze: bool = Field(True, description="with add_modality: train the new modality's parameters alone")
    replay: float = Field(0.0, ge=0, lt=1, description="share of the samples that come from the run's own shards")

    @model_validator(mode="before")
    @classmethod
    def _names_a_run(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("run") is None:
            raise ValueError("names no run to begin with; add --continue RUN, or `run: RUN` under `start:` of the file")
        return value


class TeacherConfig(Frozen):
    """A live teacher, whose embeddings of each batch the model learns from by distillation."""

    run: Folder | None = Field(None, description="folder of a finished run; the student takes its tokenizer")
    open_clip: str | None = Field(None, description="an open_clip model: its folder or name")
    pretrained: str | None = Field(None, description="weights of the open_clip model: a file or a tag")


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
    stages: list[StageConfig] = Field([], description="stages one after the other, instead of steps or epochs")
    start: StartConfig | None = Field(None, description="a finished run to begin with")
    teacher: TeacherConfig | None = Field(None, description="a live teacher")
    seed: int = Field(0, ge=0, description="seed of the weights, the order and every random choice")
    output: Folder = Field(
        description="folder of model, checkpoint, log and metrics; relative to the working directory"
    )
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
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; auto: bfloat16 on an accelerator that has it, float32 elsewhere"
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="over several ranks (torchrun): ddp copies the model, fsdp shards it (FSDP2)"
    )
    compile: bool = Field(False, description="compile the blocks of the model (torch.compile)")
    checkpoint_activations: bool = Field(
        False, description="compute each block again when its gradient is wanted: less memory, a third more time"
    )
    spike_factor: float = Field(
        10.0,
        ge=0,
        description="a step whose loss or gradient norm is so many times its running median is not taken; 0: all are",
    )
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    checkpoint_every_s: float | None = Field(None, gt=0, description="and seconds between them, whichever comes first")
    keep_checkpoints: int = Field(1, ge=1, description="the newest so many checkpoints stay")
    tensorboard: bool = Field(False, description="write events for TensorBoard into the output")
    wandb: str | None = Field(None, description="project of Weights & Biases that is told too")
    log_every: int = Field(10, ge=1, description="steps between lines of the log")
    eval_every: int = Field(0, ge=0, description="steps between measurements on the held-out split; 0: only at the end")
    eval_ks: list[int] = Field([1, 5, 10], min_length=1, description="the k of recall@k")

    def architecture(self) -> Architecture:
        """Every width and depth, with the size's own where nothing else is said."""
        return self.model.architecture(self.losses())

    def losses(self) -> list[LossConfig]:
        """The loss of each stage; the file's own where it has none."""
        changes = [stage.loss.model_dump(exclude_unset=True) if stage.loss else {} for stage in self.stages]
        return [self.loss.model_copy(update=change) for change in changes] or [self.loss]


# What may differ between a run and its continuation: none of it changes what a step computes.
RESUMABLE_CHANGES = frozenset(
    {
        "output", "workers", "cache_mib", "max_minutes", "checkpoint_every", "checkpoint_every_s", "keep_checkpoints",
        "log_every", "eval_every", "eval_ks", "strategy", "checkpoint_activations", "tensorboard", "wandb",
    }
)  # fmt: skip
# And below `data`.
RESUMABLE_DATA_CHANGES = frozenset({"cache_dir", "cache_gib", "max_failed_share"})


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

    The mappings that only the override made (`optim` of `optim.lr=1`) take its place.
    """
    for keys, typed in list(document.overridden.items()):
        for length in range(1, len(keys)):
            if keys[:length] not in document.places:
                document.overridden.setdefault(keys[:length], typed)


def _problems(config: TrainConfig) -> Iterator[tuple[Keys, str]]:
    """Faults between values that are each right by themselves."""
    lengths = [name for name in ("steps", "epochs", "stages") if getattr(config, name)]
    if len(lengths) != 1:
        given = f"{' and '.join(lengths)} are given; keep one" if lengths else "none is given; add `steps: 500`"
        yield (lengths[0] if lengths else "steps",), f"a training runs for steps, for epochs or in stages, and {given}"
    if config.steps is not None and config.optim.warmup >= config.steps:
        yield ("optim", "warmup"), f"{config.optim.warmup} steps of warm-up leave none of {config.steps}; make it fewer"
    yield from _member_problems(config.data)
    yield from _answer_problems(config)
    yield from _made_problems(config)
    yield from _set_problems(config)
    yield from apart_problems(("loss",), config.loss, config.data.modalities)
    yield from _loss_problems(config)
    if any(k < 1 for k in config.eval_ks):
        yield ("eval_ks",), "k counts from 1"
    yield from _start_problems(config)
    yield from model_problems(config.model, config.losses(), config.data.image_side_px)


def _loss_problems(config: TrainConfig) -> Iterator[tuple[Keys, str]]:
    """Losses of which nothing would be learnt, for all the steps there are."""
    taught = bool(config.data.teachers or config.teacher)
    for number, loss in enumerate(config.losses()):
        keys: Keys = ("stages", number, "loss") if config.stages else ("loss",)
        if not any(getattr(loss, term) for term in TERM_NAMES):
            yield keys, "every term weighs 0, so nothing is learnt; give one a weight, `pair: 1`"
        for term in ("distill", "mimic"):
            if getattr(loss, term) and not taught:
                fix = "add `teachers: {image: aligner.member}` to data, or `teacher: {run: FOLDER}`"
                yield (*keys, term), f"learns from a teacher, and none is named; {fix}"


def _set_problems(config: TrainConfig) -> Iterator[tuple[Keys, str]]:
    data = config.data
    if bool(data.shards) == bool(data.sets):
        given = "both are given; keep one" if data.sets else "neither is given; name the `shards` folder of a build"
        yield ("data", "shards"), f"training reads shards, or several sets of them: {given}"
    if data.sets and not any(one.share for one in data.sets.values()):
        yield ("data", "sets"), "no set has a share above 0"
    if data.val_split == data.train_split:
        why = "is what is trained on, and what is measured on it says nothing of new samples"
        key = "val_split" if "val_split" in data.model_fields_set else "train_split"
        yield ("data", key), f"'{data.val_split}' {why}; name another split (the step `splits` of a build makes them)"
    if len(data.sets) > MAX_SETS:
        yield ("data", "sets"), f"{len(data.sets)} sets, at most {MAX_SETS} can be mixed"
    for modality in data.teachers:
        if modality not in data.modalities:
            yield ("data", "teachers", modality), f"no modality of the model{nearest(modality, data.modalities)}"
    for number, stage in enumerate(config.stages):
        yield from _stage_problems(config, number, stage)


def _stage_problems(config: TrainConfig, number: int, stage: StageConfig) -> Iterator[tuple[Keys, str]]:
    data, keys = config.data, ("stages", number)
    yield from apart_problems((*keys, "loss"), stage.loss, data.modalities)
    for name in stage.mix:
        if name not in data.sets and not (config.start and name.startswith(REPLAY)):
            yield (*keys, "mix", name), f"no set of data.sets{nearest(name, data.sets)}"
    shares = stage.mix.values()
    if stage.mix and (min(shares) < 0 or not sum(shares)):
        yield (*keys, "mix"), "shares are not negative, and one is above 0"
    for index, name in enumerate(stage.modalities):
        if name not in data.modalities:
            yield (*keys, "modalities", index), f"'{name}' is not under data.modalities{nearest(name, data.modalities)}"
    if stage.new_modality and stage.new_modality not in data.modalities:
        near = nearest(stage.new_modality, data.modalities)
        yield (*keys, "new_modality"), f"'{stage.new_modality}' is not under data.modalities{near}"


def _start_problems(config: TrainConfig) -> Iterator[tuple[Keys, str]]:
    new = config.start.add_modality if config.start else None
    if new and new not in config.data.modalities:
        near = nearest(new, config.data.modalities)
        yield ("start", "add_modality"), f"'{new}' is not under data.modalities, so nothing says its members{near}"
    teacher = config.teacher
    if teacher and bool(teacher.run) == bool(teacher.open_clip):
        yield ("teacher",), "a teacher is a run or an open_clip model; name one of the two"
    if teacher and config.data.teachers:
        yield ("teacher",), "vectors of the shards are named too, under data.teachers; keep one"


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


def _answer_problems(config: TrainConfig) -> Iterator[tuple[Keys, str]]:
    data = config.data
    if any(loss.answer for loss in config.losses()) and not data.answers:
        yield ("loss", "answer"), "learns from questions; add `answers: {question: member, answer: member}` to data"
    if data.answers and "text" not in data.modalities:
        yield ("data", "answers"), "are written in the model's tokens; add text to data.modalities"
    named = [member for members in data.modalities.values() for member in members]
    for name, member in (data.answers.members if data.answers else {}).items():
        if member in named:
            why = "a modality too, so the fusion would read it"
            yield ("data", "answers", name), f"the member '{member}' is of {why}; remove it there"


def _made_problems(config: TrainConfig) -> Iterator[tuple[Keys, str]]:
    for number, name in enumerate(config.model.decoders):
        if name not in config.data.modalities:
            yield ("model", "decoders", number), f"'{name}' is not under data.modalities, so nothing shows how it looks"
    for modality in config.model.towers:
        if modality not in config.data.modalities:
            near = nearest(modality, config.data.modalities)
            yield ("model", "towers", modality), f"'{modality}' is not under data.modalities{near}"
