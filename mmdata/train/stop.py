"""Ctrl-C and SIGTERM as a question that the loop asks between steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While this context is open, a signal sets `asked`, and others change nothing.

    Launchers and schedulers send them twice: to all processes, and torchrun each once more to its ranks. Who is out of
    patience has SIGKILL. Only a person at a training of one process has not: a second Ctrl-C acts as it always does.
    """

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
        for which, handler in self._before.items():
            signal.signal(which, handler)
        self._before = {}

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGINT and "LOCAL_RANK" not in os.environ:
            signal.signal(number, self._before[signal.SIGINT])
