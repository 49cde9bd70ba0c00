"""What a piece of work of a worker process came to, and what it cost.

What workers do (`ingest`, `align`, `measure`, `children`, `fit`, `decide`) maps files of a part to files of another, or
to rows. It takes and returns only plain, picklable values, and knows nothing of pools, of progress or of each other.
A `SampleError` becomes a row; any other exception leaves the function and stops the build.
"""

from __future__ import annotations

import re
import resource
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmdata.store.selection import ShardPlan
from mmdata.store.shards import write_shard

# Linux forgets a process's largest resident memory where this is written (proc_pid_clear_refs(5)).
_FORGET_PEAK: Final = ("/proc/self/clear_refs", "5")
_PEAK: Final = re.compile(r"^VmHWM:\s*(\d+) kB", re.MULTILINE)


@dataclass
class Done:
    """What became of one piece of work.

    Attributes:
        samples: rows written, failures included.
        failures: (reason, detail) of those that failed, in the order of the part; None where a sample is good.
        cpu_s: processor seconds of the process that did it.
        rss_bytes: its largest resident memory meanwhile.
    """

    samples: int
    failures: list[tuple[str, str] | None] = field(default_factory=list)
    cpu_s: float = 0.0
    rss_bytes: int = 0

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(failure is not None for failure in self.failures)

    def reasons(self) -> Counter[str]:
        """How often each reason."""
        return Counter(failure[0] for failure in self.failures if failure)


class Meter:
    """What work costs this process, from here on."""

    def __init__(self) -> None:
        """Begin."""
        with suppress(OSError):  # then the peak is that of the whole life of the process
            Path(_FORGET_PEAK[0]).write_text(_FORGET_PEAK[1])
        self._began = time.process_time()

    @property
    def cpu_s(self) -> float:
        """Processor seconds."""
        return time.process_time() - self._began

    @property
    def peak_rss_bytes(self) -> int:
        """Largest resident memory; where the system cannot forget an earlier one, since the process began."""
        try:
            found = _PEAK.search(Path("/proc/self/status").read_text())
        except OSError:
            found = None
        if found:
            return int(found[1]) << 10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10


def measured(function: Any, *arguments: Any) -> Any:
    """Call a function and note what it cost in a `Done`, where it returns one."""
    meter = Meter()
    result = function(*arguments)
    if isinstance(result, Done):
        result.cpu_s, result.rss_bytes = meter.cpu_s, meter.peak_rss_bytes
    return result


def write_one(output: Path, gathered: Path, decided: Path, plan: ShardPlan) -> Done:
    """Write one shard."""
    return Done(write_shard(output, gathered, decided, plan))
