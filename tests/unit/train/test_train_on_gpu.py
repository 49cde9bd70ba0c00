"""The trainer on an accelerator: as on the processor in float32, and in bf16 as far as that is exact."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator import DEVICE, ON_ACCELERATOR, Record, least_cosine, needs_cuda
from fused_case import NAMES, batch_of, example, latents_of, make_model
from safetensors.torch import load_file

from mmdata.train.dice import Dice
from mmdata.train.export import load_model
from mmdata.train.losses.config import LossConfig
from mmdata.train.losses.objective import Objective
from mmdata.train.model.generate import Making, make_media, respond, write_texts
from mmdata.train.run import train

pytestmark = ON_ACCELERATOR

ALL = LossConfig(masked=1, caption=1, flow=1, route=1, match=1)
DECODERS = ["text", "image", "audio"]


@pytest.fixture(autouse=True)
def whole_float32() -> Iterator[None]:
    """Convolutions of float32 in float32: cuDNN else rounds their inputs to 10 bits (TF32)."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def everything(device: torch.device, cast: bool = False) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Terms and gradients of all losses, with experts."""
    model = make_model(ALL, NAMES, decoders=DECODERS, moe={"experts": 2, "every": 1}).to(device)
    batch = batch_of([example(row) for row in range(8)]).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=cast):
        loss, terms = Objective(model, ALL)(batch, Dice.of(0, 3, batch.row_B))
    loss.backward()
    gradients = {name: part.grad.cpu() for name, part in model.named_parameters() if part.grad is not None}
    return {name: float(term) for name, term in terms.items()}, gradients


def test_all_terms_and_gradients_are_those_of_the_processor():
    terms, gradients = everything(torch.device("cpu"))
    found, theirs = everything(DEVICE)
    assert found == pytest.approx(terms, rel=1e-4, abs=1e-5)
    worst = {name: float((gradients[name] - theirs[name]).abs().max()) for name in gradients}
    scale = {name: float(part.abs().max()) for name, part in gradients.items()}
    assert not [name for name in worst if worst[name] > 1e-3 * max(scale[name], 1e-2)]


def test_terms_in_half_the_bits_are_near():
    terms, _ = everything(torch.device("cpu"))
    found, gradients = everything(DEVICE, cast=True)
    assert found == pytest.approx(terms, rel=0.1, abs=0.02)
    assert all(part.isfinite().all() for part in gradients.values())


def test_towers_of_all_modalities_run():
    names = ("text", "image", "audio", "video", "tensor")
    model = make_model(LossConfig(), names).to(DEVICE).eval()
    for name in names:
        with torch.no_grad():
            parts = model._run(name, *model.tower(name).blank(DEVICE))
        assert all(part.device.type == DEVICE.type for part in parts)
        assert parts[-1].isfinite().all()


def test_decoders_make_what_they_make_on_the_processor():
    model = make_model(ALL, NAMES, decoders=DECODERS).eval()
    batch = batch_of([example(row) for row in range(4)])
    latents = latents_of(model, batch)
    making, row_N = Making(max_tokens=6, steps=4), torch.arange(4)
    texts, pixels = write_texts(model, latents, making), make_media(model, "image", latents, making, row_N)
    sounds = make_media(model, "audio", latents, making, row_N)
    model, there = model.to(DEVICE), latents.to(DEVICE)
    assert write_texts(model, there, making) == texts
    ours = make_media(model, "image", there, making, row_N.to(DEVICE)).cpu()
    assert (ours.int() - pixels.int()).abs().max() <= 1
    assert make_media(model, "audio", there, making, row_N.to(DEVICE)).shape == sounds.shape
    assert len(respond(model, there, making, row_N.to(DEVICE))) == 4


def test_it_learns_in_half_the_bits(write_config, shape_shards: Path, tmp_path: Path):
    lines: list[str] = []
    path = write_config(shape_shards, device=str(DEVICE), workers=2, steps=80)
    found = train(path, ["precision=auto", "eval_every=40"], tmp_path / "out", lines.append)
    history = losses(tmp_path / "out")
    assert found["status"] == "finished"
    assert found["bad_steps"] == 0
    assert len(history) == 80
    assert sum(history[-10:]) < 0.8 * sum(history[:10])
    assert any(f"parameters on {DEVICE.type}" in line for line in lines)


@needs_cuda
def test_the_accelerator_is_chosen(write_config, shape_shards: Path, tmp_path: Path):
    lines: list[str] = []
    train(write_config(shape_shards, device="auto", steps=3), [], tmp_path / "out", lines.append)
    assert any("parameters on cuda" in line for line in lines)


@pytest.fixture
def straight(write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A training of 8 steps in float32, and its file."""
    path = write_config(shape_shards, device=str(DEVICE), precision="float32", steps=8, checkpoint_every=3)
    train(path, ["optim.ema_decay=0.9"], tmp_path / "straight", lambda _: None)
    return path, tmp_path / "straight"


def test_steps_are_those_of_the_processor(straight: tuple[Path, Path], tmp_path: Path):
    path, folder = straight
    train(path, ["optim.ema_decay=0.9", "device=cpu"], tmp_path / "cpu", lambda _: None)
    assert losses(folder) == pytest.approx(losses(tmp_path / "cpu"), rel=2e-3)


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.backends.cudnn.allow_tf32 = False
torch.set_num_threads(1)
from mmdata.train.run import train

def say(line):
    if line.startswith("step 5/8"):
        os.kill(os.getpid(), signal.SIGKILL)

train(Path(sys.argv[1]), ["optim.ema_decay=0.9"], Path(sys.argv[2]), say)
"""


def test_a_killed_training_goes_on_alike(straight: tuple[Path, Path], tmp_path: Path, record_property: Record):
    path, folder = straight
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path), str(tmp_path / "killed")], check=False)
    assert done.returncode == -9
    lines: list[str] = []
    train(path, ["optim.ema_decay=0.9"], tmp_path / "killed", lines.append)
    assert any("going on after step 3" in line for line in lines)
    train(path, ["optim.ema_decay=0.9"], tmp_path / "again", lambda _: None)
    for name in ("again", "killed"):
        ours, theirs = (load_file(one / "model.safetensors") for one in (folder, tmp_path / name))
        equal = all(torch.equal(ours[key], theirs[key]) for key in ours)
        gap = max(float((ours[key] - theirs[key]).abs().max()) for key in ours)
        record_property(f"{name}: equal bit by bit, largest difference", (equal, gap))
        assert losses(tmp_path / name) == pytest.approx(losses(folder), rel=1e-4)
        assert gap < 1e-3


@pytest.mark.parametrize("change", ["optim.accumulate=2", "checkpoint_activations=true", "workers=2", "strategy=fsdp"])
def test_less_memory_is_the_same_training(straight: tuple[Path, Path], tmp_path: Path, change: str):
    path, folder = straight
    train(path, ["optim.ema_decay=0.9", change], tmp_path / "other", lambda _: None)
    assert losses(tmp_path / "other") == pytest.approx(losses(folder), rel=1e-3)


@pytest.mark.slow
def test_compiled_blocks_are_the_same_training(straight: tuple[Path, Path], tmp_path: Path):
    path, folder = straight
    train(path, ["optim.ema_decay=0.9", "compile=true"], tmp_path / "compiled", lambda _: None)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(folder), rel=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_over_nccl_has_the_gradients_of_none(tmp_path: Path, strategy: str, record_property: Record):
    """One device makes one rank: it wraps, reduces, checkpoints and restores as several do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    paths = os.pathsep.join([*map(str, [Path(__file__).parent, Path(__file__).parents[2]]), *filter(None, sys.path)])
    command = [sys.executable, "-c", f"import tests_of_gpu_ranks as t; t.on_one_rank({strategy!r}, {str(tmp_path)!r})"]
    environment = {**os.environ, **ranks, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    record_property("found", found)
    assert found["loss"] == pytest.approx(found["plain_loss"], rel=1e-5)
    assert found["worst_gradient"] < 1e-4
    assert found["restored"]


def test_a_trained_model_is_the_same_on_the_processor(straight: tuple[Path, Path]):
    _, folder = straight
    model, _ = load_model(folder)
    there, _ = load_model(folder, DEVICE)
    for name in model.modalities:
        values, length_N = model.tower(name).blank(torch.device("cpu"))
        with torch.no_grad():
            ours = model._run(name, values, length_N)[-1]
            theirs = there._run(name, values.to(DEVICE), length_N.to(DEVICE))[-1]
        assert least_cosine(ours, theirs) > 0.99999


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["torchscript", "onnx"])
def test_graphs_of_a_model_trained_here_are_that_model(straight: tuple[Path, Path], tmp_path: Path, shape: Any):
    from mmdata.train.edge import export

    found = export(straight[1], tmp_path / "graphs", shape, int8=False, say=lambda _: None)
    assert min(parity.cosine for parity in found) > 0.9999


def test_an_evaluation_is_that_of_the_processor(straight: tuple[Path, Path]):
    from mmdata.train.evaluate.run import evaluate

    _, folder = straight
    tasks = "tasks=[retrieval, missing, detector]"
    reports = [
        evaluate(folder, None, [tasks, f"device={device}", "resamples=100"], f"on-{device}", lambda _: None)["tasks"]
        for device in ("cpu", DEVICE.type)
    ]
    text = [re.sub(r"\d\.\d+", lambda found: f"{float(found[0]):.1f}", json.dumps(one["retrieval"])) for one in reports]
    assert text[0] == text[1]
    assert reports[0].keys() == reports[1].keys()
