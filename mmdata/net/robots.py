"""robots.txt, as RFC 9309 has it: one request an origin, whoever waits for it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from mmdata.net.errors import FetchError

if TYPE_CHECKING:
    from yarl import URL

# RFC 9309, sections 2.4 and 2.5: at most a day old, at least 500 KiB read.
_GOOD_FOR_S = 24 * 3600.0
_FAILED_FOR_S = 60.0
MOST_BYTES = 500 << 10
_ORIGINS = 10_000


@dataclass
class _Known:
    rules: asyncio.Future[Any]
    until: float


class Robots:
    """The rules of origins, the latest used of them kept."""

    def __init__(self, agent: str, fetch: Callable[[str], Awaitable[bytes]]) -> None:
        """`agent` is our product token; `fetch` gives the bytes of a robots.txt. Raises FetchError."""
        self._agent = agent
        self._fetch = fetch
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def check(self, url: URL) -> float:
        """Seconds between two requests that the origin wants, 0 where it says nothing.

        Raises FetchError: `robots_denied`; `robots_unreachable` where its server fails; or how its fetching ended.
        """
        rules = await self._rules(url)
        if rules is None:
            return 0.0
        if not rules.can_fetch(str(url), self._agent):
            raise FetchError("robots_denied", f"robots.txt of {url.raw_host} does not allow it for '{self._agent}'")
        return float(rules.crawl_delay(self._agent) or 0.0)

    async def sitemaps(self, url: URL) -> list[str]:
        """What the robots.txt of an origin calls its sitemaps."""
        rules = await self._rules(url)
        return list(rules.sitemaps) if rules is not None else []

    async def _rules(self, url: URL) -> Any:
        origin = str(url.origin())
        known = self._known.get(origin)
        if known is None or known.until < time.monotonic():
            known = self._known[origin] = _Known(asyncio.get_running_loop().create_future(), float("inf"))
            await self._ask(origin, known)
            while len(self._known) > _ORIGINS:
                self._known.popitem(last=False)
        self._known.move_to_end(origin)
        return await asyncio.shield(known.rules)

    async def _ask(self, origin: str, known: _Known) -> None:
        try:
            rules = await self._read(f"{origin}/robots.txt")
        except BaseException as error:
            # Nobody may wait for it: a future whose error is never asked for would complain.
            known.rules.set_exception(error if isinstance(error, FetchError) else _interrupted())
            known.rules.exception()
            known.until = time.monotonic() + (_FAILED_FOR_S if isinstance(error, FetchError) else 0)
            if not isinstance(error, FetchError):
                raise
        else:
            known.rules.set_result(rules)
            known.until = time.monotonic() + _GOOD_FOR_S

    async def _read(self, url: str) -> Any:
        from protego import Protego

        try:
            data = await self._fetch(url)
        except FetchError as error:
            if error.status is None:
                raise FetchError(error.reason, f"robots.txt: {error}", passing=error.passing) from None
            if error.status == HTTPStatus.TOO_MANY_REQUESTS or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise FetchError("robots_unreachable", f"{url}: {error}", passing=True) from None
            return None
        return Protego.parse(data[:MOST_BYTES].decode("utf-8", "replace"))


def _interrupted() -> FetchError:
    return FetchError("robots_unreachable", "the request for robots.txt was interrupted", passing=True)
