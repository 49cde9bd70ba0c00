"""Does joint augmentation keep captions true, and does it matter? Beside the same operators without their meaning.

Canvases of a drawing in one of four colours, on one of two sides: "a red crab on the left". Drawings are Tux Paint's
stamps, and clip-art of Debian's package; for each thing one colour is held out. Children go through HorizontalFlip and
HueSaturationValue of albumentations and `synonyms` of nlpaug. `joint` is mmdata; `naive` is the same policy with the
same draws and its meaning switched off: texts know nothing of pictures, and no word is protected.

Two measures. An oracle of rules (what is on which side and in which colour follows from pixels) says whether a child's
caption is wrong. And a small two-tower network, trained on each for equal steps, chooses for held-out canvases between
the true caption and its twin, with the other side or with another colour (chance 0.5), and among all.

Usage: python benchmarks/augment_truth.py [--stamps FOLDER] [--clipart FOLDER] [--steps N] [--seeds N]. The last line is
one JSON object. Shapes: N canvases, E epochs, L words, D features.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from PIL import Image

COLOURS = {"red": (205, 35, 35), "yellow": (215, 190, 20), "green": (40, 160, 60), "blue": (45, 80, 215)}
SIDE_PX = 48
MODEL_SIDE_PX = 32
EPOCHS = 3
APPLY = [
    {"HorizontalFlip": {"p": 0.5}},
    {"HueSaturationValue": {"hue_shift_limit": [25, 90], "sat_shift_limit": 0, "val_shift_limit": 0, "p": 0.3}},
    {"synonyms": {"rate": 0.3, "p": 0.3}},
]
_SIDES = re.compile(r"\b(left|right)\b")
_COLOURS = re.compile(rf"\b({'|'.join(COLOURS)})\b")
# Cosine of what makes two colours differ from grey; those of `COLOURS` are below 0.75 to each other.
_SAME_COLOUR = 0.9
# Of the darkest channel: what is less is no ground.
_DRAWN = 200


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, help="folder of the stamps (`mmdata fetch stamps`)")
    parser.add_argument("--clipart", type=Path, help="folder of the clip-art (`mmdata fetch clipart`)")
    parser.add_argument("--things", type=int, default=12)
    parser.add_argument("--of-each", type=int, default=4, help="canvases of each thing, colour and side")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    began = time.process_time()
    found: dict[str, Any] = {"steps": arguments.steps, "seeds": arguments.seeds}
    for name, read in (("stamps", stamps), ("clipart", clipart)):
        source = getattr(arguments, name)
        if source is None:
            continue
        things = dict(itertools.islice(read(source), arguments.things))
        with tempfile.TemporaryDirectory() as folder:
            found[name] = compared(Path(folder), things, arguments)
    print(json.dumps({**found, "cpu_s": round(time.process_time() - began)}))


def compared(folder: Path, things: dict[str, Image.Image], arguments: argparse.Namespace) -> dict[str, Any]:
    """Both measures for canvases of some things."""
    canvases = list(draw_canvases(things, arguments.of_each))
    train, held = ([one for one in canvases if one.held is held] for held in (False, True))
    found: dict[str, Any] = {"things": sorted(things), "train": len(train), "held_out": len(held)}
    shards = build(folder, train)
    for kind in ("none", "naive", "joint"):
        children = Children(shards, kind)
        runs = [trained(children, held, seed, arguments.steps) for seed in range(arguments.seeds)]
        found[kind] = {**children.judged(), **summary(runs)}
        print(kind, json.dumps(found[kind]), flush=True)
    return found


# --- canvases --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Canvas:
    """A picture, what is true of it, and whether it is held out."""

    picture: Image.Image
    thing: str
    colour: str
    side: str
    held: bool

    @property
    def caption(self) -> str:
        """What is said of it."""
        return f"{article(self.colour)} {self.thing} on the {self.side}"


def draw_canvases(things: dict[str, Image.Image], of_each: int) -> Iterator[Canvas]:
    """Every thing in every colour on both sides; of each thing one colour is held out."""
    chance = random.Random(0)
    for thing in sorted(things):
        held = chance.choice(sorted(COLOURS))
        for colour, side in itertools.product(COLOURS, ("left", "right")):
            for _ in range(of_each):
                picture = placed(tinted(things[thing], COLOURS[colour]), side, chance)
                yield Canvas(picture, thing, colour, side, colour == held)


def tinted(drawing: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """In one colour, darker where the drawing is."""
    light_HW1 = 0.35 + 0.65 * np.asarray(drawing.convert("L"), np.float32)[..., None] / 255
    rgb_HWC = (light_HW1 * np.array(colour, np.float32)).astype(np.uint8)
    made = Image.fromarray(rgb_HWC)
    made.putalpha(drawing.getchannel("A"))
    return made


def placed(drawing: Image.Image, side: str, chance: random.Random) -> Image.Image:
    """In one half of a white square, a little moved and scaled."""
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
    half, longest = SIDE_PX // 2, chance.randint(16, 22)
    small = drawing.copy()
    small.thumbnail((longest, longest))
    x = (half if side == "right" else 0) + chance.randint(1, half - small.width - 1)
    picture.paste(small, (x, chance.randint(2, SIDE_PX - small.height - 2)), small)
    return picture


def article(word: str) -> str:
    """With "a" or "an"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def stamps(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Animals whose caption is one plain noun, in the order of the names."""
    found: dict[str, Path] = {}
    for path in sorted((folder / "animals").rglob("*.png")):
        text = path.with_suffix(".txt")
        words = text.read_text(encoding="utf-8").splitlines()[0].strip(" .!").lower().split() if text.exists() else []
        words = words[1:] if words and words[0] in {"a", "an", "the"} else words
        if len(words) == 1 and words[0].isalpha():
            found.setdefault(words[0], path)
    yield from drawings(found)


def clipart(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Clip-art of animals and food whose title is one plain noun."""
    found: dict[str, Path] = {}
    with (folder / "clipart.csv").open(encoding="utf-8", newline="") as file:
        for path, title, *_ in sorted(csv.reader(file)):
            if path.startswith(("animals/", "food/")) and title.isalpha():
                found.setdefault(title.lower(), folder / path)
    yield from drawings(found)


def drawings(found: dict[str, Path]) -> Iterator[tuple[str, Image.Image]]:
    """Those that have a shape: neither all transparent nor a full rectangle."""
    for name, path in sorted(found.items()):
        with Image.open(path) as image:
            if image.width * image.height > 4_000_000:
                continue
            drawing = image.convert("RGBA")
        drawing.thumbnail((64, 64))
        covered = float((np.asarray(drawing)[..., 3] > 127).mean())
        if 0.15 < covered < 0.85:
            yield name, drawing.crop(drawing.getbbox())


# --- children --------------------------------------------------------------------------------------------------------


def build(folder: Path, canvases: Sequence[Canvas]) -> Path:
    """Shards of a build whose policy a loader applies."""
    (folder / "media").mkdir()
    for number, canvas in enumerate(canvases):
        canvas.picture.save(folder / "media" / f"{number:05d}.png")
        (folder / "media" / f"{number:05d}.txt").write_text(canvas.caption)
    members = {"image": "{stem}.png", "caption": {"path": "{stem}.txt", "lang": "en"}}
    spec = {
        "name": "truth",
        "sources": [{"files": {"root": str(folder / "media"), "members": members}}],
        "augment": [{"joint": {"apply": APPLY, "mode": "online"}}],
        "engine": {"workers": 1},
    }
    from mmdata.engine.build import build as run
    from mmdata.engine.events import reporter
    from mmdata.plan import plan_to_build

    (folder / "p.yaml").write_text(yaml.safe_dump(spec))
    with plan_to_build(folder / "p.yaml", [], folder / "out") as plan:
        run(plan, reporter(as_json=True))
    return folder / "out" / "shards"


@contextmanager
def meaning(kind: str) -> Iterator[None]:
    """`naive`: every text stays as it is, and no word of it is protected."""
    if kind != "naive":
        yield
        return
    untouched = mock.patch("mmdata.augment.meaning.rewrite", side_effect=lambda text, *_: text)
    with untouched, mock.patch("mmdata.augment.text.protected", return_value=[]):
        yield


class Children:
    """What a loader gives of each canvas, an epoch after the other.

    Attributes:
        image_ENHWC: uint8, of the side that the network sees.
        texts_EN: captions.
        number_N: the canvas of each row.
        made_EN: whether it is a child; else the canvas as it is.
    """

    def __init__(self, shards: Path, kind: str) -> None:
        """`none`: one epoch, as it is."""
        from mmdata.train.manifest import open_folder
        from mmdata.train.online import online_augment
        from mmdata.train.shards import ShardReader, index_split

        folder = open_folder(shards)
        index = index_split(folder, "train", list(folder.manifest.members))
        online, reader = online_augment(folder, index, 1 << 24), ShardReader(index, 1 << 24)
        assert online is not None
        self.number_N = [int(reader.key(row)) for row in range(len(index))]
        seen: list[list[tuple[np.ndarray, str, bool]]] = []
        with meaning(kind):
            for epoch in range(EPOCHS if kind != "none" else 1):
                seen.append([])
                for row in range(len(index)):
                    child = online.child(epoch, row) if kind != "none" else None
                    data = child or {name: reader.read(row, name) for name in ("image", "caption")}
                    seen[-1].append((pixels(data["image"]), data["caption"].decode(), child is not None))
        self.full_EN = [[one[0] for one in epoch] for epoch in seen]
        self.image_ENHWC = np.stack([np.stack([shrunk(one[0]) for one in epoch]) for epoch in seen])
        self.texts_EN = [[one[1] for one in epoch] for epoch in seen]
        self.made_EN = [[one[2] for one in epoch] for epoch in seen]

    def judged(self) -> dict[str, Any]:
        """How many children there are, and how many captions are wrong."""
        verdicts = [
            verdict(self.full_EN[epoch][row], self.texts_EN[epoch][row])
            for epoch, made_N in enumerate(self.made_EN)
            for row, made in enumerate(made_N)
            if made
        ]
        share = {
            name: round(100 * verdicts.count(name) / max(1, len(verdicts)), 1) for name in ("true", "wrong", "unclear")
        }
        return {"children": len(verdicts), "percent": share}


def pixels(data: bytes) -> np.ndarray:
    """uint8 `[H, W, 3]`."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def shrunk(rgb_HWC: np.ndarray) -> np.ndarray:
    """As the network sees it."""
    return np.asarray(Image.fromarray(rgb_HWC).resize((MODEL_SIDE_PX, MODEL_SIDE_PX), Image.Resampling.BILINEAR))


def verdict(child_HWC: np.ndarray, caption: str) -> str:
    """The oracle: `true`, `wrong` where the side or the colour is another, `unclear` where a word is no longer there.

    A thing may have another name: a synonym is no error.
    """
    drawn_W = (child_HWC.min(axis=2) < _DRAWN).sum(axis=0)
    half = SIDE_PX // 2
    side = "left" if drawn_W[:half].sum() > drawn_W[half:].sum() else "right"
    said_sides, said_colours = _SIDES.findall(caption), _COLOURS.findall(caption)
    if set(said_sides) - {side} or set(said_colours) - {colour_of(child_HWC)}:
        return "wrong"
    return "true" if said_sides and said_colours else "unclear"


def colour_of(rgb_HWC: np.ndarray) -> str | None:
    """The nearest of the colours, by what makes it differ from grey; None where none is near."""
    drawn_NC = rgb_HWC.reshape(-1, 3).astype(np.float64)
    drawn_NC = drawn_NC[drawn_NC.min(axis=1) < _DRAWN]
    mean_C = drawn_NC.mean(axis=0) if len(drawn_NC) else np.ones(3)
    near = {name: _cosine(mean_C, np.array(rgb, np.float64)) for name, rgb in COLOURS.items()}
    best = max(near, key=lambda name: near[name])
    return best if near[best] >= _SAME_COLOUR else None


def _cosine(one_C: np.ndarray, other_C: np.ndarray) -> float:
    one_C, other_C = one_C - one_C.mean(), other_C - other_C.mean()
    return float(one_C @ other_C / max(1e-9, float(np.linalg.norm(one_C) * np.linalg.norm(other_C))))


# --- the network -----------------------------------------------------------------------------------------------------


def trained(children: Children, held: Sequence[Canvas], seed: int, steps: int) -> dict[str, float]:
    """Train two towers by contrast, an epoch of children after the other, and measure on held-out canvases."""
    import torch
    from torch.nn import functional as f

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    words = Words([text for texts in children.texts_EN for text in texts] + [one.caption for one in held])
    image_tower, text_tower = _image_tower(), _TextTower(len(words.number))
    parameters = [*image_tower.parameters(), *text_tower.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    tokens_ENL = np.stack([words.encoded(texts) for texts in children.texts_EN])
    chance = np.random.default_rng(seed)
    count, epochs = len(children.number_N), len(children.texts_EN)
    batch = min(64, count)
    order_N, at, epoch = chance.permutation(count), 0, 0
    for _ in range(steps):
        if at + batch > count:
            order_N, at, epoch = chance.permutation(count), 0, (epoch + 1) % epochs
        rows = order_N[at : at + batch]
        at += batch
        image_ND = f.normalize(image_tower(_as_input(children.image_ENHWC[epoch, rows])), dim=1)
        tokens_NL = torch.from_numpy(tokens_ENL[epoch, rows])
        logits_NN = 15 * image_ND @ f.normalize(text_tower(tokens_NL), dim=1).T
        # An equal text is no wrong one.
        same_NN = (tokens_NL[:, None] == tokens_NL[None]).all(dim=2)
        logits_NN = logits_NN.masked_fill(same_NN & ~torch.eye(batch, dtype=torch.bool), -1e4)
        own_N = torch.arange(batch)
        loss = f.cross_entropy(logits_NN, own_N) + f.cross_entropy(logits_NN.T, own_N)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return _measured(image_tower.eval(), text_tower.eval(), words, held)


def _measured(image_tower: Any, text_tower: Any, words: Words, held: Sequence[Canvas]) -> dict[str, float]:
    import torch
    from torch.nn import functional as f

    def embedded(texts: Sequence[str]) -> Any:
        return f.normalize(text_tower(torch.from_numpy(words.encoded(texts))), dim=1)

    captions = [one.caption for one in held]
    image_ND = f.normalize(image_tower(_as_input(np.stack([shrunk(np.asarray(one.picture)) for one in held]))), dim=1)
    own_N = (image_ND * embedded(captions)).sum(dim=1)
    found = {}
    for name, twin in (("side", other_side), ("colour", other_colour)):
        other_N = (image_ND * embedded([twin(text) for text in captions])).sum(dim=1)
        found[name] = float((own_N > other_N).float().mean())
    every = sorted(set(captions))
    best_N = (image_ND @ embedded(every).T).argmax(dim=1)
    right = [every[int(best)] == caption for best, caption in zip(best_N, captions, strict=True)]
    return {**found, "recall@1": float(np.mean(right)), "chance@1": 1 / len(every)}


def other_side(text: str) -> str:
    """Its mirrored twin."""
    return _SIDES.sub(lambda match: "right" if match[0] == "left" else "left", text)


def other_colour(text: str) -> str:
    """With the next colour; all four take the same article."""
    names = list(COLOURS)
    return _COLOURS.sub(lambda match: names[(names.index(match[0]) + 1) % len(names)], text)


class Words:
    """A number for each word; texts become rows of L of them."""

    _LENGTH = 10

    def __init__(self, texts: Sequence[str]) -> None:
        known = sorted({word for text in texts for word in text.lower().split()})
        self.number = {"": 0, **{word: n for n, word in enumerate(known, start=1)}}

    def encoded(self, texts: Sequence[str]) -> np.ndarray:
        """Int64 `[N, L]`."""
        rows = [[self.number[word] for word in text.lower().split()[: self._LENGTH]] for text in texts]
        return np.array([row + [0] * (self._LENGTH - len(row)) for row in rows], np.int64)


def _as_input(image_NHWC: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(image_NHWC.transpose(0, 3, 1, 2))).float() / 127.5 - 1


def _image_tower() -> Any:
    """Three convolutions; their grid of 4 by 4 is not averaged away, so that it knows where things are."""
    from torch import nn

    layers: list[Any] = []
    for inside, outside in ((3, 24), (24, 48), (48, 64)):
        layers += [nn.Conv2d(inside, outside, 3, 2, 1), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (MODEL_SIDE_PX // 8) ** 2, 64))


def _TextTower(words: int) -> Any:
    """Two layers of a transformer over words and places; the mean of what they say."""
    import torch
    from torch import nn

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word = nn.Embedding(words, 64)
            self.place = nn.Parameter(0.02 * torch.randn(Words._LENGTH, 64))
            layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.out = nn.Linear(64, 64)

        def forward(self, tokens_NL: Any) -> Any:
            read_NLD = self.layers(self.word(tokens_NL) + self.place)
            there_NL1 = (tokens_NL > 0).unsqueeze(2)
            return self.out((read_NLD * there_NL1).sum(dim=1) / there_NL1.sum(dim=1))

    return Tower()


def summary(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean of each measure, and a 95 % interval by Student's t over the seeds."""
    from scipy import stats

    found = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
        found[name] = {"mean": round(float(np.mean(values)), 4), "half_width": round(float(half), 4)}
    return found


if __name__ == "__main__":
    main()
