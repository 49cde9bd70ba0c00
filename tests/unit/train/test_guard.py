from __future__ import annotations

import pytest

from mmdata.errors import TrainError
from mmdata.train.guard import Guard


def warmed(factor: float = 10.0, loss: float = 2.0, norm: float = 1.0) -> Guard:
    guard = Guard(factor)
    for step in range(20):
        assert guard.problem(loss, norm, step) is None
    return guard


@pytest.mark.parametrize(
    ("loss", "norm", "problem"),
    [
        (2.1, 1.5, None),
        (19.9, 9.9, None),
        (2.0, 10.1, "gradient norm above 10 times its median"),
        (20.1, 1.0, "loss above 10 times its median"),
        (float("nan"), 1.0, "not finite"),
        (2.0, float("inf"), "not finite"),
    ],
)
def test_a_spike_is_held_against_the_medians(loss: float, norm: float, problem: str | None):
    assert warmed().problem(loss, norm, 21) == problem


def test_a_spike_does_not_move_the_medians_and_a_state_goes_on():
    guard = warmed()
    for _ in range(9):
        assert guard.problem(50.0, 50.0, 21) is not None
    again = Guard(10.0, guard.state())
    with pytest.raises(TrainError, match=r"gradient norm 50 at step 30: .* 10 times in a row; lower optim\.lr"):
        again.problem(50.0, 50.0, 30)
    assert Guard(10.0, warmed().state()).problem(2.0, 50.0, 21) is not None


def test_where_all_batches_are_steep_the_fourth_is_taken_and_only_its_loss_can_stop_it():
    guard = warmed()
    assert [guard.problem(2.0, 50.0, 21) is None for _ in range(20)] == [False] * 3 + [True] * 17
    assert guard.problem(50.0, 50.0, 41) == "loss above 10 times its median"
    assert Guard(10.0, guard.state()).problem(2.0, 600.0, 42) == "gradient norm above 10 times its median"


def test_without_a_factor_or_with_too_few_steps_only_finiteness_counts():
    assert warmed(factor=0).problem(2000.0, 5000.0, 21) is None
    assert Guard(10.0).problem(1e9, 1e9, 1) is None
    assert Guard(0).problem(float("inf"), 1.0, 1) == "not finite"
