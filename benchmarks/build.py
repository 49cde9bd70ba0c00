"""What a build costs, step by step: CPU-seconds and peak memory for 1,000 samples, beside what the work itself takes.

The same generated scenes (picture, caption, sound) go through `mmdata build` and, in the same run, through

* a bare loop that decodes every file once with Pillow and PyAV and writes nothing: the bound of ingest;
* webdataset's ShardWriter fed with the same bytes: the peer of writing.

Usage: python benchmarks/build.py [--quick]. The last line printed is one JSON object; ratios are the reference's
CPU-seconds over ours, higher is better.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmdata.demo.scenes import write_scenes

_PIPELINE = """
name: bench
sources:
  - files:
      root: {root}
      members: {{image: "{{stem}}.png", caption: {{path: "{{stem}}.txt", lang: en}}, sound: "{{stem}}.wav"}}
augment: [flip]
curate:
  - duplicates: {{of: [image, caption]}}
  - rules: {{keep: {{words: caption.words >= 2, width: image.width >= 64}}}}
  - splits: {{}}
engine: {{part_samples: 250}}
"""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 samples, ends within a minute")
    samples = 200 if parser.parse_args().quick else 2000
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), samples)))


def measure(folder: Path, samples: int) -> dict[str, Any]:
    """Build, run the references on the same files, compare."""
    media = folder / "media"
    write_scenes(media, samples, seed=3)
    per_1000 = 1000 / samples
    steps = build(folder, media)
    decode_s = cpu_of(lambda: decode_all(media))
    peer_s, peer_samples = write_with_webdataset(folder)
    ours = {name: step["cpu_s"] * per_1000 for name, step in steps.items()}
    goals = {f"{name}_cpu_s_per_1000": round(value, 3) for name, value in ours.items()}
    goals |= {f"{name}_peak_mb": round(step["peak_rss_bytes"] / 2**20) for name, step in steps.items()}
    for name, value in goals.items():
        print(f"{name:<28}{value}")
    ratios = {
        "ingest_over_bare_decode": decode_s / steps["ingest"]["cpu_s"],
        "write_over_shardwriter": (peer_s / peer_samples) / (steps["write"]["cpu_s"] / steps["write"]["samples"]),
    }
    sizes = {"samples": samples, "media_bytes": sum(path.stat().st_size for path in media.iterdir())}
    return {"ratios": {name: round(value, 3) for name, value in ratios.items()}, "goals": goals, "sizes": sizes}


def build(folder: Path, media: Path) -> dict[str, dict[str, Any]]:
    """Build through the command line; the steps of its log, by name."""
    pipeline = folder / "bench.yaml"
    pipeline.write_text(_PIPELINE.format(root=media))
    output = folder / "build"
    command = [sys.executable, "-m", "mmdata", "build", str(pipeline), "--output", str(output)]
    began = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    print(f"build: {time.perf_counter() - began:.1f} s of wall time")
    log = json.loads(next((output / "log").glob("*.json")).read_text())
    return {step["step"]: step for step in log["steps"]}


def decode_all(media: Path) -> None:
    """The bound of ingest: every file decoded once, nothing kept."""
    import av
    from PIL import Image

    for path in sorted(media.iterdir()):
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".wav":
            with av.open(str(path)) as container:
                for _ in container.decode(audio=0):
                    pass
        else:
            path.read_text(encoding="utf-8")


def write_with_webdataset(folder: Path) -> tuple[float, int]:
    """CPU-seconds of ShardWriter for the samples that our shards hold, and how many those are."""
    import webdataset

    samples = []
    for shard in sorted((folder / "build" / "shards").glob("*.tar")):
        samples += list(webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False))
    for sample in samples:
        sample.pop("__url__", None)
        sample.pop("__local_path__", None)
    target = folder / "peer"
    target.mkdir()

    def write() -> None:
        with webdataset.ShardWriter(str(target / "%06d.tar"), maxcount=1000, verbose=0) as writer:
            for sample in samples:
                writer.write(sample)

    return cpu_of(write), len(samples)


def cpu_of(work: Callable[[], None]) -> float:
    """CPU-seconds of this process, children apart."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
