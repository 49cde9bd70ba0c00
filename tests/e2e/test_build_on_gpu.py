"""A build on an accelerator scores as one on the processor does."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import open_clip
import pytest
import torch
import yaml
from accelerator import DEVICE, ON_ACCELERATOR, Record
from conftest import RunCli
from safetensors.torch import save_file

pytestmark = [*ON_ACCELERATOR, pytest.mark.slow]

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}


def write_model(folder: Path) -> None:
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CLIP(**SMALL)
    state = {
        name: (tensor + torch.randn_like(tensor) * 0.05).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": SMALL, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def scores(build: Path) -> dict[str, float]:
    with duckdb.connect(str(build / "catalog.duckdb"), read_only=True) as catalog:
        return dict(catalog.sql("SELECT sample_id, score FROM scores").fetchall())


def test_a_build_scores_as_on_the_processor(run_cli: RunCli, tmp_path: Path, record_property: Record):
    write_model(tmp_path / "model")
    run_cli("demo-data", tmp_path / "media", "--count", "150", "--seed", "1")
    members = {"image": "{stem}.png", "caption": {"path": "{stem}.txt", "lang": "en"}}
    pipeline = {
        "name": "scenes",
        "sources": [{"files": {"root": str(tmp_path / "media"), "members": members}}],
        "align": [{"clip": {"model": str(tmp_path / "model"), "image": "image", "text": "caption"}}],
    }
    (tmp_path / "scenes.yaml").write_text(yaml.safe_dump(pipeline))
    found = []
    for number, device in enumerate(("cpu", DEVICE.type)):
        folder = tmp_path / str(number)
        run_cli("build", "scenes.yaml", "--output", folder, "--set", f"engine.device={device}")
        found.append(scores(folder))
    assert found[0].keys() == found[1].keys()
    gap = max(abs(found[0][key] - found[1][key]) for key in found[0])
    record_property("largest gap of cosines", gap)
    assert gap < 0.02
    assert np.std(list(found[0].values())) > 0.01
