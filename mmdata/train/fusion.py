"""Adapters bring every modality to one width; the fusion reads whichever of them are there.

Shapes: B samples, S tokens, M modalities, Q latents, W the fusion's width, V a tower's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdata.train.layers import INIT_STD, CrossBlock
from mmdata.train.sizes import FusionShape


class Adapter(nn.Module):
    """LayerNorm, MLP and a type embedding: from a tower's width to the fusion's.

    Each modality owns its type embedding, so that one more modality changes nothing in the others.
    """

    def __init__(self, tower_width: int, width: int) -> None:
        """From `tower_width` to `width`."""
        super().__init__()
        self.norm = nn.LayerNorm(tower_width)
        self.mlp = nn.Sequential(nn.Linear(tower_width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.type_embedding = nn.Parameter(torch.randn(width) * INIT_STD)

    def forward(self, tokens_NSV: Tensor) -> Tensor:
        """Shape (N, S, W)."""
        tokens_NSW: Tensor = self.mlp(self.norm(tokens_NSV))
        return tokens_NSW + self.type_embedding


class Fusion(nn.Module):
    """Learned latents attend over the tokens of the modalities that are visible, and are averaged."""

    def __init__(self, shape: FusionShape, dropout: float) -> None:
        """Width, depth, heads and latents from `shape`."""
        super().__init__()
        self.latents = nn.Parameter(torch.randn(shape.latents, shape.width) * INIT_STD)
        # Always visible: a sample of which nothing is visible has something to attend to, and no NaN.
        self.nothing = nn.Parameter(torch.randn(shape.width) * INIT_STD)
        self.blocks = nn.ModuleList(CrossBlock(shape.width, shape.heads, dropout) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, tokens: list[Tensor], masks: list[Tensor], visible_BM: Tensor) -> Tensor:
        """The fused vectors, shape (B, W).

        Args:
            tokens: for each of the M modalities (B, S, W); what stands where nothing is visible is never read, be
                it NaN.
            masks: for each (B, S), which tokens are real.
            visible_BM: which modalities are read.
        """
        context_BSW, mask_BS = self._context(tokens, masks, visible_BM)
        latents_BQW = self.latents.expand(len(context_BSW), -1, -1)
        for block in self.blocks:
            latents_BQW = block(latents_BQW, context_BSW, mask_BS)
        normed_BQW: Tensor = self.norm(latents_BQW)
        return normed_BQW.mean(dim=1)

    def _context(self, tokens: list[Tensor], masks: list[Tensor], visible_BM: Tensor) -> tuple[Tensor, Tensor]:
        rows = len(visible_BM)
        always = torch.ones((rows, 1), dtype=torch.bool, device=visible_BM.device)
        real = [mask & visible_BM[:, [column]] for column, mask in enumerate(masks)]
        mask_BS = torch.cat([*real, always], dim=1)
        context_BSW = torch.cat([*tokens, self.nothing.expand(rows, 1, -1)], dim=1)
        # A weight of zero times NaN is NaN: what is masked must also be zero.
        return context_BSW.masked_fill(~mask_BS[..., None], 0), mask_BS
