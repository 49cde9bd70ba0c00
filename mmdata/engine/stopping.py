"""What ends a build before its end: a signal, a full disk, too many failures in a row."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from mmdata.errors import FatalError

_WITHHELD: Final = frozenset({"opted_out", "noindex", "robots_denied"})


class StoppedError(FatalError):
    """The build was asked to stop (Ctrl-C, SIGTERM); a rerun goes on."""

    def __init__(self, signal_number: int) -> None:
        """Keep the signal: the exit code is 128 and its number."""
        self.signal_number = signal_number
        super().__init__("stopped; what is finished is kept, the same command goes on from there")


class Streak:
    """Counts failures in a row, within parts and from one part that ends to the next."""

    def __init__(self, limit: int) -> None:
        """`limit`: so many end the build."""
        self._limit = limit
        self._length = 0
        self._reasons: set[str] = set()

    def add(self, failures: list[tuple[str, str] | None]) -> None:
        """Raises FatalError where too many failed in a row."""
        for failure in failures:
            # What owners withhold says nothing of what goes wrong here.
            if failure and failure[0] in _WITHHELD:
                continue
            self._length = self._length + 1 if failure else 0
            self._reasons = self._reasons | {failure[0]} if failure else set()
            if failure and self._length >= self._limit:
                shared = f"all of them {failure[0]}" if len(self._reasons) == 1 else f"for {len(self._reasons)} reasons"
                raise FatalError(
                    f"{self._length} inputs in a row failed, {shared}; the last: {failure[1]}. "
                    "If that is how the data is, raise engine.max_failures_in_a_row"
                )


async def stoppable(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run; Ctrl-C and SIGTERM cancel it. Raises StoppedError."""
    task = asyncio.ensure_future(work())
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if received:
            raise StoppedError(received[0]) from None
        raise


def told(error: OSError, folder: Path) -> Exception:
    """A full disk is no defect."""
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return error
    return FatalError(f"{folder}: no room is left on the disk; what is finished is kept: make room, and run it again")
