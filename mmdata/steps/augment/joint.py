"""`joint`: children whose image, texts, boxes, sound and word times still describe the same thing."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, WithJsonSchema, model_validator

from mmdata.errors import SampleError
from mmdata.extras import require
from mmdata.sample import Modality, Sample
from mmdata.spec import Frozen, ParameterError
from mmdata.steps.base import Augment, Ingest
from mmdata.steps.exchange import Veto

if TYPE_CHECKING:
    from mmdata.augment.policy import Others, Policy
    from mmdata.document import Keys


# Parameters of operators that name members, and of which modality.
_NAMING: Mapping[str, tuple[str, Modality | None]] = {
    "time_crop": ("clock", None),
    **dict.fromkeys(("jitter", "scale", "mask_time", "drop_channels", "mirror_channels"), ("members", "tensor")),
    **dict.fromkeys(("synonyms", "KeyboardAug", "OcrAug", "RandomCharAug", "RandomWordAug"), ("texts", "text")),
    **dict.fromkeys(("SpellingAug", "SplitAug", "ContextualWordEmbsAug"), ("texts", "text")),
}
_LIBRARIES = ("albumentations", "audiomentations", "nlpaug")


class Applied(Frozen):
    """An operator of a policy: its name, its own parameters, and how likely a child goes through it."""

    op: str = Field(description="its name")
    params: dict[str, Any] = Field(default={}, description="its own parameters")
    p: float = Field(1.0, gt=0, le=1, description="how likely a child goes through it")


class Mirrored(Frozen):
    """What a mirror does to the channels of a tensor (its first axis) or a sound."""

    swap: list[tuple[NonNegativeInt, NonNegativeInt]] = Field(
        default=[], description="pairs of channels that change places: those of the left and of the right wrist"
    )
    negate: list[NonNegativeInt] = Field(
        default=[], description="channels that point to a side (a lateral acceleration): their sign changes"
    )


def _spelled(value: Any) -> Any:
    """`HorizontalFlip`, or `HorizontalFlip: {p: 0.5}`, as the other lists of the file have their steps."""
    if isinstance(value, str):
        return {"op": value}
    if isinstance(value, Mapping) and len(value) == 1 and "op" not in value:
        ((name, given),) = value.items()
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"the parameters of {name} are a mapping, not {given!r}: {name}: {{p: 0.5}}, say")
        params = dict(given or {})
        chance = {"p": params.pop("p")} if "p" in params else {}
        return {"op": name, "params": params, **chance}
    return value


# As people write it: a name, or a name with parameters.
_SPELLED = {"anyOf": [{"type": "string"}, {"type": "object", "minProperties": 1, "maxProperties": 1}]}


@functools.lru_cache(maxsize=32)
def _policy(spec: str) -> Policy:
    """Kept apart from the step, which travels to workers as it is: operators may hold what cannot be pickled."""
    from mmdata.augment.load import load_policy

    return load_policy(json.loads(spec))


class Joint(Augment):
    """Children by operators that know what they do to every modality.

    Operators are albumentations' (`HorizontalFlip`), audiomentations' (`PitchShift`), nlpaug's (`KeyboardAug`) and our
    own (`synonyms`, `speed`, `time_crop`, `add_noise`, `mixgen`, `cutmix`, `mix_sounds`, `drop_modality`; of tensors
    `jitter`, `scale`, `mask_time`, `drop_channels`, `mirror_channels`). Each keeps, rewrites or vetoes what texts say,
    in six languages; an operator that cannot stay true is left out of a child, with its reason in the child's record.
    A child without any is a veto.
    """

    step: ClassVar[str] = "joint"
    version: ClassVar[int] = 4
    extras: ClassVar[tuple[str, ...]] = ("augment",)
    name: str | None = Field(None, description="names the children and the catalog's rows; default: joint")
    apply: list[Annotated[Applied, BeforeValidator(_spelled), WithJsonSchema(_SPELLED)]] = Field(
        min_length=1, description="operators in their order, each with its parameters and `p`, how likely it is (1)"
    )
    children: int = Field(1, ge=1, le=100, description="of each sample")
    mode: Literal["materialize", "online"] = Field(
        "materialize",
        description="children in the shards; online: the policy beside them, which the trainer's loader applies",
    )
    boxes: dict[str, str] = Field(
        default={}, description='image member: text member with its boxes in pixels, [{"box": [...], "phrase": "..."}]'
    )
    film_boxes: dict[str, str] = Field(
        default={}, description="video member: text member with the same of its frames, each with its `frame`, from 0"
    )
    masks: dict[str, list[str]] = Field(
        default={},
        description="image member: image members that say something of each of its pixels (labels, instances, depth), "
        "8 or 16 bits; they move with it, no value is mixed, and they are stored as PNG",
    )
    times: dict[str, str] = Field(
        default={}, description="audio member: text member with the times of its words (JSON) or cues (subtitles)"
    )
    spoken: dict[str, list[str]] | None = Field(
        None, description="audio member: the texts it says; default: every text may be what any sound says"
    )
    heard: dict[str, list[str]] = Field(
        default={},
        description="audio or tensor member: the texts that tell what is heard or felt in it; default: every text that "
        "it does not say",
    )
    written: list[str] = Field(
        default=[],
        description="texts that say what is written in a picture, as `align: - ocr` makes them: nothing mirrors, "
        "blurs, covers or crops a picture that has any",
    )
    sides: dict[str, Mirrored] = Field(
        default={},
        description="tensor or audio member: what a mirror does to its channels; where it is not named, left and right "
        "of stereo change places (after a quarter turn both have the mean), and a tensor, or sound of more channels, "
        "is never mirrored along",
    )
    max_match_loss: float | None = Field(
        None, ge=0, le=1, description="drop a child whose match is by more than this below its parent's"
    )

    @classmethod
    def choices(cls) -> dict[str, list[str]]:
        """Operators, by what they are for."""
        from mmdata.augment.registry import operators_by_kind

        return {f"Operators ({kind})": names for kind, names in operators_by_kind().items()}

    @property
    def label(self) -> str:
        """Its name in variants, parts and the catalog."""
        return self.name or self.step

    @model_validator(mode="after")
    def _operators_are_known(self) -> Joint:
        # Only the libraries can say.
        for extra in self.extras:
            require("'joint'", extra)
        needing = [entry.operator.name for entry in self.policy.entries if entry.operator.needs_boxes]
        if needing and not (self.boxes or self.film_boxes):
            fix = "boxes: {image: image_regions}, which `align: - regions: {boxes_member: true}` makes"
            raise ValueError(f"{needing[0]} takes things out of the picture and must know where they are; add {fix}")
        return self

    def check(
        self, members: Mapping[str, Modality], ingest: Mapping[Modality, Ingest], aligners: Sequence[str]
    ) -> None:
        """Raises ParameterError where an operator or a parameter has nothing to work on, or masks are no masks."""
        problems = [*self._idle(members, aligners), *self._problems_of_masks(ingest["image"])]
        if problems:
            raise ParameterError(problems)

    def _idle(self, members: Mapping[str, Modality], aligners: Sequence[str]) -> Iterator[tuple[Keys, str]]:
        kinds = {kind for name, kind in members.items() if name not in self.policy.notes.members}
        for number, entry in enumerate(self.policy.entries):
            if not (changes := entry.operator.changes) & kinds:
                fix = "declare one under `sources:`, or take it out"
                told = f"{entry.operator.name} changes {' or '.join(sorted(changes))} and no member is any; {fix}"
                yield ("apply", number), told
        for name in self.sides:
            if (kind := members.get(name)) not in {None, "tensor", "audio"}:
                yield ("sides", name), f"'{name}' is {kind}, and sides are of the channels of a tensor or audio"
        for name in self.heard:
            if (kind := members.get(name)) not in {None, "tensor", "audio"}:
                yield ("heard", name), f"'{name}' is {kind}, and texts tell what is heard or felt in audio or a tensor"
        if self.max_match_loss is not None and not aligners:
            fix = "add an aligner under `align:`, or take it out"
            yield ("max_match_loss",), f"nothing says how well members match: no child is dropped; {fix}"

    def _problems_of_masks(self, ingest: Ingest) -> Iterator[tuple[Keys, str]]:
        masks = [name for names in self.masks.values() for name in names]
        for name in dict.fromkeys(masks):
            if name in self.masks or masks.count(name) > 1:
                yield ("masks",), f"'{name}' is a mask of one image, and has none itself"
        if masks and not ingest.keeps_values:
            fix = "bring images in their size and form, and let `ingest:` keep them"
            yield ("masks",), f"`ingest: - image` makes other pixels, of '{masks[0]}' too: labels would be mixed; {fix}"

    @property
    def mixes(self) -> bool:
        """Whether children have two parents."""
        from mmdata.augment.base import Mixer

        return any(isinstance(entry.operator, Mixer) for entry in self.policy.entries)

    @property
    def policy(self) -> Policy:
        """The operators. Raises ValueError."""
        return _policy(json.dumps(self._policy(), sort_keys=True))

    @property
    def makes_children(self) -> bool:
        """Unless the trainer's loader makes them."""
        return self.mode == "materialize"

    def identity(self) -> dict[str, Any]:
        """The libraries' versions too: another one may draw otherwise."""
        from importlib.metadata import version

        versions = {name: version(name) for name in _LIBRARIES}
        return {**super().identity(), "libraries": versions}

    def most_match_loss(self) -> float | None:
        """As given."""
        return self.max_match_loss

    def policy_of_shards(self) -> dict[str, Any]:
        """Label, mode, operators and notes, and whether they mix samples."""
        return {**self._policy(), **({"mixes": True} if self.mixes else {})}

    def _policy(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "mode": self.mode,
            "children": self.children,
            "apply": [entry.model_dump(mode="json") for entry in self.apply],
            **{name: getattr(self, name) for name in ("boxes", "times", "spoken")},
            **({"sides": self.model_dump(mode="json")["sides"]} if self.sides else {}),
            **({"film_boxes": self.film_boxes} if self.film_boxes else {}),
            **({"written": self.written} if self.written else {}),
            **({"masks": self.masks} if self.masks else {}),
            **({"heard": self.heard} if self.heard else {}),
        }

    def reads(self) -> dict[str, Modality | None]:
        """Members with notes, and those they are of."""
        found: dict[str, Modality | None] = {}
        for kind, notes in (("image", self.boxes), ("video", self.film_boxes), ("audio", self.times)):
            found |= dict.fromkeys(notes, kind) | dict.fromkeys(notes.values(), "text")  # type: ignore[arg-type]
        for name, texts in self.heard.items():
            found |= {name: found.get(name), **dict.fromkeys(texts, "text")}
        for sound, texts in (self.spoken or {}).items():
            found |= {sound: "audio", **dict.fromkeys(texts, "text")}
        for image, masks in self.masks.items():
            found |= dict.fromkeys([image, *masks], "image")
        for entry in self.apply:
            key, modality = _NAMING.get(entry.op, ("", None))
            found |= {name: found.get(name, modality) for name in entry.params.get(key) or ()}
        return found | dict.fromkeys(self.written, "text") | dict.fromkeys(self.sides)

    def make(self, sample: Sample, seed: int, others: Others) -> Iterator[Sample | Veto]:
        """The children; a veto for each that could not be made: another may not need the member that is broken."""
        for number in range(self.children if self.mode == "materialize" else 0):
            try:
                yield self.policy.child(sample, number, seed, others)
            except SampleError as error:
                record = getattr(error, "record", None)
                yield Veto(f"{self.label}_{number}", error.reason, str(error), record)
