"""robots.txt, as RFC 9309 has it: one request an origin, whoever waits for it."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from mmdata.net.errors import FetchError, RobotsError
from mmdata.net.origins import PerOrigin

if TYPE_CHECKING:
    from yarl import URL

# RFC 9309, section 2.5: at least 500 KiB read.
MOST_BYTES: Final = 500 << 10
_PARSED: Final = 32
_AGENT_LINE: Final = re.compile(r"\s*user(?:-|\s*)agent\s*[:\s]\s*([^#]*)", re.IGNORECASE)
_PRODUCT: Final = re.compile(r"[a-z0-9_.-]+", re.IGNORECASE)
# A name that no agent has.
_SOMEBODY_ELSE: Final = "!"


class Robots(PerOrigin):
    """The rules of origins."""

    def __init__(self, agent: str, fetch: Callable[[str], Awaitable[bytes]]) -> None:
        """`agent` is our product token; `fetch` gives the bytes of a robots.txt. Raises FetchError."""
        super().__init__()
        self._agent = agent
        self._fetch = fetch

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

    async def _rules(self, url: URL) -> Any:
        text = await self._text(url)
        return None if text is None else _parsed(text)

    async def _read(self, origin: str) -> str | None:
        url = f"{origin}/robots.txt"
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
