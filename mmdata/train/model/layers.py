"""Transformer blocks, used by the towers, the fusion and the decoders.

Shapes: N sequences, S tokens, Q queries, W width, H heads, V views of a context, C tokens of a context; L = N * V,
R = V * Q.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdata.train.model.moe import MixtureMlp
from mmdata.train.model.sizes import Moe, TowerShape

# Standard deviation of fresh embeddings and positions (GPT-2, ViT).
INIT_STD = 0.02
_LONGEST_PERIOD = 10_000


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of queries over a context."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, context_width: int | None = None) -> None:
        """`heads` divides `width`; the context is as wide where nothing else is said."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, query_NQW: Tensor, context_NSW: Tensor, mask_NQS: Tensor | None = None) -> Tensor:
        """Shape (N, Q, W).

        Where `mask_NQS` is False a query does not read; each query reads something. Its Q may be 1, for all alike.
        """
        query = self._split(self.query(query_NQW))
        key, value = (self._split(part) for part in self.key_value(context_NSW).chunk(2, dim=-1))
        dropout = self.dropout if self.training else 0.0
        mask = None if mask_NQS is None else mask_NQS[:, None]
        mixed_NHQD = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        out_NQW: Tensor = self.out(mixed_NHQD.transpose(1, 2).flatten(2))
        return out_NQW

    def _split(self, tokens: Tensor) -> Tensor:
        return unflatten(tokens, -1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Sequential):
    """Four times as wide in between, with GELU."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        """Keep the width."""
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))


class Block(nn.Module):
    """Attention over the tokens themselves, then an MLP, each normalised first (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, dropout: float, experts: int = 1) -> None:
        """Keep the width. With `experts` above 1 there are so many MLPs, see `MixtureMlp`."""
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        mlps: list[nn.Module] = [Mlp(width, dropout) for _ in range(experts)]
        self.mlp = mlps[0] if experts == 1 else MixtureMlp(width, mlps)

    def forward(self, tokens_NSW: Tensor, mask_NS: Tensor) -> Tensor:
        """Shape (N, S, W)."""
        normed = self.attention_norm(tokens_NSW)
        tokens_NSW = tokens_NSW + self.attention(normed, normed, mask_NS[:, None])
        normed = self.mlp_norm(tokens_NSW)
        out_NSW: Tensor = tokens_NSW + (
            self.mlp(normed, mask_NS) if isinstance(self.mlp, MixtureMlp) else self.mlp(normed)
        )
        return out_NSW


class Blocks(nn.ModuleList):
    """Blocks, one after the other."""

    def __init__(self, shape: TowerShape, dropout: float, moe: Moe | None = None) -> None:
        """Every so many blocks, by `moe`, one has experts."""
        super().__init__(
            Block(shape.width, shape.heads, dropout, experts_at(number, moe)) for number in range(shape.depth)
        )

    def forward(self, tokens_NSW: Tensor, mask_NS: Tensor) -> Tensor:
        """Shape (N, S, W)."""
        for block in self:
            tokens_NSW = block(tokens_NSW, mask_NS)
        return tokens_NSW


def experts_at(number: int, moe: Moe | None) -> int:
    """How many MLPs the block of this number has, counted from 0: of every `moe.every` the last has several."""
    return moe.experts if moe and (number + 1) % moe.every == 0 else 1


class CrossBlock(nn.Module):
    """Queries read a context, then each other, then an MLP (Perceiver, Jaegle et al. 2021).

    Several views of one context, which differ in what is masked, share the work on the context.
    """

    def __init__(self, width: int, heads: int, dropout: float, experts: int = 1) -> None:
        """Keep the width."""
        super().__init__()
        self.query_norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross = Attention(width, heads, dropout)
        self.block = Block(width, heads, dropout, experts)

    def forward(self, query_NVQW: Tensor, context_NSW: Tensor, mask_NVS: Tensor) -> Tensor:
        """Shape (N, V, Q, W): the queries of the V views, none of which sees another."""
        asked_NRW = self.query_norm(query_NVQW).flatten(1, 2)
        mask_NRS = mask_NVS.repeat_interleave(query_NVQW.shape[2], dim=1)
        read_NRW = self.cross(asked_NRW, self.context_norm(context_NSW), mask_NRS)
        latents_LQW = (query_NVQW + read_NRW.view_as(query_NVQW)).flatten(0, 1)
        every_LQ = torch.ones(latents_LQW.shape[:2], dtype=torch.bool, device=latents_LQW.device)
        out_LQW: Tensor = self.block(latents_LQW, every_LQ)
        return out_LQW.view_as(query_NVQW)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""


def unflatten(tensor: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    """One axis cut into several; torch gives its own method no types."""
    cut: Tensor = tensor.unflatten(axis, sizes)  # type: ignore[no-untyped-call]
    return cut


def waves(place_N: Tensor, width: int) -> Tensor:
    """Cosines and sines of a place, of ever longer periods (Vaswani et al. 2017), `width` even. Shape (N, width)."""
    half = width // 2
    rate_W = torch.exp(-math.log(_LONGEST_PERIOD) * torch.arange(half, device=place_N.device) / half)
    angle_NW = place_N.float()[:, None] * rate_W
    return torch.cat([angle_NW.cos(), angle_NW.sin()], dim=1)


def masked_mean(tokens_NSW: Tensor, mask_NS: Tensor) -> Tensor:
    """Mean of the tokens where `mask_NS` is True; zeros where it is nowhere. Shape (N, W)."""
    weight_NS1 = mask_NS[..., None].to(tokens_NSW.dtype)
    return (tokens_NSW * weight_NS1).sum(dim=1) / weight_NS1.sum(dim=1).clamp(min=1)


def length_mask(length_N: Tensor, longest: int) -> Tensor:
    """True up to each length. Shape (N, longest)."""
    return torch.arange(longest, device=length_N.device)[None, :] < length_N[:, None]


def init_weights(module: nn.Module) -> None:
    """Fresh weights for linear layers and embeddings, without bias.

    Linear layers keep the size of what goes through them (Glorot and Bengio 2010; so do ViT and DiT): with GPT-2's one
    size for all, narrow towers would start with nearly the same embedding for every sample. A `ZeroLinear` has zeros.
    """
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        (nn.init.zeros_ if isinstance(module, ZeroLinear) else nn.init.xavier_uniform_)(module.weight)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
