"""Vectors of an aligner beside the shards, from the build to a batch of the trainer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdata.models.clip_weights import locate

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
TRAINING = """
data:
  shards: out/shards
  modalities: {image: [image], text: [caption]}
  teachers: {image: clip.image, text: clip.caption}
  image_side_px: 32
model: {text: {width: 32, depth: 1}, image: {width: 32, depth: 1}, fusion: {width: 32}, embed_dim: 16}
optim: {batch_size: 8, warmup: 1}
loss: {distill: 1}
steps: 3
device: cpu
workers: 0
output: run
"""


@pytest.fixture
def tiny_clip(tmp_path: Path) -> Path:
    """A CLIP of random weights, as an open_clip folder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "tiny"
    path.mkdir()
    torch.manual_seed(0)
    weights = {name: value.contiguous() for name, value in open_clip.CLIP(**SMALL).state_dict().items()}
    save_file(weights, path / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "longest", "fill_color": 255}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": preprocess}))
    return path


def draw(media: Path, count: int) -> None:
    for number in range(count):
        colour = tuple(int(v) for v in np.random.default_rng(number).integers(0, 256, 3))
        Image.new("RGB", (24, 24), colour).save(media / f"{number:02d}.png")
        (media / f"{number:02d}.txt").write_text(f"a square of colour {number}")


@pytest.mark.slow
def test_a_build_writes_vectors_beside_its_shards_and_training_reads_them(cli, tiny_clip: Path, shard_digests):
    draw(cli.folder / "media", 24)
    blocks = {
        "align": [{"clip": {"model": str(tiny_clip), "image": "image", "text": "caption"}}],
        "augment": [{"joint": {"name": "flip", "apply": ["HorizontalFlip"]}}],
        "curate": [{"splits": {"shares": {"train": 0.7, "val": 0.3}}}],
    }
    cli.spec(**blocks, write=[{"webdataset": {"samples_per_shard": 10}}])
    cli.build()
    plain = shard_digests(cli.folder / "out")
    shards = {"samples_per_shard": 10, "embeddings": ["clip.image", "clip.caption"]}
    cli.spec(**blocks, write=[{"webdataset": shards}])
    cli.build()
    folder = cli.folder / "out" / "shards"
    now = shard_digests(cli.folder / "out")
    assert {name: now[name] for name in plain if name.endswith(".tar")} == {
        name: digest for name, digest in plain.items() if name.endswith(".tar")
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = {split: about["samples"] for split, about in manifest["splits"].items()}
    assert manifest["embeddings"] == {
        name: {"dim": 16, "suffix": f".{name}.npy", "samples": counts, "space": locate(str(tiny_clip), None).identity}
        for name in ("clip.image", "clip.caption")
    }
    stored = {
        (row["sample_id"], row["member"]): row["vector"]
        for row in cli.query("SELECT sample_id, member, vector FROM embeddings")
    }
    parents = {row["sample_id"]: row["parent_id"] for row in cli.query("SELECT sample_id, parent_id FROM samples")}
    checked = 0
    for shard in (one["path"] for split in manifest["splits"].values() for one in split["shards"]):
        order = cli.query(f"SELECT sample_id FROM read_parquet('{folder}/{shard[:-4]}.index.parquet') WHERE name = ''")
        for member in ("image", "caption"):
            vector_ND = np.load(folder / f"{shard[:-4]}.clip.{member}.npy")
            for vector_D, sample in zip(vector_ND, (row["sample_id"] for row in order), strict=True):
                own = stored.get((sample, member), stored.get((parents[sample], member)))
                assert np.allclose(vector_D, own, atol=1e-3)
                checked += 1
    assert checked == 2 * sum(counts.values())
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    cli.build()
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    (cli.folder / "train.yaml").write_text(TRAINING)
    assert "already trained" not in cli.run("train", "train.yaml").stdout
    record = json.loads((cli.folder / "run" / "log.jsonl").read_text().splitlines()[0])
    assert {"distill.text~text", "distill.text~image", "distill.image~image"} <= set(record["losses"])


def test_vectors_that_no_aligner_makes_are_told_with_their_place(cli, tiny_clip: Path):
    draw(cli.folder / "media", 2)
    align = [{"clip": {"model": str(tiny_clip), "image": "image", "text": "caption"}}]
    cli.spec(align=align, write=[{"webdataset": {"embeddings": ["clip.imge"]}}])
    error = cli.run("plan", "pipeline.yaml", code=2).stderr
    assert "no aligner and member 'clip.imge'; did you mean 'clip.image'?" in error
