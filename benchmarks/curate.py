"""What a new threshold costs: from the scores of a corpus to a complete selection (fates, places, shards to be).

For each size part files are made up (see `curate_data.py`), gathered into wide rows once, and decided over twice, with
two thresholds; each stage runs in a process of its own, whose seconds, processor seconds and peak memory, its children
included, are printed, Python's start and the imports too. Between sizes: how much more each stage took.

    python benchmarks/curate.py [--quick] [--samples 100000 1000000 10000000] [--memory 4GB] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from curate_data import COLUMNS, LABELS, MEMBERS, PART_ROWS, Clip, write_part
from pydantic import ByteSize, TypeAdapter

LIMITS_S = {1_000_000: 5.0, 10_000_000: 60.0}
RULES = {
    "big": "least(image.width, image.height) >= 96",
    "match": "clip.image_caption.match >= {match}",
    "sharp": "picture.image.sharpness >= 0.05",
    "repeats": "wording.caption.repetition < 0.95",
    "words": "caption.words >= 5",
}
STAGES = ("parts", "gather", "decide", "again")


def main() -> None:
    """Run and print."""
    arguments = parsed()
    if arguments.stage:
        stage(arguments.stage, arguments.samples[0], arguments.keep, int(arguments.memory))
        return
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="curate-"))
    found: dict[int, dict[str, dict[str, float]]] = {}
    print(f"{'samples':>10} {'stage':<8}{'seconds':>9}{'CPU-s':>9}{'peak GB':>9}")
    for samples in arguments.samples:
        for name in STAGES:
            cost = measured(name, samples, folder, arguments.memory)
            found.setdefault(samples, {})[name] = cost
            print(
                f"{samples:>10} {name:<8}{cost['wall_s']:>9.1f}{cost['cpu_s']:>9.1f}{cost['peak_gb']:>9.2f}", flush=True
            )
    for less, more in zip(arguments.samples, arguments.samples[1:], strict=False):
        ratios = (f"{name} {found[more][name]['cpu_s'] / found[less][name]['cpu_s']:.1f}" for name in STAGES)
        print(f"{more // less} times the samples, times the CPU-s: {', '.join(ratios)}")
    for samples, limit in LIMITS_S.items():
        if samples in found:
            cost = found[samples]["again"]
            print(f"a new threshold over {samples} samples: {cost['wall_s']:.1f} s, wanted under {limit:g} s")
    if not arguments.keep:
        shutil.rmtree(folder)


def parsed() -> Any:
    """The arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--quick", action="store_const", dest="samples", const=[100_000])
    parser.add_argument("--memory", type=TypeAdapter(ByteSize).validate_python, default=ByteSize(4_000_000_000))
    parser.add_argument("--keep", type=Path, help="folder that stays, with its parts, for the next run")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(name: str, samples: int, folder: Path, memory: int) -> dict[str, float]:
    """Run a stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", name, "--samples", str(samples)]
    process = psutil.Popen([*command, "--memory", str(int(memory)), "--keep", str(folder)], stdout=subprocess.PIPE)
    peak = [0]
    watch = threading.Thread(target=watched, args=(process, peak), daemon=True)
    began = time.perf_counter()
    watch.start()
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{name} of {samples} failed")
    wall_s = time.perf_counter() - began
    watch.join()
    return {"wall_s": wall_s, "cpu_s": json.loads(out.splitlines()[-1])["cpu_s"], "peak_gb": peak[0] / 1e9}


def watched(process: Any, peak: list[int]) -> None:
    """Note the most memory that the process and its children have had."""
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        try:
            tree = [process, *process.children(recursive=True)]
            peak[0] = max(peak[0], sum(one.memory_info().rss for one in tree))
        except psutil.Error:
            return
        time.sleep(0.02)


def stage(name: str, samples: int, folder: Path, memory: int) -> None:
    """One stage, in this process."""
    home = folder / str(samples)
    if name == "parts":
        for number, first in enumerate(range(0, samples, PART_ROWS)):
            if not (home / "parts" / LABELS[-1] / f"{number:05d}.parquet").exists():
                write_part(home / "parts", number, min(PART_ROWS, samples - first))
    elif name == "gather":
        gather(home, memory)
    else:
        decide(home, samples, memory, match=0.5 if name == "decide" else 0.8)
    print(json.dumps({"cpu_s": time.process_time()}))


def gather(home: Path, memory: int) -> None:
    """All parts as wide rows."""
    from mmdata.engine.decide import Corpus, gather_corpus
    from mmdata.store.curation import Rows
    from mmdata.store.gather import Wanted

    parts = {label: sorted((home / "parts" / label).glob("*.parquet")) for label in LABELS}
    chunks = [Rows([base], scores) for base, *scores in zip(*parts.values(), strict=True)]
    corpus = Corpus(COLUMNS, Wanted(MEMBERS, home, 0), [Clip()], {"clip": parts["clip"]}, chunks, {})
    gather_corpus(corpus, fresh(home / "gathered"), memory)


def decide(home: Path, samples: int, memory: int, match: float) -> None:
    """Exact duplicates, five rules, splits; then who goes into which shard."""
    from mmdata.engine.decide import Decisions, decide_over
    from mmdata.steps.curate.duplicates import Duplicates
    from mmdata.steps.curate.rules import Rules
    from mmdata.steps.curate.splits import Splits
    from mmdata.steps.write.webdataset import WebDataset

    keep = {name: rule.format(match=match) for name, rule in RULES.items()}
    steps = [Duplicates(of=MEMBERS), Rules.model_validate({"keep": keep}), Splits()]
    scratch = fresh(home / "scratch")
    what = Decisions(COLUMNS, 0, samples, [], steps, WebDataset())
    shards = decide_over(home / "gathered", what, fresh(scratch / "decided"), scratch, memory)
    print(f"{sum(shard.samples for shard in shards)} kept in {len(shards)} shards", file=sys.stderr)


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    main()
