"""One file of each origin, asked for once, whoever waits for it: robots.txt, and what is like it."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from yarl import URL

# RFC 9309, section 2.4: at most a day old.
_GOOD_FOR_S: Final = 24 * 3600.0
_FAILED_FOR_S: Final = 60.0
# What is remembered: texts, since rules take some thirty times their memory.
_ORIGINS: Final = 20_000
_CHARACTERS: Final = 32 << 20


@dataclass
class _Known:
    """Of one origin: its text, None where it says nothing; until when that holds."""

    text: asyncio.Task[str | None]
    until: float = float("inf")
    characters: int = 0


class PerOrigin:
    """The texts of origins, the latest used of them kept."""

    def __init__(self) -> None:
        """Nothing is known."""
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._asking: set[asyncio.Task[str | None]] = set()
        self._characters = 0

    @abstractmethod
    async def _read(self, origin: str) -> str | None:
        """Ask for the text of an origin; None where it says nothing. Raises FetchError, which counts for a minute."""

    async def close(self) -> None:
        """Nobody waits any more."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    async def _text(self, url: URL) -> str | None:
        origin = str(url.origin())
        known = self._known.get(origin)
        if known is None or known.until < time.monotonic():
            self._forget(origin)
            known = self._known[origin] = self._ask(origin)
        self._known.move_to_end(origin)
        if known.text.done():
            return known.text.result()
        # A task of its own: who asks first may be cancelled while others wait.
        return await asyncio.shield(known.text)

    def _ask(self, origin: str) -> _Known:
        known = _Known(asyncio.create_task(self._read(origin)))
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
