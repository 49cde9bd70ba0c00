"""A small GPT that writes texts while it reads the fusion.

Shapes: N texts, S tokens, W the decoder's width, Q latents, K the fusion's width, V entries of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdata.train.model.layers import INIT_STD, Attention, Mlp, length_mask
from mmdata.train.model.sizes import TowerShape


class DecoderBlock(nn.Module):
    """Causal attention, attention over the context, an MLP; each normalised first."""

    def __init__(self, width: int, heads: int, dropout: float, context_width: int) -> None:
        """Keep the width."""
        super().__init__()
        self.attention_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads, dropout)
        self.cross = Attention(width, heads, dropout, context_width)
        self.mlp = Mlp(width, dropout)

    def forward(self, tokens_NSW: Tensor, context_NQK: Tensor, mask_NSS: Tensor) -> Tensor:
        """Shape (N, S, W)."""
        normed = self.attention_norm(tokens_NSW)
        tokens_NSW = tokens_NSW + self.attention(normed, normed, mask_NSS)
        tokens_NSW = tokens_NSW + self.cross(self.cross_norm(tokens_NSW), context_NQK)
        out_NSW: Tensor = tokens_NSW + self.mlp(self.mlp_norm(tokens_NSW))
        return out_NSW


class TextDecoder(nn.Module):
    """GPT-2 (Radford et al. 2019) with cross-attention; the embedding's weights are also those of the logits."""

    def __init__(self, shape: TowerShape, vocab_size: int, max_tokens: int, context_width: int, dropout: float) -> None:
        """Of at most `max_tokens`, a question before an answer included."""
        super().__init__()
        self.max_tokens = max_tokens
        self.embed = nn.Embedding(vocab_size, shape.width)
        self.position = nn.Parameter(torch.randn(max_tokens, shape.width) * INIT_STD)
        self.blocks = nn.ModuleList(
            DecoderBlock(shape.width, shape.heads, dropout, context_width) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, ids_NS: Tensor, length_N: Tensor, context_NQK: Tensor) -> Tensor:
        """Logits of the token after each, float32. Shape (N, S, V)."""
        tokens = ids_NS.shape[1]
        earlier_SS = torch.ones((tokens, tokens), dtype=torch.bool, device=ids_NS.device).tril()
        # The first token is always seen, so that no row of padding reads nothing.
        real_NS = length_mask(length_N.clamp(min=1), tokens)
        mask_NSS = earlier_SS & real_NS[:, None]
        tokens_NSW = self.embed(ids_NS) + self.position[:tokens]
        for block in self.blocks:
            tokens_NSW = block(tokens_NSW, context_NQK, mask_NSS)
        return functional.linear(self.norm(tokens_NSW), self.embed.weight).float()

    def loss(self, ids_NS: Tensor, length_N: Tensor, context_NQK: Tensor, asked_N: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of a text's tokens after the first, in nats. Shape (N,).

        Args:
            ids_NS: with the start first.
            length_N: tokens of each text.
            context_NQK: what it is written from.
            asked_N: tokens at the start, the first included, that are given; 1 where nothing is said.
        """
        logits_NSV = self(ids_NS[:, :-1], (length_N - 1).clamp(min=1), context_NQK)
        nats_NS = functional.cross_entropy(logits_NSV.transpose(1, 2), ids_NS[:, 1:], reduction="none")
        place_S = torch.arange(1, ids_NS.shape[1], device=ids_NS.device)
        asked_N = torch.ones_like(length_N) if asked_N is None else asked_N
        counted_NS = (place_S >= asked_N[:, None]) & (place_S < length_N[:, None])
        return (nats_NS * counted_NS).sum(dim=1) / counted_NS.sum(dim=1).clamp(min=1)

    @torch.no_grad()
    def write(
        self, context_NQK: Tensor, prompt_NS: Tensor, prompt_length_N: Tensor, end: int, max_tokens: int
    ) -> list[list[int]]:
        """The likeliest token each time, up to `end` or `max_tokens`, for each prompt; without both.

        Texts of a batch are written together: each goes on where its own prompt ends.
        """
        most = min(self.max_tokens, int(prompt_length_N.max()) + max_tokens)
        ids_NS = functional.pad(prompt_NS, (0, most - prompt_NS.shape[1]))
        at_N, row_N = prompt_length_N.clone(), torch.arange(len(prompt_NS), device=prompt_NS.device)
        ended_N = at_N >= most
        for _ in range(max_tokens):
            logits_NSV = self(ids_NS, at_N, context_NQK)
            next_N = logits_NSV[row_N, at_N - 1].argmax(dim=-1)
            ended_N = ended_N | (next_N == end)
            if ended_N.all():
                break
            ids_NS[row_N[~ended_N], at_N[~ended_N]] = next_N[~ended_N]
            at_N = at_N + ~ended_N
            ended_N = ended_N | (at_N >= most)
        return [ids_NS[row, prompt_length_N[row] : at_N[row]].tolist() for row in range(len(ids_NS))]


def joined(question: tuple[Tensor, Tensor], answer: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Each question, then its answer without the start: ids (N, S), lengths (N,), and how many of them are asked (N,).

    Args:
        question: ids (N, S) and lengths, start and end included.
        answer: the same.
    """
    (asked_NS, asked_N), (said_NS, said_N) = question, answer
    length_N = asked_N + said_N - 1
    place_NS = torch.arange(asked_NS.shape[1] + said_NS.shape[1] - 1, device=asked_NS.device).expand(len(asked_N), -1)
    from_asked_NS = asked_NS.gather(1, place_NS.clamp(max=asked_NS.shape[1] - 1))
    later_NS = (place_NS - asked_N[:, None] + 1).clamp(min=0, max=said_NS.shape[1] - 1)
    ids_NS = torch.where(place_NS < asked_N[:, None], from_asked_NS, said_NS.gather(1, later_NS))
    return ids_NS.masked_fill(place_NS >= length_N[:, None], 0), length_N, asked_N
