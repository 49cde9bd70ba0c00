"""One tower a modality: from its values to tokens and a mask of which of them are real.

A new modality is a new tower in `make_tower`; nothing else in the model knows the modalities by name.

Shapes: N samples, S tokens, W the tower's width, P frames of sound, L mel bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdata.train.model.layers import INIT_STD, Block, length_mask
from mmdata.train.model.mel import BANDS, HOP, LogMel
from mmdata.train.model.sizes import Architecture, TowerShape

_KERNEL = 5
_HALVINGS = 3
_FRAMES_PER_S = 16_000 / HOP


@dataclass(frozen=True)
class Limits:
    """Sizes of the inputs, which shape the model beside its architecture."""

    vocab_size: int
    text_max_tokens: int
    image_side_px: int
    audio_max_s: float


class TextTower(nn.Module):
    """A Transformer encoder over token ids, with learned positions."""

    def __init__(self, shape: TowerShape, vocab_size: int, max_tokens: int, dropout: float) -> None:
        """Texts have at most `max_tokens` tokens."""
        super().__init__()
        self.embed = nn.Embedding(vocab_size, shape.width)
        self.position = nn.Parameter(torch.randn(max_tokens, shape.width) * INIT_STD)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, dropout) for _ in range(shape.depth))

    def forward(self, ids_NS: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N, S, W) and mask (N, S)."""
        mask_NS = length_mask(length_N, ids_NS.shape[1])
        tokens_NSW = self.embed(ids_NS) + self.position[: ids_NS.shape[1]]
        for block in self.blocks:
            tokens_NSW = block(tokens_NSW, mask_NS)
        return tokens_NSW, mask_NS


class ImageTower(nn.Module):
    """A vision Transformer (Dosovitskiy et al. 2021) without a class token: the fusion reads every patch."""

    def __init__(self, shape: TowerShape, side_px: int, patch_px: int, dropout: float) -> None:
        """Images are squares of `side_px`."""
        super().__init__()
        self.patches = nn.Conv2d(3, shape.width, patch_px, stride=patch_px)
        count = (side_px // patch_px) ** 2
        self.position = nn.Parameter(torch.randn(count, shape.width) * INIT_STD)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, dropout) for _ in range(shape.depth))

    def forward(self, pixels_N3HW: Tensor, _length_N: Tensor) -> tuple[Tensor, Tensor]:
        """From uint8 pixels: tokens (N, S, W) and mask (N, S). All images have one size, so the length is not read."""
        scaled = pixels_N3HW.to(torch.float32) / 127.5 - 1
        tokens_NSW = self.patches(scaled).flatten(2).transpose(1, 2) + self.position
        mask_NS = torch.ones(tokens_NSW.shape[:2], dtype=torch.bool, device=tokens_NSW.device)
        for block in self.blocks:
            tokens_NSW = block(tokens_NSW, mask_NS)
        return tokens_NSW, mask_NS


class AudioTower(nn.Module):
    """Convolutions over log-mel frames; the first three halve the rate, to a token every 80 ms.

    Frames beyond a clip's end are zeroed before every convolution, so padding changes nothing.
    """

    def __init__(self, shape: TowerShape, max_s: float) -> None:
        """Clips last at most `max_s` seconds."""
        super().__init__()
        self.mel = LogMel()
        channels = [BANDS, *[shape.width] * shape.depth]
        self.layers = nn.ModuleList(
            ConvLayer(channels[i], channels[i + 1], stride=2 if i < _HALVINGS else 1) for i in range(shape.depth)
        )
        rate = 2 ** min(_HALVINGS, shape.depth)
        count = math.ceil(max_s * _FRAMES_PER_S / rate) + 2  # two: what padding and rounding add
        self.position = nn.Parameter(torch.randn(count, shape.width) * INIT_STD)

    def forward(self, audio_NT: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """From int16 sound: tokens (N, S, W) and mask (N, S)."""
        frames_NLP, mask_NP = self.mel(audio_NT, length_N)
        for layer in self.layers:
            frames_NLP, mask_NP = layer(frames_NLP, mask_NP)
        tokens_NSW = frames_NLP.transpose(1, 2)
        return tokens_NSW + self.position[: tokens_NSW.shape[1]], mask_NP


class ConvLayer(nn.Module):
    """A convolution in time, a LayerNorm over channels, GELU; and a way around where the shape stays."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        """`stride` 1 or 2."""
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(channels, width, _KERNEL, stride=stride, padding=_KERNEL // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, frames_NLP: Tensor, mask_NP: Tensor) -> tuple[Tensor, Tensor]:
        """Frames and mask, at the new rate."""
        frames_NLP = frames_NLP * mask_NP[:, None]
        new_NLP = self.conv(frames_NLP)
        new_NLP = nn.functional.gelu(self.norm(new_NLP.transpose(1, 2))).transpose(1, 2)
        if self.stride == 1:
            new_NLP = new_NLP + frames_NLP
        return new_NLP, mask_NP[:, :: self.stride]


def make_tower(modality: str, shape: Architecture, limits: Limits) -> tuple[nn.Module, int]:
    """The tower of a modality, and its width."""
    if modality == "text":
        return TextTower(shape.text, limits.vocab_size, limits.text_max_tokens, shape.dropout), shape.text.width
    if modality == "image":
        return ImageTower(shape.image, limits.image_side_px, shape.patch_px, shape.dropout), shape.image.width
    if modality == "audio":
        return AudioTower(shape.audio, limits.audio_max_s), shape.audio.width
    raise ValueError(f"no tower for the modality '{modality}'")
