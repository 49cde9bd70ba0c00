"""`regions`: which phrases of a text are seen in an image, and where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from pydantic import Field, model_validator

from mmdata.errors import SampleError
from mmdata.models.device import PRECISION_MEANS, Precision
from mmdata.models.weights import Weights
from mmdata.sample import Modality, Sample
from mmdata.steps.base import Align
from mmdata.steps.exchange import Declared, Edge, Found, NewText, Score

if TYPE_CHECKING:
    import numpy as np

    from mmdata.models.clip_image import ImageRecipe
    from mmdata.models.phrases import Phrase
    from mmdata.models.region_detector import Detector
    from mmdata.models.regions import Picture, Region

# Standard deviations above the nouns of the bank. On canvases of stamps and `lite`, 57 % of the phrases that were there
# lay above it, 14 % of those that were not.
_GROUNDED_ABOVE: Final = 1.0
# Windows of a quarter of the sides: 49.
_FINEST: Final = 4
# Captions of other samples that each image is held against: what calibration is made of.
_NULLS: Final = 4


@dataclass(frozen=True)
class _Item:
    """One sample: its image for the model, its size and digest, and what its text names."""

    picture: Picture | np.ndarray[Any, np.dtype[np.uint8]]
    width_px: int
    height_px: int
    digest: str
    text: str
    lang: str | None
    phrases: list[Phrase]
    wants_member: bool


class _Finder(Protocol):
    def find(self, pictures: Sequence[Any], captions: Sequence[list[list[str]]]) -> list[list[list[Region]]]: ...


class Regions(Align):
    """The share of a text's noun phrases that are seen in some region of the image, and the best box of each.

    Regions are windows of the image, or boxes that the sample brings, scored by a CLIP model; or an open-vocabulary
    detector finds them. Phrases are found by grammar in English, by function words and punctuation elsewhere.
    """

    step: ClassVar[str] = "regions"
    version: ClassVar[int] = 3
    extras: ClassVar[tuple[str, ...]] = ("regions",)
    # 35 windows an image.
    batch_samples: ClassVar[int] = 16
    modalities: ClassVar[tuple[Modality, Modality]] = ("image", "text")
    name: str | None = Field(None, description="the aligner's name in rules and in the catalog; default: regions")
    model: str | None = Field(
        None, description="an open_clip architecture (ViT-B-32), hub id (hf-hub:org/name) or local folder"
    )
    pretrained: str | None = Field(None, description="tag or checkpoint file, for an architecture")
    detector: str | None = Field(
        None, description="instead of `model`: local folder of an OWL-ViT, OWLv2 or Grounding DINO model (transformers)"
    )
    image: str = Field("image", description="image member")
    text: str = Field("caption", description="text member")
    boxes: str | None = Field(
        None,
        description='text member with boxes, [{"box": [x0, y0, x1, y1]}], in pixels of the image as it is stored; '
        "without it: windows",
    )
    grounded_above: float | None = Field(
        None, description="a phrase with a higher score is grounded; default: 1.0, for a detector what its authors take"
    )
    scales: list[int] = Field(
        default=[1, 2, 3],
        min_length=1,
        max_length=4,
        description="windows of 1/n of the image's sides, overlapping by half",
    )
    precision: Precision = Field("auto", description=f"{PRECISION_MEANS}; a detector's is 32 on processors")
    boxes_member: bool = Field(False, description="make a text member {image}_regions of the grounded phrases' boxes")

    @model_validator(mode="after")
    def _one_model(self) -> Regions:
        if (self.model is None) == (self.detector is None):
            raise ValueError("give one of 'model' and 'detector'")
        if self.detector and self.boxes:
            raise ValueError("a detector finds its own boxes; 'boxes' goes with 'model'")
        if not all(1 <= n <= _FINEST for n in self.scales) or len({*self.scales}) < len(self.scales):
            raise ValueError(f"scales: {self.scales} are not different numbers from 1 to {_FINEST}")
        return self

    def edges(self) -> list[Edge]:
        """One."""
        return [Edge(self.image, self.text)]

    def reads(self) -> dict[str, Modality | None]:
        """The boxes too."""
        return super().reads() | ({self.boxes: "text"} if self.boxes else {})

    def new_members(self) -> dict[str, Declared]:
        """The boxes of grounded phrases, if they are wanted."""
        return {f"{self.image}_regions": Declared("text", False)} if self.boxes_member else {}

    def measures(self) -> dict[str, str]:
        """`phrases` is a JSON list of phrase, span, box (relative), score and whether it is grounded."""
        return {"phrases": "VARCHAR", "grounded_share": "DOUBLE", "mean_score": "DOUBLE", "phrase_count": "INTEGER"}

    def weights(self) -> Weights:
        """Raises WeightsError."""
        from mmdata.models.clip_weights import locate
        from mmdata.models.region_detector import locate_detector

        return locate_detector(self.detector) if self.detector else locate(self.model or "", self.pretrained)

    def identity(self) -> dict[str, Any]:
        """Where the detector lies does not matter either."""
        mine = super().identity()
        mine["params"].pop("detector", None)
        return mine

    def load(self, device: str) -> _Scorer:
        """Load the model through open_clip's factory, or the detector through transformers."""
        if self.detector:
            from mmdata.models.region_detector import Detector, found_above

            return _Scorer(self, _Detection(Detector.load(self.detector, device)), None, found_above(self.detector))
        from mmdata.models.clip import Clip
        from mmdata.models.regions import RegionFinder

        finder = RegionFinder(Clip.load(self.model or "", self.pretrained, device, self.precision))
        return _Scorer(self, finder, finder.recipe, _GROUNDED_ABOVE)

    def prepare(self, recipe: ImageRecipe | None, sample: Sample, edges: Sequence[Edge]) -> _Item | Score | None:
        """Find the phrases, decode the image once and cut it into windows.

        Raises SampleError, `bad_boxes` among others.
        """
        if not edges or not {self.image, self.text} <= sample.members.keys():
            return None
        from mmdata.media.image import ANY_SIZE, open_image
        from mmdata.models.phrases import find_phrases

        text = sample.members[self.text]
        phrases = find_phrases(text.text, text.lang)
        member = sample.members[self.image]
        image = open_image(member.data, ANY_SIZE)
        picture = self._see(recipe, sample, image)
        if not phrases or picture is None:
            return Score(edges[0].name, None, {"skipped": "no phrase" if picture is not None else "no box"})
        wants = self.boxes_member and f"{self.image}_regions" not in sample.members
        return _Item(picture, image.width, image.height, member.sha256, text.text, text.lang, phrases, wants)

    def _see(self, recipe: ImageRecipe | None, sample: Sample, image: Any) -> Any:
        from mmdata.models.region_detector import see_whole
        from mmdata.models.regions import grid, read_boxes, see

        if recipe is None:
            return see_whole(image)
        if self.boxes not in sample.members:
            return see(recipe, image, grid(self.scales), is_grid=True)
        box_S4 = read_boxes(sample.members[self.boxes].text, image.width, image.height)
        return see(recipe, image, box_S4, is_grid=False) if len(box_S4) else None


class _Detection:
    """A detector, one picture at a time."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def find(self, pictures: Sequence[Any], captions: Sequence[list[list[str]]]) -> list[list[list[Region]]]:
        return [self._find(picture, some) for picture, some in zip(pictures, captions, strict=True)]

    def _find(self, picture: Any, captions: list[list[str]]) -> list[list[Region]]:
        distinct = list(dict.fromkeys(phrase for caption in captions for phrase in caption))
        found = dict(zip(distinct, self._detector.find(picture, distinct), strict=True))
        return [[found[phrase] for phrase in caption] for caption in captions]


class _Scorer:
    def __init__(self, step: Regions, finder: _Finder, recipe: ImageRecipe | None, grounded_above: float) -> None:
        self.step = step
        self.recipe = recipe
        self._finder = finder
        self._above = grounded_above if step.grounded_above is None else step.grounded_above

    def score(self, items: Sequence[_Item | Score]) -> list[Found | SampleError]:
        """All windows and all phrases of the batch together; each image also against captions of other samples."""
        from mmdata.models.mismatched import other_texts

        full = [item for item in items if isinstance(item, _Item)]
        texts, languages = [item.text for item in full], [item.lang for item in full]
        others = other_texts(texts, languages, [item.digest for item in full], _NULLS)
        names = [[phrase.text for phrase in item.phrases] for item in full]
        captions = [[own, *(names[n] for n in more)] for own, more in zip(names, others, strict=True)]
        found = iter(self._finder.find([item.picture for item in full], captions))
        return [Found([item if isinstance(item, Score) else self._judge(item, next(found))]) for item in items]

    def _judge(self, item: _Item, found: list[list[Region]]) -> Score:
        own, *others = found
        share = self._share(own)
        rows = [self._row(phrase, region) for phrase, region in zip(item.phrases, own, strict=True)]
        measures = {
            "phrases": json.dumps(rows, ensure_ascii=False),
            "grounded_share": share,
            "mean_score": round(sum(region.score for region in own) / len(own), 4),
            "phrase_count": len(own),
        }
        edge = self.step.edges()[0].name
        return Score(edge, share, measures, self._member(item, rows), tuple(map(self._share, others)))

    def _share(self, regions: list[Region]) -> float:
        return round(sum(region.score > self._above for region in regions) / len(regions), 4)

    def _row(self, phrase: Phrase, region: Region) -> dict[str, Any]:
        grounded = region.score > self._above
        return {"phrase": phrase.text, "span": phrase.span, **region._asdict(), "grounded": grounded}

    def _member(self, item: _Item, rows: list[dict[str, Any]]) -> NewText | None:
        """Boxes in pixels, as `boxes` reads them; nothing where nothing is grounded."""
        sides = (item.width_px, item.height_px) * 2
        boxes = [
            {
                "box": [round(value * side, 1) for value, side in zip(row["box"], sides, strict=True)],
                "phrase": row["phrase"],
                "score": row["score"],
            }
            for row in rows
            if row["grounded"]
        ]
        if not item.wants_member or not boxes:
            return None
        return NewText(f"{self.step.image}_regions", json.dumps(boxes, ensure_ascii=False), None)
