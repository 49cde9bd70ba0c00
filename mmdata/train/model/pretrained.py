"""Towers whose weights come from open_clip, timm, transformers and Whisper; frozen, or trained on.

Each scales and normalises what the loader gives by its own rules: images come as squares of any size.

Shapes: N samples, S tokens, W the tower's width, T samples in time at 16 kHz.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdata.models import whisper_weights
from mmdata.models.clip_image import ImageRecipe
from mmdata.models.tower_spec import TowerSpec
from mmdata.models.towers import load_sentence, load_timm, timm_recipe
from mmdata.train.model.layers import length_mask
from mmdata.train.model.sizes import PretrainedTower, TowerKind
from mmdata.train.model.towers import Limits, Tower

# Axes of features that still lie in the plane: N, W, H, W.
_WITH_PLACES = 4


class Pretrained(Tower):
    """What these towers have in common: a frozen one neither learns nor drops anything, whatever mode it is put in."""

    def __init__(self, network: nn.Module, frozen: bool) -> None:
        """Take over a loaded network."""
        super().__init__()
        self.network, self.frozen = network, frozen
        if frozen:
            network.requires_grad_(requires_grad=False)
            network.eval()

    def train(self, mode: bool = True) -> Self:
        """As in torch; a frozen network stays in evaluation mode, and so do the batch norms of one that is tuned.

        They keep the statistics that they came with: those of a batch differ by rank and by piece of it, and the blank
        of a rank that has no picture would be part of them.
        """
        super().train(mode)
        if self.frozen:
            self.network.eval()
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(
        self, values: Tensor, length_N: Tensor, _hidden_NS: Tensor | None = None, _trunk: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Tower`; it has blocks of its own."""
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            return self.tokens(values, length_N)

    def tokens(self, values: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N, S, W) and mask (N, S)."""
        raise NotImplementedError


class _Images(Pretrained):
    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, network: nn.Module, frozen: bool, recipe: ImageRecipe) -> None:
        super().__init__(network, frozen)
        self.side_px = recipe.side_px
        self.register_buffer("mean_C11", torch.tensor(recipe.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(recipe.std).view(3, 1, 1), persistent=False)
        with torch.no_grad():
            self.width = int(self.tokens(*self.blank(torch.device("cpu")))[0].shape[2])

    def features(self, unit_N3HW: Tensor) -> Tensor:
        """Shape (N, S, W)."""
        raise NotImplementedError

    def tokens(self, values: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        pixels = values.float() / 255
        if pixels.shape[-1] != self.side_px:
            size = (self.side_px, self.side_px)
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        tokens_NSW = self.features((pixels - self.mean_C11) / self.std_C11)
        return tokens_NSW, torch.ones(tokens_NSW.shape[:2], dtype=torch.bool, device=length_N.device)

    def blank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        pixels = torch.zeros((1, 3, self.side_px, self.side_px), dtype=torch.uint8, device=device)
        return pixels, torch.full((1,), self.side_px, device=device)


class TimmTower(_Images):
    """The features of an image network before they are pooled: a token a place."""

    def features(self, unit_N3HW: Tensor) -> Tensor:
        """Shape (N, S, W)."""
        features: Tensor = self.network.forward_features(unit_N3HW)  # type: ignore[operator]
        return features.flatten(2).transpose(1, 2) if features.ndim == _WITH_PLACES else features


class ClipImageTower(_Images):
    """The Transformer of a CLIP model's image tower: its last layer's patches, before the projection."""

    def features(self, unit_N3HW: Tensor) -> Tensor:
        """Shape (N, S, W)."""
        found: dict[str, Any] = self.network.forward_intermediates(  # type: ignore[operator]
            unit_N3HW, indices=1, output_fmt="NLC", normalize_intermediates=True, intermediates_only=True
        )
        patches_NSW: Tensor = found["image_intermediates"][-1]
        return patches_NSW


class SentenceTower(Pretrained):
    """The last states of a Hugging Face encoder."""

    def __init__(self, network: nn.Module, frozen: bool) -> None:
        """Its ids are those of the folder's own tokenizer."""
        super().__init__(network, frozen)
        self.width = int(network.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def tokens(self, values: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """From ids (N, S)."""
        mask_NS = length_mask(length_N, values.shape[1])
        states_NSW: Tensor = self.network(input_ids=values, attention_mask=mask_NS.long()).last_hidden_state
        return states_NSW, mask_NS

    def blank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Two ids."""
        return torch.ones((1, 2), dtype=torch.int64, device=device), torch.full((1,), 2, device=device)


class ClipTextTower(Pretrained):
    """The text tower of a CLIP model: the states of its causal Transformer, before the projection."""

    def __init__(self, network: nn.Module, frozen: bool) -> None:
        """`network` holds `token_embedding`, `positional_embedding`, `transformer`, `ln_final` and `attn_mask`."""
        super().__init__(network, frozen)
        self.width = int(network.token_embedding.weight.shape[1])  # type: ignore[union-attr, index]

    def tokens(self, values: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """From ids (N, S); what is causal needs no more context than there is."""
        text: Any = self.network
        count = values.shape[1]
        states_NSW = text.token_embedding(values) + text.positional_embedding[:count]
        states_NSW = text.transformer(states_NSW, attn_mask=text.attn_mask[:count, :count])
        return text.ln_final(states_NSW), length_mask(length_N, count)

    def blank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Two ids."""
        return torch.ones((1, 2), dtype=torch.int64, device=device), torch.full((1,), 2, device=device)


class WhisperTower(Pretrained):
    """The states of Whisper's encoder, every 20 ms; silence up to the longest clip, as it was trained with."""

    def __init__(self, network: nn.Module, frozen: bool, max_s: float) -> None:
        """Clips last at most `max_s` seconds, and 30."""
        super().__init__(network, frozen)
        self.width, self._max_s = int(network.dims.n_audio_state), min(max_s, 30.0)  # type: ignore[union-attr, arg-type]

    def tokens(self, values: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """From int16 sound (N, T)."""
        from mmdata.models.whisper_network import FRAME_C, SAMPLE_RATE, encode

        network: Any = self.network
        most = int(self._max_s * SAMPLE_RATE)
        sound_NT = values[:, :most].float().cpu().numpy() / 32768
        states_NSW = encode(network, list(sound_NT), self._max_s)
        frames_N = ((length_N.clamp(max=most) + FRAME_C - 1) // FRAME_C).to(states_NSW.device)
        return states_NSW, length_mask(frames_N, states_NSW.shape[1])

    def blank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A moment of silence."""
        return torch.zeros((1, 320), dtype=torch.int16, device=device), torch.full((1,), 320, device=device)


def load_tower(tower: PretrainedTower, limits: Limits) -> Pretrained:
    """Load a tower's weights.

    Raises WeightsError where they are missing or are those of another network, MissingExtraError without the library.
    """
    spec = TowerSpec(tower.kind, tower.model, tower.checkpoint)
    spec.weights()
    return _LOADERS[tower.kind](spec, tower.frozen, limits)


def _timm(spec: TowerSpec, frozen: bool, _: Limits) -> Pretrained:
    network = load_timm(spec)
    recipe = timm_recipe(network, spec.resize_mode)
    network.reset_classifier(0)
    return TimmTower(network, frozen, recipe)


def _clip(spec: TowerSpec) -> tuple[Any, ImageRecipe]:
    from mmdata.models.clip import build_network

    return build_network(spec.model, spec.checkpoint)


def _clip_image(spec: TowerSpec, frozen: bool, _: Limits) -> Pretrained:
    network, recipe = _clip(spec)
    # A timm network inside of open_clip is one all the same.
    inner = getattr(network.visual, "trunk", None)
    return TimmTower(inner, frozen, recipe) if inner is not None else ClipImageTower(network.visual, frozen, recipe)


def _clip_text(spec: TowerSpec, frozen: bool, _: Limits) -> Pretrained:
    network, _recipe = _clip(spec)
    text = getattr(network, "text", network)
    if hasattr(text, "visual"):
        del text.visual  # the whole of a CLIP that keeps its text tower in itself
    # A Hugging Face encoder inside of open_clip is one all the same.
    return SentenceTower(text.transformer, frozen) if hasattr(text, "pooler") else ClipTextTower(text, frozen)


def _sentence(spec: TowerSpec, frozen: bool, _: Limits) -> Pretrained:
    return SentenceTower(load_sentence(Path(spec.model).expanduser())[0], frozen)


def _whisper(spec: TowerSpec, frozen: bool, limits: Limits) -> Pretrained:
    network: Any = whisper_weights.load_network(spec.model)
    del network.decoder.blocks  # never run here
    network.decoder.requires_grad_(requires_grad=False)
    return WhisperTower(network, frozen, limits.audio_max_s)


_LOADERS: dict[TowerKind, Callable[[TowerSpec, bool, Limits], Pretrained]] = {
    "open_clip_image": _clip_image,
    "open_clip_text": _clip_text,
    "timm": _timm,
    "sentence": _sentence,
    "whisper": _whisper,
}
