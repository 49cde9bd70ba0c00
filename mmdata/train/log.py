"""A line of `log.jsonl` for every so many steps, and the same for people."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmdata.train.batch import Failure

if TYPE_CHECKING:
    from mmdata.train.loop import Taken

Say = Callable[[str], None]


def say_line(line: str) -> None:
    """Print at once, also into a pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Sink(Protocol):
    """Somebody else who is told the numbers."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, as of a step."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class TrainLog:
    """`log.jsonl` (steps and measurements) and `failures.jsonl` (members that cannot be decoded, each once).

    Of several ranks the first one writes and says; what the others cannot decode goes to files of their own.
    """

    def __init__(
        self,
        folder: Path,
        say: Say,
        from_step: int,
        sinks: Sequence[Sink] = (),
        rank: int = 0,
        failed: Collection[str] = (),
    ) -> None:
        """Go on after `from_step`: lines of later steps are of work that is done again, and are dropped.

        So are failures other than those that were `failed` by then, `shard/id/member`: they are met again.
        """
        suffix = f".rank{rank}" if rank else ""
        self._steps, self._failures = folder / "log.jsonl", folder / f"failures{suffix}.jsonl"
        self._say, self._sinks, self._main = say, sinks, rank == 0
        if self._main:
            kept = [line for line in _lines(self._steps) if _step_of(line) <= from_step]
            self._steps.write_text("".join(kept))
        failed = frozenset(failed)
        known = [line for line in _lines(self._failures) if _failed_in(line) in failed]
        self._failures.unlink(missing_ok=True)
        if known:
            self._failures.write_text("".join(known))

    def step(self, record: dict[str, Any], total_steps: int) -> None:
        """A training step; its loss, lr, samples_per_s and wait_share are also said."""
        if not self._main:
            return
        _append(self._steps, record)
        pairs = " ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
        done = f"step {record['step']}/{total_steps} loss {record['loss']:.4f} ({pairs}) lr {record['lr']:.2e}"
        self._say(f"{done} {record['samples_per_s']:.0f} samples/s, {record['wait_share']:.0%} waiting for data")
        plain = {name: record[name] for name in ("loss", "lr", "samples_per_s", "wait_share")}
        self._tell(record["step"], plain | {f"loss/{name}": value for name, value in record["losses"].items()})

    def measured(self, step: int, metrics: dict[str, Any], lines: list[str]) -> None:
        """A measurement on the held-out split."""
        if not self._main:
            return
        _append(self._steps, {"step": step, "metrics": metrics})
        for line in lines:
            self._say(line)
        recalls = ((name, key, cell) for name, values in metrics.items() for key, cell in values.items())
        self._tell(step, {f"{name}/{key}": cell["value"] for name, key, cell in recalls if isinstance(cell, dict)})

    def failure(self, failure: Failure) -> None:
        """A sample that is skipped."""
        _append(self._failures, vars(failure))
        self.note(f"skipped {failure}")

    def note(self, line: str) -> None:
        """Say something."""
        if self._main:
            self._say(line)

    def close(self) -> None:
        """Nothing more comes."""
        for sink in self._sinks:
            sink.close()

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.numbers(step, values)


class Window:
    """Sums since the last line of the log."""

    def __init__(self) -> None:
        """Start now."""
        self._started = time.perf_counter()
        self._samples = 0
        self._wait_s = 0.0

    def add(self, samples: int, wait_s: float) -> None:
        """One step: its samples, and how long it waited for them."""
        self._samples += samples
        self._wait_s += wait_s

    def record(self, step: int, stage: str, taken: Taken, terms: Mapping[str, float], ranks: int) -> dict[str, Any]:
        """The line for this step; the losses are this step's, the speeds those since the last line.

        Samples are those of all ranks, taken to be alike; the share of waiting is this one's.
        """
        spent_s = max(time.perf_counter() - self._started, 1e-9)
        return {
            "step": step,
            "stage": stage,
            "loss": taken.loss,
            "losses": dict(terms),
            "lr": taken.lr,
            "samples_per_s": self._samples * ranks / spent_s,
            "wait_share": self._wait_s / spent_s,
        }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def _step_of(line: str) -> float:
    """The step of a line; infinite for one that was cut off by a kill."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _failed_in(line: str) -> str:
    """The member that a line is of; empty for one that was cut off by a kill."""
    try:
        return Failure(**json.loads(line)).name
    except (ValueError, TypeError):
        return ""


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
