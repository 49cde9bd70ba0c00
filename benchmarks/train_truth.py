"""What training learns on stamps, clip-art and prompts, against controls; three seeds, several trainings at once.

    for name in stamps clipart prompts; do mmdata build benchmarks/train_truth/$name.yaml; done
    python benchmarks/train_truth.py builds out --settings demo --seeds 0 1 2
    python benchmarks/train_truth/table.py out

The builds need `mmdata fetch stamps clipart prompts lite minilm efficientnet-lite0 whisper-tiny.en`. An arm is a
training file (`train_truth/demo.yaml`, or `full.yaml` for a GPU) with what `train_truth/arms.yaml` changes in it. Each
arm and seed is a process with a log of its own; what it found on held-out samples is written as soon as it is there,
hit by hit, so that intervals can be over seeds and queries. `--quick` draws a few scenes, and shows that it runs.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).parent / "train_truth"
K = 10
# What training measures itself on, and the detector learns from; and what is told of here.
TUNE, HELD_OUT = "tune", "val"
# Steps of the trial that says how long a step takes beside the others.
TRIAL = 60
# An arm with a smaller share of the steps says nothing of how long one takes.
LONG = 0.1
POLL_S = 0.5
# An arm and a seed.
Job = tuple[str, int]


def read(name: str) -> Any:
    """A file of settings."""
    return yaml.safe_load((HERE / f"{name}.yaml").read_text())


def merged(base: Any, change: Any) -> Any:
    """A mapping with another one laid over it."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    return {**base, **{key: merged(base.get(key), value) for key, value in change.items()}}


def training_file(arm: str, seed: int, steps: int, options: argparse.Namespace) -> Path:
    """Write the training file of an arm."""
    change = dict(read("arms")[arm])
    config = read(options.settings)
    if options.quick:
        config["data"]["sets"] = {"scenes": {"shards": "builds/truth_scenes/shards"}}
        config["optim"]["batch_size"] = 32
        config["data"]["modalities"] = {"image": ["image"], "text": ["caption"], "audio": ["sound"]}
    steps = max(4, round(steps * change.pop("steps_share", 1)))
    shuffled, after = change.pop("shuffle", None), change.pop("after", None)
    stages = change.pop("stages", None)
    change.pop("detector", None)
    for one in config["data"]["sets"].values():
        one["shards"] = str(options.builds / Path(one["shards"]).relative_to("builds"))
        if shuffled:
            folder = options.out / "shards" / f"{Path(one['shards']).parent.name}-{seed}"
            one["shards"] = str(shuffled_shards(Path(one["shards"]), folder, shuffled, seed))
    config = merged(config, change)
    config |= {"seed": seed, "steps": steps, "output": str(options.out / "runs" / f"{arm}-{seed}")}
    config["optim"]["warmup"] = min(config["optim"].get("warmup", 20), steps // 4)
    if after:
        config["teacher"] = {"run": str(options.out / "runs" / f"{after}-{seed}")}
    if stages:
        samples = config.pop("steps") * config["optim"]["batch_size"]
        config["stages"] = [{"samples": round(stage.pop("share") * samples), **stage} for stage in stages]
    path = options.out / f"{arm}-{seed}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def shuffled_shards(shards: Path, target: Path, members: list[str], seed: int) -> Path:
    """A copy in which members of the train split go round among the samples of a shard that have them."""
    shutil.copytree(shards, target, dirs_exist_ok=True)
    manifest = json.loads((target / "manifest.json").read_text())
    for path in sorted(target.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            entries = [(info, tar.extractfile(info).read()) for info in tar]
        moved: dict[int, bytes] = {}
        for member in manifest["members"].keys() & set(members):
            moved |= moved_round(entries, manifest["members"][member]["fields"], seed)
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


def carry_out(arm: str, seed: int, steps: int, options: argparse.Namespace) -> None:
    """Train an arm, and write what it finds in the held-out split of each set."""
    from mmdata.train.run import train

    file, began = training_file(arm, seed, steps, options), time.monotonic()
    done = train(file, say=lambda line: print(line, flush=True))
    if options.trial:
        return
    trained = time.monotonic()
    run, about = Path(done["output"]), read("arms")[arm]
    # The true pairs, also of an arm that was trained on shuffled ones.
    names = ["scenes"] if options.quick else ["stamps", "clipart", "prompts"]
    shards = {name: options.builds / f"truth_{name}" / "shards" for name in names}
    report = {"arm": arm, "seed": seed, "steps": done["steps"], "settings": options.settings, "curve": curve(run)}
    report["sets"] = {name: found_in(run, folder) for name, folder in shards.items()}
    if about.get("detector") and not options.recall_only:
        report["detector"] = forgeries_in(run, shards[names[0]])
    if "decoders" in about.get("model", {}) and not options.recall_only:
        report |= made_of(run, shards[names[0]], options.feature)
    report["seconds"] = {"training": done["seconds"], "train": trained - began, "eval": time.monotonic() - trained}
    report["device"] = device_name(yaml.safe_load(file.read_text())["device"])
    (options.out / f"{arm}-{seed}.json").write_text(json.dumps(report))
    print(arm, seed, report["seconds"], flush=True)


def curve(run: Path) -> dict[int, dict[str, float]]:
    """Recall@10 on the tune split by step and direction."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        record["step"]: {way: cell[f"recall@{K}"]["value"] for way, cell in record["metrics"].items()}
        for record in records
        if "metrics" in record
    }


def found_in(run: Path, shards: Path) -> dict[str, Any]:
    """By direction chance of recall@10, and of each query its sample and whether it was a hit."""
    from mmdata.train.evaluate.bench import Bench
    from mmdata.train.evaluate.config import EvalConfig
    from mmdata.train.evaluate.retrieval import directions
    from mmdata.train.recall import chance_level, ranks

    bench = Bench(run, EvalConfig(shards=str(shards), split=HELD_OUT))
    features, found = bench.features, {}
    for way in directions(features, bench.names):
        if len(way.row_N) > K:
            ends = (way.query_ND[way.row_N], way.candidate_ND[way.row_N])
            ahead_N, positives_N = ranks(*ends, features.text_hash_N[way.row_N])
            chance = chance_level(positives_N.tolist(), len(way.row_N), K)
            hits = "".join("01"[ahead < K] for ahead in ahead_N.tolist())
            found[way.name] = {"chance": chance, "rows": way.row_N.tolist(), "hits": hits}
    return found


def forgeries_in(run: Path, shards: Path) -> dict[str, Any]:
    """AUC by kind of forgery; learnt from a split of all sets that the model was not trained on."""
    from mmdata.train.evaluate.bench import Bench
    from mmdata.train.evaluate.config import EvalConfig
    from mmdata.train.evaluate.detector import assess, show
    from mmdata.train.evaluate.features import batches, open_data

    settings = EvalConfig(shards=str(shards), split=HELD_OUT, resamples=300)
    tune, held_out = Bench(run, EvalConfig()).run, Bench(run, settings)
    learnt = show(tune, batches(tune, open_data(tune, TUNE), settings.train_samples), 0)
    opened = held_out.held_out
    return assess(learnt, show(held_out.run, batches(held_out.run, opened, len(opened.dataset), 1), 1), settings)[1]


def made_of(run: Path, shards: Path, feature: str | None) -> dict[str, Any]:
    """What decoders make: captions by BLEU and chrF, pictures by KID where there is a network to see them."""
    from mmdata.train.evaluate.run import evaluate

    given = [f"shards={json.dumps(str(shards))}", f"split={HELD_OUT}", "resamples=300", 'tasks=["captions"]']
    if feature:
        given[-1] = 'tasks=["captions", "images"]'
        given.append(f"feature={json.dumps({'kind': 'timm', **json.loads(feature)})}")
    return dict(evaluate(run, None, given, "truth", print)["tasks"])


def device_name(wanted: str) -> str:
    """The accelerator, or the processor."""
    import platform

    import torch

    return torch.cuda.get_device_name() if wanted != "cpu" and torch.cuda.is_available() else platform.machine()


def child(arm: str, seed: int, steps: int, options: argparse.Namespace) -> None:
    """One job, with its output in a file of its own."""
    log = os.open(options.out / f"{arm}-{seed}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    carry_out(arm, seed, steps, options)


def run_all(jobs: Sequence[Job], steps: int, options: argparse.Namespace) -> list[Job]:
    """All jobs, so many at once; gives those that did not end well, or not in time."""
    # Forked from a process that has imported torch and not yet looked for a GPU: importing takes long.
    context = multiprocessing.get_context("fork")
    arms, ends = read("arms"), time.monotonic() + options.until_s
    waiting, bad = list(jobs), []
    running: dict[Job, Any] = {}
    while (waiting or running) and time.monotonic() < ends:
        for job in [job for job, process in running.items() if not process.is_alive()]:
            bad += [job] if running.pop(job).exitcode else []
        for job in list(waiting):
            teacher = (arms[job[0]].get("after"), job[1])
            if teacher in bad:
                waiting.remove(job)
                bad.append(job)
            elif teacher not in {*waiting, *running} and len(running) < options.together:
                waiting.remove(job)
                running[job] = context.Process(target=child, args=(*job, steps, options))
                running[job].start()
        time.sleep(POLL_S)
    for process in running.values():
        process.kill()
    return [*bad, *running, *waiting]


def steps_in(jobs: Sequence[Job], options: argparse.Namespace) -> int:
    """How many steps fit into the seconds that an arm may train beside the others: as the slowest of a trial says."""
    trial = argparse.Namespace(**(vars(options) | {"out": options.out / "trial", "trial": True}))
    trial.out.mkdir(parents=True, exist_ok=True)
    arms = {arm: about.get("steps_share", 1) for arm, about in read("arms").items() if "after" not in about}
    first = [job for job in jobs if arms.get(job[0], 0) > LONG][: options.together]
    bad = run_all(first, TRIAL, trial)
    for arm, seed in bad:
        print(f"the trial of {arm}-{seed} failed:", *tail(trial.out / f"{arm}-{seed}.log"), sep="\n  ", flush=True)
    step_s = [options.seconds / TRIAL]
    for arm, seed in set(first) - set(bad):
        lines = (trial.out / "runs" / f"{arm}-{seed}" / "log.jsonl").read_text().splitlines()
        records = [record for record in map(json.loads, lines) if "samples_per_s" in record][-3:]
        batch = yaml.safe_load((trial.out / f"{arm}-{seed}.yaml").read_text())["optim"]["batch_size"]
        step_s.append(arms[arm] * batch / median(record["samples_per_s"] for record in records))
        print(f"{arm}-{seed}: {step_s[-1]:.4f} s a step, {records[-1]['wait_share']:.0%} waiting", flush=True)
    shutil.rmtree(trial.out)
    return max(TRIAL, min(options.steps or 1 << 30, int(options.seconds / max(step_s[1:] or step_s))))


def draw_scenes(folder: Path) -> None:
    """Shards of a few scenes, for `--quick`."""
    from mmdata.demo.scenes import write_scenes

    write_scenes(folder / "media", 120, 0)
    pipeline = yaml.safe_load((HERE.parents[1] / "pipelines" / "scenes.yaml").read_text())
    pipeline |= {
        "align": [],
        "augment": [],
        "curate": [{"splits": {"shares": {"train": 0.6, "tune": 0.2, "val": 0.2}}}],
    }
    pipeline["sources"][0]["files"]["root"] = str(folder / "media")
    (folder / "scenes.yaml").write_text(yaml.safe_dump(pipeline))
    built = [sys.executable, "-m", "mmdata", "build", str(folder / "scenes.yaml"), "--output"]
    subprocess.run([*built, str(folder / "truth_scenes")], check=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", type=Path, nargs="?", default=Path("builds"))
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/train_truth"))
    parser.add_argument("--settings", choices=["demo", "full"], default="demo")
    parser.add_argument("--arms", nargs="+", choices=list(read("arms")), default=list(read("arms")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--together", type=int, default=1, help="trainings at once")
    parser.add_argument("--steps", type=int, help="default: the settings'; with --seconds, the most")
    parser.add_argument(
        "--seconds", type=float, help="choose the steps so that an arm trains so long beside the others"
    )
    parser.add_argument("--until-s", type=float, default=86_400, help="what is not done by then is ended")
    parser.add_argument("--feature", help="image network of KID, as JSON: model, checkpoint")
    parser.add_argument("--recall-only", action="store_true", help="no detectors, and nothing made is measured")
    parser.add_argument("--quick", action="store_true", help="on drawn scenes, two arms, few steps")
    parser.set_defaults(trial=False)
    return parser.parse_args()


def main() -> None:
    """Run the arms."""
    options = parsed()
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.builds, options.out, options.steps = Path(scratch), Path(scratch) / "out", 12
            options.arms, options.seeds = ["cold", "shuffled", "staged"], [0]
            draw_scenes(options.builds)
        options.out.mkdir(parents=True, exist_ok=True)
        jobs = [(arm, seed) for seed in options.seeds for arm in options.arms]
        import mmdata.train.evaluate.bench
        import mmdata.train.session  # noqa: F401 - what the processes share

        steps = steps_in(jobs, options) if options.seconds else options.steps or read(options.settings)["steps"]
        print(f"{len(jobs)} trainings of {steps} steps", flush=True)
        bad = run_all(jobs, steps, options)
        for arm, seed in bad:
            print(f"{arm}-{seed} is missing; its log ends:", *tail(options.out / f"{arm}-{seed}.log"), sep="\n  ")
        if options.quick:
            subprocess.run([sys.executable, str(HERE / "table.py"), str(options.out)], check=True)
    if bad:
        sys.exit(1)


def tail(path: Path) -> list[str]:
    """The last lines of a log."""
    return path.read_text(errors="replace").splitlines()[-5:] if path.exists() else ["none"]


if __name__ == "__main__":
    main()
