"""A run that is continued: one modality more, new shards, and what is forgotten meanwhile."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mmdata.cli import cli
from mmdata.errors import TrainError
from mmdata.train.batch import Collate
from mmdata.train.config import StartConfig, load_config
from mmdata.train.dataset import SampleDataset, open_split
from mmdata.train.evaluate.run import evaluate
from mmdata.train.export import load_model
from mmdata.train.growth import replayed_sets
from mmdata.train.manifest import open_folder
from mmdata.train.run import train

TWO = "data.modalities={image: [image], text: [caption]}"


def quiet(_: str) -> None:
    pass


@pytest.fixture
def old_run(write_config: Callable[..., Path], shape_shards: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A training file of three modalities, and a run of two of them."""
    path = write_config(shape_shards)
    train(path, [TWO, "steps=3"], tmp_path / "old", quiet)
    return path, tmp_path / "old"


def embeddings(run: Path, path: Path, modalities: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Of the held-out samples: image, text, and the fusion of the two."""
    config = load_config(path, [])
    model, tokenizer = load_model(run)
    split = open_split(open_folder(config.data.shards), "val", config.data)
    dataset = SampleDataset(split, config.data, 0, tokenizer, 0)
    items = [dataset[None, row] for row in range(len(dataset))]
    columns = [list(model.modalities).index(name) for name in modalities]
    batch = Collate(model.modalities)(items)
    visible = torch.zeros_like(batch.present_BM)
    visible[:, columns] = True
    alone = dataclasses.replace(batch, inputs={name: batch.inputs[name] for name in modalities})
    with torch.inference_mode():
        encoded = model.encode(batch)
        fused, masked = (model.fuse(part, visible[None]) for part in (model.encode(alone), encoded))
    # Beside tokens that nobody reads, sums of the same numbers are rounded in another order.
    assert torch.allclose(fused, masked, atol=1e-6)
    return {"fused": fused} | {name: encoded.embeddings[model.modalities.index(name)] for name in modalities}


@pytest.mark.slow
def test_a_modality_is_added_and_the_old_embeddings_stay_bit_for_bit(old_run, tmp_path: Path):
    path, old = old_run
    begin = ["--continue", str(old), "--add-modality", "audio"]
    arguments = ["train", str(path), *begin, "--output", str(tmp_path / "new")]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    before, after = (embeddings(run, path, ("image", "text")) for run in (old, tmp_path / "new"))
    for name in ("image", "text", "fused"):
        assert torch.equal(before[name], after[name]), name
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text())["metrics"]
    assert "text->audio" in metrics
    forgetting = json.loads((tmp_path / "new" / "forgetting.json").read_text())
    known = json.loads((old / "metrics.json").read_text())["metrics"]
    # As the run left them: what it did not know is no part of the fusion, and nothing that it can forget.
    assert forgetting.keys() == known.keys()
    for name, cells in forgetting.items():
        assert {(known[name][k]["value"], 0) for k in cells} == {(c["before"], c["change"]) for c in cells.values()}


@pytest.mark.slow
def test_a_run_is_updated_with_new_shards_and_a_share_of_the_old(
    old_run, write_shards: Callable[..., Path], shapes, tmp_path: Path
):
    path, old = old_run
    old_shards = tmp_path / "shards"
    old_shards.rename(tmp_path / "old_shards")
    description = json.loads((old / "config.json").read_text())
    description["training"]["data"]["shards"] = str(tmp_path / "old_shards")
    (old / "config.json").write_text(json.dumps(description))
    write_shards({"train": [shapes(16, 5)], "val": [shapes(8, 6)]})
    lines: list[str] = []
    changes = [TWO, f"start={{run: {old}, replay: 0.25}}", "steps=8", "optim.lr=0.02"]
    result = train(path, changes, tmp_path / "new", lines.append)
    assert (result["samples"]["train"], result["samples"]["val"]) == (16 + 24, 8)
    report = json.loads((tmp_path / "new" / "forgetting.json").read_text())
    old_metrics = json.loads((old / "metrics.json").read_text())["metrics"]
    for name in ("image->text", "text->image"):
        for k in (1, 5, 10):
            cell = report[name][f"recall@{k}"]
            assert cell["before"] == old_metrics[name][f"recall@{k}"]["value"]
            assert cell["change"] == cell["after"] - cell["before"]
    assert any(line.startswith("on the held-out samples of the run that was continued") for line in lines)
    # A third run that replays this one replays what this one replayed.
    shares = {
        Path(one.shards).name: one.share
        for one in replayed_sets(StartConfig(run=str(tmp_path / "new"), replay=0.5)).values()
    }
    assert shares == {"shards": 0.5 * 0.75, "old_shards": 0.5 * 0.25}


@pytest.mark.slow
def test_a_run_of_another_model_cannot_be_continued(old_run, tmp_path: Path):
    path, old = old_run
    with pytest.raises(TrainError, match=r"its model is another than this one: it lacks adapters\.audio"):
        train(path, [f"start.run={old}"], tmp_path / "new", quiet)
    with pytest.raises(TrainError, match=r"of another shape: .*; use the run's own model"):
        train(path, [TWO, f"start.run={old}", "model.embed_dim=16"], tmp_path / "new", quiet)
    with pytest.raises(TrainError, match=r"start\.run: data\.image_side_px is 64, that of .* is 32; use the same"):
        train(path, [TWO, f"start.run={old}", "data.image_side_px=64"], tmp_path / "new", quiet)
    with pytest.raises(TrainError, match="no trained model"):
        train(path, [f"start.run={tmp_path}"], tmp_path / "new", quiet)


def test_a_run_whose_weights_are_no_numbers_is_neither_continued_nor_measured(old_run, tmp_path: Path):
    path, old = old_run
    weights = load_file(old / "model.safetensors")
    weights["heads.text.project.weight"][0, 0] = torch.nan
    weights["log_scale"] += torch.inf
    save_file(weights, old / "model.safetensors")
    problem = rf"model\.safetensors: NaN or infinite in 2 of {len(weights)} tensors, first .*: that training went wrong"
    with pytest.raises(TrainError, match=problem):
        train(path, [TWO, f"start.run={old}"], tmp_path / "new", quiet)
    with pytest.raises(TrainError, match=problem):
        evaluate(old, None, ["tasks=[retrieval]"], None, quiet)


def test_a_batch_of_more_samples_than_there_are_is_told(write_config: Callable[..., Path], shape_shards: Path):
    lines: list[str] = []
    train(write_config(shape_shards), [TWO, "steps=3", "optim.batch_size=100"], say=lines.append)
    few = "optim.batch_size is 100, but there are 24 samples to train on: each step sees all of them"
    assert few in lines
