"""Adapters bring every modality to one width; the fusion reads whichever of them are there.

Shapes: B samples, S tokens, M modalities, Q latents, W the fusion's width, T a tower's width, V views.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdata.train.model.layers import INIT_STD, CrossBlock, experts_at
from mmdata.train.model.sizes import FusionShape, Moe


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

    def forward(self, tokens_NST: Tensor) -> Tensor:
        """Shape (N, S, W)."""
        tokens_NSW: Tensor = self.mlp(self.norm(tokens_NST))
        return tokens_NSW + self.type_embedding


class Fusion(nn.Module):
    """Learned latents attend over the tokens of the modalities that are visible."""

    def __init__(self, shape: FusionShape, dropout: float, moe: Moe | None = None) -> None:
        """Width, depth, heads and latents from `shape`; layers with experts by `moe`."""
        super().__init__()
        self.latents = nn.Parameter(torch.randn(shape.latents, shape.width) * INIT_STD)
        # Always visible: a sample of which nothing is visible has something to attend to, and no NaN.
        self.nothing = nn.Parameter(torch.randn(shape.width) * INIT_STD)
        self.blocks = nn.ModuleList(
            CrossBlock(shape.width, shape.heads, dropout, experts_at(number, moe)) for number in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, tokens: list[Tensor], masks: list[Tensor], visible_VBM: Tensor) -> Tensor:
        """The latents of each view, normalised, shape (V, B, Q, W); their mean is the fused vector.

        Args:
            tokens: for each of the M modalities (B, S, W); what stands where no view sees it is not read, be it NaN.
            masks: for each (B, S), which tokens are real.
            visible_VBM: which modalities each view reads.
        """
        mask_BVS = self._masks(masks, visible_VBM)
        context_BSW = torch.cat([*tokens, self.nothing.expand(visible_VBM.shape[1], 1, -1)], dim=1)
        # A weight of zero times NaN is NaN: what nobody sees must also be zero.
        context_BSW = context_BSW.masked_fill(~mask_BVS.any(dim=1)[..., None], 0)
        latents_BVQW = self.latents.expand(*mask_BVS.shape[:2], -1, -1)
        for block in self.blocks:
            latents_BVQW = block(latents_BVQW, context_BSW, mask_BVS)
        normed_BVQW: Tensor = self.norm(latents_BVQW)
        return normed_BVQW.transpose(0, 1)

    def _masks(self, masks: list[Tensor], visible_VBM: Tensor) -> Tensor:
        """Which tokens each view of each sample reads, the one of `nothing` last. Shape (B, V, S)."""
        visible_BVM = visible_VBM.transpose(0, 1)
        real = [mask_BS[:, None] & visible_BVM[..., column, None] for column, mask_BS in enumerate(masks)]
        return torch.cat([*real, torch.ones_like(visible_BVM[..., :1])], dim=2)
