"""Ctrl-C and SIGTERM as a question that the loop asks between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While this context is open, the first signal sets `asked`; a second one acts as it always does."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals over, where this is the main thread: no other may."""
        if threading.current_thread() is threading.main_thread():
            self._before = {which: signal.signal(which, self._ask) for which in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give them back."""
        self._restore()

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)
        self._before = {}
