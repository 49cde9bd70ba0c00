"""Who is blamed for a process that dies: a sample that kills, and none where whatever runs is killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mmdata.engine.deaths import despite_death, unless_it_kills
from mmdata.engine.pools import WorkerDiedError
from mmdata.errors import FatalError

NAMES = [f"s{number:02d}" for number in range(12)]


class Stage:
    """In the place of `Pools`: a process dies over a killer that it works on, or where `strikes` says so."""

    def __init__(self, killers: set[str], strikes: Callable[[], bool]) -> None:
        self.killers = killers
        self.strikes = strikes
        self.runs = 0

    async def work(self, *arguments: Any) -> set[str]:
        left_out: Mapping[str, str] = arguments[-1] if arguments[1:] else {}
        self.runs += 1
        if self.strikes() or (arguments[1:] and self.killers - set(left_out)):
            raise WorkerDiedError("died")
        return set(left_out)

    work_alone = work


def blamed(stage: Stage) -> set[str]:
    def arguments(poison: dict[str, str], _: Path | None = None) -> tuple[Any, ...]:
        return (len, poison)

    done: set[str] = asyncio.run(despite_death(stage, arguments, lambda: NAMES, Path("trial")))  # type: ignore[arg-type]
    return done


@pytest.mark.parametrize("killers", [set(), {"s00"}, {"s11"}, {"s04", "s05"}, {"s00", "s06", "s11"}])
def test_those_that_kill_are_out_and_no_other(killers: set[str]):
    assert blamed(Stage(killers, lambda: False)) == killers


@pytest.mark.parametrize("deaths", range(1, 28))
def test_no_sample_is_blamed_while_every_process_is_killed(deaths: int):
    left = iter(range(deaths))
    assert blamed(Stage(set(), lambda: next(left, None) is not None)) == set()


def test_strikes_at_random_hardly_ever_cost_a_sample():
    chance = random.Random(7)
    lost, over = 0, 0
    for _ in range(400):
        try:
            lost += len(blamed(Stage(set(), lambda: chance.random() < 0.5)))
        except FatalError:
            over += 1
    assert lost / 400 < 0.03
    assert over / 400 < 0.05


def test_a_killer_is_found_where_others_strike_now_and_then():
    chance = random.Random(3)
    found = [blamed(Stage({"s07"}, lambda: chance.random() < 0.03)) for _ in range(100)]
    assert all(f == {"s07"} for f in found)


def test_processes_that_all_die_end_the_build():
    stage = Stage(set(), lambda: True)
    with pytest.raises(FatalError, match="over no sample in particular"):
        blamed(stage)
    assert stage.runs < 60


@pytest.mark.parametrize("deaths", range(1, 10))
def test_a_file_is_not_given_up_while_every_process_is_killed(deaths: int):
    left = iter(range(deaths))
    stage = Stage(set(), lambda: next(left, None) is not None)
    assert asyncio.run(unless_it_kills(stage, len, {"read": "it"})) == {"read"}  # type: ignore[arg-type]


def test_a_file_that_kills_is_given_up():
    stage = Stage(set(), lambda: False)

    async def dies(*arguments: Any) -> None:
        stage.runs += 1
        if arguments[0] is len:
            raise WorkerDiedError("died")

    stage.work = stage.work_alone = dies  # type: ignore[assignment, method-assign]
    with pytest.raises(WorkerDiedError):
        asyncio.run(unless_it_kills(stage, len, {}))  # type: ignore[arg-type]
    assert stage.runs == 6
