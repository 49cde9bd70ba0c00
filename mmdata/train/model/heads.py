"""What stands on the towers and the fusion: embeddings, and two choices.

Shapes: N samples, W the fusion's width, D embedding dimensions, Q latents, G outputs to choose from.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdata.train.batch import Lesson, Space
from mmdata.train.model.layers import INIT_STD, Attention


class Head(nn.Module):
    """LayerNorm and projection to an embedding of unit length."""

    def __init__(self, width: int, embed_dim: int) -> None:
        """From `width` to `embed_dim`."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, embed_dim, bias=False)

    def forward(self, pooled_NW: Tensor) -> Tensor:
        """Shape (N, D), float32 whatever comes in."""
        return functional.normalize(self.project(self.norm(pooled_NW)).float(), dim=-1)


class MatchHead(nn.Module):
    """Says of the fusion of two modalities whether they belong together (ALBEF, Li et al. 2021)."""

    def __init__(self, width: int) -> None:
        """From `width` to one logit."""
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, latents_NQW: Tensor) -> Tensor:
        """Log-odds, float32. Shape (N,)."""
        logit_N1: Tensor = self.layers(latents_NQW.mean(dim=1)).float()
        return logit_N1[:, 0]


class MimicHeads(nn.Module):
    """Foretell teachers' vectors from embeddings, by a head for each of their spaces, whatever modalities share it.

    So what a teacher sees as one the embeddings show as one too.
    """

    def __init__(self, embed_dim: int, lessons: Iterable[Lesson]) -> None:
        """`lessons`: what is taught of each modality."""
        super().__init__()
        spaces = dict.fromkeys(lesson.space for lesson in lessons)
        self._place_of = {space: place for place, space in enumerate(spaces)}
        self.heads = nn.ModuleList(nn.Linear(embed_dim, space.width) for space in spaces)

    def forward(self, space: Space, embedding_ND: Tensor) -> Tensor:
        """Shape (N, E), float32, of any length."""
        foretold_NE: Tensor = self.heads[self._place_of[space]](embedding_ND).float()
        return foretold_NE


class RouteHead(nn.Module):
    """A latent that reads the fusion and chooses which decoder answers."""

    def __init__(self, width: int, heads: int, outputs: int) -> None:
        """Of so many `outputs`."""
        super().__init__()
        self.latent = nn.Parameter(torch.randn(width) * INIT_STD)
        self.read = Attention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.choose = nn.Linear(width, outputs)

    def forward(self, latents_NQW: Tensor) -> Tensor:
        """Logits, float32. Shape (N, G)."""
        latent_N1W = self.latent.expand(len(latents_NQW), 1, -1)
        latent_N1W = latent_N1W + self.read(latent_N1W, latents_NQW)
        logits_NG: Tensor = self.choose(self.norm(latent_N1W[:, 0])).float()
        return logits_NG
