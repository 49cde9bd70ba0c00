from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fused_case import OFF, make_model
from safetensors.torch import load_file

from mmdata.errors import SpecError, TrainError
from mmdata.train.batch import Lesson, Space
from mmdata.train.config import load_config
from mmdata.train.losses.config import LossConfig
from mmdata.train.run import train
from mmdata.train.stages import Stage, freeze

STAGES = [
    {"name": "pairwise", "samples": 24, "loss": {"fusion": 0}, "freeze": ["fusion*"], "lr": 0.01},
    {"name": "fusion", "samples": 16, "train": ["fusion*"], "warmup": 1},
    {"name": "all", "samples": 9, "lr": 0.0005},
]


@pytest.fixture
def staged(write_config: Callable[..., Path], shape_shards: Path) -> Path:
    path = write_config(shape_shards, stages=STAGES)
    path.write_text(path.read_text().replace("steps: 6\n", ""))
    return path


def records(folder: Path) -> list[dict]:
    return [r for line in (folder / "log.jsonl").read_text().splitlines() if "loss" in (r := json.loads(line))]


class Interrupt(list[str]):
    def __init__(self, at: str):
        super().__init__()
        self.at = at

    def __call__(self, line: str) -> None:
        self.append(line)
        if line.startswith(self.at):
            os.kill(os.getpid(), signal.SIGTERM)


def weights_at(folder: Path, step: int) -> dict[str, torch.Tensor]:
    (file,) = (folder / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")
    return {name[6:]: tensor for name, tensor in load_file(file).items() if name.startswith("model.")}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.slow
def test_each_stage_trains_what_it_says_with_its_own_schedule(staged: Path, tmp_path: Path):
    result = train(staged, ["keep_checkpoints=9", "checkpoint_every=1000"], tmp_path / "run", lambda _: None)
    assert (result["status"], result["steps"], result["stage"]) == ("finished", 7, "all")
    by_stage = [(r["stage"], r["step"], r["lr"]) for r in records(tmp_path / "run")]
    # 24, 16 and 9 samples in batches of 8; warm-up of 2, 1 and 1 (two steps leave room for one).
    assert [entry[:2] for entry in by_stage] == [
        ("pairwise", 1), ("pairwise", 2), ("pairwise", 3), ("fusion", 4), ("fusion", 5), ("all", 6), ("all", 7),
    ]  # fmt: skip
    assert [entry[2] for entry in by_stage] == pytest.approx([0.005, 0.01, 0.01, 0.002, 0.002, 0.0005, 0.0005])
    assert all("fusion~text" not in r["losses"] for r in records(tmp_path / "run")[:3])
    assert all("fusion~text" in r["losses"] for r in records(tmp_path / "run")[3:])
    third, fifth, last = (weights_at(tmp_path / "run", step) for step in (3, 5, 7))
    assert changed(third, fifth) == {"fusion", "fusion_head"}
    assert {"towers", "adapters", "heads", "log_scale", "fusion"} <= changed(fifth, last)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["step 2/7", "step 3/7", "step 4/7", "step 6/7"])
def test_a_stopped_training_goes_on_in_its_stage(staged: Path, tmp_path: Path, at: str):
    train(staged, ["optim.ema_decay=0.5"], tmp_path / "straight", lambda _: None)
    first = train(staged, ["optim.ema_decay=0.5"], tmp_path / "parts", Interrupt(at))
    assert first["status"] == "stopped"
    assert train(staged, ["optim.ema_decay=0.5"], tmp_path / "parts", lambda _: None)["status"] == "finished"
    straight, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "parts"))
    assert [name for name in straight if not torch.equal(straight[name], parts[name])] == []
    assert [(r["step"], r["loss"]) for r in records(tmp_path / "straight")] == [
        (r["step"], r["loss"]) for r in records(tmp_path / "parts")
    ]


def test_a_pattern_that_fits_nothing_is_named(staged: Path, tmp_path: Path):
    bad = "stages=[{name: one, samples: 8, freeze: [tower.text.*]}]"
    with pytest.raises(TrainError, match=r"stage 'one': no parameter is named 'tower\.text\.\*'; did you mean 'towers"):
        train(staged, [bad], tmp_path / "run", lambda _: None)
    with pytest.raises(TrainError, match="all parameters are frozen"):
        train(staged, ["stages=[{name: one, samples: 8, freeze: ['*']}]"], tmp_path / "run", lambda _: None)


def test_what_serves_a_loss_alone_is_trained_beside_what_a_stage_trains():
    loss = LossConfig(**OFF, mimic=1)
    stage = Stage("one", 0, 1, 0.1, 0, loss, ("towers.text.*",), (), frozenset(), {})
    counts = []
    for mimicked in ((), (Lesson("text", Space("", 5)),)):
        model = make_model(loss, mimicked=mimicked)
        counts.append(freeze(model, stage))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert {name.split(".")[0] for name in trained} == {"towers", *(["mimic_heads"] if mimicked else [])}
    assert counts[0] == counts[1] > 0
    model = make_model(loss, mimicked=mimicked)
    with pytest.raises(TrainError, match="all parameters are frozen"):
        freeze(model, dataclasses.replace(stage, freeze=("towers.*",)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=5", "in stages, and steps and stages are given; keep one"),
        ("stages=[]", "none is given; add `steps: 500`"),
        ("stages=[{name: a, samples: 8, mix: {stamps: 1}}]", "no set of data.sets"),
        ("stages=[{name: a, samples: 8, new_modality: smell}]", "'smell' is not under data.modalities"),
        ("stages=[{name: a, samples: 8, loss: {fuson: 1}}]", "unknown key 'fuson'; did you mean 'fusion'"),
        ("data.sets={a: {shards: x}}", "both are given; keep one"),
        ("data.teachers={smell: clip.image}", "no modality of the model"),
        ("teacher={}", "name one of the two"),
        ("start={run: x, add_modality: smell}", "'smell' is not under data.modalities"),
    ],
)
def test_faults_of_stages_and_sets_are_told_before_anything_runs(staged: Path, override: str, message: str):
    with pytest.raises(SpecError, match=message):
        load_config(staged, [override])


def test_a_stage_looks_at_its_modalities_alone(staged: Path, tmp_path: Path):
    stages = (
        "stages=[{name: two, samples: 24, modalities: [image, text]}, {name: new, samples: 16, new_modality: audio}]"
    )
    train(staged, [stages, "keep_checkpoints=9", "checkpoint_every=1"], tmp_path / "run", lambda _: None)
    two, new = records(tmp_path / "run")[0], records(tmp_path / "run")[-1]
    assert set(two["losses"]) == {"text~image", "fusion~text", "fusion~image"}
    assert "text~audio" in new["losses"]
    first, third, last = (weights_at(tmp_path / "run", step) for step in (1, 3, 5))
    moved = {name for name in first if not torch.equal(first[name], third[name])}
    assert moved
    assert not any(".audio." in name for name in moved)
    added = {name for name in third if not torch.equal(third[name], last[name])}
    assert added
    assert all(".audio." in name for name in added)


@pytest.mark.slow
def test_the_example_of_stages_trains(write_config, shape_shards: Path, tmp_path: Path):
    """On other data, a few steps a stage: every kind of stage, one after the other."""
    manifest = json.loads((shape_shards / "manifest.json").read_text())
    manifest["embeddings"] = {
        f"clip.{member}": {"dim": 8, "suffix": f".clip.{member}.npy"} for member in ("image", "caption")
    }
    (shape_shards / "manifest.json").write_text(json.dumps(manifest))
    for number, shard in enumerate(shape_shards.glob("*.tar")):
        for member in ("image", "caption"):
            vector_ND = np.random.default_rng(number).normal(size=(12, 8)).astype(np.float16)
            np.save(shard.with_suffix(f".clip.{member}.npy"), vector_ND)
    example = yaml.safe_load((Path(__file__).parents[3] / "examples" / "train_stages.yaml").read_text())
    own = yaml.safe_load(write_config(shape_shards).read_text())
    for stage in example["stages"]:
        stage["samples"] = 16
    changed = {"optim": {**example["optim"], "batch_size": 8}, "model": {**own["model"], **example["model"]}}
    data = {**own["data"], "teachers": example["data"]["teachers"]}
    path = tmp_path / "stages.yaml"
    path.write_text(yaml.safe_dump({**example, **changed, "data": data, "log_every": 1, "workers": 0, "device": "cpu"}))
    result = train(path, [], tmp_path / "run", lambda _: None)
    assert (result["status"], result["steps"], result["stage"]) == ("finished", 12, "speech")
    terms: dict[str, set[str]] = {}
    for record in records(tmp_path / "run"):
        terms.setdefault(record["stage"], set()).update(record["losses"])
    kinds = {name: {term.split(".")[0].split("~")[0] for term in found} for name, found in terms.items()}
    assert {name: "distill" in found for name, found in kinds.items()} == {
        name: name == "distillation" for name in kinds
    }
    assert kinds["unimodal"] == {"masked"}
    assert kinds["decoders"] == {"caption"}
    assert "fusion" in kinds["fusion"]
    assert any("audio" in term for term in terms["speech"])
    assert not any("audio" in term for name, found in terms.items() if name != "speech" for term in found)
