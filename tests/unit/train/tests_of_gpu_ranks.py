"""What `test_train_on_gpu` runs on a rank of its own."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import torch
from accelerator import DEVICE
from fused_case import NAMES, batch_of, example, make_model
from torch import distributed as dist

from mmdata.train import checkpoint, parallel
from mmdata.train.checkpoint import Parts, Progress
from mmdata.train.config import OptimConfig
from mmdata.train.dice import Dice
from mmdata.train.launch import process_group, rank_device, whole
from mmdata.train.loop import make_optimizer
from mmdata.train.losses.config import LossConfig
from mmdata.train.losses.objective import Objective

LOSS = LossConfig(masked=1)


def on_one_rank(strategy: str, folder: str) -> None:
    """Write, as JSON, how a wrapped step differs from a bare one, and whether a checkpoint gives its weights back."""
    device = rank_device(DEVICE.type)
    torch.backends.cudnn.allow_tf32 = False
    with mock.patch.dict("os.environ", {"WORLD_SIZE": "2"}), mock.patch.object(dist, "init_process_group", _alone):
        group = process_group(device)
        group.__enter__()
    batch = batch_of([example(row) for row in range(8)]).to(device)
    plain = make_model(LOSS, NAMES).to(device)
    plain_loss, _ = parallel.LossModule(Objective(plain, LOSS))(batch, Dice.of(0, 1, batch.row_B))
    plain_loss.backward()
    model = make_model(LOSS, NAMES).to(device)
    with mock.patch.object(parallel, "world_size", return_value=2):
        module = parallel.wrapped(parallel.LossModule(Objective(model, LOSS)), strategy)
    optimizer = make_optimizer(model, OptimConfig())
    loss, _ = module(batch, Dice.of(0, 1, batch.row_B))
    loss.backward()
    gradients = {name: whole(part.grad) for name, part in model.named_parameters() if part.grad is not None}
    worst = max(
        float((gradients[name] - part.grad).abs().max() / part.grad.abs().max().clamp(min=1))
        for name, part in plain.named_parameters()
        if part.grad is not None
    )
    norm = parallel.clip_gradients(model, 1.0)
    optimizer.step()
    parts = Parts(model, optimizer, None)
    saved = checkpoint.save(Path(folder), Progress(step=1), 0, parts, {}, 1)
    kept = {name: whole(part).clone() for name, part in model.named_parameters()}
    with torch.no_grad():
        for part in model.parameters():
            part.zero_()
    checkpoint.restore(saved, parts, optimizer=True)
    restored = all(torch.equal(kept[name], whole(part)) for name, part in model.named_parameters())
    dist.barrier()
    found = {"loss": float(loss), "plain_loss": float(plain_loss), "worst_gradient": worst, "restored": restored}
    found |= {"norm": norm, "backend": dist.get_backend()}
    (Path(folder) / "found.json").write_text(json.dumps(found))
    group.__exit__(None, None, None)


_init = dist.init_process_group


def _alone(**arguments: object) -> None:
    """The same group, of the one rank that there is."""
    _init(**arguments, rank=0, world_size=1)
