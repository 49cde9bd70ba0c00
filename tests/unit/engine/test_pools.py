"""Processes that die at the wrong moment."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from mmdata.engine.pools import Pools


@pytest.mark.slow
def test_a_worker_that_dies_while_another_is_started_costs_nothing(monkeypatch: pytest.MonkeyPatch):
    start = ProcessPoolExecutor._spawn_process

    def start_late(pool: ProcessPoolExecutor) -> None:
        for process in pool._processes.values():
            process.kill()
            # The pool's own thread sees it, and closes pipes. Pythons whose thread waits for this one lose no race.
            until = time.monotonic() + 5
            while not pool._call_queue._reader.closed and time.monotonic() < until:
                time.sleep(0.01)
        start(pool)

    monkeypatch.setattr(ProcessPoolExecutor, "_spawn_process", start_late)

    async def both() -> list[int]:
        with Pools(2, []) as pools:
            return await asyncio.gather(pools.work(len, "a"), pools.work(len, "ab"))

    assert asyncio.run(both()) == [1, 2]
