from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmdata.train.run import train


@pytest.mark.slow
def test_training_finds_held_out_partners(write_shards: Callable[..., Path], write_config, shapes, tmp_path):
    """Held-out pictures, captions and tones find each other; before training, they do not."""
    shards = write_shards({"train": [shapes(300, 0)], "val": [shapes(60, 1)]})
    path = write_config(shards)
    overrides = ["optim.batch_size=32", "optim.lr=0.004", "log_every=50", "eval_ks=[1]"]
    result = train(path, [*overrides, "steps=260", "optim.warmup=20"], tmp_path / "trained", None)
    fresh = train(path, [*overrides, "steps=3", "optim.lr=0.0000001"], tmp_path / "fresh", None)
    for direction, values in result["metrics"].items():
        value, chance = values["recall@1"]["value"], values["recall@1"]["chance"]
        assert chance < 0.15, direction
        assert value > 0.3 + chance, (direction, result["metrics"])
        assert fresh["metrics"][direction]["recall@1"]["value"] < 0.3, direction
