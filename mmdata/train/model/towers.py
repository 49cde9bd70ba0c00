"""One built-in tower a modality: from its values to tokens and a mask of which of them are real.

Every tower also knows how to be trained by itself: with some of its tokens hidden, to rebuild what was hidden.

Shapes: N samples, S tokens, W the tower's width, P frames of sound or steps in time, L mel bands, C channels, F frames
of a video, X numbers a token stands for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdata.train.model.layers import INIT_STD, Blocks, length_mask, unflatten
from mmdata.train.model.mel import BANDS, HOP, LogMel
from mmdata.train.model.patches import to_patches, unit_pixels
from mmdata.train.model.sizes import Moe, TowerShape

_KERNEL = 5
_HALVINGS = 3
_FRAMES_PER_S = 16_000 / HOP
# He et al. 2022, section 4.1: patches are rebuilt as they look when each is normalised by itself.
_VARIANCE_FLOOR = 1e-6


@dataclass(frozen=True)
class Limits:
    """Sizes of the inputs, which shape the model beside its architecture; and what a text begins and ends with."""

    vocab_size: int
    text_max_tokens: int
    image_side_px: int
    audio_max_s: float
    video_frames: int = 8
    tensor_channels: int = 1
    tensor_max_steps: int = 1024
    start_id: int = 1
    end_id: int = 2


class Tower(nn.Module):
    """What all towers have in common.

    Attributes:
        width: W.
        rebuilds: whether it can be trained by hiding.
    """

    width: int
    rebuilds = False

    def forward(
        self, values: Tensor, length_N: Tensor, hidden_NS: Tensor | None = None, trunk: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (N, S, W) and mask (N, S).

        Args:
            values: as the loader gives them, see `mmdata.train.batch`.
            length_N: their true lengths.
            hidden_NS: tokens that are not to be seen.
            trunk: blocks to run instead of the tower's own, where all modalities share them.
        """
        raise NotImplementedError

    def slots(self, values: Tensor, length_N: Tensor) -> Tensor:
        """Which tokens are real, without computing them. Shape (N, S)."""
        raise NotImplementedError

    def rebuilt(self, tokens_NSW: Tensor, values: Tensor, length_N: Tensor) -> Tensor:
        """How far each token is from saying what stood there. Shape (N, S), float32."""
        raise NotImplementedError

    def blank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Values and length of one sample that holds nothing."""
        raise NotImplementedError


class TextTower(Tower):
    """A Transformer encoder over token ids, with learned positions."""

    rebuilds = True

    def __init__(self, shape: TowerShape, limits: Limits, dropout: float, moe: Moe | None, masked: bool) -> None:
        """`masked`: with what rebuilding needs."""
        super().__init__()
        self.width = shape.width
        self.embed = nn.Embedding(limits.vocab_size, shape.width)
        self.position = nn.Parameter(torch.randn(limits.text_max_tokens, shape.width) * INIT_STD)
        self.blocks = Blocks(shape, dropout, moe)
        if masked:
            self.hidden = nn.Parameter(torch.randn(shape.width) * INIT_STD)
            self.rebuild = nn.Sequential(nn.LayerNorm(shape.width), nn.Linear(shape.width, shape.width))

    def forward(
        self, values: Tensor, length_N: Tensor, hidden_NS: Tensor | None = None, trunk: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """From ids (N, S), see `Tower`."""
        mask_NS = self.slots(values, length_N)
        tokens_NSW = self.embed(values)
        if hidden_NS is not None:
            tokens_NSW = torch.where(hidden_NS[..., None], self.hidden.to(tokens_NSW.dtype), tokens_NSW)
        tokens_NSW = tokens_NSW + self.position[: values.shape[1]]
        return (trunk or self.blocks)(tokens_NSW, mask_NS), mask_NS

    def slots(self, values: Tensor, length_N: Tensor) -> Tensor:
        """A token an id."""
        return length_mask(length_N, values.shape[1])

    def rebuilt(self, tokens_NSW: Tensor, values: Tensor, _length_N: Tensor) -> Tensor:
        """Cross-entropy of the ids (BERT, Devlin et al. 2019), by the embedding's own weights."""
        logits_NSV = functional.linear(self.rebuild(tokens_NSW), self.embed.weight).float()
        return functional.cross_entropy(logits_NSV.transpose(1, 2), values, reduction="none")

    def blank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Two ids: the start and the end of a text."""
        return torch.ones((1, 2), dtype=torch.int64, device=device), torch.full((1,), 2, device=device)


class ImageTower(Tower):
    """A vision Transformer (Dosovitskiy et al. 2021) without a class token: the fusion reads every patch."""

    rebuilds = True

    def __init__(
        self, shape: TowerShape, side_px: int, patch_px: int, dropout: float, moe: Moe | None, masked: bool
    ) -> None:
        """Images are squares of `side_px`; `masked`: with what rebuilding needs."""
        super().__init__()
        self.width, self.side_px, self.patch_px = shape.width, side_px, patch_px
        self.patches = nn.Conv2d(3, shape.width, patch_px, stride=patch_px)
        self.count = (side_px // patch_px) ** 2
        self.position = nn.Parameter(torch.randn(self.count, shape.width) * INIT_STD)
        self.blocks = Blocks(shape, dropout, moe)
        if masked:
            self.hidden = nn.Parameter(torch.randn(shape.width) * INIT_STD)
            self.rebuild = nn.Sequential(nn.LayerNorm(shape.width), nn.Linear(shape.width, 3 * patch_px**2))

    def forward(
        self, values: Tensor, length_N: Tensor, hidden_NS: Tensor | None = None, trunk: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """From uint8 pixels (N, 3, H, W), all of one size, so that the length is not read; see `Tower`."""
        tokens_NSW = self.patches(unit_pixels(values)).flatten(2).transpose(1, 2)
        if hidden_NS is not None:
            tokens_NSW = torch.where(hidden_NS[..., None], self.hidden.to(tokens_NSW.dtype), tokens_NSW)
        mask_NS = self.slots(values, length_N)
        return (trunk or self.blocks)(tokens_NSW + self.position, mask_NS), mask_NS

    def slots(self, values: Tensor, length_N: Tensor) -> Tensor:
        """A token a patch."""
        return torch.ones((values.shape[0], self.count), dtype=torch.bool, device=length_N.device)

    def rebuilt(self, tokens_NSW: Tensor, values: Tensor, _length_N: Tensor) -> Tensor:
        """Mean squared error of the patches, each normalised by itself (MAE, He et al. 2022)."""
        target_NSX = to_patches(unit_pixels(values), self.patch_px)
        variance_NS1, mean_NS1 = torch.var_mean(target_NSX, dim=-1, keepdim=True)
        target_NSX = (target_NSX - mean_NS1) / (variance_NS1 + _VARIANCE_FLOOR).sqrt()
        error_NSX: Tensor = self.rebuild(tokens_NSW).float() - target_NSX
        return error_NSX.square().mean(dim=-1)

    def blank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A black image."""
        side = self.side_px
        pixels = torch.zeros((1, 3, side, side), dtype=torch.uint8, device=device)
        return pixels, torch.full((1,), side, device=device)


class ConvTower(Tower):
    """Strided convolutions over frames in time; the first three halve the rate.

    Frames beyond a sample's end are zeroed before every convolution, so padding changes nothing.
    """

    rebuilds = True

    def __init__(self, shape: TowerShape, channels: int, max_frames: float, masked: bool) -> None:
        """Frames have `channels` numbers; `masked`: with what rebuilding needs."""
        super().__init__()
        self.width, self.channels = shape.width, channels
        sizes = [channels, *[shape.width] * shape.depth]
        self.layers = nn.ModuleList(
            ConvLayer(sizes[i], sizes[i + 1], stride=2 if i < _HALVINGS else 1) for i in range(shape.depth)
        )
        self.halvings = min(_HALVINGS, shape.depth)
        count = math.ceil(max_frames / 2**self.halvings) + 2  # two: what padding and rounding add
        self.position = nn.Parameter(torch.randn(count, shape.width) * INIT_STD)
        if masked:
            rebuilt = channels * 2**self.halvings
            self.rebuild = nn.Sequential(nn.LayerNorm(shape.width), nn.Linear(shape.width, rebuilt))

    def frames(self, values: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """What the convolutions run over: (N, C, P), and its mask (N, P)."""
        raise NotImplementedError

    def forward(
        self, values: Tensor, length_N: Tensor, hidden_NS: Tensor | None = None, trunk: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Tower`. Hidden tokens are silence in what the convolutions read, else they would read it out."""
        frames_NCP, mask_NP = self.frames(values, length_N)
        if hidden_NS is not None:
            hidden_NP = hidden_NS.repeat_interleave(2**self.halvings, dim=1)[:, : mask_NP.shape[1]]
            frames_NCP = frames_NCP.masked_fill(hidden_NP[:, None], 0)
        for layer in self.layers:
            frames_NCP, mask_NP = layer(frames_NCP, mask_NP)
        tokens_NSW = frames_NCP.transpose(1, 2) + self.position[: frames_NCP.shape[2]]
        return (tokens_NSW if trunk is None else trunk(tokens_NSW, mask_NP)), mask_NP

    def slots(self, values: Tensor, length_N: Tensor) -> Tensor:
        """A token to every so many frames."""
        mask_NP = self.frames(values, length_N)[1]
        return mask_NP[:, :: 2**self.halvings]

    def rebuilt(self, tokens_NSW: Tensor, values: Tensor, length_N: Tensor) -> Tensor:
        """Mean squared error of the frames that a token stands for."""
        frames_NCP, _ = self.frames(values, length_N)
        span = 2**self.halvings
        frames_NCP = functional.pad(frames_NCP, (0, tokens_NSW.shape[1] * span - frames_NCP.shape[2]))
        target_NSX = unflatten(frames_NCP, 2, (-1, span)).permute(0, 2, 1, 3).flatten(2)
        error_NSX: Tensor = self.rebuild(tokens_NSW).float() - target_NSX
        return error_NSX.square().mean(dim=-1)


class AudioTower(ConvTower):
    """Convolutions over log-mel frames: a token every 80 ms."""

    def __init__(self, shape: TowerShape, max_s: float, masked: bool = False) -> None:
        """Clips last at most `max_s` seconds."""
        super().__init__(shape, BANDS, max_s * _FRAMES_PER_S, masked)
        self.mel = LogMel()

    def frames(self, values: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """From int16 sound (N, T)."""
        frames: tuple[Tensor, Tensor] = self.mel(values, length_N)
        return frames

    def blank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """An instant of silence."""
        return torch.zeros((1, HOP), dtype=torch.int16, device=device), torch.full((1,), HOP, device=device)


class TensorTower(ConvTower):
    """Convolutions over channels of numbers in time, each channel normalised over its own length."""

    def __init__(self, shape: TowerShape, limits: Limits, masked: bool = False) -> None:
        """Channels and steps from `limits`."""
        super().__init__(shape, limits.tensor_channels, limits.tensor_max_steps, masked)

    def frames(self, values: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """From float32 (N, C, P)."""
        mask_NP = length_mask(length_N, values.shape[2])
        real_N1P, count_N11 = mask_NP[:, None].float(), length_N[:, None, None].clamp(min=1)
        values = values.float()
        mean_NC1 = (values * real_N1P).sum(dim=2, keepdim=True) / count_N11
        centred_NCP = (values - mean_NC1) * real_N1P
        variance_NC1 = centred_NCP.square().sum(dim=2, keepdim=True) / count_N11
        return centred_NCP / (variance_NC1 + _VARIANCE_FLOOR).sqrt(), mask_NP

    def blank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """One step of zeros."""
        return torch.zeros((1, self.channels, 1), device=device), torch.ones(1, dtype=torch.int64, device=device)


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


class VideoTower(Tower):
    """Frames through an image tower, each to one token, then a Transformer over time."""

    def __init__(self, shape: TowerShape, frames: int, images: Tower, own: bool, dropout: float) -> None:
        """Videos of at most `frames`; `images` is trained with this tower where it is its `own`."""
        super().__init__()
        self.width = shape.width
        # Another modality's tower is used, not held: it has its name in the model already.
        self._images = (images,)
        if own:
            self.images = images
        self.project = nn.Linear(images.width, shape.width)
        self.position = nn.Parameter(torch.randn(frames, shape.width) * INIT_STD)
        self.blocks = Blocks(shape, dropout)

    def forward(
        self, values: Tensor, length_N: Tensor, _hidden_NS: Tensor | None = None, trunk: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """From uint8 pixels, time last, (N, 3, H, W, F); see `Tower`. The trunk runs over each frame."""
        mask_NF = self.slots(values, length_N)
        pixels = values.permute(0, 4, 1, 2, 3).flatten(0, 1)
        length = torch.full((len(pixels),), values.shape[3], device=length_N.device)
        patches, _ = self._images[0](pixels, length, None, trunk)
        tokens_NFW = unflatten(self.project(patches.mean(dim=1)), 0, mask_NF.shape)
        return self.blocks(tokens_NFW + self.position[: mask_NF.shape[1]], mask_NF), mask_NF

    def slots(self, values: Tensor, length_N: Tensor) -> Tensor:
        """A token a frame."""
        return length_mask(length_N, values.shape[-1])

    def blank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """One black frame."""
        image, _ = self._images[0].blank(device)
        return image[..., None], torch.ones(1, dtype=torch.int64, device=device)
