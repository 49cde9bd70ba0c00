"""Do the members of a sample agree? Calibrated match of each pair, and the volume that three span or more.

Shapes: N samples, M modalities, K modalities that span a volume, D embedding dimensions, R partners of others.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdata.models.two_groups import Calibration, calibrate
from mmdata.train.evaluate.config import EvalConfig
from mmdata.train.evaluate.features import Features
from mmdata.train.evaluate.intervals import mean_figure

# Partners of others for each pair: as many as the calibration of builds has.
_PARTNERS = 4
_MIN_SPANNED = 3


def gram_volume(vector_NKD: Tensor) -> Tensor:
    """Volume of the parallelotope that K vectors of unit length span, from 0 (equal) to 1 (orthogonal). Shape (N,).

    Cicchetti et al. 2024 ("Gramian Multimodal Representation Learning and Alignment", equation 3): sqrt(det(G)) with
    G the products of the vectors.
    """
    vector_NKD = vector_NKD.double()
    determinant_N: Tensor = torch.linalg.det(vector_NKD @ vector_NKD.transpose(1, 2))
    return determinant_N.clamp(min=0, max=1).sqrt()


def derangements(count: int, text_hash_N: Tensor, partners: int, seed: int) -> Tensor:
    """Other samples for each, as permutations without a fixed point; -1 where texts are equal. Shape (N, R)."""
    rng = np.random.default_rng(seed)
    order_N = torch.from_numpy(rng.permutation(count))
    found = []
    for shift in range(1, min(partners, count - 1) + 1):
        other_N = torch.empty(count, dtype=torch.int64)
        other_N[order_N] = order_N.roll(-shift)
        same_N = (text_hash_N == text_hash_N[other_N]) & (text_hash_N != 0)
        found.append(other_N.masked_fill(same_N, -1))
    return torch.stack(found, dim=1) if found else torch.zeros((count, 0), dtype=torch.int64)


def consistency(features: Features, names: tuple[str, ...], config: EvalConfig) -> dict[str, Any]:
    """By pair `image~text` the mean match and the noise; by three or more the mean of 1 - volume, and of others'."""
    found: dict[str, Any] = {}
    for left, right in combinations(range(len(names)), 2):
        row_N = (features.present_NM[:, left] & features.present_NM[:, right]).nonzero()[:, 0]
        found[f"{names[left]}~{names[right]}"] = _match(features, left, right, row_N, config)
    for size in range(_MIN_SPANNED, len(names) + 1):
        for chosen in combinations(range(len(names)), size):
            cell = _volume(features, list(chosen), config)
            found["~".join(names[column] for column in chosen)] = cell
    return found


def match_of(features: Features, left: int, right: int, row_N: Tensor, seed: int) -> Calibration:
    """The two-groups model of a pair's cosines, against the same members of other samples."""
    left_ND, right_ND = features.single_MND[left][row_N], features.single_MND[right][row_N]
    partner_NR = derangements(len(row_N), features.text_hash_N[row_N], _PARTNERS, seed)
    cosine_N = (left_ND * right_ND).sum(dim=1)
    null_NR = (left_ND[:, None] * right_ND[partner_NR.clamp(min=0)]).sum(dim=2).masked_fill(partner_NR < 0, math.nan)
    return calibrate(cosine_N.numpy(), null_NR.numpy())


def _match(features: Features, left: int, right: int, row_N: Tensor, config: EvalConfig) -> dict[str, Any]:
    found = match_of(features, left, right, row_N, config.seed)
    if not found.enough:
        return {"samples": len(row_N), "not_calibrated": found.why}
    noise = {"value": found.noise, "low": found.noise_low, "high": found.noise_high}
    return {
        "samples": len(row_N),
        "match": mean_figure(found.match_N, config.seed, config.resamples),
        "mismatched_share": noise,
    }


def _volume(features: Features, chosen: list[int], config: EvalConfig) -> dict[str, Any]:
    row_N = features.present_NM[:, chosen].all(dim=1).nonzero()[:, 0]
    if len(row_N) <= len(chosen):
        return {"samples": len(row_N)}
    vector_NKD = features.single_MND[chosen][:, row_N].transpose(0, 1)
    # Each member but the first is another sample's: the k-th that of the k-th derangement.
    partner_NR = derangements(len(row_N), torch.zeros(len(row_N), dtype=torch.int64), len(chosen) - 1, config.seed)
    mixed = [vector_NKD[:, 0], *(vector_NKD[partner_NR[:, at], at + 1] for at in range(len(chosen) - 1))]
    own_N, others_N = 1 - gram_volume(vector_NKD), 1 - gram_volume(torch.stack(mixed, dim=1))
    figure = mean_figure(own_N.numpy(), config.seed, config.resamples, float(others_N.mean()))
    return {"samples": len(row_N), "one_minus_volume": figure}
