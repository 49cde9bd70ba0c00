"""/.well-known/tdmrep.json: where an origin reserves its rights of text and data mining.

The TDM Reservation Protocol of the W3C's community group (final report of 10 May 2024, "TDM File on the Origin
Server"), for article 4 of the EU's directive 2019/790: an array of rules, of which the first that matches counts.
The protocol lets a header of an answer take back what the file says; who reserves in one place only is left alone here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from mmdata.net.errors import FetchError
from mmdata.net.origins import PerOrigin

if TYPE_CHECKING:
    from yarl import URL

_PATH: Final = "/.well-known/tdmrep.json"
_MOST_RULES: Final = 10_000
_PARSED: Final = 32
_ESCAPE: Final = re.compile("%([0-9A-Fa-f]{2})")
# RFC 3986, section 2.3.
_UNRESERVED: Final = re.compile("[A-Za-z0-9._~-]")


class Reservations(PerOrigin):
    """The rules of origins."""

    def __init__(self, fetch: Callable[[str], Awaitable[bytes]]) -> None:
        """`fetch` gives the bytes of a tdmrep.json. Raises FetchError."""
        super().__init__()
        self._fetch = fetch

    async def has(self, url: URL) -> bool:
        """Whether the origin reserves what is there."""
        text = await self._text(url)
        if text is None:
            return False
        path = _plain(url.raw_path_qs)
        return next((reserved for pattern, reserved in _rules(text) if _matches(pattern, path)), False)

    async def _read(self, origin: str) -> str | None:
        """What cannot be had or read is none: its server does not take part (same section)."""
        try:
            text = (await self._fetch(f"{origin}{_PATH}")).decode("utf-8-sig", "replace")
        except FetchError:
            return None
        return text if any(reserved for _, reserved in _rules(text)) else None


@functools.lru_cache(_PARSED)
def _rules(text: str) -> tuple[tuple[str, bool], ...]:
    """Pattern, and whether it reserves, in order."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    entries = found[:_MOST_RULES] if isinstance(found, list) else []
    return tuple(rule for entry in entries if (rule := _rule(entry)))


def _rule(entry: Any) -> tuple[str, bool] | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("location"), str):
        return None
    return _plain(entry["location"]), str(entry.get("tdm-reservation")) == "1"


def _plain(path: str) -> str:
    """Escapes of characters that need none are the characters."""
    return _ESCAPE.sub(
        lambda found: c if _UNRESERVED.fullmatch(c := chr(int(found[1], 16))) else found[0].upper(), path
    )


def _matches(pattern: str, path: str) -> bool:
    """As robots.txt does (RFC 9309, section 2.2.3), in linear time: strangers write both."""
    whole = pattern.endswith("$")
    first, *others = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not others:
        return not whole or at == len(path)
    *middle, last = others
    for piece in middle:
        found = path.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return path.endswith(last) and len(path) - len(last) >= at if whole else path.find(last, at) >= 0
