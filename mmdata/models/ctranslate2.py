"""Read a CTranslate2 Whisper folder and convert it to openai-whisper's parameter names.

`model.bin` is parsed as data: every length is checked against the file, nothing is unpickled, and a file that is not
what it says ends in a WeightsError. The layout (CTranslate2 `python/ctranslate2/specs/model_spec.py`,
`ModelSpec._serialize`, binary version 6; the reader is `src/models/model.cc`), all integers little-endian:

    u32 version | string spec name | u32 revision
    u32 count | count x (string name | u8 rank | rank x u32 | u8 dtype | u32 bytes | payload)
    u32 count | count x (string alias | string name)

where a string is a u16 length and that many bytes, the last of them NUL.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models.weights import cache_dir, content_identity

Array: TypeAlias = npt.NDArray[Any]

_MIN_VERSION, _MAX_VERSION = 4, 6
_MAX_RANK = 8
# Ids as in `include/ctranslate2/types.h`, enum DataType. NumPy has no bfloat16: it is read as u2 and widened.
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2", 5: "<u2"}
_BFLOAT16 = 5
# Every Whisper model has heads of 64 dimensions (Radford et al. 2022, table 1: width / heads).
_HEAD_DIM = 64
# The last 1,501 tokens are timestamps, 0.00 to 30.00 s by 0.02; `<|notimestamps|>` stands right before them
# (openai-whisper `tokenizer.get_encoding`).
_TIMESTAMPS = 1501
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")

_LAYER_NORM = {"gamma": "weight", "beta": "bias"}
_LINEAR = {"weight": "weight", "bias": "bias"}


def is_folder(path: Path) -> bool:
    """Whether `path` looks like a CTranslate2 model folder."""
    return (path / "model.bin").is_file()


def model_files(folder: Path) -> list[Path]:
    """Name the files of `folder` that decide its scores; raises WeightsError where one is missing."""
    vocabulary = next((folder / name for name in _VOCABULARIES if (folder / name).is_file()), None)
    if vocabulary is None:
        raise WeightsError(f"{folder}: not a CTranslate2 Whisper folder: {' or '.join(_VOCABULARIES)} is missing")
    for name in ("model.bin", "config.json"):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder}: not a CTranslate2 Whisper folder: {name} is missing")
    return [folder / "model.bin", folder / "config.json", vocabulary]


def converted(folder: Path) -> Path:
    """Convert `folder` once and give the safetensors file, kept in the cache by the content of the folder.

    The file's metadata has `dims` (openai-whisper's ModelDimensions) and `alignment_heads` ([layer, head] pairs) as
    JSON. Raises WeightsError where the folder cannot be converted, MissingExtraError without safetensors.
    """
    target = cache_dir() / "converted" / content_identity(model_files(folder)) / "model.safetensors"
    if target.is_file():
        return target
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingExtraError("reading CTranslate2 weights", "safetensors", "whisper") from error
    state, metadata = convert(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(f".{os.getpid()}")
    save_file(state, scratch, metadata)
    scratch.replace(target)
    return target


def convert(folder: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """State dict under openai-whisper's names, in the folder's own float type, and the metadata of `converted`.

    Integer weights are divided by their scales to float32 (CTranslate2 docs, "Quantization": q = round(w * scale)).
    Raises WeightsError where the folder is not a Whisper model or a variable is missing, misshaped or left over.
    """
    binary, config_path, vocabulary_path = model_files(folder)
    variables = _dequantized(read_model_bin(binary), binary)
    dims = _dimensions(variables, binary)
    _check_vocabulary(vocabulary_path, dims["n_vocab"])
    state = _Renamer(variables, binary).rename(dims)
    heads = _read_json(config_path).get("alignment_heads", [])
    return state, {"dims": json.dumps(dims), "alignment_heads": json.dumps(heads)}


def read_model_bin(path: Path) -> dict[str, Array]:
    """Variables of a Whisper `model.bin` by name, as read-only views of the file; aliases are left out.

    Raises WeightsError where the file is truncated, corrupted or holds another kind of model.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise WeightsError(f"{path}: the file is empty")
        reader = _Reader(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    version = reader.integer(4)
    if not _MIN_VERSION <= version <= _MAX_VERSION:
        raise WeightsError(f"{path}: CTranslate2 binary version {version}; can read {_MIN_VERSION} to {_MAX_VERSION}")
    if (spec := reader.name()) != "WhisperSpec":
        raise WeightsError(f"{path}: holds a {spec!r} model, needs 'WhisperSpec'")
    reader.integer(4)  # the revision: what changed between revisions shows in the names
    variables = dict(reader.variable() for _ in range(reader.integer(4)))
    for _ in range(reader.integer(4)):
        reader.name()
        if (target := reader.name()) not in variables:
            raise WeightsError(f"{path}: corrupted: an alias names the unknown variable {target!r}")
    reader.finish()
    return variables


class _Reader:
    """Cursor over the file; every read is checked against the end."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.offset = 0

    def _advance(self, count: int) -> int:
        start = self.offset
        if count > len(self.buffer) - start:
            raise WeightsError(
                f"{self.path}: truncated or corrupted: {count} bytes wanted at {start}, {len(self.buffer) - start} left"
            )
        self.offset += count
        return start

    def integer(self, width: int) -> int:
        start = self._advance(width)
        return int.from_bytes(self.buffer[start : start + width], "little")

    def name(self) -> str:
        length = self.integer(2)
        start = self._advance(length)
        try:
            return self.buffer[start : start + length].rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError as error:
            raise WeightsError(f"{self.path}: corrupted: no name at byte {start}") from error

    def variable(self) -> tuple[str, Array]:
        name, rank = self.name(), self.integer(1)
        shape = [self.integer(4) for _ in range(min(rank, _MAX_RANK))]
        dtype_id, size = self.integer(1), self.integer(4)
        count = math.prod(shape)
        dtype = _DTYPES.get(dtype_id)
        if rank > _MAX_RANK or dtype is None or count * np.dtype(dtype).itemsize != size:
            raise WeightsError(
                f"{self.path}: corrupted: {name!r} has shape {shape}, data type {dtype_id}, {size} bytes"
            )
        values = np.frombuffer(self.buffer, dtype, count, self._advance(size)).reshape(shape)
        if dtype_id == _BFLOAT16:
            values = (values.astype("<u4") << 16).view("<f4")
        return name, values

    def finish(self) -> None:
        if self.offset != len(self.buffer):
            raise WeightsError(f"{self.path}: corrupted: {len(self.buffer) - self.offset} bytes after the end")


class _Renamer:
    """Take variables out under CTranslate2's names, put them into `state` under openai-whisper's."""

    def __init__(self, variables: dict[str, Array], path: Path) -> None:
        self.left = {name: values for name, values in variables.items() if values.ndim}
        self.path = path
        self.state: dict[str, Array] = {}

    def rename(self, dims: dict[str, int]) -> dict[str, Array]:
        for conv in ("conv1", "conv2"):
            self._move(f"encoder/{conv}", f"encoder.{conv}", _LINEAR)
        for side, n_layer in (("encoder", dims["n_audio_layer"]), ("decoder", dims["n_text_layer"])):
            for layer in range(n_layer):
                self._layer(f"{side}/layer_{layer}", f"{side}.blocks.{layer}", cross=side == "decoder")
            self._move(f"{side}/position_encodings", side, {"encodings": "positional_embedding"})
        self._move("encoder/layer_norm", "encoder.ln_post", _LAYER_NORM)
        self._move("decoder/layer_norm", "decoder.ln", _LAYER_NORM)
        self._move("decoder/embeddings", "decoder.token_embedding", {"weight": "weight"})
        if self.left:
            raise WeightsError(f"{self.path}: no place in a Whisper model for {', '.join(sorted(self.left)[:3])}")
        return self.state

    def _layer(self, source: str, target: str, *, cross: bool) -> None:
        self._attention(f"{source}/self_attention", f"{target}.attn", [["query", "key", "value"], ["out"]])
        if cross:
            self._attention(f"{source}/attention", f"{target}.cross_attn", [["query"], ["key", "value"], ["out"]])
        self._move(f"{source}/ffn/layer_norm", f"{target}.mlp_ln", _LAYER_NORM)
        self._move(f"{source}/ffn/linear_0", f"{target}.mlp.0", _LINEAR)
        self._move(f"{source}/ffn/linear_1", f"{target}.mlp.2", _LINEAR)

    def _attention(self, source: str, target: str, linears: list[list[str]]) -> None:
        self._move(f"{source}/layer_norm", f"{target}_ln", _LAYER_NORM)
        for index, roles in enumerate(linears):
            for kind in ("weight", "bias"):
                fused = self._take(f"{source}/linear_{index}/{kind}")
                if fused.shape[0] % len(roles):
                    raise WeightsError(f"{self.path}: {source}/linear_{index}/{kind} has {fused.shape[0]} rows")
                for role, rows in zip(roles, np.split(fused, len(roles)), strict=True):
                    # Whisper's key has no bias (one would shift all of a query's logits alike, which softmax undoes).
                    if (role, kind) != ("key", "bias"):
                        self.state[f"{target}.{role}.{kind}"] = rows

    def _move(self, source: str, target: str, parts: dict[str, str]) -> None:
        for old, new in parts.items():
            self.state[f"{target}.{new}"] = self._take(f"{source}/{old}")

    def _take(self, name: str) -> Array:
        if name not in self.left:
            raise WeightsError(f"{self.path}: the variable {name!r} is missing")
        return self.left.pop(name)


def _dequantized(variables: dict[str, Array], path: Path) -> dict[str, Array]:
    """Floats for integer weights; their `*_scale` variables (one a row, or one for all) go."""
    scales = {name: values for name, values in variables.items() if name.endswith("_scale")}
    floats = {name: values for name, values in variables.items() if name not in scales}
    for name, values in floats.items():
        if not values.ndim or values.dtype.kind == "f":
            continue
        scale = scales.get(f"{name}_scale")
        if scale is None or scale.size not in (1, values.shape[0]):
            raise WeightsError(f"{path}: {name!r} is {values.dtype.name} without fitting scales; convert to float16")
        floats[name] = values.astype(np.float32) / scale.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
    return floats


def _dimensions(variables: dict[str, Array], path: Path) -> dict[str, int]:
    """openai-whisper's ModelDimensions, read off the shapes."""
    try:
        n_mels = variables["encoder/conv1/weight"].shape[1]
        n_audio_ctx, n_audio_state = variables["encoder/position_encodings/encodings"].shape
        n_text_ctx, n_text_state = variables["decoder/position_encodings/encodings"].shape
        n_vocab = variables["decoder/embeddings/weight"].shape[0]
        heads = [
            int(variables.get(f"{side}/num_heads", width // _HEAD_DIM))
            for side, width in (("encoder", n_audio_state), ("decoder", n_text_state))
        ]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise WeightsError(f"{path}: not a Whisper model: {error}") from error
    return {
        "n_mels": n_mels,
        "n_audio_ctx": n_audio_ctx,
        "n_audio_state": n_audio_state,
        "n_audio_head": heads[0],
        "n_audio_layer": _layers(variables, "encoder"),
        "n_vocab": n_vocab,
        "n_text_ctx": n_text_ctx,
        "n_text_state": n_text_state,
        "n_text_head": heads[1],
        "n_text_layer": _layers(variables, "decoder"),
    }


def _layers(variables: dict[str, Array], side: str) -> int:
    return len({found[1] for name in variables if (found := re.match(rf"{side}/layer_(\d+)/", name))})


def _check_vocabulary(path: Path, n_vocab: int) -> None:
    """Scores use openai-whisper's own tokenizer: a folder with other tokens would be scored wrongly, so it is out."""
    lines = path.read_text(encoding="utf-8")
    try:
        tokens = json.loads(lines) if path.suffix == ".json" else lines.removesuffix("\n").split("\n")
        marker = tokens[n_vocab - _TIMESTAMPS - 1]
    except (ValueError, LookupError, TypeError):
        marker = None
    if marker != "<|notimestamps|>":
        raise WeightsError(f"{path}: not Whisper's vocabulary of {n_vocab} tokens")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: needs a JSON object")
    return content
