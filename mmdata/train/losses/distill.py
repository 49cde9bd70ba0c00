"""Distillation: who is like whom, as a teacher sees it.

Similarities are matched, not embeddings: so the teacher's may have any number of dimensions, and a student of fewer is
not asked to hold what it cannot.

Shapes: A samples of all ranks, P that take part, N of them of this rank, T of those for each teacher that knows them, D
and E dimensions.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from torch import Tensor
from torch.nn import functional

from mmdata.train.batch import Lesson
from mmdata.train.losses.contrastive import Everyone, gather_everyone
from mmdata.train.losses.ranks import gathered, shared_mean
from mmdata.train.losses.step import Step

# A sample is compared with others: one alone has none, and of two each has one, which is all of a distribution.
_MIN_SAMPLES = 3
# So small that its probability is 0; minus infinity less minus infinity would be no number.
_NEVER = -1e4


def distill_terms(step: Step) -> dict[str, Tensor]:
    """A scalar for each pair of modalities that a teacher knows, and each with itself: `distill.image~text`.

    Where several teachers know a pair, the mean over samples and teachers.
    """
    everyone, names = gather_everyone(step), step.model.modalities
    taught = {lesson: gathered(vector_BE, everyone.counts) for lesson, vector_BE in step.batch.taught.items()}
    terms = {}
    for left, right in combinations_with_replacement(names, 2):
        if step.config.apart(left, right):
            continue  # kept from each other
        found = [
            _of_pair(step, everyone, (left, right), (taught[lesson], taught[other]))
            for lesson in taught
            # Of two teachers, which have no space in common, nothing can be compared.
            if lesson.modality == left and (other := Lesson(right, lesson.space)) in taught
        ]
        if count := sum(pairs for pairs, _ in found):
            term_T = torch.cat([term_N for _, term_N in found])
            everywhere = torch.tensor(float(count), device=step.device)
            terms[f"distill.{left}~{right}"] = shared_mean(term_T, torch.ones_like(term_T), everywhere)
    return terms


def _of_pair(
    step: Step, everyone: Everyone, names: tuple[str, str], taught: tuple[Tensor, Tensor]
) -> tuple[int, Tensor]:
    """How many samples of all ranks one teacher knows in two modalities, and the term of those of this rank, (N,)."""
    columns = [step.model.modalities.index(name) for name in names]
    present = [
        everyone.present_AM[:, column] & vector_AE.any(dim=1) for column, vector_AE in zip(columns, taught, strict=True)
    ]
    row_P = (present[0] & present[1]).nonzero()[:, 0]
    if len(row_P) < _MIN_SAMPLES:
        return 0, torch.zeros(0, device=step.device)
    mine_N = ((row_P >= everyone.mine.start) & (row_P < everyone.mine.stop)).nonzero()[:, 0]
    students = (everyone.embeddings[columns[0]][row_P], everyone.embeddings[columns[1]][row_P])
    theirs = [functional.normalize(vector_AE[row_P].float(), dim=1) for vector_AE in taught]
    vectors = (theirs[0], theirs[1])
    return len(row_P), affinity_loss(students, vectors, mine_N, names[0] == names[1], step.config.distill_temperature)


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
