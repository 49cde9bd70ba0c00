"""Transformer blocks, used by the towers and by the fusion.

Shapes: N sequences, S tokens, Q queries, W width, H heads, V views of a context; L = N * V, R = V * Q.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Standard deviation of fresh weights and positions (GPT-2, ViT).
INIT_STD = 0.02


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of queries over a context."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        """`heads` divides `width`."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, query_NQW: Tensor, context_NSW: Tensor, mask_NQS: Tensor) -> Tensor:
        """Shape (N, Q, W).

        Where `mask_NQS` is False a query does not read; each query reads something. Its Q may be 1, for all alike.
        """
        query = self._split(self.query(query_NQW))
        key, value = (self._split(part) for part in self.key_value(context_NSW).chunk(2, dim=-1))
        dropout = self.dropout if self.training else 0.0
        mask = mask_NQS[:, None]
        mixed_NHQD = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        out_NQW: Tensor = self.out(mixed_NHQD.transpose(1, 2).flatten(2))
        return out_NQW

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class Mlp(nn.Sequential):
    """Four times as wide in between, with GELU."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        """Keep the width."""
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))


class Block(nn.Module):
    """Attention over the tokens themselves, then an MLP, each normalised first (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Keep the width."""
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads, dropout), Mlp(width, dropout)

    def forward(self, tokens_NSW: Tensor, mask_NS: Tensor) -> Tensor:
        """Shape (N, S, W)."""
        normed = self.attention_norm(tokens_NSW)
        tokens_NSW = tokens_NSW + self.attention(normed, normed, mask_NS[:, None])
        out_NSW: Tensor = tokens_NSW + self.mlp(self.mlp_norm(tokens_NSW))
        return out_NSW


class CrossBlock(nn.Module):
    """Queries read a context, then each other, then an MLP (Perceiver, Jaegle et al. 2021).

    Several views of one context, which differ in what is masked, share the work on the context.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Keep the width."""
        super().__init__()
        self.query_norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross = Attention(width, heads, dropout)
        self.block = Block(width, heads, dropout)

    def forward(self, query_NVQW: Tensor, context_NSW: Tensor, mask_NVS: Tensor) -> Tensor:
        """Shape (N, V, Q, W): the queries of the V views, none of which sees another."""
        rows, _, queries, width = query_NVQW.shape
        asked_NRW = self.query_norm(query_NVQW).flatten(1, 2)
        mask_NRS = mask_NVS.repeat_interleave(queries, dim=1)
        read_NRW = self.cross(asked_NRW, self.context_norm(context_NSW), mask_NRS)
        latents_LQW = (query_NVQW + read_NRW.view_as(query_NVQW)).view(-1, queries, width)
        every_LQ = torch.ones(latents_LQW.shape[:2], dtype=torch.bool, device=latents_LQW.device)
        out_LQW: Tensor = self.block(latents_LQW, every_LQ)
        return out_LQW.view(rows, -1, queries, width)


def masked_mean(tokens_NSW: Tensor, mask_NS: Tensor) -> Tensor:
    """Mean of the tokens where `mask_NS` is True; zeros where it is nowhere. Shape (N, W)."""
    weight_NS1 = mask_NS[..., None].to(tokens_NSW.dtype)
    return (tokens_NSW * weight_NS1).sum(dim=1) / weight_NS1.sum(dim=1).clamp(min=1)


def length_mask(length_N: Tensor, longest: int) -> Tensor:
    """True up to each length. Shape (N, longest)."""
    return torch.arange(longest, device=length_N.device)[None, :] < length_N[:, None]


def init_weights(module: nn.Module) -> None:
    """Small normal weights and no bias, for linear layers and embeddings."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
