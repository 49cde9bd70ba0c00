from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.model import ModelDimensions, Whisper

from mmdata.errors import WeightsError
from mmdata.models.ctranslate2 import convert, converted, read_model_bin
from mmdata.models.whisper_weights import load_network

DIMS = ModelDimensions(80, 1500, 64, 1, 2, 51864, 448, 64, 1, 2)
DTYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(name: str, values: np.ndarray, dtype: str) -> bytes:
    payload = values.tobytes()
    head = struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
    return string(name) + head + struct.pack("<BI", DTYPES[dtype], len(payload)) + payload


def model_bin(variables: dict[str, np.ndarray], spec: str = "WhisperSpec", version: int = 6) -> bytes:
    """Write as CTranslate2's ModelSpec._serialize does; uint16 arrays stand for bfloat16."""
    parts = [struct.pack("<I", version), string(spec), struct.pack("<II", 3, len(variables))]
    for name, values in sorted(variables.items()):
        parts.append(variable(name, values, {"uint16": "bfloat16"}.get(values.dtype.name, values.dtype.name)))
    aliases = [("decoder/projection/weight", name) for name in variables if name == "decoder/embeddings/weight"]
    parts.append(struct.pack("<I", len(aliases)))
    return b"".join([*parts, *(string(a) + string(b) for a, b in aliases)])


def ct2_variables(state: dict[str, torch.Tensor], dims: ModelDimensions) -> dict[str, np.ndarray]:
    """The inverse of the converter, written out from CTranslate2's own transformers converter."""
    out: dict[str, np.ndarray] = {
        "encoder/num_heads": np.array(dims.n_audio_head, np.int16),
        "decoder/num_heads": np.array(dims.n_text_head, np.int16),
        "decoder/embeddings/weight": state["decoder.token_embedding.weight"].numpy(),
    }

    def put(target: str, *sources: str) -> None:
        for kind in ("weight", "bias"):
            rows = [state.get(f"{s}.{kind}", torch.zeros(len(state[f"{s}.weight"]))).numpy() for s in sources]
            out[f"{target}/{kind}"] = np.concatenate(rows)

    def norm(target: str, source: str) -> None:
        out[f"{target}/gamma"], out[f"{target}/beta"] = (state[f"{source}.{k}"].numpy() for k in ("weight", "bias"))

    put("encoder/conv1", "encoder.conv1")
    put("encoder/conv2", "encoder.conv2")
    norm("encoder/layer_norm", "encoder.ln_post")
    norm("decoder/layer_norm", "decoder.ln")
    for side, layers in (("encoder", dims.n_audio_layer), ("decoder", dims.n_text_layer)):
        out[f"{side}/position_encodings/encodings"] = state[f"{side}.positional_embedding"].numpy()
        for i in range(layers):
            block, layer = f"{side}.blocks.{i}", f"{side}/layer_{i}"
            norm(f"{layer}/self_attention/layer_norm", f"{block}.attn_ln")
            put(f"{layer}/self_attention/linear_0", *(f"{block}.attn.{role}" for role in ("query", "key", "value")))
            put(f"{layer}/self_attention/linear_1", f"{block}.attn.out")
            if side == "decoder":
                norm(f"{layer}/attention/layer_norm", f"{block}.cross_attn_ln")
                put(f"{layer}/attention/linear_0", f"{block}.cross_attn.query")
                put(f"{layer}/attention/linear_1", f"{block}.cross_attn.key", f"{block}.cross_attn.value")
                put(f"{layer}/attention/linear_2", f"{block}.cross_attn.out")
            norm(f"{layer}/ffn/layer_norm", f"{block}.mlp_ln")
            put(f"{layer}/ffn/linear_0", f"{block}.mlp.0")
            put(f"{layer}/ffn/linear_1", f"{block}.mlp.2")
    return out


@pytest.fixture(scope="module")
def network() -> Whisper:
    torch.manual_seed(0)
    network = Whisper(DIMS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    return network


@pytest.fixture(scope="module")
def variables(network: Whisper) -> dict[str, np.ndarray]:
    return ct2_variables(network.state_dict(), DIMS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDATA_CACHE", str(tmp_path / "cache"))


def write_folder(folder: Path, variables: dict[str, np.ndarray], marker_at: int = 51864 - 1502) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(model_bin(variables))
    (folder / "config.json").write_text(json.dumps({"alignment_heads": [[1, 0]]}))
    tokens = ["x"] * 51864
    tokens[marker_at] = "<|notimestamps|>"
    (folder / "vocabulary.json").write_text(json.dumps(tokens))
    return folder


def test_a_converted_folder_is_the_network_it_came_from(
    tmp_path: Path, network: Whisper, variables: dict[str, np.ndarray]
) -> None:
    loaded = load_network(str(write_folder(tmp_path / "m", variables)))
    expected = network.state_dict()
    assert vars(loaded.dims) == vars(DIMS)
    assert loaded.state_dict().keys() == expected.keys()
    for name, values in loaded.state_dict().items():
        assert torch.equal(values, expected[name]), name
    assert loaded.alignment_heads.to_dense().tolist() == [[False], [True]]


def test_int8_and_int16_are_dequantised(tmp_path: Path, variables: dict[str, np.ndarray]) -> None:
    name = "decoder/layer_1/attention/linear_1"
    quantised = dict(variables)
    weight = variables[f"{name}/weight"]
    rows = 127 / np.abs(weight).max(axis=1)
    quantised[f"{name}/weight"] = np.round(weight * rows[:, None]).astype(np.int8)
    quantised[f"{name}/weight_scale"] = rows.astype(np.float32)
    conv = variables["encoder/conv1/weight"]
    whole = np.float32(1000 / np.abs(conv).max())
    quantised["encoder/conv1/weight"] = np.round(conv * whole).astype(np.int16)
    quantised["encoder/conv1/weight_scale"] = np.array(whole)
    state, _ = convert(write_folder(tmp_path / "m", quantised))
    value = state["decoder.blocks.1.cross_attn.value.weight"]
    assert np.abs(value - weight[64:]).max() <= 0.5 / rows.min() + 1e-6
    assert np.abs(state["encoder.conv1.weight"] - conv).max() <= 0.5 / whole + 1e-6


def test_integers_without_scales_are_refused(tmp_path: Path, variables: dict[str, np.ndarray]) -> None:
    broken = variables | {"encoder/conv1/weight": np.ones((64, 80, 3), np.int8)}
    with pytest.raises(WeightsError, match="int8 without fitting scales"):
        convert(write_folder(tmp_path / "m", broken))


def test_float16_and_bfloat16_are_read(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)
    path = tmp_path / "model.bin"
    path.write_bytes(model_bin({"a": values.astype(np.float16), "b": (values.view(np.uint32) >> 16).astype(np.uint16)}))
    read = read_model_bin(path)
    assert read["a"].dtype == np.float16
    assert read["a"].tolist() == read["b"].tolist() == values.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder/layer_1/ffn/linear_0/bias": None}, "decoder/layer_1/ffn/linear_0/bias' is missing"),
        ({"decoder/layer_1/extra/weight": np.ones(3, np.float32)}, "no place .* for decoder/layer_1/extra/weight"),
        ({"encoder/position_encodings/encodings": None}, "not a Whisper model"),
        ({"encoder/layer_0/self_attention/linear_0/bias": np.ones(191, np.float32)}, "has 191 rows"),
    ],
)
def test_every_variable_has_its_place(
    tmp_path: Path, variables: dict[str, np.ndarray], change: dict[str, Any], message: str
) -> None:
    changed = {name: values for name, values in (variables | change).items() if values is not None}
    with pytest.raises(WeightsError, match=message):
        convert(write_folder(tmp_path / "m", changed))


def test_a_misshapen_variable_is_refused_when_loading(tmp_path: Path, variables: dict[str, np.ndarray]) -> None:
    folder = write_folder(tmp_path / "m", variables | {"decoder/layer_0/ffn/linear_1/bias": np.ones(65, np.float32)})
    with pytest.raises(WeightsError, match="does not fit a Whisper model"):
        load_network(str(folder))


def test_a_foreign_vocabulary_is_refused(tmp_path: Path, variables: dict[str, np.ndarray]) -> None:
    with pytest.raises(WeightsError, match="not Whisper's vocabulary of 51864 tokens"):
        convert(write_folder(tmp_path / "m", variables, marker_at=7))


@pytest.mark.parametrize("name", ["model.bin", "config.json", "vocabulary.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "m", {})
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=name):
        convert(folder)


def small_bin() -> bytes:
    return model_bin({"decoder/embeddings/weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int16(3)[()]})


@pytest.mark.parametrize("cut", range(len(small_bin())))
def test_truncation_anywhere_is_found(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(small_bin()[:cut])
    with pytest.raises(WeightsError, match=r"model\.bin"):
        read_model_bin(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (small_bin() + b"x", "1 bytes after the end"),
        (model_bin({}, spec="TransformerSpec"), "holds a 'TransformerSpec' model"),
        (model_bin({}, version=99), "binary version 99"),
        (small_bin().replace(struct.pack("<BI", 0, 24), struct.pack("<BI", 9, 24)), "data type 9"),
        (small_bin().replace(struct.pack("<BI", 0, 24), struct.pack("<BI", 0, 28)), "28 bytes"),
    ],
)
def test_corruption_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_model_bin(path)


@settings(max_examples=300)
@given(st.integers(0, len(small_bin()) - 1), st.integers(0, 255))
def test_no_changed_byte_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    content = bytearray(small_bin())
    content[at] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    path.write_bytes(content)
    try:
        read = read_model_bin(path)
    except WeightsError:
        return
    assert sum(values.nbytes for values in read.values()) <= len(content)


def test_the_conversion_is_kept_by_content(tmp_path: Path, variables: dict[str, np.ndarray]) -> None:
    folder = write_folder(tmp_path / "m", variables)
    first = converted(folder)
    stamp = first.stat().st_mtime_ns
    assert converted(folder) == first
    assert first.stat().st_mtime_ns == stamp
    assert list(first.parent.iterdir()) == [first]
    write_folder(folder, variables | {"encoder/conv1/bias": np.ones(64, np.float32)})
    assert converted(folder) != first


@pytest.mark.slow
def test_real_tiny_en_converts_with_every_key_matched(whisper_tiny_dir: Path) -> None:
    network = load_network(str(whisper_tiny_dir))
    assert vars(network.dims) == vars(ModelDimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4))
    # The positions of the encoder are sinusoids that openai-whisper computes: here they come out of the file.
    computed = Whisper(network.dims).encoder.positional_embedding
    assert torch.allclose(network.encoder.positional_embedding, computed, atol=1e-3)
    assert network.alignment_heads.to_dense().sum() == 8
