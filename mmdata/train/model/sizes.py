"""Widths and depths of the model: three named sizes, each of which can be changed in part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from mmdata.spec import Frozen, Keys


class TowerShape(Frozen):
    """One tower, in full."""

    width: int
    depth: int
    heads: int


class FusionShape(TowerShape):
    """The fusion, in full."""

    latents: int


class Architecture(Frozen):
    """Every number that shapes the model; saved with it."""

    text: TowerShape
    image: TowerShape
    audio: TowerShape
    fusion: FusionShape
    embed_dim: int
    patch_px: int
    dropout: float = 0.0


class TowerChange(Frozen):
    """What differs from the named size in one tower."""

    width: int | None = Field(None, ge=8, le=8192, description="features of a token; a multiple of heads")
    depth: int | None = Field(None, ge=1, le=128, description="blocks, one after the other")
    heads: int | None = Field(None, ge=1, le=128, description="heads of attention")


class FusionChange(TowerChange):
    """What differs from the named size in the fusion."""

    latents: int | None = Field(None, ge=1, le=1024, description="learned queries that read the modalities' tokens")


class ModelConfig(Frozen):
    """A named size, and what differs from it."""

    size: Literal["tiny", "small", "base"] = Field(
        "tiny", description="tiny: minutes on two cores; small: hours on them; base: a GPU, towers as in CLIP B/16"
    )
    text: TowerChange = Field(TowerChange(), description="the Transformer over text tokens")
    image: TowerChange = Field(TowerChange(), description="the Transformer over image patches")
    audio: TowerChange = Field(TowerChange(), description="the convolutions over the log-mel spectrogram; has no heads")
    fusion: FusionChange = Field(FusionChange(), description="the latents that attend over all modalities")
    embed_dim: int | None = Field(None, ge=2, le=8192, description="dimensions of an embedding")
    patch_px: int | None = Field(None, ge=2, le=128, description="side of an image patch; divides image_side_px")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in every Transformer block")

    def architecture(self) -> Architecture:
        """The named size with the changes laid over it."""
        changes = self.model_dump(exclude={"size"}, exclude_none=True)
        return Architecture.model_validate(_merged(SIZES[self.size].model_dump(), changes))


def _shape(width: int, depth: int, heads: int) -> TowerShape:
    return TowerShape(width=width, depth=depth, heads=heads)


SIZES = {
    "tiny": Architecture(
        text=_shape(96, 2, 4), image=_shape(96, 2, 4), audio=_shape(96, 3, 1),
        fusion=FusionShape(width=96, depth=1, heads=4, latents=4), embed_dim=96, patch_px=16,
    ),
    "small": Architecture(
        text=_shape(256, 4, 4), image=_shape(256, 6, 4), audio=_shape(256, 6, 1),
        fusion=FusionShape(width=256, depth=2, heads=4, latents=8), embed_dim=256, patch_px=8,
    ),
    # Towers as in CLIP ViT-B/16 (Radford et al. 2021, table 20), so that speed can be put beside it.
    "base": Architecture(
        text=_shape(512, 12, 8), image=_shape(768, 12, 12), audio=_shape(512, 8, 1),
        fusion=FusionShape(width=512, depth=4, heads=8, latents=16), embed_dim=512, patch_px=16,
    ),
}  # fmt: skip


def problems(model: ModelConfig, image_side_px: int) -> Iterator[tuple[Keys, str]]:
    """Faults between widths, heads and patches, each with the path of the value."""
    architecture = model.architecture()
    for name in ("text", "image", "fusion"):
        shape: TowerShape = getattr(architecture, name)
        if shape.width % shape.heads:
            yield ("model", name), f"a width of {shape.width} does not divide into {shape.heads} heads; change either"
    if image_side_px % architecture.patch_px:
        what = f"{image_side_px} px do not divide into patches of {architecture.patch_px} px"
        yield ("data", "image_side_px"), f"{what}; use a multiple, or set model.patch_px"


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merged(base[key], value) if isinstance(value, dict) else value
    return merged
