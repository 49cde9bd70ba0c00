"""Contrastive losses over every pair of modalities that samples have together.

Shapes: B samples in a batch, M modalities, N samples that take part in a term, D embedding dimensions, K hashes.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from mmdata.train.batch import Batch
from mmdata.train.model import Encoded, FusedModel


def info_nce(left_ND: Tensor, right_ND: Tensor, scale: Tensor, same_NN: Tensor) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018; CLIP, Radford et al. 2021, figure 3), a scalar.

    Args:
        left_ND: embeddings of unit length.
        right_ND: their partners, row by row.
        scale: inverse temperature.
        same_NN: pairs of rows that are not negatives of each other; the diagonal is not looked at.
    """
    logits_NN = scale * left_ND @ right_ND.T
    itself_NN = torch.eye(len(logits_NN), dtype=torch.bool, device=logits_NN.device)
    logits_NN = logits_NN.masked_fill(same_NN & ~itself_NN, -torch.inf)
    partner_N = torch.arange(len(logits_NN), device=logits_NN.device)
    return (functional.cross_entropy(logits_NN, partner_N) + functional.cross_entropy(logits_NN.T, partner_N)) / 2


def same_text(text_hash_BK: Tensor) -> Tensor:
    """Which samples share a text: a hash that is not 0, in the same column. Shape (B, B)."""
    same_BB = torch.zeros((len(text_hash_BK),) * 2, dtype=torch.bool, device=text_hash_BK.device)
    for hash_B in text_hash_BK.unbind(dim=1):
        same_BB |= (hash_B[:, None] == hash_B[None, :]) & (hash_B != 0)
    return same_BB


def loss_terms(model: FusedModel, batch: Batch, visible_MBM: Tensor | None) -> dict[str, Tensor]:
    """A scalar for each pair of modalities, `image~text`, and for the fusion against each, `fusion~text`.

    A term that fewer than two samples can take part in is left out: it would have no negatives.

    Args:
        model: the model.
        batch: on the model's device.
        visible_MBM: for the term of each modality, what the fusion may read, see `visible_inputs`; None leaves the
            fusion's terms out.
    """
    encoded = model.encode(batch)
    same_BB = same_text(batch.text_hash_BK)
    terms = _pair_terms(model, encoded, same_BB)
    return terms if visible_MBM is None else {**terms, **_fusion_terms(model, encoded, same_BB, visible_MBM)}


def total_loss(terms: dict[str, Tensor], fusion_weight: float) -> Tensor:
    """Mean of the pairwise terms, plus the weighted mean of the fusion's."""
    fusion = [term for name, term in terms.items() if name.startswith("fusion~")]
    pairs = [term for name, term in terms.items() if not name.startswith("fusion~")]
    total = torch.stack(pairs).mean()
    return total + fusion_weight * torch.stack(fusion).mean() if fusion else total


def visible_inputs(present_BM: Tensor, chance: float, generator: torch.Generator | None = None) -> Tensor:
    """What the fusion may read when it is held against each modality in turn. Shape (M, B, M), on the CPU.

    The modality itself is hidden, else the answer would stand in the question; by `chance` so is one more, in samples
    that then still have two (modality dropout, Neverova et al. 2016).
    """
    columns = range(present_BM.shape[1])
    return torch.stack([_hide(present_BM, column, chance, generator) for column in columns])


def _hide(present_BM: Tensor, hidden: int, chance: float, generator: torch.Generator | None) -> Tensor:
    visible_BM = present_BM.clone()
    visible_BM[:, hidden] = False
    if not chance:
        return visible_BM
    dice_BM = torch.rand(visible_BM.shape, generator=generator).masked_fill(~visible_BM, -1)
    falls_B = (torch.rand(len(visible_BM), generator=generator) < chance) & (visible_BM.sum(dim=1) > 1)
    visible_BM[falls_B, dice_BM.argmax(dim=1)[falls_B]] = False
    return visible_BM


def _pair_terms(model: FusedModel, encoded: Encoded, same_BB: Tensor) -> dict[str, Tensor]:
    terms = {}
    for left, right in combinations(range(len(model.modalities)), 2):
        rows_N = (encoded.present_BM[:, left] & encoded.present_BM[:, right]).nonzero()[:, 0]
        if len(rows_N) > 1:
            left_ND, right_ND = encoded.embeddings[left][rows_N], encoded.embeddings[right][rows_N]
            term = info_nce(left_ND, right_ND, model.scale(), same_BB[rows_N][:, rows_N])
            terms[f"{model.modalities[left]}~{model.modalities[right]}"] = term
    return terms


def _fusion_terms(model: FusedModel, encoded: Encoded, same_BB: Tensor, visible_MBM: Tensor) -> dict[str, Tensor]:
    terms = {}
    fused_MBD = model.fuse(encoded, visible_MBM)
    for column, name in enumerate(model.modalities):
        rows_N = (encoded.present_BM[:, column] & visible_MBM[column].any(dim=1)).nonzero()[:, 0]
        if len(rows_N) > 1:
            partner_ND = encoded.embeddings[column][rows_N]
            term = info_nce(fused_MBD[column][rows_N], partner_ND, model.scale(), same_BB[rows_N][:, rows_N])
            terms[f"fusion~{name}"] = term
    return terms
