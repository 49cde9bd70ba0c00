from __future__ import annotations

import pytest
import torch

from mmdata.train.dice import Dice, Purpose


def test_a_sample_draws_the_same_in_any_company():
    many, few = Dice.of(3, 9, torch.tensor([4, 5, 6])), Dice.of(3, 9, torch.tensor([6, 4]))
    drawn = many.normal(Purpose.HIDE_WHICH, 5, 2)
    assert torch.equal(few.normal(Purpose.HIDE_WHICH, 5, 2), drawn[[2, 0]])


@pytest.mark.parametrize("other", [(4, 9, 4), (3, 8, 4), (3, 9, 5)])
def test_seed_step_sample_and_purpose_each_change_the_numbers(other):
    drawn = Dice.of(3, 9, torch.tensor([4])).uniform(Purpose.HIDE_WHICH, 100)
    seed, step, row = other
    for stream in (
        Dice.of(seed, step, torch.tensor([row])).uniform(Purpose.HIDE_WHICH, 100),
        Dice.of(3, 9, torch.tensor([4])).uniform(Purpose.HIDE_WHETHER, 100),
    ):
        assert not (stream == drawn).any()
        assert abs(torch.corrcoef(torch.cat([stream, drawn]))[0, 1]) < 0.3


def test_numbers_are_uniform_and_normal():
    dice = Dice.of(0, 0, torch.arange(500))
    unit, normal = dice.uniform(Purpose.HIDE_WHICH, 400), dice.normal(Purpose.HIDE_WHETHER, 400)
    assert ((unit >= 0) & (unit < 1)).all()
    counts = torch.histc(unit, 20, 0, 1)
    assert ((counts - 10_000).abs() < 500).all()  # five standard deviations
    assert normal.isfinite().all()
    assert abs(normal.mean()) < 0.01
    assert normal.std().item() == pytest.approx(1, abs=0.01)
    assert (normal.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.005)
    # Neighbours, within a sample and across samples, have nothing to do with each other.
    for left, right in ((unit[:, 1:], unit[:, :-1]), (unit[1:], unit[:-1])):
        assert abs(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]) < 0.01
