"""How fast shards are written, beside webdataset's ShardWriter: samples of a 20 KB picture, a caption and JSON.

A build takes in pictures of noise once. Then its shards are written again and again by the function that a worker runs
(payloads read from the parts and held against their digests, tar, digest of the shard, index, fsync): by one process,
and by as many as there are cores, as a build does. ShardWriter writes from bytes in memory into the same file system.
`copy` is the bound of the disk: the same bytes out of memory, flushed, nothing else.

Usage: python benchmarks/write.py [--samples N] [--rounds N]. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import yaml

_GOAL_MB_PER_S = 500
_SIDE_PX = 82  # noise of so many pixels squared is a PNG of 20 KB


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        output = build(folder, arguments.samples)
        size = sum(path.stat().st_size for path in (output / "shards").glob("*.tar"))
        seconds = {
            "ours": best(lambda: ours(output), arguments.rounds),
            "ours_all_cores": ours_all_cores(output, arguments.rounds),
            "copy": best(copy(output, folder / "copy"), arguments.rounds),
            "shard_writer": best(shard_writer(output, folder / "peer"), arguments.rounds),
        }
    rates = {name: round(size / 1e6 / one, 1) for name, one in seconds.items()}
    ratios = {name: round(rates[name] / rates["shard_writer"], 2) for name in rates}
    found = {"mb": round(size / 1e6, 1), "mb_per_s": rates, "times_shard_writer": ratios}
    print(json.dumps({"goal_mb_per_s": _GOAL_MB_PER_S, "load": os.getloadavg(), **found}))


def build(folder: Path, samples: int) -> Path:
    """Take the pictures in; returns the build folder."""
    from PIL import Image

    (folder / "media").mkdir()
    noise = random.Random(0)
    for number in range(samples):
        picture = Image.frombytes("RGB", (_SIDE_PX, _SIDE_PX), noise.randbytes(3 * _SIDE_PX**2))
        picture.save(folder / "media" / f"{number:06d}.png", compress_level=0)
        (folder / "media" / f"{number:06d}.txt").write_text(f"a picture of noise, number {number}")
    spec = {
        "name": "write",
        "sources": [
            {"files": {"root": str(folder / "media"), "members": {"image": "{stem}.png", "caption": "{stem}.txt"}}}
        ],
        "write": [{"webdataset": {"samples_per_shard": 1000}}],
    }
    (folder / "p.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "mmdata", "build", str(folder / "p.yaml"), "--output", str(folder / "out")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "out"


def best(job: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some runs."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        job()
        found.append(time.perf_counter() - began)
    return min(found)


def ours(output: Path) -> None:
    """All shards of the build, one after the other, in this process."""
    from mmdata.store.shards import write_shard

    for job in shard_jobs(output):
        write_shard(*job)


def ours_all_cores(output: Path, rounds: int) -> float:
    """Seconds of all shards by a process a core; the processes are there before the clock starts."""
    from mmdata.store.shards import write_shard

    with ProcessPoolExecutor() as pool:
        return best(
            lambda: [one.result() for one in [pool.submit(write_shard, *job) for job in shard_jobs(output)]], rounds
        )


def shard_jobs(output: Path) -> list[tuple[Any, ...]]:
    """Arguments of `write_shard` for each shard; none is there any more."""
    from mmdata.store.selection import read_shard_plans

    shutil.rmtree(output / "shards")
    (output / "shards").mkdir()
    (gathered,), (decided,) = ((output / name).iterdir() for name in ("gathered", "decided"))
    return [(output, gathered, decided, plan) for plan in read_shard_plans(decided)]


def copy(output: Path, target: Path) -> Callable[[], None]:
    """Write the shards' bytes and flush them."""
    shards = {path.name: path.read_bytes() for path in (output / "shards").glob("*.tar")}

    def write() -> None:
        target.mkdir(exist_ok=True)
        for name, data in shards.items():
            with (target / name).open("wb") as file:
                file.write(data)
                os.fsync(file.fileno())

    return write


def shard_writer(output: Path, target: Path) -> Callable[[], None]:
    """The same samples by webdataset, from memory."""
    import webdataset

    tars = [str(path) for path in sorted((output / "shards").glob("*.tar"))]
    samples: list[dict[str, Any]] = [
        {name: value for name, value in sample.items() if name in {"__key__", "png", "txt", "json"}}
        for sample in webdataset.WebDataset(tars, shardshuffle=False)
    ]

    def write() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        with webdataset.ShardWriter(str(target / "%06d.tar"), maxcount=1000, verbose=0) as writer:
            for sample in samples:
                writer.write(sample)
        for path in target.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    return write


if __name__ == "__main__":
    main()
