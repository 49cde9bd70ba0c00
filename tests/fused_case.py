"""A fused model small enough to overfit in seconds, and samples for it that have nothing in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from mmdata.train.batch import Batch, Collate, Example, Space
from mmdata.train.dice import Dice
from mmdata.train.losses.config import LossConfig
from mmdata.train.losses.objective import Objective
from mmdata.train.model.fused import FusedModel
from mmdata.train.model.sizes import ModelConfig
from mmdata.train.model.towers import Limits

NAMES = ("text", "image", "audio")
LIMITS = Limits(64, 10, 16, 0.3)
# No other term than the one that a test asks for.
OFF = {"pair": 0.0, "fusion": 0.0, "modality_dropout": 0.0}

SHAPE: dict[str, Any] = {
    "text": {"width": 32, "depth": 1},
    "image": {"width": 32, "depth": 1},
    "audio": {"width": 32},
    "video": {"width": 32, "depth": 1},
    "tensor": {"width": 32},
    "fusion": {"width": 32, "depth": 1, "latents": 4},
    "embed_dim": 32,
    "patch_px": 4,
    "text_decoder": {"width": 64, "depth": 1},
    "image_decoder": {"width": 64, "depth": 2, "side_px": 16, "patch_px": 4},
    "audio_decoder": {"width": 64, "depth": 2, "max_s": 0.3, "patch_frames": 5},
}


def make_model(
    loss: LossConfig,
    names: Sequence[str] = NAMES,
    limits: Limits = LIMITS,
    mimicked: Mapping[str, Space] = MappingProxyType({}),
    **changes: Any,
) -> FusedModel:
    torch.manual_seed(0)
    architecture = ModelConfig(**{**SHAPE, **changes}).architecture([loss])
    return FusedModel(architecture, tuple(names), limits, mimicked)


def example(row: int, names: Sequence[str] = NAMES) -> Example:
    """A text of some tokens, sixteen patches each of one colour, and a tone."""
    rng = np.random.default_rng(row)
    time_T = np.arange(4800) / 16_000
    colours = rng.integers(0, 256, (3, 4, 4), dtype=np.uint8)
    values = {
        "text": np.array([1, *rng.integers(3, 64, int(rng.integers(3, 8))), 2]),
        "image": colours.repeat(4, axis=1).repeat(4, axis=2),
        "audio": (8000 * np.sin(2 * np.pi * 300 * (row + 1) * time_T)).astype(np.int16),
    }
    return Example(row, {name: values[name] for name in names}, (row + 1,))


def batch_of(examples: Sequence[Example], names: Sequence[str] = NAMES, copies: int = 1) -> Batch:
    """Some examples; copies count as samples of their own, which draw their own noise."""
    rows = [replace(one, row=one.row + 1000 * copy) for copy in range(copies) for one in examples]
    return Collate(tuple(names))(rows)


def fit(model: FusedModel, loss: LossConfig, batch: Batch, steps: int, lr: float = 4e-3) -> list[dict[str, float]]:
    """Train on one batch; gives each step's terms."""
    objective, optimizer = Objective(model, loss), torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []
    model.train()
    for step in range(steps):
        total, terms = objective(batch, Dice.of(0, step, batch.row_B))
        assert total is not None
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        history.append({name: term.item() for name, term in terms.items()})
    model.eval()
    return history


def latents_of(model: FusedModel, batch: Batch, hidden: str = "") -> torch.Tensor:
    """What the fusion makes of all modalities but one. Shape (B, Q, W)."""
    visible = torch.tensor([name != hidden for name in model.modalities]).expand(1, len(batch), -1)
    with torch.no_grad():
        return model.latents(model.encode(batch), visible)[0]
