"""Distillation: who is like whom, as a teacher sees it.

Similarities are matched, not embeddings: so the teacher's may have any number of dimensions, and a student of fewer is
not asked to hold what it cannot.

Shapes: A samples of all ranks, P that take part, N of them of this rank, D and E dimensions.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from torch import Tensor
from torch.nn import functional

from mmdata.train.losses.contrastive import gather_everyone
from mmdata.train.losses.ranks import gathered, shared_mean
from mmdata.train.losses.step import Step

# A sample is compared with others: one alone has none, and of two each has one, which is all of a distribution.
_MIN_SAMPLES = 3
# So small that its probability is 0; minus infinity less minus infinity would be no number.
_NEVER = -1e4


def distill_terms(step: Step) -> dict[str, Tensor]:
    """A scalar for each pair of modalities that the teacher knows, and each with itself: `distill.image~text`."""
    everyone, names = gather_everyone(step), step.model.modalities
    taught = {name: gathered(vector_BE, everyone.counts) for name, vector_BE in step.batch.teacher.items()}
    terms = {}
    for left, right in combinations_with_replacement([name for name in names if name in taught], 2):
        if step.config.apart(left, right) or step.batch.space.get(left) != step.batch.space.get(right):
            continue  # kept from each other, or of two teachers, which have no space in common
        students = [everyone.embeddings[names.index(name)] for name in (left, right)]
        present = [everyone.present_AM[:, names.index(name)] & taught[name].any(dim=1) for name in (left, right)]
        row_P = (present[0] & present[1]).nonzero()[:, 0]
        if len(row_P) >= _MIN_SAMPLES:
            mine_N = ((row_P >= everyone.mine.start) & (row_P < everyone.mine.stop)).nonzero()[:, 0]
            vectors = [functional.normalize(taught[name][row_P].float(), dim=1) for name in (left, right)]
            pair = ((students[0][row_P], students[1][row_P]), (vectors[0], vectors[1]))
            term_N = affinity_loss(*pair, mine_N, left == right, step.config.distill_temperature)
            count = torch.tensor(float(len(row_P)), device=step.device)
            terms[f"distill.{left}~{right}"] = shared_mean(term_N, torch.ones_like(term_N), count)
    return terms


def affinity_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mine_N: Tensor, itself: bool, temperature: float
) -> Tensor:
    """KL divergence of the student's likenesses from the teacher's, both directions averaged. Shape (N,).

    The loss of MobileCLIP (Vasu et al. 2024, equation 2), with one fixed temperature.

    Args:
        student: both sides' embeddings (P, D), of unit length.
        teacher: both sides' (P, E), of unit length.
        mine_N: rows that ask.
        itself: the sides are one: what a sample is to itself says nothing.
        temperature: divides the similarities.
    """
    there_N = _divergence(student, teacher, mine_N, itself, temperature)
    if itself:
        return there_N
    return (there_N + _divergence(student[::-1], teacher[::-1], mine_N, itself, temperature)) / 2


def _divergence(
    student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mine_N: Tensor, itself: bool, temperature: float
) -> Tensor:
    logs = []
    for query_PD, candidate_PD in (student, teacher):
        logits_NP = query_PD[mine_N] @ candidate_PD.T / temperature
        if itself:
            logits_NP = logits_NP.scatter(1, mine_N[:, None], _NEVER)
        logs.append(logits_NP.log_softmax(dim=1))
    return functional.kl_div(logs[0], logs[1], reduction="none", log_target=True).sum(dim=1)
