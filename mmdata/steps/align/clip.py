"""`clip`: agreement of images, or of films, and texts by a CLIP model.

Shapes: F frames of a member (of an image 1), D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from mmdata.errors import SampleError
from mmdata.models.device import PRECISION_MEANS, Precision
from mmdata.models.weights import Weights
from mmdata.sample import Member, Modality, Sample
from mmdata.spec import Names
from mmdata.steps.base import Align
from mmdata.steps.exchange import Edge, Found, Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmdata.models.clip import Clip as ClipModel

    Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Item:
    """One sample, ready for the model: pictures as uint8 [F, 3, H, W], texts as they are, and the edges to score."""

    pictures: dict[str, np.ndarray[Any, np.dtype[np.uint8]]]
    texts: dict[str, str]
    edges: list[Edge]


class Clip(Align):
    """Cosine similarity of image and text embeddings, by any model that open_clip can load.

    A film's embedding is the mean of its frames' (the parameter-free way of CLIP4Clip: Luo et al., 2021).
    """

    step: ClassVar[str] = "clip"
    version: ClassVar[int] = 4
    extras: ClassVar[tuple[str, ...]] = ("clip",)
    batch_samples: ClassVar[int] = 128
    modalities: ClassVar[tuple[Modality, Modality]] = ("image", "text")
    name: str | None = Field(None, description="the aligner's name in rules and in the catalog; default: clip")
    model: str = Field(description="an open_clip architecture (ViT-B-32), hub id (hf-hub:org/name) or local folder")
    pretrained: str | None = Field(None, description="tag or checkpoint file, for an architecture")
    image: Names = Field(default=["image"], description="image members; none by default where `video` names some")
    video: Names = Field(default=[], description="video members")
    frames: int = Field(8, ge=1, le=64, description="frames of a video that are looked at, spread evenly over it")
    text: Names = Field(default=["caption"], min_length=1, description="text members")
    precision: Precision = Field("auto", description=PRECISION_MEANS)

    @model_validator(mode="before")
    @classmethod
    def _no_image_beside_video(cls, given: Any) -> Any:
        return {"image": [], **given} if isinstance(given, dict) and given.get("video") else given

    @model_validator(mode="after")
    def _has_pictures(self) -> Clip:
        if not [*self.image, *self.video]:
            raise ValueError("image: name a member, or one in 'video'")
        return self

    def edges(self) -> list[Edge]:
        """Every image and every film with every text."""
        return [Edge(picture, text) for picture in [*self.image, *self.video] for text in self.text]

    def reads(self) -> dict[str, Modality | None]:
        """The ends of its edges."""
        return {**super().reads(), **dict.fromkeys(self.video, "video")}

    def weights(self) -> Weights:
        """Raises WeightsError."""
        from mmdata.models.clip_weights import locate

        return locate(self.model, self.pretrained)

    def load(self, device: str) -> _Scorer:
        """Load the model through open_clip's factory."""
        from mmdata.models.clip import Clip as ClipModel

        return _Scorer(self, ClipModel.load(self.model, self.pretrained, device, self.precision))

    def prepare(self, recipe: Any, sample: Sample, edges: Sequence[Edge]) -> _Item | None:
        """Decode and resize the images, and the frames of films, as the model's own preprocessing does."""
        import numpy as np

        from mmdata.models.clip_image import prepare_image

        there = sample.members
        wanted = [edge for edge in edges if edge.left in there and edge.right in there]
        # In the order of the edges, never of a set: a batch must be the same in every process.
        lefts, rights = dict.fromkeys(e.left for e in wanted), dict.fromkeys(e.right for e in wanted)
        pictures = {
            name: np.stack([prepare_image(recipe, shown) for shown in self._shown(there[name], recipe)])
            for name in lefts
        }
        texts = {name: there[name].text for name in rights}
        return _Item(pictures, texts, wanted) if wanted else None

    def _shown(self, member: Member, recipe: Any) -> list[Any]:
        """Pillow images of an image or a film. Raises SampleError."""
        if member.modality == "video":
            from mmdata.media.video import spread_stills

            return spread_stills(member.data, self.frames)
        from mmdata.media.image import ANY_SIZE, open_image

        return [open_image(member.data, ANY_SIZE, recipe.enough_px)]


class _Scorer:
    def __init__(self, step: Clip, model: ClipModel) -> None:
        self.step = step
        self.model = model
        self.recipe = model.recipe

    def score(self, items: Sequence[_Item]) -> list[Found | SampleError]:
        """One call of each tower for the batch; cosines of unit vectors."""
        import numpy as np

        pictures = [frames_F for item in items for frames_F in item.pictures.values()]
        texts = [text for item in items for text in item.texts.values()]
        frame_emb_ND = self.model.embed_images(np.concatenate(pictures))
        ends = np.cumsum([len(frames_F) for frames_F in pictures])
        picture_emb_ND = map(_direction, np.split(frame_emb_ND, ends[:-1]))
        text_emb_ND = iter(self.model.embed_texts(texts))
        found: list[Found | SampleError] = []
        for item in items:
            vectors = {name: next(picture_emb_ND) for name in item.pictures}
            vectors |= {name: next(text_emb_ND) for name in item.texts}
            scores = [Score(edge.name, float(vectors[edge.left] @ vectors[edge.right])) for edge in item.edges]
            found.append(Found(scores, vectors))
        return found


def _direction(frame_emb_FD: Floats) -> Floats:
    """The mean of unit vectors, at length 1; of one that one, bit by bit."""
    import numpy as np

    if len(frame_emb_FD) == 1:
        return np.asarray(frame_emb_FD[0])
    mean_D = frame_emb_FD.mean(axis=0)
    return np.asarray(mean_D / max(float(np.linalg.norm(mean_D)), 1e-12))
