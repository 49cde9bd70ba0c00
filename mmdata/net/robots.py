"""robots.txt, as RFC 9309 has it: one request an origin, whoever waits for it."""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from mmdata.net.errors import FetchError, RobotsError

if TYPE_CHECKING:
    from yarl import URL

# RFC 9309, sections 2.4 and 2.5: at most a day old, at least 500 KiB read.
_GOOD_FOR_S: Final = 24 * 3600.0
_FAILED_FOR_S: Final = 60.0
MOST_BYTES: Final = 500 << 10
# What is remembered: texts, since rules take some thirty times their memory.
_ORIGINS: Final = 20_000
_CHARACTERS: Final = 32 << 20
_PARSED: Final = 32
_AGENT_LINE: Final = re.compile(r"\s*user(?:-|\s*)agent\s*[:\s]\s*([^#]*)", re.IGNORECASE)
_PRODUCT: Final = re.compile(r"[a-z0-9_.-]+", re.IGNORECASE)
# A name that no agent has.
_SOMEBODY_ELSE: Final = "!"


@dataclass
class _Known:
    """Of one origin: its text, None where it says nothing; until when that holds."""

    text: asyncio.Task[str | None]
    until: float = float("inf")
    characters: int = 0


class Robots:
    """The rules of origins, the latest used of them kept."""

    def __init__(self, agent: str, fetch: Callable[[str], Awaitable[bytes]]) -> None:
        """`agent` is our product token; `fetch` gives the bytes of a robots.txt. Raises FetchError."""
        self._agent = agent
        self._fetch = fetch
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._asking: set[asyncio.Task[str | None]] = set()
        self._characters = 0

    async def check(self, url: URL) -> float:
        """Seconds between two requests that the origin wants, 0 where it says nothing.

        Raises RobotsError: `robots_denied`; `robots_unreachable` where its server fails; or how its fetching ended.
        """
        rules = await self._rules(url)
        if rules is None:
            return 0.0
        if not rules.can_fetch(str(url), self._agent):
            raise RobotsError("robots_denied", f"robots.txt of {url.raw_host} does not allow it for '{self._agent}'")
        return float(rules.crawl_delay(self._agent) or 0.0)

    async def sitemaps(self, url: URL) -> list[str]:
        """What the robots.txt of an origin calls its sitemaps. Raises RobotsError."""
        rules = await self._rules(url)
        return list(rules.sitemaps) if rules is not None else []

    async def close(self) -> None:
        """Nobody waits any more."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    async def _rules(self, url: URL) -> Any:
        origin = str(url.origin())
        known = self._known.get(origin)
        if known is None or known.until < time.monotonic():
            self._forget(origin)
            known = self._known[origin] = self._ask(origin)
        self._known.move_to_end(origin)
        # A task of its own: who asks first may be cancelled while others wait.
        text = await asyncio.shield(known.text)
        return None if text is None else _parsed(text)

    def _ask(self, origin: str) -> _Known:
        known = _Known(asyncio.create_task(self._read(f"{origin}/robots.txt")))
        self._asking.add(known.text)
        known.text.add_done_callback(lambda _: self._came(origin, known))
        return known

    def _came(self, origin: str, known: _Known) -> None:
        self._asking.discard(known.text)
        # Asking for the error here, as perhaps nobody is left who would.
        failed = known.text.cancelled() or known.text.exception() is not None
        known.until = time.monotonic() + (_FAILED_FOR_S if failed else _GOOD_FOR_S)
        if self._known.get(origin) is known:
            known.characters = 0 if failed else len(known.text.result() or "")
            self._characters += known.characters
        while len(self._known) > _ORIGINS or self._characters > _CHARACTERS:
            self._forget(next(iter(self._known)))

    def _forget(self, origin: str) -> None:
        known = self._known.pop(origin, None)
        self._characters -= known.characters if known else 0

    async def _read(self, url: str) -> str | None:
        try:
            data = await self._fetch(url)
        except FetchError as error:
            if error.status is None:
                raise RobotsError(error.reason, f"robots.txt: {error}", passing=error.passing) from None
            if error.status == HTTPStatus.TOO_MANY_REQUESTS or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise RobotsError("robots_unreachable", f"{url}: {error}", passing=True) from None
            return None
        return _for_us(data[:MOST_BYTES].decode("utf-8-sig", "replace"), self._agent)


def _for_us(text: str, agent: str) -> str:
    """The same rules, with all other agents called by one name.

    Protego keeps every rule once for each agent of its group: thousands of agents before thousands of rules would be
    millions. RFC 9309, section 2.2.1: a group is for who has exactly its product token, in whatever case.
    """
    lines = []
    for line in text.splitlines():
        match = _AGENT_LINE.match(line)
        if match:
            product = _PRODUCT.match(match[1])
            ours = product is not None and product[0].lower() == agent.lower()
            name = "*" if match[1].strip() == "*" else agent if ours else _SOMEBODY_ELSE
            lines.append(f"User-agent: {name}")
        else:
            lines.append(line)
    return "\n".join(lines)


@functools.lru_cache(_PARSED)
def _parsed(text: str) -> Any:
    from protego import Protego

    return Protego.parse(text)
