"""Memory does not grow with the data set; small samples go through fast."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from small_clip import write_small_clip

SMALL, LARGE = 2_000, 20_000
MOST_GROWTH = 1.2
SCORED_SMALL, SCORED_LARGE = 1_000, 10_000
# What the decisions hold of a sample in DuckDB, up to its limit, above which it uses the disk: 3 to 5 kB were measured.
MOST_BYTES_A_SAMPLE = 10_000
SAMPLE_EVERY_S = 0.1
MEMBERS = {"image": "{stem}.png", "caption": {"path": "{stem}.txt", "lang": "en"}}
SOURCE = {"files": {"root": "media", "members": MEMBERS}}


@dataclass
class Peak:
    """The largest resident memory that was seen, bytes."""

    tree: int = 0
    process: int = 0


def png(number: int, side_px: int = 16) -> bytes:
    """A tiny picture that no other number has; thousands a second."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    line = b"\0" + number.to_bytes(3) * side_px
    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(line * side_px, 1)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number:06d}.png").write_bytes(png(number))
        (folder / f"{number:06d}.txt").write_bytes(b"A small square in the colour of number %d." % number)


def watch(process: psutil.Process, peak: Peak) -> None:
    """Sum of the process and all below it, as often as it takes not to miss a stage."""
    while True:
        sizes = []
        for one in (process, *_children(process)):
            try:
                sizes.append(one.memory_info().rss)
            except psutil.Error:
                continue
        if not sizes or process.status() == psutil.STATUS_ZOMBIE:
            return
        peak.tree, peak.process = max(peak.tree, sum(sizes)), max(peak.process, *sizes)
        time.sleep(SAMPLE_EVERY_S)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def build_watched(cli, output: str) -> tuple[Peak, float]:
    peak, began = Peak(), time.monotonic()
    process = cli.start("build", "pipeline.yaml", "--output", output)
    watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), peak))
    watcher.start()
    _, err = process.communicate()
    watcher.join()
    assert process.returncode == 0, err
    return peak, time.monotonic() - began


@pytest.mark.slow
def test_peak_memory_of_ten_times_the_samples_is_the_same(cli):
    peaks = {}
    for count in (SMALL, LARGE):
        write(cli.folder / "media", count)
        cli.spec(
            sources=[SOURCE],
            curate=[
                {"duplicates": {"of": ["image", "caption"]}},
                {"rules": {"keep": {"wide": "image.width >= 8"}}},
                "splits",
            ],
            engine={"workers": 2},
        )
        # Threads of DuckDB hold buffers at once as chance has it: 319 to 367 MB for the same build. The less counts.
        again, _ = build_watched(cli, f"again{count}")
        first, seconds = build_watched(cli, f"out{count}")
        peaks[count] = Peak(min(first.tree, again.tree), min(first.process, again.process))
        (kept,) = cli.query("SELECT count(*) AS n FROM fates WHERE fate = 'kept'", f"out{count}")
        assert kept == {"n": count}
        steps = cli.query("SELECT step, samples, wall_s, cpu_s, peak_rss_bytes >> 20 AS mb FROM steps", f"out{count}")
        megabytes = {name: round(value / 2**20) for name, value in vars(peaks[count]).items()}
        print(f"{count} samples: {seconds:.1f} s, {megabytes} MB, {steps}")  # noqa: T201
    assert peaks[LARGE].tree / peaks[SMALL].tree <= MOST_GROWTH
    assert (peaks[LARGE].process - peaks[SMALL].process) / (LARGE - SMALL) <= MOST_BYTES_A_SAMPLE


@pytest.fixture
def small_clip(tmp_path: Path) -> Path:
    """A fraction of a millisecond a picture."""
    return write_small_clip(tmp_path / "clip")


@pytest.mark.slow
def test_peak_memory_of_scoring_ten_times_the_samples_is_the_same(cli, small_clip):
    peaks = {}
    for count in (SCORED_SMALL, SCORED_LARGE):
        write(cli.folder / "media", count)
        cli.spec(sources=[SOURCE], align=[{"clip": {"model": str(small_clip)}}], engine={"workers": 1})
        peaks[count], seconds = build_watched(cli, f"out{count}")
        (scored,) = cli.query("SELECT count(*) AS n FROM scores WHERE percentile IS NOT NULL", f"out{count}")
        assert scored == {"n": count}
        print(f"{count} scored: {seconds:.1f} s, {peaks[count].tree >> 20} MB")  # noqa: T201
    assert peaks[SCORED_LARGE].tree / peaks[SCORED_SMALL].tree <= MOST_GROWTH


@pytest.mark.slow
def test_a_small_sample_costs_no_more_than_a_millisecond_of_a_core(cli):
    write(cli.folder / "media", 4_000)
    cli.spec(sources=[SOURCE], engine={"workers": 2})
    cli.build()
    (ingest,) = cli.query("SELECT samples, cpu_s FROM steps WHERE step = 'ingest'")
    assert ingest["samples"] == 4_000
    rate = ingest["samples"] / ingest["cpu_s"]
    print(f"ingest: {rate:.0f} samples a second and core")  # noqa: T201
    assert rate > 1_000
