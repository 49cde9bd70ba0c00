"""A process that dies over a piece of work: which sample kills it, or whether none does.

What ended a process may have been another's doing (the out-of-memory killer over a neighbour, a hand): a sample is only
blamed when it kills alone, and a process without it lives, every time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from mmdata.engine import work
from mmdata.engine.pools import Pools, WorkerDiedError
from mmdata.errors import FatalError

# Times that a piece of work may lose its process over no sample that can be found.
_MOST_DEATHS: Final = 5
_TRIALS_ALONE: Final = 3

Arguments = Callable[..., tuple[Any, ...]]
"""Function and arguments of a piece of work, given what is left out of it, and perhaps where it goes instead."""


async def despite_death(pools: Pools, arguments: Arguments, names: Callable[[], list[str]], trial: Path) -> Any:
    """Run a piece of work; where a sample kills the process, find it among `names` and go on without it.

    Args:
        pools: the processes.
        arguments: see `Arguments`.
        names: of the samples in it.
        trial: where a trial writes: it lacks good samples and must never stand where the part will.

    Raises FatalError where processes keep dying, over no sample in particular.
    """
    poison: dict[str, str] = {}
    run: Callable[..., Coroutine[Any, Any, Any]] = pools.work
    deaths = 0
    while True:
        try:
            return await run(work.measured, *arguments(poison))
        except WorkerDiedError as death:
            run, why = pools.work_alone, str(death)
        killer = await _Search(pools, arguments, trial).killer(names(), poison)
        if killer is not None:
            poison[killer] = why
        elif (deaths := deaths + 1) == _MOST_DEATHS:
            raise _none_in_particular()


async def unless_it_kills(pools: Pools, *work_and_arguments: Any) -> Any:
    """Run a piece of work that has no parts to be left out, for as long as it is not known to kill its process.

    Raises WorkerDiedError where it kills, and FatalError where processes keep dying over nothing.
    """
    run: Callable[..., Coroutine[Any, Any, Any]] = pools.work
    deaths = 0
    kills = 0
    while True:
        try:
            return await run(*work_and_arguments)
        except WorkerDiedError:
            run = pools.work_alone
            if await _lives(pools):
                kills += 1
            elif (deaths := deaths + 1) == _MOST_DEATHS:
                raise _none_in_particular() from None
            if kills == _TRIALS_ALONE:
                raise


async def _lives(pools: Pools) -> bool:
    """Whether a process lives that has nothing to do."""
    try:
        await pools.work_alone(os.getpid)
    except WorkerDiedError:
        return False
    return True


def _none_in_particular() -> FatalError:
    return FatalError("a worker keeps dying, over no sample in particular; is there enough memory?")


class _Search:
    """For a sample that kills."""

    def __init__(self, pools: Pools, arguments: Arguments, trial: Path) -> None:
        self._pools = pools
        self._arguments = arguments
        self._trial = trial

    async def killer(self, names: list[str], known: Mapping[str, str]) -> str | None:
        """Halve the suspects, leaving one half out; None where it was none of them.

        What was left out when a trial died stays out: another killer among it would make every trial die.
        """
        suspects = [name for name in names if name not in known]
        out = dict(known)
        while len(suspects) > 1:
            left_out = suspects[: len(suspects) // 2]
            if await self._dies({**out, **dict.fromkeys(left_out, "left out")}):
                suspects = suspects[len(left_out) :]
                out |= dict.fromkeys(left_out, "left out")
            else:
                suspects = left_out
        if not suspects:
            return None
        everything = {**dict.fromkeys(names, "left out"), **known}
        others = {name: why for name, why in everything.items() if name != suspects[0]}
        for _ in range(_TRIALS_ALONE):
            # Where whatever runs is killed, the suspect did not do it.
            if not await self._dies(others) or await self._dies(everything):
                return None
        return suspects[0]

    async def _dies(self, out: Mapping[str, str]) -> bool:
        """Whether a process dies over the work without the samples `out`."""
        try:
            await self._pools.work_alone(*self._arguments(out, self._trial))
        except WorkerDiedError:
            return True
        return False
