"""Widths and depths of the model: three named sizes, each of which can be changed in part. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import Field

from mmdata.document import Keys
from mmdata.spec import Frozen
from mmdata.train.losses.config import LossConfig

# What a decoder can make.
Output = Literal["text", "image", "audio"]
# What has built-in Transformer blocks, and so heads and a width that has to fit.
_WITH_HEADS = ("text", "image", "video", "fusion", "text_decoder", "image_decoder", "audio_decoder")
# What a shared trunk runs through.
TRUNK_MODALITIES = ("text", "image", "audio", "tensor")


class TowerShape(Frozen):
    """One tower, in full."""

    width: int
    depth: int
    heads: int


class FusionShape(TowerShape):
    """The fusion, in full."""

    latents: int


class ImageDecoderShape(TowerShape):
    """The image decoder, in full."""

    side_px: int
    patch_px: int


class AudioDecoderShape(TowerShape):
    """The audio decoder, in full."""

    max_s: float
    patch_frames: int


class Moe(Frozen):
    """Mixture of experts: instead of one MLP several, of which each token takes one."""

    experts: int = Field(4, ge=2, le=256, description="MLPs in the place of one")
    every: int = Field(2, ge=1, le=64, description="blocks to one with experts: 2 is every second")
    balance: float = Field(0.01, ge=0, description="weight of the loss that spreads the tokens over the experts")
    entropy: float = Field(
        0.01, ge=0, description="weight of the loss that makes a token's choice sure and all tokens' choices different"
    )


TowerKind = Literal["open_clip_image", "open_clip_text", "timm", "sentence", "whisper"]


# Which kinds see which modality.
_KINDS_OF: dict[str, tuple[TowerKind, ...]] = {
    "image": ("open_clip_image", "timm"),
    "text": ("open_clip_text", "sentence"),
    "audio": ("whisper",),
}


class PretrainedTower(Frozen):
    """A tower whose weights come from elsewhere."""

    kind: TowerKind = Field(
        description="open_clip_image, open_clip_text: of a CLIP model; timm: an image network; sentence: a text "
        "encoder of Hugging Face; whisper: its encoder"
    )
    model: str = Field(description="open_clip, timm: the architecture's name, or open_clip's folder; else a folder")
    checkpoint: str | None = Field(None, description="open_clip: a tag or file; timm: a file, else its own weights")
    frozen: bool = Field(True, description="its weights stay as they are, and the optimiser does not see them")


class Architecture(Frozen):
    """Every number that shapes the model; saved with it."""

    text: TowerShape
    image: TowerShape
    audio: TowerShape
    video: TowerShape
    tensor: TowerShape
    fusion: FusionShape
    text_decoder: TowerShape
    image_decoder: ImageDecoderShape
    audio_decoder: AudioDecoderShape
    embed_dim: int
    patch_px: int
    dropout: float = 0.0
    shared_trunk: bool = False
    moe: Moe | None = None
    decoders: tuple[Output, ...] = ()
    masked: bool = False
    match: bool = False
    route: bool = False
    towers: dict[str, PretrainedTower] = Field(default={})


class TowerChange(Frozen):
    """What differs from the named size in one tower."""

    width: int | None = Field(None, ge=8, le=8192, description="features of a token; a multiple of heads")
    depth: int | None = Field(None, ge=1, le=128, description="blocks, one after the other")
    heads: int | None = Field(None, ge=1, le=128, description="heads of attention")


class FusionChange(TowerChange):
    """What differs from the named size in the fusion."""

    latents: int | None = Field(None, ge=1, le=1024, description="learned queries that read the modalities' tokens")


class ImageDecoderChange(TowerChange):
    """What differs from the named size in the image decoder."""

    side_px: int | None = Field(None, ge=8, le=256, description="side of the images that it makes")
    patch_px: int | None = Field(None, ge=1, le=64, description="side of a patch; divides side_px")


class AudioDecoderChange(TowerChange):
    """What differs from the named size in the audio decoder."""

    max_s: float | None = Field(None, gt=0, le=60, description="seconds of sound that it makes")
    patch_frames: int | None = Field(None, ge=1, le=64, description="log-mel frames, of 10 ms, in a token")


class ModelConfig(Frozen):
    """A named size, and what differs from it."""

    size: Literal["tiny", "small", "base"] = Field(
        "tiny", description="tiny: minutes on two cores; small: hours on them; base: a GPU, towers as in CLIP B/16"
    )
    text: TowerChange = Field(TowerChange(), description="the Transformer over text tokens")
    image: TowerChange = Field(TowerChange(), description="the Transformer over image patches")
    audio: TowerChange = Field(TowerChange(), description="the convolutions over the log-mel spectrogram; has no heads")
    video: TowerChange = Field(TowerChange(), description="the Transformer over frames, each out of the image tower")
    tensor: TowerChange = Field(TowerChange(), description="the convolutions over channels of numbers; has no heads")
    fusion: FusionChange = Field(FusionChange(), description="the latents that attend over all modalities")
    decoders: list[Output] = Field(default=[], description="what the model can make out of the fusion")
    text_decoder: TowerChange = Field(TowerChange(), description="the causal Transformer that writes texts")
    image_decoder: ImageDecoderChange = Field(ImageDecoderChange(), description="the rectified flow that draws images")
    audio_decoder: AudioDecoderChange = Field(
        AudioDecoderChange(), description="the rectified flow that makes log-mel spectrograms"
    )
    towers: dict[str, PretrainedTower] = Field(
        default={}, description="pretrained towers by modality, in the place of built-in ones"
    )
    shared_trunk: bool = Field(
        False, description="one stack of Transformer blocks, image's in shape, for all modalities: tied weights"
    )
    moe: Moe | None = Field(None, description="mixture-of-experts layers in towers, trunk and fusion")
    embed_dim: int | None = Field(None, ge=2, le=8192, description="dimensions of an embedding")
    patch_px: int | None = Field(None, ge=2, le=128, description="side of an image patch; divides image_side_px")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in every Transformer block")

    def architecture(self, losses: Iterable[LossConfig] = ()) -> Architecture:
        """The named size with the changes laid over it, and the heads that any of the losses needs."""
        changes = self.model_dump(exclude={"size"}, exclude_none=True)
        losses = list(losses)
        needed = {name: any(getattr(loss, name) for loss in losses) for name in ("masked", "match", "route")}
        return Architecture.model_validate(_merged(SIZES[self.size].model_dump(), changes | needed))


def _shape(width: int, depth: int, heads: int) -> TowerShape:
    return TowerShape(width=width, depth=depth, heads=heads)


SIZES = {
    "tiny": Architecture(
        text=_shape(96, 2, 4), image=_shape(96, 2, 4), audio=_shape(96, 3, 1),
        video=_shape(96, 1, 4), tensor=_shape(96, 3, 1),
        fusion=FusionShape(width=96, depth=1, heads=4, latents=4), embed_dim=96, patch_px=16,
        text_decoder=_shape(96, 2, 4),
        image_decoder=ImageDecoderShape(width=96, depth=3, heads=4, side_px=32, patch_px=4),
        audio_decoder=AudioDecoderShape(width=96, depth=3, heads=4, max_s=2.0, patch_frames=4),
    ),
    "small": Architecture(
        text=_shape(256, 4, 4), image=_shape(256, 6, 4), audio=_shape(256, 6, 1),
        video=_shape(256, 2, 4), tensor=_shape(256, 4, 1),
        fusion=FusionShape(width=256, depth=2, heads=4, latents=8), embed_dim=256, patch_px=8,
        text_decoder=_shape(256, 4, 4),
        image_decoder=ImageDecoderShape(width=256, depth=6, heads=4, side_px=32, patch_px=2),
        audio_decoder=AudioDecoderShape(width=256, depth=6, heads=4, max_s=4.0, patch_frames=4),
    ),
    # Towers as in CLIP ViT-B/16 (Radford et al. 2021, table 20), so that speed can be put beside it; the image decoder
    # as DiT-B/4 (Peebles and Xie 2023, table 1), the text decoder half of GPT-2's depth.
    "base": Architecture(
        text=_shape(512, 12, 8), image=_shape(768, 12, 12), audio=_shape(512, 8, 1),
        video=_shape(512, 4, 8), tensor=_shape(512, 6, 1),
        fusion=FusionShape(width=512, depth=4, heads=8, latents=16), embed_dim=512, patch_px=16,
        text_decoder=_shape(768, 6, 12),
        image_decoder=ImageDecoderShape(width=768, depth=12, heads=12, side_px=64, patch_px=4),
        audio_decoder=AudioDecoderShape(width=512, depth=8, heads=8, max_s=8.0, patch_frames=4),
    ),
}  # fmt: skip


def problems(model: ModelConfig, losses: Iterable[LossConfig], image_side_px: int) -> Iterator[tuple[Keys, str]]:
    """Faults between widths, heads, patches and losses, each with the path of the value."""
    architecture = model.architecture()
    for name in _WITH_HEADS:
        shape: TowerShape = getattr(architecture, name)
        if shape.width % shape.heads:
            yield ("model", name), f"a width of {shape.width} does not divide into {shape.heads} heads; change either"
    if image_side_px % architecture.patch_px:
        what = f"{image_side_px} px do not divide into patches of {architecture.patch_px} px"
        yield ("data", "image_side_px"), f"{what}; use a multiple, or set model.patch_px"
    drawn = architecture.image_decoder
    if drawn.side_px % drawn.patch_px:
        what = f"{drawn.side_px} px do not divide into patches of {drawn.patch_px} px"
        yield ("model", "image_decoder"), f"{what}; set side_px to a multiple of patch_px"
    for name, tower in model.towers.items():
        if tower.kind not in (kinds := _KINDS_OF.get(name, ())):
            fix = f"use {' or '.join(kinds)}" if kinds else "leave it to the built-in one"
            yield ("model", "towers", name), f"a tower of kind '{tower.kind}' does not see {name}; {fix}"
    yield from _trunk_problems(architecture)
    for loss in losses:
        yield from _decoder_problems(model, loss)


def _trunk_problems(architecture: Architecture) -> Iterator[tuple[Keys, str]]:
    for name in TRUNK_MODALITIES if architecture.shared_trunk else ():
        width = getattr(architecture, name).width
        if width != architecture.image.width:
            fix = f"with shared_trunk all have one; set model.{name}.width to {architecture.image.width}"
            yield ("model", name), f"a width of {width}, the image tower's is {architecture.image.width}; {fix}"


def _decoder_problems(model: ModelConfig, loss: LossConfig) -> Iterator[tuple[Keys, str]]:
    for name in ("caption", "answer"):
        if getattr(loss, name) and "text" not in model.decoders:
            yield ("loss", name), "needs a decoder that writes; add `text` to model.decoders"
    if loss.flow and not {"image", "audio"} & set(model.decoders):
        yield ("loss", "flow"), "needs a decoder that draws or sounds; add `image` or `audio` to model.decoders"
    if loss.route and len(model.decoders) < 2:  # noqa: PLR2004 - a choice is between two
        yield ("loss", "route"), "chooses between decoders; name at least two in model.decoders"


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        known = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if known else value
    return merged
