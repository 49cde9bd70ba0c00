"""What work costs."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from mmdata.engine.work import Done, Meter, measured

BIG = 256 << 20


def taking_memory(size: int) -> Done:
    # Written to, or it would not be resident.
    np.ones(size, dtype=np.uint8).sum()
    return Done(1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak is never forgotten")
def test_the_largest_memory_meanwhile_counts_not_that_at_the_end_and_none_from_before() -> None:
    # In a process of its own: one of other tests may have as much memory left over, which is taken without a page more.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        big, small = (pool.submit(measured, taking_memory, size).result() for size in (BIG, 1))
    assert big.rss_bytes - small.rss_bytes > BIG // 2
    assert small.rss_bytes > 0


def test_processor_seconds_are_counted_from_the_start() -> None:
    meter = Meter()
    np.ones(1 << 22).sum()
    assert 0 < meter.cpu_s < 60
    assert measured(lambda: "no Done") == "no Done"
