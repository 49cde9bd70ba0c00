"""What training learns on stamps, against controls: recall by pair, the detector, and audio that was shuffled.

    python benchmarks/train_truth.py builds/stamps/shards out --steps 100 --seeds 0

Arms: `cold` (all terms from the first step), `staged` (pairs, then the fusion; as many steps), `shuffled` (as cold, but
the sounds of the train split are other samples'). Each arm's report is written as soon as it is there.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mmdata.train.evaluate.run import evaluate
from mmdata.train.run import train

BATCH = 64
SPEECH = ("speech_fr", "speech")


def shuffled_shards(shards: Path, target: Path, seed: int) -> Path:
    """A copy in which the speech of the train split goes round among the samples of its shard that have some."""
    shutil.copytree(shards, target, dirs_exist_ok=True)
    manifest = json.loads((target / "manifest.json").read_text())
    for path in sorted(target.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            entries = [(info, tar.extractfile(info).read()) for info in tar]
        moved: dict[int, bytes] = {}
        for member in SPEECH:
            moved |= moved_round(entries, manifest["members"][member]["fields"], seed)
        assert moved, f"{path}: no sounds to shuffle"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for at, (info, data) in enumerate(entries):
                info.size = len(moved.get(at, data))
                tar.addfile(info, io.BytesIO(moved.get(at, data)))
    for index in target.glob("train-*.index.parquet"):
        index.unlink()
    for entry in manifest["splits"]["train"]["shards"]:
        entry["bytes"] = (target / entry["path"]).stat().st_size
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def moved_round(entries: list[tuple[tarfile.TarInfo, bytes]], fields: list[str], seed: int) -> dict[int, bytes]:
    """New contents of the files of a member, by their places: each has that of another."""
    places = [at for at, (info, _) in enumerate(entries) if info.name.partition(".")[2] in fields]
    order = np.random.default_rng(seed).permutation(places).tolist()
    return {place: entries[order[at - 1]][1] for at, place in enumerate(order)} if len(order) > 1 else {}


def settings(shards: Path, output: Path, arm: str, steps: int, seed: int) -> dict[str, Any]:
    """The training file of an arm."""
    common = {
        "data": {
            "shards": str(shards),
            "modalities": {"image": ["image"], "text": ["caption"], "audio": list(SPEECH)},
            "text_max_tokens": 16,
            "audio_max_s": 1.5,
            "image_side_px": 32,
        },
        "model": {
            **{name: {"width": 64, "depth": 2} for name in ("text", "image")},
            "audio": {"width": 64},
            "fusion": {"width": 64, "latents": 2},
            "embed_dim": 64,
            "patch_px": 8,
        },
        "optim": {"batch_size": BATCH, "lr": 0.002},
        "seed": seed,
        "threads": 1,
        "workers": 0,
        "device": "cpu",
        "output": str(output),
    }
    if arm != "staged":
        return {**common, "steps": steps}
    half = steps // 2 * BATCH
    pairs = {"name": "pairs", "samples": half, "loss": {"fusion": 0.0}}
    return {**common, "stages": [pairs, {"name": "fusion", "samples": half}]}


def carry_out(arm: str, seed: int, options: argparse.Namespace) -> None:
    """Train an arm, and write what it is worth on the held-out split of the true shards."""
    shards, began = options.shards, time.process_time()
    if arm == "shuffled":
        shards = shuffled_shards(options.shards, options.out / f"shards-{seed}", seed)
    folder = options.out / f"{arm}-{seed}"
    file = options.out / f"{arm}-{seed}.yaml"
    file.write_text(yaml.safe_dump(settings(shards, folder, arm, options.steps, seed)))
    train(file, say=lambda _: None)
    trained_s = time.process_time() - began
    tasks = ["retrieval", "missing", "consistency"] + (["detector"] if arm == "cold" else [])
    given = [f"tasks={json.dumps(tasks)}", f"shards={json.dumps(str(options.shards))}", "resamples=1000"]
    report = evaluate(folder, None, given, arm, print)
    report["cpu_s"] = {"train": trained_s, "all": time.process_time() - began}
    (options.out / f"{arm}-{seed}.json").write_text(json.dumps(report, indent=1))
    print(arm, seed, report["cpu_s"], flush=True)


def main() -> None:
    """Run the arms one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", default=["cold", "shuffled", "staged"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for arm in options.arms:
            carry_out(arm, seed, options)


if __name__ == "__main__":
    main()
