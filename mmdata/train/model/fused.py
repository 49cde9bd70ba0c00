"""The fused model: towers, adapters, heads, fusion, decoders.

Shapes: B samples, M modalities, N samples that have a modality, S tokens, W the fusion's width, T a tower's,
D embedding dimensions, V views of a sample, Q latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdata.train.batch import Batch, Inputs, Lesson
from mmdata.train.model.fusion import Adapter, Fusion
from mmdata.train.model.heads import Head, MatchHead, MimicHeads, RouteHead
from mmdata.train.model.layers import Blocks, init_weights, masked_mean
from mmdata.train.model.media_decoders import AudioDecoder, ImageDecoder
from mmdata.train.model.modalities import make_towers
from mmdata.train.model.moe import uncounted
from mmdata.train.model.sizes import TRUNK_MODALITIES, Architecture
from mmdata.train.model.text_decoder import TextDecoder
from mmdata.train.model.towers import Limits, Tower

# CLIP (Radford et al. 2021, section 2.5): the temperature starts at 0.07 and its inverse never passes 100.
_START_LOG_SCALE = math.log(1 / 0.07)
MAX_LOG_SCALE = math.log(100)
# SigLIP (Zhai et al. 2023, section 3.2): without it the many negatives of the start would push everything apart.
_START_SIGMOID_BIAS = -10.0
# Parameters that serve a loss alone: no exported model has them.
TRAINING_ONLY = "mimic_heads."


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


class FusedModel(nn.Module):
    """One model of several modalities, each of which may be absent from any sample.

    Attributes:
        run_absent: towers of modalities that no sample has run too, over nothing: where ranks wait for each other's
            gradients, each has to have them of the same parameters.
    """

    def __init__(
        self,
        architecture: Architecture,
        modalities: tuple[str, ...],
        limits: Limits,
        mimicked: Sequence[Lesson] = (),
    ) -> None:
        """Modalities keep their order: it is that of the columns of `present_BM`.

        `mimicked`: what is taught by vectors that are to be foretold; heads for that are trained, not kept.
        """
        super().__init__()
        width = architecture.fusion.width
        self.architecture, self.limits = architecture, limits
        self.modalities, self.width, self.embed_dim = modalities, width, architecture.embed_dim
        self.run_absent = False
        towers = make_towers(modalities, architecture, limits)
        self.towers = nn.ModuleDict({name: towers[name] for name in modalities})
        shared = architecture.shared_trunk
        self.trunk = Blocks(architecture.image, architecture.dropout, architecture.moe) if shared else None
        self.adapters = nn.ModuleDict({name: Adapter(towers[name].width, width) for name in modalities})
        self.heads = nn.ModuleDict({name: Head(width, architecture.embed_dim) for name in modalities})
        self.fusion = Fusion(architecture.fusion, architecture.dropout, architecture.moe)
        self.fusion_head = Head(width, architecture.embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(_START_LOG_SCALE))
        self.sigmoid_bias = nn.Parameter(torch.tensor(_START_SIGMOID_BIAS))
        self.decoders = nn.ModuleDict({name: self._decoder(name) for name in architecture.decoders})
        self.match_head = MatchHead(width) if architecture.match else None
        outputs, heads = len(architecture.decoders), architecture.fusion.heads
        self.route_head = RouteHead(width, heads, outputs) if architecture.route else None
        self.mimic_heads = MimicHeads(architecture.embed_dim, mimicked)  # last: all else starts alike without it
        for name, part in self.named_children():
            if name != "towers":  # made ready where they are made: some come with weights
                part.apply(init_weights)

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

    def tower(self, name: str) -> Tower:
        """The tower of a modality."""
        tower = self.towers[name]
        assert isinstance(tower, Tower)
        return tower

    def trunk_of(self, name: str) -> nn.Module | None:
        """The blocks that a modality shares with others; None where it has its own."""
        return self.trunk if name in TRUNK_MODALITIES or name == "video" else None

    def _decoder(self, name: str) -> nn.Module:
        shape, limits = self.architecture, self.limits
        if name == "text":
            most = 2 * limits.text_max_tokens  # a question, and its answer
            return TextDecoder(shape.text_decoder, limits.vocab_size, most, self.width, shape.dropout)
        return (
            ImageDecoder(shape.image_decoder, self.width)
            if name == "image"
            else AudioDecoder(shape.audio_decoder, self.width)
        )

    def _encode_one(self, name: str, inputs: Inputs | None, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, S, W), mask (B, S) and embeddings (B, D) of one modality."""
        device = self.log_scale.device
        if inputs is None and not self.run_absent:
            none = torch.zeros((rows, 0, self.width), device=device)
            return none, none[..., 0].bool(), torch.zeros((rows, self.embed_dim), device=device)
        if inputs is None:
            with uncounted(self):
                parts = [part[:0] for part in self._run(name, *self.tower(name).blank(device))]
            row_N = torch.zeros(0, dtype=torch.int64, device=device)
        else:
            parts, row_N = self._run(name, inputs.values, inputs.length_N), inputs.row_N
        return tuple(_spread(part, row_N, rows) for part in parts)  # type: ignore[return-value]

    def _run(self, name: str, values: Tensor, length_N: Tensor) -> list[Tensor]:
        """Tokens (N, S, W), mask (N, S) and embeddings (N, D)."""
        tokens_NST, mask_NS = self.towers[name](values, length_N, None, self.trunk_of(name))
        tokens_NSW = self.adapters[name](tokens_NST)
        return [tokens_NSW, mask_NS, self.heads[name](masked_mean(tokens_NSW, mask_NS))]


def _spread(part_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """Put the samples that have a modality at their rows of the batch, zeros elsewhere. Shape (B, ...)."""
    if len(row_N) == rows:
        return part_N
    return part_N.new_zeros((rows, *part_N.shape[1:])).index_copy(0, row_N, part_N)
