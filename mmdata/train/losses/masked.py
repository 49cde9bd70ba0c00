"""Masked modelling: some tokens of each modality are hidden, and rebuilt from the rest of that modality.

Shapes: N samples that have a modality, S tokens.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from mmdata.train.dice import Dice, Purpose
from mmdata.train.losses.ranks import shared_mean, total
from mmdata.train.losses.step import Step
from mmdata.train.model.moe import uncounted
from mmdata.train.model.towers import Tower


def masked_terms(step: Step) -> dict[str, Tensor]:
    """A scalar for each modality whose tower can rebuild, `masked.image`: the mean over hidden tokens."""
    terms = {}
    for name, tower in step.model.towers.items():
        assert isinstance(tower, Tower)
        if tower.rebuilds and (term := _term(step, name, tower)) is not None:
            terms[f"masked.{name}"] = term
    return terms


def _term(step: Step, name: str, tower: Tower) -> Tensor | None:
    inputs = step.batch.inputs.get(name)
    if inputs is None:
        values, length_N = tower.blank(step.device)
        hidden_NS = torch.zeros_like(tower.slots(values, length_N))
    else:
        values, length_N = inputs.values, inputs.length_N
        hidden_NS = _hidden(
            Dice(step.dice.key_B[inputs.row_N]), tower.slots(values, length_N), step.config.masked_share
        )
    everyone = total(hidden_NS.sum().float())
    if not everyone:
        return None
    with uncounted(step.model) if inputs is None else contextlib.nullcontext():
        tokens_NSW, _ = tower(values, length_N, hidden_NS, step.model.trunk_of(name))
    error_NS = tower.rebuilt(tokens_NSW, values, length_N)
    return shared_mean(error_NS, hidden_NS.float(), everyone)


def _hidden(dice: Dice, real_NS: Tensor, share: float) -> Tensor:
    """Each real token by chance."""
    return (dice.uniform(Purpose.MASK, real_NS.shape[1]) < share) & real_NS
