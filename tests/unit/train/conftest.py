"""Small shards, drawn and sounded here: coloured shapes, their captions, and a tone for each colour."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image, ImageDraw

COLOURS = {"red": "#e02020", "green": "#20b020", "blue": "#2040e0", "yellow": "#e0d020", "black": "#000000"}
SHAPES = ("circle", "square", "triangle", "bar", "ring")

Files = dict[str, bytes]
WriteShards = Callable[..., Path]


def png(colour: str, shape: str, at: int = 0) -> bytes:
    image = Image.new("RGB", (48, 48), "white")
    draw, box = ImageDraw.Draw(image), (8 + at, 8, 36 + at, 36)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    elif shape == "triangle":
        draw.polygon([(8 + at, 36), (36 + at, 36), (22 + at, 8)], fill=COLOURS[colour])
    elif shape == "bar":
        draw.rectangle((8 + at, 20, 36 + at, 26), fill=COLOURS[colour])
    else:
        draw.ellipse(box, outline=COLOURS[colour], width=5)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def tone(frequency_hz: float, seconds: float = 0.4, rate_hz: int = 16_000) -> bytes:
    time_T = np.arange(int(seconds * rate_hz)) / rate_hz
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.4 * np.sin(2 * np.pi * frequency_hz * time_T), rate_hz, format="OGG", subtype="VORBIS")
    return buffer.getvalue()


def pitch(colour: str, shape: str) -> float:
    return 250.0 * 1.13 ** (list(COLOURS).index(colour) * len(SHAPES) + SHAPES.index(shape))


def shapes(count: int, seed: int) -> list[Files]:
    """Samples of all three modalities; each has its own caption, up to a number."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        files = {
            "png": png(colour, shape, int(rng.integers(-6, 7))),
            "txt": f"a {colour} {shape}".encode(),
            "tone.ogg": tone(pitch(colour, shape), float(rng.uniform(0.2, 0.4))),
        }
        samples.append(files if number % 5 else {"png": files["png"], "txt": files["txt"]})
    return samples


@pytest.fixture(name="shapes")
def shapes_fixture() -> Callable[[int, int], list[Files]]:
    return shapes


def write_tar(path: Path, samples: list[Files], first: int = 0) -> list[str]:
    ids = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, files in enumerate(samples, start=first):
            sample_id = hashlib.sha256(f"{path.stem}{number}".encode()).hexdigest()[:32]
            record = json.dumps({"sample_id": sample_id, "key": f"key-{number}"}).encode()
            for ending, data in {"json": record, **files}.items():
                info = tarfile.TarInfo(f"{sample_id}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            ids.append(sample_id)
    return ids


MEMBERS = {
    "image": {"modality": "image", "fields": ["png"]},
    "caption": {"modality": "text", "fields": ["txt"]},
    "caption_fr": {"modality": "text", "fields": ["caption_fr.txt"]},
    "tone": {"modality": "audio", "fields": ["tone.ogg"]},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a machine that does much else, threads that wait for each other cost more than these small models."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write_shards(tmp_path: Path) -> WriteShards:
    """Write `{split: [samples of a shard, ...]}` and the manifest; gives the folder."""

    def write(splits: dict[str, list[list[Files]]]) -> Path:
        folder = tmp_path / "shards"
        folder.mkdir(exist_ok=True)
        manifest = {"format": "mmdata-shards", "version": 1, "name": "shapes", "members": MEMBERS, "splits": {}}
        for split, shards in splits.items():
            entries = []
            for number, samples in enumerate(shards):
                path = folder / f"{split}-{number:06d}.tar"
                write_tar(path, samples, first=1000 * number)
                entries.append({"path": path.name, "samples": len(samples), "bytes": path.stat().st_size})
            manifest["splits"][split] = {"samples": sum(len(s) for s in shards), "shards": entries}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return write


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Write a training file for shards of shapes, small and on the CPU; keyword arguments replace its top keys."""

    def write(shards: Path, **changes: object) -> Path:
        content = {
            "data": {
                "shards": str(shards),
                "modalities": {"image": ["image"], "text": ["caption"], "audio": ["tone"]},
                "image_side_px": 32,
                "audio_max_s": 0.5,
                "text_max_tokens": 12,
                "vocab_size": 400,
            },
            "model": {
                "text": {"width": 32, "depth": 1},
                "image": {"width": 32, "depth": 1},
                "audio": {"width": 32},
                "fusion": {"width": 32, "latents": 2},
                "embed_dim": 32,
                "patch_px": 8,
            },
            "optim": {"batch_size": 8, "warmup": 2, "lr": 0.002},
            "steps": 6,
            "device": "cpu",
            "workers": 0,
            "log_every": 1,
            "output": str(tmp_path / "run"),
        }
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}))
        return path

    return write


@pytest.fixture
def shape_shards(write_shards: WriteShards) -> Path:
    """24 samples to train on in two shards, 12 to measure on."""
    return write_shards({"train": [shapes(12, 0), shapes(12, 1)], "val": [shapes(12, 2)]})
