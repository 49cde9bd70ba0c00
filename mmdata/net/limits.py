"""How much at once: requests in all and to a host, the time between them, and bytes in memory."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from mmdata.net.errors import FetchError

# Hosts nobody waits for whose pace is remembered; a crawl may meet millions.
_IDLE_HOSTS: Final = 10_000
# Hosts to which connections are kept open between requests, where somebody waits for the host and where nobody does:
# each holds a file, and a server's memory. Many systems give a process 1,024 files.
_KEPT_WANTED: Final = 256
_KEPT_HOSTS: Final = 64
KEPT_S: Final = 15.0


class Host:
    """One host: so many at once, not before a time, and a pause between two beginnings.

    Attributes:
        users: who asks it or means to.
        pause_s: between the beginnings of two requests.
    """

    def __init__(self, name: str, at_once: int) -> None:
        """`name` is `host:port`."""
        self.name = name
        self.slots = asyncio.Semaphore(at_once)
        self.users = 0
        self.pause_s = 0.0
        self._next = 0.0
        self._rests_until = 0.0
        self._said: FetchError | None = None

    def rest(self, said: FetchError) -> None:
        """No request for as long as its answer, a 429 or 503, says."""
        until = time.monotonic() + (said.retry_after_s or 0.0)
        if until > self._rests_until:
            self._rests_until, self._said = until, said

    def check(self, most_s: float) -> None:
        """Raises what the host said, if it wants to rest for longer than `most_s`."""
        left_s = self._rests_until - time.monotonic()
        if self._said is not None and left_s > most_s:
            message = f"{self.name} was not asked: it wants to be left alone for another {left_s:.0f} s"
            raise FetchError(self._said.reason, message, passing=True, status=self._said.status, retry_after_s=left_s)

    @property
    def wait_s(self) -> float:
        """Until a request may begin."""
        return max(self._next, self._rests_until) - time.monotonic()

    def begin(self) -> None:
        """A request begins now."""
        self._next = time.monotonic() + self.pause_s


class Hosts:
    """Turns at hosts."""

    def __init__(self, at_once: int, at_once_per_host: int, most_rest_s: float) -> None:
        """So many requests in all, and to each host; a host that wants more rest is not asked at all."""
        self._all = asyncio.Semaphore(at_once)
        self._per_host = at_once_per_host
        self._most_rest_s = most_rest_s
        self._hosts: OrderedDict[str, Host] = OrderedDict()
        self._kept: OrderedDict[str, float] = OrderedDict()

    @contextmanager
    def host(self, name: str) -> Iterator[Host]:
        """A host, known as long as somebody uses it or is to wait for it."""
        host = self._hosts.get(name)
        if host is None:
            self._forget_some()
            host = self._hosts[name] = Host(name, self._per_host)
        host.users += 1
        try:
            yield host
        finally:
            host.users -= 1
            if host.users == 0 and host.wait_s <= 0:
                self._hosts.pop(name, None)

    @asynccontextmanager
    async def turn(self, host: Host) -> AsyncIterator[None]:
        """Wait for a turn at a host, and have it until the block ends. Raises FetchError, see `Host.check`."""
        # Who waits for a slow host must not keep others from theirs: the place among all comes last.
        async with host.slots:
            await self._begin(host)
            try:
                yield
            finally:
                self._all.release()

    async def _begin(self, host: Host) -> None:
        while True:
            host.check(self._most_rest_s)
            if host.wait_s > 0:
                await asyncio.sleep(host.wait_s)
                continue
            await self._all.acquire()
            # Meanwhile another may have begun, or the host have asked for rest.
            if host.wait_s <= 0:
                host.begin()
                return
            self._all.release()

    def keeps(self, host: Host) -> bool:
        """Whether a connection is worth keeping: it is one of few, or of not too many that others wait for."""
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values())) < now - KEPT_S:
            self._kept.popitem(last=False)
        self._kept.pop(host.name, None)
        keep = len(self._kept) < (_KEPT_WANTED if host.users > 1 else _KEPT_HOSTS)
        if keep:
            self._kept[host.name] = now
        return keep

    def _forget_some(self) -> None:
        if len(self._hosts) > _IDLE_HOSTS:
            unused = [name for name, host in self._hosts.items() if host.users == 0]
            for name in unused[: _IDLE_HOSTS // 2]:
                del self._hosts[name]


class Hold:
    """The bytes of one body."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.bytes = 0

    async def grow(self, more: int) -> None:
        """Take more, when there is room."""
        await self._budget.room(self, more)
        self.bytes += more


class ByteBudget:
    """Bytes in memory. Who began first may overdraw it: else many half-read bodies could wait for each other."""

    def __init__(self, most: int) -> None:
        """So many bytes in all."""
        self._most = most
        self.used = 0
        self._holds: dict[Hold, None] = {}
        self._changed = asyncio.Event()

    @contextmanager
    def hold(self) -> Iterator[Hold]:
        """Bytes that are given back when the block ends."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self._holds.pop(hold, None)
            self.used -= hold.bytes
            self._wake()

    async def room(self, hold: Hold, more: int) -> None:
        """Wait until `more` bytes fit, or `hold` is the oldest of those that have any."""
        # Not before its first byte: who still waits for a turn must not be the one that all others wait for.
        self._holds.setdefault(hold)
        while self.used + more > self._most and next(iter(self._holds)) is not hold:
            await self._changed.wait()
        self.used += more

    def _wake(self) -> None:
        waiting, self._changed = self._changed, asyncio.Event()
        waiting.set()
