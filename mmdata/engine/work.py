"""What a piece of work of a worker process came to, and what it cost.

What workers do (`ingest`, `align`, `measure`, `children`, `fit`, `decide`) maps files of a part to files of another, or
to rows. It takes and returns only plain, picklable values, and knows nothing of pools, of progress or of each other.
A `SampleError` becomes a row; any other exception leaves the function and stops the build.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mmdata.store.selection import ShardPlan
from mmdata.store.shards import write_shard


@dataclass
class Done:
    """What became of one piece of work.

    Attributes:
        samples: rows written, failures included.
        failures: (reason, detail) of those that failed, in the order of the part; None where a sample is good.
        cpu_s: processor seconds of the process that did it.
        rss_bytes: its resident memory when it ended.
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


def measured(function: Any, *arguments: Any) -> Any:
    """Call a function and note what it cost in a `Done`, where it returns one."""
    before = time.process_time()
    result = function(*arguments)
    if isinstance(result, Done):
        result.cpu_s = time.process_time() - before
        result.rss_bytes = psutil.Process().memory_info().rss
    return result


def write_one(output: Path, gathered: Path, decided: Path, plan: ShardPlan) -> Done:
    """Write one shard."""
    return Done(write_shard(output, gathered, decided, plan))
