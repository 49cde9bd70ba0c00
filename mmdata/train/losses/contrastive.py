"""Contrastive losses: between every pair of modalities that samples have together, and of each with the fusion.

Shapes: B samples of this rank, A of all ranks, M modalities, N of this rank that take part in a term, P of all that do,
D embedding dimensions, K hashes, V views.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from mmdata.train.dice import Dice, Purpose
from mmdata.train.launch import rank
from mmdata.train.losses.ranks import gathered, row_counts, shared_mean
from mmdata.train.losses.step import Step

# One sample has no negatives.
_MIN_SAMPLES = 2


@dataclass(frozen=True)
class Everyone:
    """What contrastive terms need of the batches of all ranks.

    Attributes:
        embeddings: for each modality (A, D).
        present_AM: which modalities a sample has.
        same_AA: which samples share a text.
        mine: the rows of this rank.
        counts: rows of each rank.
    """

    embeddings: list[Tensor]
    present_AM: Tensor
    same_AA: Tensor
    mine: range
    counts: list[int]


def info_nce(query_ND: Tensor, candidate_PD: Tensor, scale: Tensor, partner_N: Tensor, same_NP: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al. 2018; CLIP, Radford et al. 2021, figure 3) of each query, shape (N,).

    Args:
        query_ND: embeddings of unit length.
        candidate_PD: what they are to find their partner in.
        scale: inverse temperature.
        partner_N: its row.
        same_NP: candidates that are not negatives of a query; its partner is not looked at.
    """
    logits_NP = scale * query_ND @ candidate_PD.T
    return functional.cross_entropy(_without(logits_NP, partner_N, same_NP), partner_N, reduction="none")


def siglip(
    query_ND: Tensor, candidate_PD: Tensor, scale_bias: tuple[Tensor, Tensor], partner_N: Tensor, same_NP: Tensor
) -> Tensor:
    """The sigmoid loss (Zhai et al. 2023, equation 1) of each query, shape (N,); see `info_nce`."""
    logits_NP = scale_bias[0] * query_ND @ candidate_PD.T + scale_bias[1]
    sign_NP = functional.one_hot(partner_N, len(candidate_PD)) * 2 - 1
    # What is left out has a logit of minus infinity as a negative: it costs nothing.
    return -functional.logsigmoid(sign_NP * _without(logits_NP, partner_N, same_NP)).sum(dim=1)


def _without(logits_NP: Tensor, partner_N: Tensor, same_NP: Tensor) -> Tensor:
    itself_NP = functional.one_hot(partner_N, logits_NP.shape[1]).bool()
    return logits_NP.masked_fill(same_NP & ~itself_NP, -torch.inf)


def same_text(text_hash_BK: Tensor) -> Tensor:
    """Which samples share a text: a hash that is not 0, in the same column. Shape (B, B)."""
    same_BB = torch.zeros((len(text_hash_BK),) * 2, dtype=torch.bool, device=text_hash_BK.device)
    for hash_B in text_hash_BK.unbind(dim=1):
        same_BB |= (hash_B[:, None] == hash_B[None, :]) & (hash_B != 0)
    return same_BB


def visible_inputs(
    present_BM: Tensor, chance: float, dice: Dice | None = None, apart_MM: Tensor | None = None
) -> Tensor:
    """What the fusion may read when it is held against each modality in turn. Shape (M, B, M).

    The modality itself is hidden, else the answer would stand in the question; by `chance` so is one more, in samples
    that then still have two (modality dropout, Neverova et al. 2016). `apart_MM`: modalities that never meet.
    """
    samples, modalities = present_BM.shape
    itself_MBM = torch.eye(modalities, dtype=torch.bool, device=present_BM.device)[:, None].expand(-1, samples, -1)
    visible_MBM = present_BM & ~itself_MBM
    if apart_MM is not None:
        visible_MBM = visible_MBM & ~apart_MM[:, None]
    if not chance or dice is None:
        return visible_MBM
    whether_MB = chance > dice.uniform(Purpose.HIDE_WHETHER, modalities).T
    which_MBM = dice.uniform(Purpose.HIDE_WHICH, modalities, modalities).transpose(0, 1).masked_fill(~visible_MBM, -1)
    falls_MB = whether_MB & (visible_MBM.sum(dim=2) > 1)
    hidden_MBM = functional.one_hot(which_MBM.argmax(dim=2), modalities).bool() & falls_MB[..., None]
    return visible_MBM & ~hidden_MBM


def pair_terms(step: Step) -> dict[str, Tensor]:
    """A scalar for each pair of modalities, `image~text`, that two samples or more have."""
    terms, names = {}, step.model.modalities
    for left, right in combinations(range(len(names)), 2):
        if step.config.apart(names[left], names[right]):
            continue
        everyone = gather_everyone(step)
        taking_A = everyone.present_AM[:, left] & everyone.present_AM[:, right]
        if (term := _term(step, everyone, everyone.embeddings[left], everyone.embeddings[right], taking_A)) is not None:
            terms[f"{names[left]}~{names[right]}"] = term
    return terms


def fusion_terms(step: Step) -> dict[str, Tensor]:
    """A scalar for each modality, `fusion~text`: the fusion of the others is to find it, and it the fusion."""
    everyone = gather_everyone(step)
    fused_AMD = gathered(step.fused_MBD.transpose(0, 1), everyone.counts)
    seeing_AM = gathered(step.visible_MBM.any(dim=2).T.byte(), everyone.counts).bool()
    terms = {}
    for column, name in enumerate(step.model.modalities):
        taking_A = everyone.present_AM[:, column] & seeing_AM[:, column]
        term = _term(step, everyone, fused_AMD[:, column], everyone.embeddings[column], taking_A)
        if term is not None:
            terms[f"fusion~{name}"] = term
    return terms


def gather_everyone(step: Step) -> Everyone:
    """The embeddings of all ranks, gathered once a step."""
    if step.everyone is None:
        counts = row_counts(len(step.batch), step.device)
        start = sum(counts[: rank()])
        step.everyone = Everyone(
            [gathered(part_BD, counts) for part_BD in step.encoded.embeddings],
            gathered(step.batch.present_BM.byte(), counts).bool(),
            same_text(gathered(step.batch.text_hash_BK, counts)),
            range(start, start + counts[rank()]),
            counts,
        )
    return step.everyone


def _term(step: Step, everyone: Everyone, left_AD: Tensor, right_AD: Tensor, taking_A: Tensor) -> Tensor | None:
    """Both directions, averaged; None where there would be no negatives, on whatever rank."""
    row_P = taking_A.nonzero()[:, 0]
    if len(row_P) < _MIN_SAMPLES:
        return None
    mine_N = ((row_P >= everyone.mine.start) & (row_P < everyone.mine.stop)).nonzero()[:, 0]
    left_PD, right_PD, same_PP = left_AD[row_P], right_AD[row_P], everyone.same_AA[row_P][:, row_P]
    there_N = _each(step, left_PD[mine_N], right_PD, mine_N, same_PP[mine_N])
    back_N = _each(step, right_PD[mine_N], left_PD, mine_N, same_PP[mine_N])
    both_N = (there_N + back_N) / 2
    return shared_mean(both_N, torch.ones_like(both_N), torch.tensor(float(len(row_P)), device=both_N.device))


def _each(step: Step, query_ND: Tensor, candidate_PD: Tensor, partner_N: Tensor, same_NP: Tensor) -> Tensor:
    model = step.model
    if step.config.contrastive == "siglip":
        return siglip(query_ND, candidate_PD, (model.scale(), model.sigmoid_bias), partner_N, same_NP)
    return info_nce(query_ND, candidate_PD, model.scale(), partner_N, same_NP)
