"""`clip`: agreement of images and texts by a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mmdata.errors import SampleError
from mmdata.models.device import PRECISION_MEANS, Precision
from mmdata.models.weights import Weights
from mmdata.sample import Modality, Sample
from mmdata.spec import Names
from mmdata.steps.base import Align, Edge, Found, Score

if TYPE_CHECKING:
    import numpy as np

    from mmdata.models.clip import Clip as ClipModel


@dataclass(frozen=True)
class _Item:
    """One sample, ready for the model: images as uint8 [3, H, W], texts as they are, and the edges to score."""

    images: dict[str, np.ndarray[Any, np.dtype[np.uint8]]]
    texts: dict[str, str]
    edges: list[Edge]


class Clip(Align):
    """Cosine similarity of image and text embeddings, by any model that open_clip can load."""

    step: ClassVar[str] = "clip"
    version: ClassVar[int] = 3
    batch_samples: ClassVar[int] = 128
    modalities: ClassVar[tuple[Modality, Modality]] = ("image", "text")
    name: str | None = Field(None, description="the aligner's name in rules and in the catalog; default: clip")
    model: str = Field(description="an open_clip architecture (ViT-B-32), hub id (hf-hub:org/name) or local folder")
    pretrained: str | None = Field(None, description="tag or checkpoint file, for an architecture")
    image: Names = Field(default=["image"], min_length=1, description="image members")
    text: Names = Field(default=["caption"], min_length=1, description="text members")
    precision: Precision = Field("auto", description=PRECISION_MEANS)

    def edges(self) -> list[Edge]:
        """Every image with every text."""
        return [Edge(image, text) for image in self.image for text in self.text]

    def weights(self) -> Weights:
        """Raises WeightsError."""
        from mmdata.models.clip_weights import locate

        return locate(self.model, self.pretrained)

    def load(self, device: str) -> _Scorer:
        """Load the model through open_clip's factory."""
        from mmdata.models.clip import Clip as ClipModel

        return _Scorer(self, ClipModel.load(self.model, self.pretrained, device, self.precision))

    def prepare(self, recipe: Any, sample: Sample, edges: Sequence[Edge]) -> _Item | None:
        """Decode and resize the images as the model's own preprocessing does."""
        from mmdata.media.image import ANY_SIZE, open_image
        from mmdata.models.clip_image import prepare_image

        there = sample.members
        wanted = [edge for edge in edges if edge.left in there and edge.right in there]
        # In the order of the edges, never of a set: a batch must be the same in every process.
        lefts, rights = dict.fromkeys(e.left for e in wanted), dict.fromkeys(e.right for e in wanted)
        images = {
            name: prepare_image(recipe, open_image(there[name].data, ANY_SIZE, recipe.enough_px)) for name in lefts
        }
        texts = {name: there[name].text for name in rights}
        return _Item(images, texts, wanted) if wanted else None


class _Scorer:
    def __init__(self, step: Clip, model: ClipModel) -> None:
        self.step = step
        self.model = model
        self.recipe = model.recipe

    def score(self, items: Sequence[_Item]) -> list[Found | SampleError]:
        """One call of each tower for the batch; cosines of unit vectors."""
        import numpy as np

        images = [image for item in items for image in item.images.values()]
        texts = [text for item in items for text in item.texts.values()]
        image_emb_ND = iter(self.model.embed_images(np.stack(images)))
        text_emb_ND = iter(self.model.embed_texts(texts))
        found: list[Found | SampleError] = []
        for item in items:
            vectors = {name: next(image_emb_ND) for name in item.images}
            vectors |= {name: next(text_emb_ND) for name in item.texts}
            scores = [Score(edge.name, float(vectors[edge.left] @ vectors[edge.right])) for edge in item.edges]
            found.append(Found(scores, vectors))
        return found
