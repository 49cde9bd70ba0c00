from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from fused_case import batch_of, example, make_model
from safetensors.torch import load_file, save_file

from mmdata.cli import cli
from mmdata.errors import TrainError
from mmdata.train.edge import RealLogMel, export
from mmdata.train.export import load_model
from mmdata.train.losses.config import LossConfig
from mmdata.train.model.fused import FusedModel
from mmdata.train.model.mel import LogMel
from mmdata.train.model.towers import Limits

# Each graph takes seconds to write; text's is as image's.
NAMES = ("image", "audio")


def left_by_a_run(folder: Path, model: FusedModel) -> Path:
    """The folder, with a model as a run leaves it."""
    folder.mkdir()
    save_file(dict(model.state_dict()), folder / "model.safetensors")
    description = {
        "format": "mmdata-model", "version": 2, "modalities": list(model.modalities),
        "architecture": model.architecture.model_dump(), "limits": asdict(model.limits),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A model with experts and a decoder."""
    pytest.importorskip("onnxruntime")
    model = make_model(LossConfig(), NAMES, decoders=["image"], moe={"experts": 2, "every": 1})
    return left_by_a_run(tmp_path / "run", model)


def embed(folder: Path, ending: str, batch) -> list[torch.Tensor]:
    """Embeddings of a batch by the graphs alone: image, audio, and the fusion of both."""
    import onnxruntime

    tokens, masks, embeddings = [], [], []
    for name in NAMES:
        inputs = batch.inputs[name]
        session = onnxruntime.InferenceSession(folder / f"{name}{ending}")
        first, second = (entry.name for entry in session.get_inputs())
        found = session.run(None, {first: inputs.values.numpy(), second: inputs.length_N.numpy()})
        tokens.append(found[0]), masks.append(found[1]), embeddings.append(torch.from_numpy(found[2]))
    session = onnxruntime.InferenceSession(folder / f"fusion{ending}")
    names = [entry.name for entry in session.get_inputs()]
    present = batch.present_BM.numpy()
    fused = session.run(None, dict(zip(names, [*tokens, *masks, present], strict=True)))[0]
    return [*embeddings, torch.from_numpy(fused)]


@pytest.mark.slow
def test_graphs_of_onnx_give_the_model_s_embeddings(run: Path, tmp_path: Path):
    lines: list[str] = []
    whole = export(run, tmp_path / "out", "onnx", False, lines.append)
    assert [parity.graph for parity in whole] == [*NAMES, "fusion"]
    assert all(parity.cosine > 0.99999 and parity.max_abs < 1e-4 for parity in whole)
    assert len(lines) == 4
    assert "least cosine 1.0000" in lines[0]
    assert lines[3].startswith("not exported: decoders.image: a decoder makes things in many passes")
    small = export(run, tmp_path / "out", "onnx", True, lines.append)
    assert all(0.98 < parity.cosine < 1 for parity in small)
    assert small[0].bytes < 0.8 * whole[0].bytes
    # Samples that neither export nor check has seen, of another number and other lengths.
    model, _ = load_model(run)
    batch = batch_of([example(row, NAMES) for row in range(7)], NAMES)
    with torch.no_grad():
        encoded = model.encode(batch)
        fused = model.fuse(encoded, batch.present_BM[None])[0]
    for expected, got in zip([*encoded.embeddings, fused], embed(tmp_path / "out", ".onnx", batch), strict=True):
        assert torch.allclose(expected, got, atol=1e-4)
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (described["int8"], described["graphs"][2]["file"]) == (True, "fusion.int8.onnx")
    assert described["left_out"] == ["decoders.image"]
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.slow
def test_recordings_and_videos_are_exported_for_any_length(tmp_path: Path):
    """The axis of a recording's channels was taken for its time: export ended in onnxruntime's traceback."""
    pytest.importorskip("onnxruntime")
    model = make_model(LossConfig(), ("tensor", "video"), Limits(64, 10, 16, 0.3, tensor_channels=2))
    found = export(left_by_a_run(tmp_path / "run", model), tmp_path / "out", "onnx", False, print)
    assert [(parity.graph, parity.cosine > 0.99999) for parity in found] == [
        ("tensor", True), ("video", True), ("fusion", True),
    ]  # fmt: skip


@pytest.mark.slow
def test_torchscript_is_written_by_the_command_line(run: Path):
    done = CliRunner().invoke(cli, ["export", str(run), "--format", "torchscript"])
    assert done.exit_code == 0, done.output
    assert done.output.count("least cosine") == 3
    graph = torch.jit.load(run / "export" / "image.pt")
    model, _ = load_model(run)
    batch = batch_of([example(row, NAMES) for row in range(3)], NAMES)
    images = batch.inputs["image"]
    assert torch.allclose(graph(images.values, images.length_N)[2], model.encode(batch).embeddings[0], atol=1e-4)


def test_int8_is_onnx_s(run: Path, tmp_path: Path):
    with pytest.raises(TrainError, match="use --format onnx"):
        export(run, tmp_path / "out", "torchscript", True, print)


def test_a_model_of_no_numbers_is_not_exported(run: Path, tmp_path: Path):
    """A difference that is no number was near enough."""
    weights = load_file(run / "model.safetensors")
    weights["heads.image.project.weight"].sign_().mul_(torch.finfo().max)
    save_file(weights, run / "model.safetensors")
    with pytest.raises(TrainError, match=r"image\.pt: the model's own embeddings are not finite; train it again"):
        export(run, tmp_path / "graphs", "torchscript", False, print)
    assert not (tmp_path / "graphs" / "image.pt").exists()


def test_a_spectrogram_without_complex_numbers_is_the_same():
    torch.manual_seed(0)
    sound, length = torch.randint(-9000, 9000, (2, 8000), dtype=torch.int16), torch.tensor([8000, 5000])
    (frames, mask), (real, same_mask) = LogMel()(sound, length), RealLogMel(LogMel())(sound, length)
    assert torch.equal(mask, same_mask)
    assert torch.allclose(frames, real, atol=1e-4)
