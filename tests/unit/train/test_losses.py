from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from mmdata.train.dice import Dice
from mmdata.train.losses.contrastive import info_nce, same_text, siglip, visible_inputs


def slow_info_nce(left, right, scale, same):
    """By the formula, a row at a time, in float64."""
    left, right = left.double().numpy(), right.double().numpy()
    total, rows = 0.0, len(left)
    for queries, candidates in ((left, right), (right, left)):
        for i in range(rows):
            others = [j for j in range(rows) if j == i or not same[i][j]]
            weights = [math.exp(scale * float(np.dot(queries[i], candidates[j]))) for j in others]
            total += -math.log(weights[others.index(i)] / sum(weights))
    return total / (2 * rows)


def symmetric(left, right, scale, same):
    row = torch.arange(len(left))
    scale = torch.as_tensor(scale)
    there, back = info_nce(left, right, scale, row, same), info_nce(right, left, scale, row, same.T)
    return (there.mean() + back.mean()) / 2


@pytest.fixture
def pair():
    torch.manual_seed(3)
    left, right = functional.normalize(torch.randn(7, 5), dim=1), functional.normalize(torch.randn(7, 5), dim=1)
    return left, right


def test_info_nce_is_the_formula(pair):
    none = torch.zeros(7, 7, dtype=torch.bool)
    expected = slow_info_nce(*pair, 9.0, none.tolist())
    assert symmetric(*pair, 9.0, none).item() == pytest.approx(expected, rel=1e-5)


def test_equal_texts_are_not_negatives(pair):
    same = same_text(torch.tensor([[5, 1], [6, 2], [5, 3], [0, 4], [0, 5], [8, 4], [9, 9]]))
    expected_pairs = {(0, 2), (2, 0), (3, 5), (5, 3)}
    assert {(i, j) for i, j in same.nonzero().tolist() if i != j} == expected_pairs
    expected = slow_info_nce(*pair, 4.0, same.tolist())
    got = symmetric(*pair, 4.0, same).item()
    assert got == pytest.approx(expected, rel=1e-5)
    assert got != pytest.approx(symmetric(*pair, 4.0, torch.zeros_like(same)).item(), rel=1e-3)


def test_a_duplicate_is_not_pushed_away():
    left = functional.normalize(torch.tensor([[1.0, 0.2], [1.0, 0.2], [-1.0, 0.4]]), dim=1).requires_grad_()
    right = functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    same = same_text(torch.tensor([[7], [7], [8]]))
    symmetric(left, right, 5.0, same).backward()
    moved = right.clone()
    moved[1] = torch.tensor([0.6, 0.8])
    before = left.grad.clone()
    left.grad = None
    symmetric(left, moved, 5.0, same).backward()
    assert torch.equal(before[0], left.grad[0])
    assert not torch.equal(before[2], left.grad[2])


def test_siglip_is_the_formula_and_leaves_equal_texts_out(pair):
    left, right = pair
    same = same_text(torch.tensor([[5], [6], [5], [0], [0], [8], [9]]))
    got = siglip(left, right, (torch.tensor(4.0), torch.tensor(-2.0)), torch.arange(7), same)
    for i in range(7):
        expected = 0.0
        for j in range(7):
            if i == j or not same[i, j]:
                logit = 4.0 * float(left[i] @ right[j]) - 2.0
                expected += math.log(1 + math.exp(-logit if i == j else logit))
        assert got[i].item() == pytest.approx(expected, rel=1e-5)


def test_what_is_asked_for_is_hidden_and_something_is_left():
    present = torch.tensor([[True, True, True], [True, True, False]]).repeat(500, 1)
    visible = visible_inputs(present, 0.5, Dice.of(0, 0, torch.arange(1000)))
    for column in range(3):
        assert not visible[column][:, column].any()
        assert not (visible[column] & ~present).any()
    seen = visible.sum(dim=2)
    assert seen[0, 0::2].unique().tolist() == [1, 2]
    assert (seen[0, 1::2] == 1).all()
    assert 0.4 < (seen[0, 0::2] == 1).double().mean() < 0.6
    assert torch.equal(visible_inputs(present, 0.0)[2], present & torch.tensor([True, True, False]))
