"""Retrieval: between every two modalities, from and to the fusion, and with modalities missing.

Shapes: N samples, M modalities, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

from torch import Tensor

from mmdata.train.evaluate.config import EvalConfig
from mmdata.train.evaluate.features import Features, Subset
from mmdata.train.evaluate.intervals import share_figure
from mmdata.train.recall import chance_level, ranks


@dataclass(frozen=True)
class Direction:
    """What asks, what it is to find, and the rows of the samples that have both."""

    name: str
    query_ND: Tensor
    candidate_ND: Tensor
    row_N: Tensor


def retrieval(
    features: Features, names: tuple[str, ...], config: EvalConfig, apart: Collection[set[int]] = ()
) -> dict[str, Any]:
    """Recall by direction: `image->text`, `fusion->text` and back, the fusion being of all else that a sample has.

    Pairs that the training kept `apart` are marked `unseen`.
    """
    found = {
        one.name: _recalls(features, one.query_ND, one.candidate_ND, one.row_N, config)
        for one in directions(features, names)
    }
    for left, right in permutations(range(len(names)), 2):
        found[f"{names[left]}->{names[right]}"]["unseen"] = {left, right} in apart
    return {name: cell for name, cell in found.items() if cell["queries"] > 1}


def directions(features: Features, names: tuple[str, ...]) -> Iterator[Direction]:
    """Between every two modalities, and from and to the fusion of all but one."""
    for left, right in permutations(range(len(names)), 2):
        row_N = (features.present_NM[:, left] & features.present_NM[:, right]).nonzero()[:, 0]
        ends = (features.single_MND[left], features.single_MND[right])
        yield Direction(f"{names[left]}->{names[right]}", *ends, row_N)
    for column, name in enumerate(names):
        others = tuple(other for other in range(len(names)) if other != column)
        row_N = (features.present_NM[:, column] & features.present_NM[:, list(others)].any(dim=1)).nonzero()[:, 0]
        ends = (features.fused[others], features.single_MND[column])
        yield Direction(f"fusion->{name}", *ends, row_N)
        yield Direction(f"{name}->fusion", *ends[::-1], row_N)


def missing(features: Features, names: tuple[str, ...], config: EvalConfig) -> dict[str, Any]:
    """Recall of each modality from the fusion of every set of others, `fusion(image+audio)->text`.

    On the samples that have all modalities, so that the figures can be held against each other.
    """
    row_N = features.present_NM.all(dim=1).nonzero()[:, 0]
    found = {}
    for column, name in enumerate(names):
        for chosen in _sets_without(column, len(names)):
            shown = "+".join(names[other] for other in chosen)
            ends = (features.fused[chosen], features.single_MND[column])
            found[f"fusion({shown})->{name}"] = _recalls(features, *ends, row_N, config)
    return {name: cell for name, cell in found.items() if cell["queries"] > 1}


def _sets_without(column: int, count: int) -> list[Subset]:
    others = [other for other in range(count) if other != column]
    return [chosen for size in range(1, count) for chosen in combinations(others, size)]


def _recalls(
    features: Features, query_ND: Tensor, candidate_ND: Tensor, row_N: Tensor, config: EvalConfig
) -> dict[str, Any]:
    found: dict[str, Any] = {"queries": len(row_N)}
    if len(row_N) < 2:  # noqa: PLR2004 - one sample has nothing to be found among
        return found
    ahead_N, positives_N = ranks(query_ND[row_N], candidate_ND[row_N], features.text_hash_N[row_N])
    for k in config.ks:
        chance = chance_level(positives_N.tolist(), len(row_N), k)
        found[f"recall@{k}"] = share_figure((ahead_N < k).numpy(), chance)
    return found
