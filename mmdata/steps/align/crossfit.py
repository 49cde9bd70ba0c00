"""`crossfit`: agreement by heads that are fitted on the corpus itself, where no pretrained model knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from pydantic import Field, model_validator

from mmdata.errors import SampleError
from mmdata.models.weights import Weights
from mmdata.sample import Member, Modality, Sample
from mmdata.spec import Frozen
from mmdata.steps.base import Fitted
from mmdata.steps.exchange import Edge, FittedRows, Found, Pairs

if TYPE_CHECKING:
    from mmdata.models.crossfit_aligner import Aligner
    from mmdata.models.tower_spec import TowerSpec
    from mmdata.models.towers import Recipe, Tower

_SEES: Final[dict[str, Modality]] = {
    "open_clip_image": "image",
    "timm": "image",
    "open_clip_text": "text",
    "sentence": "text",
    "whisper": "audio",
}


class TowerSettings(Frozen):
    """A frozen network that turns one member into features."""

    kind: Literal["open_clip_image", "open_clip_text", "timm", "sentence", "whisper"] = Field(
        description="towers of a CLIP model, a timm image network, a sentence encoder, Whisper's encoder"
    )
    model: str = Field(description="timm: an architecture; else as the aligner of that name takes it, or a folder")
    checkpoint: str | None = Field(None, description="tag or file of the weights, for an architecture")
    resize_mode: Literal["shortest", "longest", "squash"] = Field(
        "shortest", description="timm: crop the longer side, pad the shorter one (for drawings), or change the aspect"
    )

    def spec(self) -> TowerSpec:
        """As the model layer has it."""
        from mmdata.models.tower_spec import TowerSpec

        return TowerSpec(self.kind, self.model, self.checkpoint, self.resize_mode)


class Crossfit(Fitted):
    """Log-odds that a pair belongs together, by heads and examples of other folds: no pair is judged by what saw it.

    Frozen towers see and read; what brings both together is fitted on the corpus's own pairs, in rounds that believe
    mismatched ones less and less. The fit is kept in the build's folder `aligners/`; that of a timm and a sentence
    tower also as a model that open_clip opens, `aligners/crossfit/open_clip`, for `clip` and `regions` of other builds.
    """

    step: ClassVar[str] = "crossfit"
    version: ClassVar[int] = 3
    extras: ClassVar[tuple[str, ...]] = ("crossfit",)
    modalities: ClassVar[tuple[Modality, Modality]] = ("image", "text")
    only_fitting: ClassVar[frozenset[str]] = frozenset({"folds", "rounds", "max_examples"})
    name: str | None = Field(None, description="the aligner's name in rules and in the catalog; default: crossfit")
    pair: tuple[str, str] = Field(description="the two members")
    left: TowerSettings = Field(description="what sees the first member")
    right: TowerSettings = Field(description="what sees the second member")
    folds: int = Field(5, ge=2, le=50, description="parts that the corpus is cut into; each is judged by the others")
    rounds: int = Field(4, ge=1, le=20, description="passes; the first believes every pair")
    max_examples: int = Field(20_000, ge=100, description="pairs to learn from, at most: bounds memory and time")

    @model_validator(mode="after")
    def _two_ends(self) -> Crossfit:
        if self.pair[0] == self.pair[1]:
            raise ValueError("a pair has two different members")
        return self

    def edges(self) -> list[Edge]:
        """The one pair."""
        return [Edge(*self.pair)]

    def reads(self) -> dict[str, Modality | None]:
        """Both members, as their towers take them."""
        return {self.pair[0]: _SEES[self.left.kind], self.pair[1]: _SEES[self.right.kind]}

    def identity(self) -> dict[str, Any]:
        """Parameters and the towers' weights; where they lie does not matter."""
        mine = super().identity()
        for side in ("left", "right"):
            mine["params"][side] = {key: mine["params"][side][key] for key in ("kind", "resize_mode")}
        return mine

    def needs(self) -> tuple[str, ...]:
        """Whisper's where a tower is its encoder."""
        return (*self.extras, "whisper") if "whisper" in (self.left.kind, self.right.kind) else self.extras

    def weights(self) -> Weights:
        """Those of both towers. Raises WeightsError."""
        towers = [side.spec().weights() for side in (self.left, self.right)]
        return Weights(identity=" ".join(tower.identity for tower in towers), path=towers[0].path)

    def vector_space(self, member: str) -> str:
        """Vectors are the towers', each of its own; both towers of one CLIP model share one."""
        side = self.left if member == self.pair[0] else self.right
        return side.spec().weights().identity

    def load(self, device: str) -> _Scorer:
        """Load both towers."""
        return _Scorer(self, self.left.spec().load(device), self.right.spec().load(device))

    def prepare(self, recipe: tuple[Recipe, Recipe], sample: Sample, edges: Sequence[Edge]) -> _Item | None:
        """Both members as their towers want them."""
        if not edges or any(name not in sample.members for name in self.pair):
            return None
        left, right = (_prepared(how, sample.members[name]) for how, name in zip(recipe, self.pair, strict=True))
        return _Item(left, right)

    def fit(self, pairs: Pairs, seed: int, folder: Path) -> FittedRows:
        """Fit on the originals, score them out of fold and children by their parents' fold, and keep the aligner.

        Where there are too few pairs to hold any out, none is scored and nothing is kept.
        """
        import numpy as np

        from mmdata.models.crossfit import CrossfitConfig, Features, can_hold_out, crossfit
        from mmdata.models.pair_strength import pair_strength

        count = int((pairs.parent_N < 0).sum())
        own = slice(0, count)
        features = Features(
            pairs.left_NF[own], pairs.right_NE[own], pairs.left_id_N[own], pairs.right_id_N[own], pairs.lang_N[own]
        )
        config = CrossfitConfig(folds=self.folds, seed=seed, rounds=self.rounds, max_examples=self.max_examples)
        if not can_hold_out(features, config):
            none_N, none_NR = np.full(count, np.nan, np.float32), np.empty((count, 0), np.float32)
            least = f"too few pairs to hold any out: {2 * self.folds} have to differ from the commonest at each end"
            return FittedRows(self.edges()[0].name, pairs.ids[own], none_N, none_NR, none_N, none_NR, least)
        found = crossfit(features, config)
        aligner = found.aligner
        emb_left_ND = aligner.embed_left(features.left_NF, found.fold_N)
        strong_left_N, strong_right_N = pair_strength(
            emb_left_ND, aligner.embed_right(features.right_NE, found.fold_N), found.fold_N
        )
        strength_N = strong_left_N + strong_right_N
        null_strength_NR = strong_left_N[:, None] + strong_right_N[found.partner_NR]
        parent_N = pairs.parent_N[count:]
        known_N = parent_N >= 0
        child_score_N = aligner.score(
            pairs.left_NF[count:],
            pairs.right_NE[count:],
            np.where(known_N, found.fold_N[parent_N], aligner.everyone),
            np.where(known_N, found.own_N[parent_N], -1),
        )
        child_strength_N = np.where(known_N, strength_N[parent_N], np.nan)
        none_MR = np.full((len(parent_N), found.null_NR.shape[1]), np.nan)
        self._keep(folder, aligner, count)
        return FittedRows(
            self.edges()[0].name,
            pairs.ids,
            np.concatenate([found.score_N, child_score_N]),
            np.concatenate([found.null_NR, none_MR]),
            np.concatenate([strength_N, child_strength_N]),
            np.concatenate([null_strength_NR, none_MR]),
        )

    def _keep(self, folder: Path, aligner: Aligner, pairs: int) -> None:
        from mmdata.models.crossfit_aligner import save_aligner
        from mmdata.models.crossfit_clip import save_open_clip

        save_aligner(folder, aligner, {"pair": list(self.pair), "pairs": pairs, **self.model_dump(mode="json")})
        if (self.left.kind, self.right.kind) == ("timm", "sentence"):
            save_open_clip(folder / "open_clip", aligner, self.left.spec(), self.right.spec())


@dataclass(frozen=True)
class _Item:
    """Both members of a sample, as their towers take them."""

    left: Any
    right: Any


class _Scorer:
    def __init__(self, step: Crossfit, left: Tower, right: Tower) -> None:
        self.step = step
        self.towers = (left, right)
        self.recipe = (left.recipe, right.recipe)

    def score(self, items: Sequence[_Item]) -> list[Found | SampleError]:
        """Features of both members; scores come with the fit."""
        left_NF = self.towers[0].embed([item.left for item in items])
        right_NE = self.towers[1].embed([item.right for item in items])
        names = self.step.pair
        return [Found((), dict(zip(names, both, strict=True))) for both in zip(left_NF, right_NE, strict=True)]


def _prepared(recipe: Recipe, member: Member) -> Any:
    """An image as uint8 `[3, H, W]`, a text, or sound as float32 `[A]`. Raises SampleError."""
    from mmdata.media.audio import decode_mono
    from mmdata.media.image import ANY_SIZE, open_image
    from mmdata.models.clip_image import ImageRecipe, prepare_image
    from mmdata.models.towers import AudioRecipe

    if isinstance(recipe, ImageRecipe):
        return prepare_image(recipe, open_image(member.data, ANY_SIZE, recipe.enough_px))
    if isinstance(recipe, AudioRecipe):
        return decode_mono(member.data, recipe.max_s, recipe.sample_rate_hz)
    return member.text
