"""What a build says while it runs: on a terminal, as plain lines, or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TextIO

if TYPE_CHECKING:
    from mmdata.engine.work import Done

_PLAIN_EVERY_S: Final = 5.0
_SHOWN_REASONS: Final = 3


@dataclass
class StepProgress:
    """How far one step is.

    Attributes:
        label: the step, as people name it.
        unit: what is counted: parts or shards.
        total: how many there are.
        done: how many are there, those from before included.
        before: how many were there when the build began.
        samples: samples that went through in this run.
        failed: of them, how many failed.
        reasons: how often each reason.
        cpu_s: processor seconds.
        peak_rss_bytes: largest resident memory of a process that worked on it.
        began: time of the first work, None before.
        ended: time of the latest work.
    """

    label: str
    unit: str
    total: int
    done: int
    before: int
    samples: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    began: float | None = None
    ended: float = 0.0

    def begin(self) -> None:
        """Work begins now."""
        self.began = self.began or time.time()

    def touch(self) -> None:
        """Something was done now."""
        self.ended = time.time()

    def add(self, done: Done, began: float | None = None) -> None:
        """One more piece of work is done; it began at `began`, or as long ago as it took of a processor."""
        self.touch()
        self.began = self.began or began or self.ended - done.cpu_s
        self.done += 1
        self.samples += done.samples
        self.failed += done.failed
        self.reasons.update(done.reasons())
        self.cpu_s += done.cpu_s
        self.peak_rss_bytes = max(self.peak_rss_bytes, done.rss_bytes)

    @property
    def wall_s(self) -> float:
        """Seconds from the first work to the latest."""
        return self.ended - self.began if self.began is not None else 0.0

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left, by the rate of this run; None before there is one."""
        fresh = self.done - self.before
        return (self.total - self.done) * self.wall_s / fresh if fresh and self.wall_s else None

    def as_json(self) -> dict[str, Any]:
        """For events and the run log."""
        return {
            "step": self.label,
            "unit": self.unit,
            "total": self.total,
            "done": self.done,
            "before": self.before,
            "samples": self.samples,
            "failed": self.failed,
            "reasons": dict(self.reasons.most_common()),
            "rate": round(self.rate, 2),
            "left_s": None if self.left_s is None else round(self.left_s, 1),
            "wall_s": round(self.wall_s, 3),
            "cpu_s": round(self.cpu_s, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
        }


class Reporter(Protocol):
    """Where events go."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""

    def progress(self, steps: list[StepProgress]) -> None:
        """Something moved."""

    def note(self, event: str, **values: Any) -> None:
        """Something happened that is worth a line; `message` is for people."""


class JsonReporter:
    """One JSON object a line."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._seen: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""

    def progress(self, steps: list[StepProgress]) -> None:
        """A line for each step that moved."""
        for step in steps:
            if self._seen.get(step.label) != step.done:
                self._seen[step.label] = step.done
                self._write({"event": "progress", **step.as_json()})

    def note(self, event: str, **values: Any) -> None:
        """One line."""
        self._write({"event": event, **values})

    def _write(self, value: dict[str, Any]) -> None:
        print(json.dumps({"time": round(time.time(), 3), **value}, ensure_ascii=False), file=self._stream, flush=True)


class PlainReporter:
    """Lines for logs: a step when it ends, and every few seconds in between."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._last = time.monotonic()
        self._finished: set[str] = set()

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""

    def progress(self, steps: list[StepProgress]) -> None:
        """Steps that ended, or all that run when some seconds have passed."""
        due = time.monotonic() - self._last >= _PLAIN_EVERY_S
        for step in steps:
            ended = step.done == step.total and step.done > step.before
            if step.label not in self._finished and (ended or (due and step.began is not None)):
                print(describe(step), file=self._stream, flush=True)
                self._finished |= {step.label} if ended else set()
        self._last = time.monotonic() if due else self._last

    def note(self, event: str, **values: Any) -> None:  # noqa: ARG002 - people get the message alone
        """The message, where there is one."""
        if "message" in values:
            print(values["message"], file=self._stream, flush=True)


class TerminalReporter:
    """Bars, by rich."""

    def __init__(self) -> None:
        """Draw on standard error, so that standard output stays clean."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(stderr=True)
        text = "{task.fields[about]}"
        columns = [TextColumn("{task.description:<12}"), BarColumn(24), TextColumn(text, markup=False)]
        self._bars = Progress(*columns, console=self._console)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last picture."""
        self._bars.stop()

    def progress(self, steps: list[StepProgress]) -> None:
        """Move the bars."""
        for step in steps:
            if step.label not in self._tasks:
                self._tasks[step.label] = self._bars.add_task(step.label, total=step.total, about="")
            about = describe(step).removeprefix(step.label).strip()
            self._bars.update(self._tasks[step.label], completed=step.done, total=step.total, about=about)

    def note(self, event: str, **values: Any) -> None:  # noqa: ARG002 - people get the message alone
        """A line above the bars."""
        if "message" in values:
            self._bars.console.print(values["message"], markup=False, highlight=False)


def describe(step: StepProgress) -> str:
    """`clip  3/4 parts  812 samples  9.1/s  1 m 20 s left  3 failed (bad_image 2, empty_file 1)`."""
    words = [f"{step.label:<12}{step.done}/{step.total} {step.unit}"]
    if step.samples:
        words.append(f"{step.samples} samples  {step.rate:.1f}/s")
    if step.left_s:
        words.append(f"{_duration(step.left_s)} left")
    if step.failed:
        shown = step.reasons.most_common(_SHOWN_REASONS)
        others = step.failed - sum(count for _, count in shown)
        reasons = ", ".join(f"{reason} {count}" for reason, count in [*shown, *([("other", others)] if others else [])])
        words.append(f"{step.failed} failed ({reasons})")
    return "  ".join(words)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours else f"{minutes} m {seconds} s" if minutes else f"{seconds} s"


def reporter(*, as_json: bool) -> Reporter:
    """The reporter that fits where the build was started."""
    if as_json:
        return JsonReporter(sys.stdout)
    return TerminalReporter() if sys.stderr.isatty() else PlainReporter(sys.stderr)
