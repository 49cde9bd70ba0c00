"""How many rows one forward pass takes: halved where memory runs out, doubled while that pays.

Knows no model: `Passes.over` calls what it is given with ranges of rows. Importing this imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# A pass of twice the rows must bring this much more throughput to be kept: less is within the noise of one measurement.
_WORTH: Final = 1.05
# Doubling is tried while the memory it would take, twice that of now, stays under this share of the device's.
_MEMORY_SHARE: Final = 0.8
# The first pass of a size also selects and loads kernels, so it is not timed.
_TIMED_PASS: Final = 2
_NO_MEMORY: Final = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass
class Passes:
    """The size of a pass, as learned so far.

    Attributes:
        rows: of a pass.
        largest: `rows` never grows beyond it. Equal to `rows`: it never grows.
        memory_share: says which share of the device's memory is taken; asked after a pass.
        clock: seconds, for tests to replace.
    """

    rows: int
    largest: int
    memory_share: Callable[[], float] = lambda: 0.0
    clock: Callable[[], float] = time.perf_counter
    _seen: int = field(default=0, init=False)
    _best_rate_hz: float = field(default=0.0, init=False)

    @property
    def grows(self) -> bool:
        """Whether passes are timed to find a better size: what is run must then have ended when it returns."""
        return self.rows < self.largest

    def over(self, count: int, run: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
        """Each range of `count` rows with what `run` makes of it; a range that does not fit is run again in halves.

        Raises whatever `run` raises: also that memory ran out, where one row is too many.
        """
        start = 0
        while start < count:
            part = slice(start, min(start + self.rows, count))
            began_s = self.clock()
            try:
                made = run(part)
            except RuntimeError as error:
                if part.stop - part.start == 1 or not is_out_of_memory(error):
                    raise
                made = None
            # Outside of the handler: while it runs, the traceback keeps the failed pass's tensors.
            if made is None:
                self._halve(part.stop - part.start)
                continue
            self._learn(part.stop - part.start, self.clock() - began_s)
            yield part, made
            start = part.stop

    def _halve(self, failed_rows: int) -> None:
        self.rows = self.largest = failed_rows // 2
        _release_memory()

    def _learn(self, rows: int, took_s: float) -> None:
        if rows < self.rows or not self.grows:
            return
        self._seen += 1
        if self._seen < _TIMED_PASS:
            return
        rate_hz = rows / max(took_s, 1e-9)
        if rate_hz < self._best_rate_hz * _WORTH:
            # The size before was as fast: keep it.
            self.rows = self.largest = rows // 2
        elif 2 * self.memory_share() > _MEMORY_SHARE:
            self.largest = rows
        else:
            self._best_rate_hz, self._seen, self.rows = rate_hz, 0, min(2 * rows, self.largest)


def passes_on(device: torch.device, rows: int, largest: int) -> Passes:
    """Passes that start with `rows` and may grow to `largest` on an accelerator; elsewhere they only shrink."""
    if device.type != "cuda":
        return Passes(rows, rows)
    return Passes(rows, largest, lambda: _cuda_share(device))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: on CUDA a type of its own, on processors and on MPS a RuntimeError that says so."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def _cuda_share(device: torch.device) -> float:
    import torch

    taken = torch.cuda.max_memory_allocated(device)
    return float(taken / torch.cuda.get_device_properties(device).total_memory)


def _release_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
