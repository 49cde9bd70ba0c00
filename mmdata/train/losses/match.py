"""Matching: does the fusion of two modalities belong to one sample? Against hard negatives (ALBEF, Li et al. 2021).

Negatives are of this rank's own batch: tokens of all ranks would be too much to send around.

Shapes: B samples, N samples that have both modalities, S tokens, W the fusion's width.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from mmdata.train.dice import Dice, Purpose
from mmdata.train.losses.contrastive import same_text
from mmdata.train.losses.ranks import shared_mean, total
from mmdata.train.losses.step import Step

_TEMPERATURE = 0.07
_TINY = 1e-20


def match_terms(step: Step) -> dict[str, Tensor]:
    """Cross-entropy of the verdict, for each pair of modalities, `match.image~text`: a true pair, two false ones."""
    terms, names = {}, step.model.modalities
    for left, right in combinations(range(len(names)), 2):
        if step.config.apart(names[left], names[right]):
            continue
        if (term := _term(step, left, right)) is not None:
            terms[f"match.{names[left]}~{names[right]}"] = term
    return terms


def _term(step: Step, left: int, right: int) -> Tensor | None:
    model, encoded = step.model, step.encoded
    assert model.match_head is not None
    row_N = (encoded.present_BM[:, left] & encoded.present_BM[:, right]).nonzero()[:, 0]
    same_NN = same_text(step.batch.text_hash_BK)[row_N][:, row_N]
    dice = Dice(step.dice.key_B[row_N])
    left_ND, right_ND = encoded.embeddings[left][row_N], encoded.embeddings[right][row_N]
    other_N, weight_N = hard_negatives(left_ND, right_ND, same_NN, dice)
    everyone = total(weight_N.sum())
    if not everyone:
        return None
    # The pair; the left one with another's right; the right one with another's left, which is as hard.
    of_left, of_right = torch.cat([row_N, row_N, row_N[other_N]]), torch.cat([row_N, row_N[other_N], row_N])
    both = [(encoded.tokens[one][of], encoded.masks[one][of]) for one, of in ((left, of_left), (right, of_right))]
    visible = torch.ones((1, len(of_left), 2), dtype=torch.bool, device=step.device)
    latents = model.fusion([tokens for tokens, _ in both], [mask for _, mask in both], visible)[0]
    truth = torch.arange(len(latents), device=step.device) < len(row_N)
    loss = functional.binary_cross_entropy_with_logits(model.match_head(latents), truth.float(), reduction="none")
    return shared_mean(loss, weight_N.repeat(3), 3 * everyone)


def hard_negatives(left_ND: Tensor, right_ND: Tensor, same_NN: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
    """Another sample for each, the likelier the more alike: (rows, 1 where there is one at all, else 0), (N,) each.

    Drawn by the similarities' softmax at a temperature of 0.07, by Gumbel's trick; never one with the same text.
    """
    itself_NN = torch.eye(len(left_ND), dtype=torch.bool, device=left_ND.device)
    likeness_NN = (left_ND @ right_ND.T).detach() / _TEMPERATURE
    gumbel_NN = -(-dice.uniform(Purpose.NEGATIVE, len(left_ND)).clamp(min=_TINY).log()).clamp(min=_TINY).log()
    score_NN = (likeness_NN + gumbel_NN).masked_fill(same_NN | itself_NN, -torch.inf)
    weight_N = (~(same_NN | itself_NN)).any(dim=1).float()
    return score_NN.argmax(dim=1) if len(left_ND) else torch.zeros_like(weight_N, dtype=torch.int64), weight_N
