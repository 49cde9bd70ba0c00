"""How fast a model is trained and fed: steps beside open_clip's, waiting for data, samples beside three other loaders.

1. Step: towers of one shape (`--towers vit-b-32`: those of CLIP ViT-B/32 at 224 px; `small`: what a minute allows), one
   batch out of memory, float32, AdamW with the gradient clipped. Ours is a step of `mmdata train` with the pairwise
   loss; theirs is what `open_clip_train.train.train_one_epoch` does with a batch. Bare: forward, loss, backward.
2. Waiting: a training on shards of this disk by `mmdata train`, and the share of its time that it waited for data.
3. Loaders: JPEG pictures of 256 px with captions, in random order, raw (bytes) and decoded (224 px, by the same
   function for all), by one process and by `--workers`. Peers run in `--peers PYTHON`, which has litdata,
   mosaicml-streaming and webdataset beside torch; each writes its own format first, which is not measured.

Usage: python benchmarks/train.py [--quick] [--towers small|vit-b-32] [--peers PYTHON]. Prints JSON, a line a part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).parent
PEERS = ("webdataset", "litdata", "streaming")
# (image side, patch, width, depth, heads), (text width, depth, heads), dimensions; CLIP, Radford et al. 2021, table 20.
TOWERS = {
    "vit-b-32": ((224, 32, 768, 12, 12), (512, 12, 8), 512),
    "small": ((224, 32, 256, 4, 4), (256, 4, 4), 256),
}
TOKENS = 77
VOCABULARY = 49_408


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small towers, few samples")
    parser.add_argument("--towers", choices=list(TOWERS), help="default: vit-b-32, and small with --quick")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, help="of the loaders; default: 8000, and 600 with --quick")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--peers", default=sys.executable, help="a Python that has the other loaders")
    parser.add_argument("--only", choices=["step", "wait", "loaders"])
    arguments = parser.parse_args()
    towers = arguments.towers or ("small" if arguments.quick else "vit-b-32")
    samples = arguments.samples or (600 if arguments.quick else 8000)
    rounds = min(arguments.rounds, 3) if arguments.quick else arguments.rounds
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: steps(towers, arguments.batch, rounds),
        "wait": lambda: waiting(256 if arguments.quick else 2000, arguments.workers),
        "loaders": lambda: loaders(samples, arguments.workers, arguments.peers),
    }
    for name, part in parts.items():
        if arguments.only in (None, name):
            print(json.dumps({"part": name, "load": os.getloadavg(), **part()}), flush=True)


def steps(towers: str, batch: int, rounds: int) -> dict[str, Any]:
    """Samples a second of both, rounds taking turns, so that what else runs meets both alike."""
    import torch

    torch.manual_seed(0)
    jobs = {**our_step(towers, batch), **open_clip_step(towers, batch)}
    for job in jobs.values():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            began = time.process_time()
            job()
            seconds[name].append(time.process_time() - began)
    rates = {name: round(batch / median(times), 2) for name, times in seconds.items()}
    ratios = {kind: round(rates[f"ours_{kind}"] / rates[f"open_clip_{kind}"], 3) for kind in ("step", "bare")}
    about = {"towers": towers, "batch": batch, "rounds": rounds, "threads": torch.get_num_threads()}
    return {**about, "samples_per_cpu_s": rates, "times_open_clip": ratios}


def our_step(towers: str, batch: int) -> dict[str, Callable[[], object]]:
    """A step as the loop takes it, and its forward and backward alone."""
    import torch

    from mmdata.train.batch import Batch, Inputs
    from mmdata.train.config import TrainConfig
    from mmdata.train.log import TrainLog
    from mmdata.train.loop import Trainer
    from mmdata.train.model.fused import FusedModel
    from mmdata.train.model.towers import Limits
    from mmdata.train.stages import make_stages, settle_modes

    (side, patch, *image), text, dimensions = TOWERS[towers]
    shape = dict(zip(("width", "depth", "heads"), text, strict=True))
    config = TrainConfig.model_validate(
        {
            "data": {
                "shards": "-", "modalities": {"text": ["t"], "image": ["i"]}, "image_side_px": side,
                "text_max_tokens": TOKENS,
            },
            "model": {
                "image": dict(zip(("width", "depth", "heads"), image, strict=True)), "text": shape,
                "fusion": {"width": dimensions, "heads": 4, "depth": 1}, "embed_dim": dimensions, "patch_px": patch,
            },
            "loss": {"fusion": 0}, "optim": {"batch_size": batch}, "steps": 1000, "device": "cpu", "output": "-",
        }
    )  # fmt: skip
    model = FusedModel(config.architecture(), ("text", "image"), Limits(VOCABULARY, TOKENS, side, 1.0))
    trainer = Trainer(config, model, make_stages(config, batch, batch, {"": 1.0})[0], 0, 1000)
    settle_modes(model)
    rows = torch.arange(batch)
    data = Batch(
        rows,
        torch.ones(batch, 2, dtype=torch.bool),
        rows[:, None] + 1,
        {
            "text": Inputs(rows, torch.randint(3, VOCABULARY, (batch, TOKENS)), torch.full((batch,), TOKENS)),
            "image": Inputs(rows, *pixels(batch, side)),
        },
    )
    log = TrainLog(Path(tempfile.mkdtemp()), lambda _: None, 0)

    def bare() -> None:
        model.zero_grad(set_to_none=True)
        trainer._losses(data)[0].backward()

    return {"ours_step": lambda: trainer._step(data, log, False), "ours_bare": bare}


def pixels(batch: int, side: int) -> tuple[Any, Any]:
    """Noise, and its width."""
    import torch

    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8), torch.full((batch,), side)


def open_clip_step(towers: str, batch: int) -> dict[str, Callable[[], object]]:
    """What `train_one_epoch` of open_clip does with a batch, and its forward and backward alone."""
    import open_clip
    import torch
    from open_clip.loss import ClipLoss

    (side, patch, width, depth, heads), text, dimensions = TOWERS[towers]
    vision = {"image_size": side, "layers": depth, "width": width, "head_width": width // heads, "patch_size": patch}
    language = {
        "context_length": TOKENS, "vocab_size": VOCABULARY, "width": text[0], "layers": text[1], "heads": text[2]
    }  # fmt: skip
    model = open_clip.CLIP(dimensions, vision, language, output_dict=True).train()
    matrices = [part for part in model.parameters() if part.ndim > 1]
    others = [part for part in model.parameters() if part.ndim <= 1]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
    images, texts = pixels(batch, side)[0].float() / 127.5 - 1, torch.randint(3, VOCABULARY - 1, (batch, TOKENS))
    texts[:, -1] = VOCABULARY - 1
    loss = ClipLoss()

    def bare() -> None:
        optimizer.zero_grad()
        found = loss(**model(images, texts), output_dict=True)
        sum(found.values()).backward()

    def step() -> None:
        bare()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=2.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))

    return {"open_clip_step": step, "open_clip_bare": bare}


def waiting(samples: int, workers: int) -> dict[str, Any]:
    """A training of one epoch on pictures of 256 px; what `mmdata train` says of it."""
    import yaml

    from mmdata.train.run import train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards", samples)
        config = {
            "data": {"shards": str(folder / "shards"), "modalities": {"text": ["caption"], "image": ["image"]}},
            "model": {"size": "small"},
            "optim": {"batch_size": 64, "warmup": 2},
            "steps": samples // 64,
            "device": "cpu", "threads": 1, "workers": workers, "cache_mib": 0, "log_every": 1000,
            "output": f"{folder}/run",
        }  # fmt: skip
        (folder / "t.yaml").write_text(yaml.safe_dump(config))
        found = train(folder / "t.yaml", [], None, lambda _: None)
    rate = round(64 * found["step"] / found["seconds"], 1)
    return {"goal": 0.02, "wait_share": found["wait_share"], "samples_per_s": rate, "workers": workers}


def write_shards(folder: Path, samples: int) -> None:
    """Shards of pictures and captions as a build writes them, 500 a shard, a twentieth of them held out."""
    import io
    import tarfile

    folder.mkdir()
    splits: dict[str, Any] = {"train": range(samples), "val": range(samples, samples + max(20, samples // 20))}
    manifest: dict[str, Any] = {
        "format": "mmdata-shards", "version": 1, "splits": {},
        "members": {
            "image": {"modality": "image", "fields": ["jpg"]}, "caption": {"modality": "text", "fields": ["txt"]}
        },
    }  # fmt: skip
    for split, numbers in splits.items():
        shards = []
        for at in range(0, len(numbers), 500):
            path = folder / f"{split}-{at // 500:06d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for number in numbers[at : at + 500]:
                    jpeg, caption = picture(number)
                    for ending, data in (("json", b'{"key": "%d"}' % number), ("jpg", jpeg), ("txt", caption)):
                        info = tarfile.TarInfo(f"{number:032d}.{ending}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
            shards.append({"path": path.name, "samples": len(numbers[at : at + 500]), "bytes": path.stat().st_size})
        manifest["splits"][split] = {"samples": len(numbers), "shards": shards}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def picture(number: int) -> tuple[bytes, bytes]:
    """A JPEG of 256 px of about 20 kB, and its caption."""
    import io

    from PIL import Image

    coarse = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((256, 256), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), f"a picture of noise, number {number}".encode()


def loaders(samples: int, workers: int, peers: str) -> dict[str, Any]:
    """Samples a second and a CPU-second of each loader that is there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards", samples)
        found: dict[str, Any] = {"mmdata": measured(sys.executable, "mmdata", folder, workers)}
        found |= {peer: measured(peers, peer, folder, workers) for peer in PEERS}
    return {"samples": samples, "workers": workers, "loaders": found}


def measured(python: str, loader: str, folder: Path, workers: int) -> Any:
    """What a loader, in a process of its own, says of itself."""
    command = [python, str(HERE / "train_peers" / "loaders.py"), loader, str(folder), str(workers)]
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths if python == sys.executable else paths[:0])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return f"not measured: {(done.stderr.strip().splitlines() or ['no reason'])[-1][:200]}"
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
