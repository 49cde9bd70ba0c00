"""Mimicry: a teacher's vectors are foretold from the model's own embeddings, by a head for each of its spaces.

Shapes: B samples, N of them that have a modality and a teacher's vector of it, D embedding dimensions, E the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmdata.train.losses.ranks import shared_mean, total
from mmdata.train.losses.step import Step


def mimic_terms(step: Step) -> dict[str, Tensor]:
    """A scalar for each modality that the teacher knows, `mimic.image`: the mean over samples.

    1 - cosine, which is half of the squared distance of unit vectors: the feature distillation of CLIP-KD (Yang et al.
    2024, "FD"), the strongest single loss found there. A head stands between, since widths differ.
    """
    terms = {}
    for column, name in enumerate(step.model.modalities):
        if name not in step.batch.teacher:
            continue
        vector_BE = step.batch.teacher[name].float()
        row_N = (step.batch.present_BM[:, column] & vector_BE.any(dim=1)).nonzero()[:, 0]
        everyone = total(torch.tensor(float(len(row_N)), device=step.device))
        if everyone:
            foretold_NE = step.model.mimic_heads(name, step.encoded.embeddings[column][row_N])
            error_N = 1 - functional.cosine_similarity(foretold_NE, vector_BE[row_N], dim=1)
            terms[f"mimic.{name}"] = shared_mean(error_N, torch.ones_like(error_N), everyone)
    return terms
