"""Does joint augmentation keep captions true, and does it matter? Beside the same operators without their meaning.

Canvases of two real stamps (Tux Paint) on a coloured ground, "a crab on the left and an owl on the right, on a red
ground": every pair of things, in both orders, on every ground; pairs are held out whole. Children go through
HorizontalFlip and HueSaturationValue of albumentations and `synonyms` of nlpaug. `joint` is mmdata; `naive` is the same
policy with the same draws and its meaning switched off: texts know nothing of pictures, and no word is protected.

Two measures. An oracle of rules (whether a child was mirrored, and its ground, follow from its pixels) says whether its
Two measures. An oracle of rules (whether a child was mirrored, and its ground, follow from its pixels) says if its
canvas among all of them, where the other order and the other grounds are among the wrong ones.

Usage: python benchmarks/augment_truth.py --stamps FOLDER [--steps N] [--seeds N]. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from PIL import Image

GROUNDS = {"red": (205, 35, 35), "yellow": (235, 215, 40), "green": (40, 160, 60), "blue": (45, 80, 215)}
SIDE_PX = 64
APPLY = [
    {"HorizontalFlip": {"p": 0.5}},
    {"HueSaturationValue": {"hue_shift_limit": [25, 90], "sat_shift_limit": 0, "val_shift_limit": 0, "p": 0.3}},
    {"synonyms": {"rate": 0.3, "p": 0.3}},
]
# Sum of differences of RGB; the grounds lie 280 and more apart.
_SAME_COLOUR = 60


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, help="folder of the stamps (`mmdata fetch stamps`)")
    parser.add_argument("--things", type=int, default=14)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    began = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        canvases = write_canvases(folder / "media", arguments.stamps, arguments.things)
        shards = build(folder)
        found: dict[str, Any] = {"canvases": canvases, "steps": arguments.steps}
        for kind in ("naive", "joint"):
            with meaning(kind):
                found[f"wrong_{kind}"] = wrong_share(folder / "out")
            print(kind, found[f"wrong_{kind}"], flush=True)
        for kind in ("none", "naive", "joint"):
            runs = [trained(folder, shards, kind, seed, arguments.steps) for seed in range(arguments.seeds)]
            found[f"recall_{kind}"] = summary(runs)
            print(kind, found[f"recall_{kind}"], flush=True)
    print(json.dumps({**found, "wall_s": round(time.time() - began)}))


def write_canvases(folder: Path, stamps: Path, things: int) -> dict[str, int]:
    """Every ordered pair of things on every ground; a pair is held out in both orders and on all grounds."""
    folder.mkdir()
    pictures = dict(itertools.islice(named_stamps(stamps), things))
    chance = random.Random(0)
    pairs = list(itertools.combinations(sorted(pictures), 2))
    held = set(chance.sample(pairs, len(pairs) // 5))
    counts = {"train": 0, "val": 0}
    for pair in pairs:
        for (left, right), ground in itertools.product((pair, pair[::-1]), GROUNDS):
            split = "val" if pair in held else "train"
            name = f"{split}-{left}-{right}-{ground}"
            canvas(pictures[left], pictures[right], GROUNDS[ground], chance).save(folder / f"{name}.png")
            text = f"{article(left)} on the left and {article(right)} on the right, on {article(ground)} ground"
            (folder / f"{name}.txt").write_text(text)
            counts[split] += 1
    return counts


def named_stamps(stamps: Path) -> Iterator[tuple[str, Image.Image]]:
    """Stamps whose caption is one plain noun, largest picture first of each name, in the order of the names."""
    found: dict[str, Path] = {}
    for path in sorted((stamps / "animals").rglob("*.png")):
        text = path.with_suffix(".txt")
        words = text.read_text(encoding="utf-8").splitlines()[0].strip(" .!").lower().split() if text.exists() else []
        words = words[1:] if words and words[0] in {"a", "an", "the"} else words
        if len(words) == 1 and words[0].isalpha() and words[0] not in found:
            found[words[0]] = path
    for name, path in sorted(found.items()):
        yield name, Image.open(path).convert("RGBA")


def canvas(left: Image.Image, right: Image.Image, ground: tuple[int, int, int], chance: random.Random) -> Image.Image:
    """Two stamps in the halves of a square, each a little moved and scaled; the corners stay ground."""
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), ground)
    for half, stamp in enumerate((left, right)):
        side = chance.randint(22, 28)
        small = stamp.copy()
        small.thumbnail((side, side))
        x = half * SIDE_PX // 2 + chance.randint(2, SIDE_PX // 2 - small.width - 2)
        y = chance.randint(4, SIDE_PX - small.height - 4)
        picture.paste(small, (x, y), small)
    return picture


def article(noun: str) -> str:
    """With "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def build(folder: Path) -> Path:
    """A build whose policy travels with the shards; canvases keep the split that their name says."""
    members = {"image": "{stem}.png", "caption": {"path": "{stem}.txt", "lang": "en"}}
    spec = {
        "name": "truth",
        "sources": [{"files": {"root": str(folder / "media"), "members": members}}],
        "augment": [{"joint": {"apply": APPLY, "mode": "online"}}],
        "engine": {"workers": 2},
    }
    from mmdata.engine.build import build as run
    from mmdata.engine.events import reporter
    from mmdata.plan import plan_to_build

    (folder / "p.yaml").write_text(yaml.safe_dump(spec))
    with plan_to_build(folder / "p.yaml", [], folder / "out") as plan:
        run(plan, reporter(as_json=True))
    return split_by_name(folder / "out" / "shards")


def split_by_name(shards: Path) -> Path:
    """Shards of one split become two: by the first word of each key."""
    import tarfile

    from mmdata.store.tar import TarWriter

    manifest = json.loads((shards / "manifest.json").read_text())
    (old,) = manifest["splits"]["train"]["shards"]
    files: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shards / old["path"]) as tar:
        for entry in tar:
            content = tar.extractfile(entry)
            assert content is not None
            files.setdefault(entry.name.partition(".")[0], {})[entry.name] = content.read()
    (shards / old["path"]).unlink()
    splits: dict[str, Any] = {}
    for split in ("train", "val"):
        chosen = [one for one in files.values() if f'"key":"{split}-'.encode() in b"".join(one.values())]
        with (shards / f"{split}.tar").open("wb") as file:
            writer = TarWriter(file)
            for one in chosen:
                for name, data in one.items():
                    writer.add(name, data)
            writer.finish()
        entry = {"path": f"{split}.tar", "samples": len(chosen), "bytes": (shards / f"{split}.tar").stat().st_size}
        splits[split] = {"samples": len(chosen), "bytes": entry["bytes"], "shards": [entry]}
    (shards / "manifest.json").write_text(json.dumps({**manifest, "splits": splits}))
    return shards


@contextmanager
def meaning(kind: str) -> Iterator[None]:
    """`naive`: every text stays as it is, and no word of it is protected."""
    if kind != "naive":
        yield
        return
    untouched = mock.patch("mmdata.augment.meaning.rewrite", side_effect=_as_it_is)
    with untouched, mock.patch("mmdata.augment.text.protected", return_value=[]):
        yield


def _as_it_is(text: str, *_: object) -> str:
    return text


def wrong_share(out: Path, children: int = 4) -> dict[str, Any]:
    """Children of the training canvases whose caption is not true of their picture, in per cent."""
    from mmdata.train.manifest import open_folder
    from mmdata.train.online import online_augment
    from mmdata.train.shards import ShardReader, index_split

    folder = open_folder(out / "shards")
    index = index_split(folder, "train", list(folder.manifest.members))
    online, reader = online_augment(folder, index, 1 << 24), ShardReader(index, 1 << 24)
    assert online is not None
    made = wrong = 0
    for row in range(len(index)):
        before = reader.read(row, "caption").decode()
        for epoch in range(children):
            child = online.child(epoch, row)
            if child is None:
                continue
            made += 1
            parent = np.asarray(Image.open(_file(reader.read(row, "image"))))
            wrong += not is_true(
                before, child["caption"].decode(), parent, np.asarray(Image.open(_file(child["image"])))
            )
    return {"children": made, "wrong": wrong, "wrong_percent": round(100 * wrong / made, 1)}


def _file(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


def is_true(before: str, after: str, parent: np.ndarray, child: np.ndarray) -> bool:
    """The oracle: the caption still says which side the first and the second thing is on, and on what ground, rightly.

    Things may have other names: a synonym is no error. Whether the picture was mirrored is seen by its brightness,
    which no other operator of the policy moves about; the colour of the ground by a corner.
    """
    sides = re.findall(r"\b(left|right)\b", before)
    grey, old = child.mean(axis=2), parent.mean(axis=2)
    if np.abs(grey - old[:, ::-1]).mean() < np.abs(grey - old).mean():
        sides = sides[::-1]
    distances = {name: np.abs(child[1, 1].astype(int) - rgb).sum() for name, rgb in GROUNDS.items()}
    ground = min(distances, key=lambda name: distances[name])
    said = re.findall(r"\b(left|right)\b", after), re.findall(rf"\b({'|'.join(GROUNDS)})\b", after)
    return said == (sides, [ground]) and distances[ground] < _SAME_COLOUR


def trained(folder: Path, shards: Path, kind: str, seed: int, steps: int) -> dict[str, float]:
    """Recall of the bundled model on held-out canvases."""
    from mmdata.train.run import train

    config = {
        "data": {
            "shards": str(shards),
            "modalities": {"text": ["caption"], "image": ["image"]},
            "image_side_px": 32,
            "text_max_tokens": 32,
        },
        "optim": {"batch_size": 96, "lr": 0.001, "warmup": max(1, steps // 10)},
        "loss": {"fusion": 0.0},
        "steps": steps,
        "seed": seed,
        "workers": 0,
        "threads": 1,
        "output": str(folder / f"{kind}-{seed}"),
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    online = mock.patch("mmdata.train.session.online_augment", return_value=None) if kind == "none" else meaning(kind)
    with online:
        done = train(path, say=_silently)
    return {name: done["metrics"][name]["recall@1"]["value"] for name in ("text->image", "image->text")}


def _silently(_: str) -> None:
    """Progress is not what is measured."""


def summary(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean of each direction, and a 95 % interval by Student's t over the seeds."""
    from scipy import stats

    found = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
        found[name] = {"mean": round(float(np.mean(values)), 4), "half_width": round(float(half), 4), "runs": values}
    return found


if __name__ == "__main__":
    main()
