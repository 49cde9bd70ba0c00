"""How much at once: requests in all and to a host, the time between them, and bytes in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

# Hosts without anybody waiting whose pace is remembered; a crawl may meet millions.
_IDLE_HOSTS = 10_000


class _Gate:
    """One host: so many at once, not before a time, and a pause between two beginnings."""

    def __init__(self, at_once: int) -> None:
        self.slots = asyncio.Semaphore(at_once)
        self.users = 0
        self.pause_s = 0.0
        self.not_before = 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Until a request may begin: each takes a place of its own in time."""
        begins = max(time.monotonic(), self._next)
        self._next = begins + self.pause_s
        while (left := max(begins, self.not_before) - time.monotonic()) > 0:
            await asyncio.sleep(left)

    @property
    def is_idle(self) -> bool:
        return self.users == 0 and max(self._next, self.not_before) <= time.monotonic()


class Hosts:
    """Turns at hosts."""

    def __init__(self, at_once: int, at_once_per_host: int) -> None:
        """So many requests in all, and to each host."""
        self._all = asyncio.Semaphore(at_once)
        self._per_host = at_once_per_host
        self._gates: dict[str, _Gate] = {}

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn at a host, and have it until the block ends."""
        with self._gate(host) as gate:
            # Who waits for a slow host must not keep others from theirs: the place among all comes last.
            async with gate.slots:
                await gate.wait()
                async with self._all:
                    yield

    def pause(self, host: str, seconds: float) -> None:
        """No request to the host for so long."""
        with self._gate(host) as gate:
            gate.not_before = max(gate.not_before, time.monotonic() + seconds)

    def pace(self, host: str, pause_s: float) -> None:
        """So long between the beginnings of two requests to the host, from now on."""
        with self._gate(host) as gate:
            gate.pause_s = pause_s

    @contextmanager
    def _gate(self, host: str) -> Iterator[_Gate]:
        gate = self._gates.get(host)
        if gate is None:
            self._forget_some()
            gate = self._gates[host] = _Gate(self._per_host)
        gate.users += 1
        try:
            yield gate
        finally:
            gate.users -= 1
            if gate.is_idle and not gate.pause_s:
                self._gates.pop(host, None)

    def _forget_some(self) -> None:
        if len(self._gates) > _IDLE_HOSTS:
            for name in [name for name, gate in self._gates.items() if gate.is_idle]:
                del self._gates[name]


class Hold:
    """The bytes of one body."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.bytes = 0

    async def grow(self, more: int) -> float:
        """Take more; returns the seconds that this had to wait."""
        waited_s = await self._budget.room(self, more)
        self.bytes += more
        return waited_s


class ByteBudget:
    """Bytes in memory. Who began first may overdraw it: else many half-read bodies could wait for each other."""

    def __init__(self, most: int) -> None:
        """So many bytes in all."""
        self._most = most
        self._used = 0
        self._holds: dict[Hold, None] = {}
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[Hold]:
        """Bytes that are given back when the block ends."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self._holds.pop(hold, None)
            self._used -= hold.bytes
            self._wake()

    async def room(self, hold: Hold, more: int) -> float:
        """Wait until `more` bytes fit, or `hold` is the oldest of those that have any."""
        began = time.monotonic()
        # Not before its first byte: who still waits for a turn must not be the one that all others wait for.
        self._holds.setdefault(hold)
        while self._used + more > self._most and next(iter(self._holds)) is not hold:
            await self._changed.wait()
        self._used += more
        return time.monotonic() - began

    def _wake(self) -> None:
        waiting, self._changed = self._changed, asyncio.Event()
        waiting.set()
