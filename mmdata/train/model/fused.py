"""The fused model: towers, adapters, heads, fusion.

Shapes: B samples, M modalities, N samples that have a modality, S tokens, W the fusion's width, T a tower's,
D embedding dimensions, V views of a sample, Q latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdata.train.batch import Batch, Inputs
from mmdata.train.model.fusion import Adapter, Fusion
from mmdata.train.model.layers import init_weights, masked_mean
from mmdata.train.model.sizes import Architecture
from mmdata.train.model.towers import Limits, make_tower

# CLIP (Radford et al. 2021, section 2.5): the temperature starts at 0.07 and its inverse never passes 100.
_START_LOG_SCALE = math.log(1 / 0.07)
MAX_LOG_SCALE = math.log(100)
# SigLIP (Zhai et al. 2023, section 3.2): without it the many negatives of the start would push everything apart.
_START_SIGMOID_BIAS = -10.0


@dataclass(frozen=True)
class Encoded:
    """A batch after the towers.

    Attributes:
        tokens: for each of the M modalities (B, S, W); zeros where a sample lacks it.
        masks: for each (B, S).
        embeddings: for each (B, D), of unit length; zeros where a sample lacks it.
        present_BM: which modalities a sample has.
    """

    tokens: list[Tensor]
    masks: list[Tensor]
    embeddings: list[Tensor]
    present_BM: Tensor


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


class FusedModel(nn.Module):
    """One model of several modalities, each of which may be absent from any sample."""

    def __init__(self, architecture: Architecture, modalities: tuple[str, ...], limits: Limits) -> None:
        """Modalities keep their order: it is that of the columns of `present_BM`."""
        super().__init__()
        width = architecture.fusion.width
        self.modalities, self.width, self.embed_dim = modalities, width, architecture.embed_dim
        towers = {name: make_tower(name, architecture, limits) for name in modalities}
        self.towers = nn.ModuleDict({name: tower for name, (tower, _) in towers.items()})
        self.adapters = nn.ModuleDict({name: Adapter(size, width) for name, (_, size) in towers.items()})
        self.heads = nn.ModuleDict({name: Head(width, architecture.embed_dim) for name in modalities})
        self.fusion = Fusion(architecture.fusion, architecture.dropout)
        self.fusion_head = Head(width, architecture.embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(_START_LOG_SCALE))
        self.sigmoid_bias = nn.Parameter(torch.tensor(_START_SIGMOID_BIAS))
        self.apply(init_weights)

    def encode(self, batch: Batch) -> Encoded:
        """Run the towers, each over the samples that have its modality."""
        parts = [self._encode_one(name, batch.inputs.get(name), len(batch)) for name in self.modalities]
        tokens, masks, embeddings = (list(column) for column in zip(*parts, strict=True))
        return Encoded(tokens, masks, embeddings, batch.present_BM)

    def latents(self, encoded: Encoded, visible_VBM: Tensor) -> Tensor:
        """What the fusion made of what is both present and visible, for V choices of that. Shape (V, B, Q, W)."""
        latents_VBQW: Tensor = self.fusion(encoded.tokens, encoded.masks, visible_VBM & encoded.present_BM)
        return latents_VBQW

    def fuse(self, encoded: Encoded, visible_VBM: Tensor) -> Tensor:
        """Embeddings of what is both present and visible, of unit length, for V choices of that. Shape (V, B, D)."""
        return self.fused(self.latents(encoded, visible_VBM))

    def fused(self, latents_VBQW: Tensor) -> Tensor:
        """The embedding of some latents. Shape (V, B, D)."""
        embedding_VBD: Tensor = self.fusion_head(latents_VBQW.mean(dim=2))
        return embedding_VBD

    def scale(self) -> Tensor:
        """Inverse temperature, at most 100."""
        return self.log_scale.clamp(max=MAX_LOG_SCALE).exp()

    def _encode_one(self, name: str, inputs: Inputs | None, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, S, W), mask (B, S) and embeddings (B, D) of one modality."""
        device = self.log_scale.device
        if inputs is None:
            none = torch.zeros((rows, 0, self.width), device=device)
            return none, none[..., 0].bool(), torch.zeros((rows, self.embed_dim), device=device)
        tokens_NST, mask_NS = self.towers[name](inputs.values, inputs.length_N)
        tokens_NSW = self.adapters[name](tokens_NST)
        embedding_ND = self.heads[name](masked_mean(tokens_NSW, mask_NS))
        return tuple(_spread(part, inputs.row_N, rows) for part in (tokens_NSW, mask_NS, embedding_ND))  # type: ignore[return-value]


def _spread(part_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """Put the samples that have a modality at their rows of the batch, zeros elsewhere. Shape (B, ...)."""
    if len(row_N) == rows:
        return part_N
    return part_N.new_zeros((rows, *part_N.shape[1:])).index_copy(0, row_N, part_N)
