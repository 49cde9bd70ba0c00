"""Find and read Whisper weights, whatever form they come in: CTranslate2 folder, checkpoint file, openai's name.

`locate` imports neither torch nor whisper.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import os
import pickle
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models import ctranslate2
from mmdata.models.weights import Weights, cache_dir, content_identity, refusal

if TYPE_CHECKING:
    import torch
    from whisper.model import Whisper as Network

# Encoder layers, decoder layers, decoder heads (Radford et al. 2022, table 1; openai-whisper's model card for turbo).
_SIZES = {
    (4, 4, 6): "tiny",
    (6, 6, 8): "base",
    (12, 12, 12): "small",
    (24, 24, 16): "medium",
    (32, 4, 20): "turbo",
}
_CHECKPOINT_SUFFIXES = {".pt", ".pth", ".safetensors"}


@dataclass(frozen=True)
class Checkpoint:
    """What it takes to build openai-whisper's network.

    Attributes:
        dims: openai-whisper's ModelDimensions.
        state: parameters under openai-whisper's names.
        alignment_heads: [layer, head] of the cross-attention heads that follow the speech in time; None: unknown.
    """

    dims: dict[str, int]
    state: dict[str, torch.Tensor]
    alignment_heads: list[list[int]] | None = None


def locate(model: str) -> Weights:
    """Say which weights `model` names and whether they are here, in milliseconds.

    Args:
        model: a CTranslate2 Whisper folder, a `.pt` or `.safetensors` file with openai-whisper's parameter names, or
            a name of openai-whisper such as `tiny.en` or `large-v3-turbo`. A name that openai-whisper has not
            downloaded yet has `path` None: loading fetches it, which needs a network.

    Raises:
        WeightsError: something is missing; the message says what, and how to get it.
    """
    path = Path(model).expanduser()
    if path.is_dir() and (ctranslate2.is_folder(path) or _is_path(model)):
        return Weights(identity=content_identity(_folder_files(path)), path=path)
    if path.is_file():
        return Weights(identity=content_identity([path]), path=path)
    if _is_path(model):
        raise WeightsError(_missing(path))
    known = _known_urls()
    if known and model not in known:
        near = difflib.get_close_matches(model, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise WeightsError(f"unknown Whisper model {model!r}; {hint}")
    return Weights(identity=model, path=_downloaded(known.get(model)))


def load_network(model: str) -> Network:
    """Build openai-whisper's network on the CPU in float32, in evaluation mode.

    Raises:
        WeightsError: the weights are missing, damaged or no Whisper model.
        MissingExtraError: openai-whisper is not installed.
    """
    try:
        import whisper
    except ImportError as error:
        raise MissingExtraError("whisper scoring", "openai-whisper", "whisper") from error
    weights = locate(model)
    if model in whisper.available_models() and weights.identity == model:
        return _load_named(model).eval()
    assert weights.path is not None  # what is not a name is a path
    network = _build(_read(weights.path), weights.path)
    # A file named as openai names its own has the heads that openai measured for that model.
    if (heads := whisper._ALIGNMENT_HEADS.get(weights.path.stem)) and weights.path.suffix == ".pt":
        network.set_alignment_heads(heads)
    return network.eval()


def _heads_by_size(network: Network) -> bytes | None:
    """The alignment heads that openai-whisper ships for the only model of this size; None where there are several.

    The three `large` models are of one size, with heads of their own each.
    """
    import whisper

    name = _SIZES.get((network.dims.n_audio_layer, network.dims.n_text_layer, network.dims.n_text_head))
    heads: bytes | None = whisper._ALIGNMENT_HEADS.get(f"{name}{'' if network.is_multilingual else '.en'}")
    return heads


def _is_path(text: str) -> bool:
    path = Path(text).expanduser()
    return text.startswith(("~", ".")) or len(path.parts) > 1 or path.suffix in _CHECKPOINT_SUFFIXES


def _folder_files(folder: Path) -> list[Path]:
    try:
        return ctranslate2.model_files(folder)
    except WeightsError as error:
        raise WeightsError(f"{error}; {_fix(folder)}") from error


def _missing(path: Path) -> str:
    return f"Whisper model {path} is not there; {_fix(path)}"


def _fix(path: Path) -> str:
    if path.parent == cache_dir() / "models" and path.name.startswith("whisper-"):
        return f"run: mmdata fetch {path.name}"
    return "give a CTranslate2 folder, a .pt file or a name such as tiny.en, or run: mmdata fetch whisper-tiny.en"


@cache
def _known_urls() -> dict[str, str]:
    """Names and addresses that openai-whisper knows, read off its source: importing it would import torch."""
    found = importlib.util.find_spec("whisper")
    if found is None or found.origin is None:
        return {}
    for node in ast.parse(Path(found.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_MODELS":
            return dict(ast.literal_eval(node.value))
    return {}


def _downloaded(url: str | None) -> Path | None:
    """Give the file in openai-whisper's download folder (`load_model` there), if it is."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whisper"
    path = folder / url.rsplit("/", 1)[-1] if url else folder
    return path if path.is_file() else None


def _load_named(model: str) -> Network:
    import whisper

    try:
        return whisper.load_model(model, device="cpu")
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"Whisper model {model!r} cannot be downloaded or read ({error}); "
            "without a network run: mmdata fetch whisper-tiny.en, or give a local folder or file"
        ) from error


def _read(path: Path) -> Checkpoint:
    if path.is_dir():
        return _read_safetensors(ctranslate2.converted(path))
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("reading safetensors weights", "safetensors", "whisper") from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        dims = json.loads(metadata["dims"])
        return Checkpoint(dims, state, json.loads(metadata.get("alignment_heads", "null")))
    except KeyError as error:
        raise WeightsError(f"{path}: its metadata lacks {error}; convert it to openai-whisper's names first") from error
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: damaged: {error}") from error


def _read_pickle(path: Path) -> Checkpoint:
    """Read openai's own format; weights_only keeps a stranger's file from running code."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Checkpoint(dict(content["dims"]), content["model_state_dict"])
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a checkpoint of openai-whisper: {refusal(error)}") from error


def _build(checkpoint: Checkpoint, path: Path) -> Network:
    import torch
    from whisper.model import ModelDimensions, Whisper

    try:
        network = Whisper(ModelDimensions(**checkpoint.dims))
        network.load_state_dict(checkpoint.state)
        if checkpoint.alignment_heads:
            mask_LH = torch.zeros(network.dims.n_text_layer, network.dims.n_text_head, dtype=torch.bool)
            mask_LH[tuple(zip(*checkpoint.alignment_heads, strict=True))] = True
            network.register_buffer("alignment_heads", mask_LH.to_sparse(), persistent=False)
        elif heads := _heads_by_size(network):
            network.set_alignment_heads(heads)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: does not fit a Whisper model: {error}") from error
    return network
