"""Many coroutines, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def in_order(coroutines: Iterable[Coroutine[Any, Any, Any]], at_once: int) -> list[Any]:
    """Results in order; so many run at once, and no more coroutines exist than run."""
    numbered = enumerate(coroutines)
    results: dict[int, Any] = {}

    async def runner() -> None:
        for number, coroutine in numbered:
            results[number] = await coroutine

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(runner())
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        # Its cause is the traceback of the worker: the line of the step, not of the pool.
        raise first from first.__cause__
    return [results[number] for number in sorted(results)]
