"""Rectified flow (Liu et al. 2022) by a diffusion Transformer (DiT, Peebles and Xie 2023) that reads the fusion.

Between noise and data lies a straight line; the model says from any point of it where the line ends, and so which way
to go; whoever follows comes from noise to data. It says the data and not the direction, half of which is noise that a
narrow Transformer could not carry through (Li and He 2025).

Shapes: N samples, S tokens, X numbers of a token, W the decoder's width, Q latents, K the fusion's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdata.train.model.layers import INIT_STD, Attention, Mlp, ZeroLinear, waves
from mmdata.train.model.sizes import TowerShape

# DiT, section 3.2 and its code: sines of 1000 t.
_TIME_FEATURES = 256
_TIME_SCALE = 1000
# Times are drawn as sigmoids of a normal number, and no less time than this is left (Li and He 2025, section 4.1).
_TIME_MEAN, _TIME_STD = -0.8, 0.8
_LEAST_TIME = 0.05


class FlowBlock(nn.Module):
    """Attention, attention over the condition, an MLP; scaled, shifted and gated by the time (adaLN-Zero of DiT)."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        """Keep the width."""
        super().__init__()
        self.attention_norm, self.mlp_norm = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.cross_norm = nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads), Mlp(width)
        self.cross = Attention(width, heads, context_width=context_width)
        self.modulate = nn.Sequential(nn.SiLU(), ZeroLinear(width, 6 * width))

    def forward(self, tokens_NSW: Tensor, condition_NW: Tensor, context_NQK: Tensor) -> Tensor:
        """Shape (N, S, W)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulate(condition_NW)[:, None].chunk(6, dim=-1)
        normed = self.attention_norm(tokens_NSW) * (1 + scale_a) + shift_a
        tokens_NSW = tokens_NSW + gate_a * self.attention(normed, normed)
        tokens_NSW = tokens_NSW + self.cross(self.cross_norm(tokens_NSW), context_NQK)
        normed = self.mlp_norm(tokens_NSW) * (1 + scale_m) + shift_m
        out_NSW: Tensor = tokens_NSW + gate_m * self.mlp(normed)
        return out_NSW


class Flow(nn.Module):
    """Makes rows of tokens, whatever these stand for."""

    def __init__(self, shape: TowerShape, tokens: int, numbers: int, context_width: int) -> None:
        """`tokens` tokens of `numbers` numbers each, which lie about between -1 and 1."""
        super().__init__()
        self.tokens, self.numbers = tokens, numbers
        self.enter = nn.Linear(numbers, shape.width)
        self.position = nn.Parameter(waves(torch.arange(tokens), shape.width))
        self.time = nn.Sequential(
            nn.Linear(_TIME_FEATURES, shape.width), nn.SiLU(), nn.Linear(shape.width, shape.width)
        )
        self.context_norm = nn.LayerNorm(context_width)
        self.condition = nn.Linear(context_width, shape.width)
        # What is read where there is no condition: the half of classifier-free guidance (Ho and Salimans 2022).
        self.nothing = nn.Parameter(torch.randn(context_width) * INIT_STD)
        self.blocks = nn.ModuleList(FlowBlock(shape.width, shape.heads, context_width) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, elementwise_affine=False)
        self.last = nn.Sequential(nn.SiLU(), ZeroLinear(shape.width, 2 * shape.width))
        self.leave = ZeroLinear(shape.width, numbers)

    def forward(self, point_NSX: Tensor, time_N: Tensor, context_NQK: Tensor, without_N: Tensor) -> Tensor:
        """The data that each point leads to, at times from 0, noise, to 1, data. Shape (N, S, X), float32.

        Where `without_N` the context is not read.
        """
        context_NQK = torch.where(without_N[:, None, None], self.nothing.to(context_NQK.dtype), context_NQK)
        context_NQK = self.context_norm(context_NQK)
        time_NW = self.time(waves(_TIME_SCALE * time_N, _TIME_FEATURES))
        condition_NW = time_NW + self.condition(context_NQK.mean(dim=1))
        tokens_NSW = self.enter(point_NSX) + self.position
        for block in self.blocks:
            tokens_NSW = block(tokens_NSW, condition_NW, context_NQK)
        shift_N1W, scale_N1W = self.last(condition_NW)[:, None].chunk(2, dim=-1)
        data_NSX: Tensor = self.leave(self.norm(tokens_NSW) * (1 + scale_N1W) + shift_N1W)
        return data_NSX.float()

    def loss(
        self, data_NSX: Tensor, noise_NSX: Tensor, normal_N: Tensor, context_NQK: Tensor, without_N: Tensor
    ) -> Tensor:
        """Mean squared error of the direction (Liu et al. 2022, equation 1), shape (N,).

        Times are drawn by `normal_N`, which makes those in between more frequent (Esser et al. 2024, section 3.1).
        """
        time_N = torch.sigmoid(_TIME_MEAN + _TIME_STD * normal_N)
        time_N11 = time_N[:, None, None]
        point_NSX = (1 - time_N11) * noise_NSX + time_N11 * data_NSX
        error_NSX: Tensor = self(point_NSX, time_N, context_NQK, without_N) - data_NSX
        # The direction is the way that is left over the time that is left.
        left_N11 = (1 - time_N11).clamp(min=_LEAST_TIME)
        return (error_NSX / left_N11).square().mean(dim=(1, 2))

    @torch.no_grad()
    def make(self, context_NQK: Tensor, noise_NSX: Tensor, steps: int = 50, guidance: float = 1.0) -> Tensor:
        """From noise to data in equal steps (Euler). Shape (N, S, X).

        `guidance` above 1 goes further from what is made without the condition (Ho and Salimans 2022).
        """
        point_NSX, samples = noise_NSX, len(noise_NSX)
        nowhere_N = torch.zeros(samples, dtype=torch.bool, device=noise_NSX.device)
        for number in range(steps):
            time_N = torch.full((samples,), number / steps, device=noise_NSX.device)
            data_NSX = self(point_NSX, time_N, context_NQK, nowhere_N)
            if guidance != 1:
                free_NSX = self(point_NSX, time_N, context_NQK, ~nowhere_N)
                data_NSX = free_NSX + guidance * (data_NSX - free_NSX)
            point_NSX = point_NSX + (data_NSX - point_NSX) / (steps - number)
        return point_NSX
