"""Mimicry: a teacher's vectors are foretold from the model's own embeddings, by a head for each of its spaces.

Shapes: B samples, N of them that have a modality and a teacher's vector of it, P such pairs of a sample and a teacher,
D embedding dimensions, E the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmdata.train.batch import Space
from mmdata.train.losses.ranks import shared_mean, total
from mmdata.train.losses.step import Step


def mimic_terms(step: Step) -> dict[str, Tensor]:
    """A scalar for each modality that teachers know, `mimic.image`: the mean over samples, and over their teachers.

    1 - cosine, which is half of the squared distance of unit vectors: the feature distillation of CLIP-KD (Yang et al.
    2024, "FD"), the strongest single loss found there. A head stands between, since widths differ.
    """
    terms = {}
    for column, name in enumerate(step.model.modalities):
        taught = {lesson: part for lesson, part in step.batch.taught.items() if lesson.modality == name}
        if not taught:
            continue
        error_P = torch.cat([_error(step, column, lesson.space, part.float()) for lesson, part in taught.items()])
        everyone = total(torch.tensor(float(len(error_P)), device=step.device))
        if everyone:
            terms[f"mimic.{name}"] = shared_mean(error_P, torch.ones_like(error_P), everyone)
    return terms


def _error(step: Step, column: int, space: Space, vector_BE: Tensor) -> Tensor:
    """1 - cosine of what is foretold of each sample that the teacher knows, in one modality. Shape (N,)."""
    row_N = (step.batch.present_BM[:, column] & vector_BE.any(dim=1)).nonzero()[:, 0]
    foretold_NE = step.model.mimic_heads(space, step.encoded.embeddings[column][row_N])
    return 1 - functional.cosine_similarity(foretold_NE, vector_BE[row_N], dim=1)
