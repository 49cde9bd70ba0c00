"""Recall@k: how often the right partner is among the first k found.

Shapes: N samples, C samples of a chunk, D embedding dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 1024

# `recall@k` to its value and its chance level.
Recall = dict[str, dict[str, float]]


def recall_at(query_ND: Tensor, candidate_ND: Tensor, text_hash_N: Tensor, ks: list[int]) -> Recall:
    """Recall@k of the partner, with the chance level of a random order beside it, by `recall@k`.

    A query is a hit where any of its positives is in the top k: its own partner, or one whose sample has the same text
    (equal hashes other than 0). A tie counts as lost, so that embeddings that are all equal find nothing.

    Args:
        query_ND: embeddings that ask.
        candidate_ND: their partners, row by row.
        text_hash_N: a hash of each sample's text, 0 for none.
        ks: the k.
    """
    ahead_N, positives_N = ranks(query_ND, candidate_ND, text_hash_N)
    return {
        f"recall@{k}": {
            "value": float((ahead_N < k).double().mean()),
            "chance": chance_level(positives_N.tolist(), len(candidate_ND), k),
        }
        for k in ks
    }


def ranks(query_ND: Tensor, candidate_ND: Tensor, text_hash_N: Tensor) -> tuple[Tensor, Tensor]:
    """Wrong candidates before the best positive of each query, and how many positives it has: (N,) each.

    In chunks of queries: memory grows with N.
    """
    chunks = [
        _ranks(query_ND[at : at + _CHUNK], at, candidate_ND, text_hash_N) for at in range(0, len(query_ND), _CHUNK)
    ]
    ahead_N, positives_N = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return ahead_N, positives_N


def chance_level(positives: list[int], candidates: int, k: int) -> float:
    """Expected recall@k of a random order, for queries with so many positives: 1 - C(n - p, k) / C(n, k), averaged."""
    if k >= candidates:
        return 1.0
    misses = {p: math.comb(candidates - p, k) / math.comb(candidates, k) for p in set(positives)}
    return 1 - sum(misses[p] for p in positives) / len(positives)


def _ranks(query_CD: Tensor, start: int, candidate_ND: Tensor, text_hash_N: Tensor) -> tuple[Tensor, Tensor]:
    """How many wrong candidates come before the best positive of each query, and how many positives it has."""
    similarity_CN = query_CD @ candidate_ND.T
    row_C = torch.arange(start, start + len(query_CD), device=query_CD.device)
    hash_C = text_hash_N[row_C]
    positive_CN = (hash_C[:, None] == text_hash_N[None, :]) & (hash_C[:, None] != 0)
    positive_CN[torch.arange(len(row_C)), row_C] = True
    best_C1 = similarity_CN.masked_fill(~positive_CN, -torch.inf).amax(dim=1, keepdim=True)
    ahead_C = ((similarity_CN >= best_C1) & ~positive_CN).sum(dim=1)
    return ahead_C, positive_CN.sum(dim=1)
