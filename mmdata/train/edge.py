"""`mmdata export`: a trained model as graphs that run without this package, each held against the model itself.

One graph for each modality, from the loader's values to tokens and an embedding, and one for the fusion, from tokens to
an embedding; all for any number of samples, those of texts and sounds for any length. Decoders stay behind: what they
make takes many passes, each of which depends on the last, and that is no one graph (`mmdata.train.model.generate`).

Shapes: N samples, S tokens, W the fusion's width, D embedding dimensions, M modalities, P frames, R frequency bins,
L mel bands, T samples in time at 16 kHz.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdata.errors import TrainError
from mmdata.extras import require
from mmdata.train.checkpoint import write_whole
from mmdata.train.export import load_model, write_json
from mmdata.train.model.fused import FusedModel
from mmdata.train.model.layers import masked_mean
from mmdata.train.model.mel import HOP, WINDOW, LogMel

Format = Literal["onnx", "torchscript"]
Graph = Callable[..., Sequence[Tensor]]

_OPSET = 18
# Two of everything: a size of 1 would be taken for a constant.
_TRACED_SAMPLES, _CHECKED_SAMPLES = 2, 5
# A graph that differs by more from the model it is of is wrong, and not only rounded.
_LEAST_COSINE = 0.9999
# Text and sound lengths that graphs are checked at: another one than they are traced at.
_TRACED_LENGTHS, _CHECKED_LENGTHS = {"text": 6, "audio": 4000, "tensor": 24, "video": 2}, {
    "text": 9, "audio": 6400, "tensor": 40, "video": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Parity:
    """How near a graph is to the model.

    Attributes:
        graph: its name.
        file: its file.
        bytes: of the file.
        max_abs: largest difference of a number of an embedding.
        cosine: smallest cosine of an embedding to the model's.
    """

    graph: str
    file: str
    bytes: int
    max_abs: float
    cosine: float


class Encoder(nn.Module):
    """One modality on its way to tokens (N, S, W), their mask (N, S) and an embedding (N, D)."""

    def __init__(self, model: FusedModel, name: str) -> None:
        """Parts of the model; a tower's spectrogram is one of real numbers."""
        super().__init__()
        self.tower, self.adapter, self.head = model.tower(name), model.adapters[name], model.heads[name]
        self.trunk = model.trunk_of(name)

    def forward(self, values: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the loader's values."""
        tokens_NST, mask_NS = self.tower(values, length_N, None, self.trunk)
        tokens_NSW = self.adapter(tokens_NST)
        return tokens_NSW, mask_NS, self.head(masked_mean(tokens_NSW, mask_NS))


class Fuser(nn.Module):
    """The fusion's embedding (N, D), of all modalities' tokens."""

    def __init__(self, model: FusedModel) -> None:
        """Parts of the model."""
        super().__init__()
        self.fusion, self.head = model.fusion, model.fusion_head

    def forward(self, tokens: list[Tensor], masks: list[Tensor], present_NM: Tensor) -> tuple[Tensor]:
        """What `present_NM` says to be absent is not read."""
        return (self.head(self.fusion(tokens, masks, present_NM[None])[0].mean(dim=1)),)


class RealLogMel(nn.Module):
    """`LogMel` without complex numbers: the Fourier transform as a convolution with cosines and sines."""

    waves_R1T: Tensor

    def __init__(self, mel: LogMel) -> None:
        """With the same window and bands."""
        super().__init__()
        self.mel = mel
        bin_R1 = torch.arange(WINDOW // 2 + 1, dtype=torch.float64)[:, None]
        angle_RT = 2 * torch.pi * bin_R1 * torch.arange(WINDOW, dtype=torch.float64) / WINDOW
        waves = torch.cat([angle_RT.cos(), angle_RT.sin()]) * mel.window.double()
        self.register_buffer("waves_R1T", waves[:, None].float(), persistent=False)

    def forward(self, audio_NT: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """As `LogMel`."""
        side = WINDOW // 2
        sound_NT = functional.pad(audio_NT.to(torch.float32) / 32768, (side, side + HOP))
        cosine_NRP, sine_NRP = functional.conv1d(sound_NT[:, None], self.waves_R1T, stride=HOP).chunk(2, dim=1)
        return self.mel.scaled(cosine_NRP.square() + sine_NRP.square(), length_N)


def export(run: Path, folder: Path, shape: Format, int8: bool, say: Callable[[str], None]) -> list[Parity]:
    """Write the graphs of a finished run into a folder, with `export.json` beside them, which says how near they are.

    Args:
        run: folder of the run.
        folder: where the graphs go.
        shape: of the files.
        int8: quantise the weights of matrix products to 8 bits (onnxruntime's dynamic quantisation).
        say: takes a line for each graph, and one for decoders, of which none is written.

    Raises TrainError where the run has no model, or a graph of full precision is not what the model is;
    MissingExtraError without what the format needs.
    """
    if int8 and shape != "onnx":
        raise TrainError("int8 graphs are exported as ONNX; use --format onnx")
    if shape == "onnx":
        require("mmdata export --format onnx", "export")
    model, _ = load_model(run)
    for name in model.modalities:
        tower: Any = model.towers[name]
        if isinstance(getattr(tower, "mel", None), LogMel):
            tower.mel = RealLogMel(tower.mel)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, module, traced, checked in _graphs(model):
        found.append(_export_one(folder, name, module, (traced, checked), (shape, int8)))
        say(_told(found[-1]))
    left_out = [f"decoders.{name}" for name in model.decoders]
    if left_out:
        say(f"not exported: {', '.join(left_out)}: a decoder makes things in many passes, and is no one graph")
    described = {"run": str(run), "format": shape, "int8": int8, "modalities": list(model.modalities)}
    described["left_out"] = left_out
    write_json(folder / "export.json", described | {"graphs": [asdict(parity) for parity in found]})
    return found


def _graphs(model: FusedModel) -> Iterator[tuple[str, nn.Module, tuple[Any, ...], tuple[Any, ...]]]:
    """(name, module, arguments to trace with, others to check with) of each graph."""
    encoded: list[list[tuple[Tensor, ...]]] = [[], []]
    for name in model.modalities:
        module = Encoder(model, name).eval()
        inputs = [
            _inputs(model, name, samples, lengths.get(name))
            for samples, lengths in ((_TRACED_SAMPLES, _TRACED_LENGTHS), (_CHECKED_SAMPLES, _CHECKED_LENGTHS))
        ]
        for part, arguments in zip(encoded, inputs, strict=True):
            with torch.no_grad():
                part.append(module(*arguments))
        yield name, module, inputs[0], inputs[1]
    traced, checked = (
        ([tokens for tokens, _, _ in part], [mask for _, mask, _ in part], _present(len(part[0][0]), len(part)))
        for part in encoded
    )
    yield "fusion", Fuser(model).eval(), traced, checked


def _present(samples: int, modalities: int) -> Tensor:
    """All, and from the second sample on each lacks one."""
    present_NM = torch.ones((samples, modalities), dtype=torch.bool)
    for row in range(1, samples):
        present_NM[row, row % modalities] = False
    return present_NM


def _inputs(model: FusedModel, name: str, samples: int, length: int | None) -> tuple[Tensor, Tensor]:
    """Values of a modality: noise, of the kind that the loader gives."""
    blank, length_1 = model.tower(name).blank(torch.device("cpu"))
    dice = torch.Generator().manual_seed(samples)
    size = (samples, *blank.shape[1:-1], blank.shape[-1] if length is None else length)
    if name == "text":
        values = torch.randint(0, model.limits.vocab_size, size, generator=dice)
    elif blank.is_floating_point():
        values = torch.randn(size, generator=dice)
    else:
        most = 256 if blank.dtype == torch.uint8 else 9000
        values = torch.randint(0, most, size, generator=dice).to(blank.dtype)
    if length is None:
        return values, length_1.expand(samples).clone()
    return values, torch.arange(samples).remainder(3).neg().add(length)


def _export_one(
    folder: Path,
    name: str,
    module: nn.Module,
    inputs: tuple[tuple[Any, ...], tuple[Any, ...]],
    how: tuple[Format, bool],
) -> Parity:
    (traced, checked), (shape, int8) = inputs, how
    suffix = ".onnx" if shape == "onnx" else ".pt"
    path = folder / f"{name}{'.int8' if int8 else ''}{suffix}"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of what torch will one day do otherwise
        data = _onnx(module, traced) if shape == "onnx" else _torchscript(module, traced)
        data = _quantised(data, folder) if int8 else data
        write_whole(path, lambda scratch: scratch.write_bytes(data))
        expected, got = module(*checked)[-1], _run(path, shape, _flat(checked))
    max_abs = float((expected - got).abs().max())
    cosine = float(functional.cosine_similarity(expected, got, dim=-1).min())
    if not expected.isfinite().all():
        path.unlink()
        raise TrainError(f"{path}: the model's own embeddings are not finite; train it again with a lower optim.lr")
    # So that what is no number is too little.
    if not (int8 or cosine >= _LEAST_COSINE):
        path.unlink()
        raise TrainError(f"{path}: its embeddings differ from the model's, cosine {cosine:.5f}; this is a defect")
    return Parity(name, path.name, len(data), max_abs, cosine)


def _onnx(module: nn.Module, arguments: tuple[Any, ...]) -> bytes:
    """By torch.export; the first axis of each input, and the one in time, may have any size."""
    dynamic = tuple(_dynamic(argument) for argument in arguments)
    with _quiet():
        program = torch.onnx.export(module, arguments, dynamo=True, dynamic_shapes=dynamic, opset_version=_OPSET)
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data


def _dynamic(argument: Tensor | list[Tensor]) -> Any:
    """Axes of any size: the samples, and the one in time, which is the last but of tokens (N, S, W), which are listed.

    Pictures (N, 3, H, W) have none in time.
    """
    auto = torch.export.Dim.AUTO
    if isinstance(argument, list):
        return [{0: auto, 1: auto} for _ in argument]
    is_picture = argument.dtype == torch.uint8 and argument.ndim == _PICTURE_AXES
    return {0: auto} if argument.ndim == 1 or is_picture else {0: auto, argument.ndim - 1: auto}


# N, colours, height, width; those of a video have frames beside them.
_PICTURE_AXES = 4


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the exporter prints says nothing that a failure would not say again."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _torchscript(module: nn.Module, arguments: tuple[Any, ...]) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, arguments, check_trace=False), buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _quantised(data: bytes, folder: Path) -> bytes:
    """Weights of matrix products in 8 bits, an own scale for each column.

    Unsigned, like the activations: their products with signed weights overflow 16 bits on processors without VNNI (of a
    small tower the least cosine was 0.91, and is 0.9999).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load_from_string(data).graph.node
    # A router rounded to 8 bits sends tokens to other experts.
    routers = [node.name for node in nodes if any("router" in name for name in node.input)]
    routers += [f"{name}_MatMul" for name in routers]  # what the quantiser makes of a Gemm
    whole, small = folder / ".whole.onnx", folder / ".small.onnx"
    try:
        whole.write_bytes(data)
        with _quiet():
            quantize_dynamic(
                whole,
                small,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QUInt8,
                nodes_to_exclude=routers,
            )
        return small.read_bytes()
    finally:
        whole.unlink(missing_ok=True)
        small.unlink(missing_ok=True)


def _run(path: Path, shape: Format, inputs: list[Tensor]) -> Tensor:
    """The last output of a graph."""
    if shape == "torchscript":
        graph = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        modalities = len(inputs) // 2
        nested = (inputs[:modalities], inputs[modalities:-1], inputs[-1]) if path.stem == "fusion" else inputs
        output: Tensor = graph(*nested)[-1]
        return output
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    feeds: Mapping[str, Any] = dict(zip(names, (part.numpy() for part in inputs), strict=True))
    return torch.from_numpy(session.run(None, feeds)[-1])


def _flat(arguments: tuple[Any, ...]) -> list[Tensor]:
    return [part for one in arguments for part in (one if isinstance(one, list) else [one])]


def _told(parity: Parity) -> str:
    size = f"{parity.bytes / 1e6:.2f} MB"
    return f"{parity.file:<24}{size:>12}  max difference {parity.max_abs:.1e}, least cosine {parity.cosine:.6f}"
