"""The trained model as files that stand for themselves: weights, configuration, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from mmdata.errors import TrainError
from mmdata.train.checkpoint import write_whole
from mmdata.train.config import SetConfig, TrainConfig
from mmdata.train.model.fused import TRAINING_ONLY, FusedModel
from mmdata.train.model.sizes import Architecture
from mmdata.train.model.towers import Limits
from mmdata.train.tokens import END, START, bounds, load_tokenizer

_FORMAT = "mmdata-model"
_VERSION = 2
# What two models that read the same batches have in common.
_SHARED_LIMITS = (
    "text_max_tokens", "image_side_px", "audio_max_s", "video_frames", "tensor_channels", "tensor_max_steps",
)  # fmt: skip


def limits_of(config: TrainConfig, tokenizer: Tokenizer | None) -> Limits:
    """Sizes of the inputs of a model for this configuration."""
    data = config.data
    sizes = (data.text_max_tokens, data.image_side_px, data.audio_max_s)
    series = (data.video_frames, data.tensor_channels, data.tensor_max_steps)
    start_end = bounds(tokenizer) if tokenizer else (START, END)
    return Limits(tokenizer.get_vocab_size() if tokenizer else 0, *sizes, *series, *start_end)


def read_description(folder: Path) -> dict[str, Any]:
    """What a run says of its model. Raises TrainError where the folder is no finished run."""
    try:
        description: dict[str, Any] = json.loads((folder / "config.json").read_text())
        if (description["format"], description["version"]) != (_FORMAT, _VERSION):
            raise TrainError(f"{folder}: no model of version {_VERSION}; train it again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder, error) from None
    return description


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a run. Raises TrainError where they cannot be read, or are no numbers."""
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from None
    bad = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if bad:
        fix = "that training went wrong; train it again with a lower optim.lr, or take another run"
        raise TrainError(f"{path}: NaN or infinite in {len(bad)} of {len(weights)} tensors, first {bad[0]}: {fix}")
    return weights


def _unreadable(folder: Path, error: BaseException) -> TrainError:
    return TrainError(f"{folder}: no trained model that can be read: {error}")


def run_limits(folder: Path, config: TrainConfig, key: str) -> None:
    """Raises TrainError where a run's inputs have other sizes than those of this configuration, named under `key`."""
    limits = read_description(folder)["limits"]
    for name in _SHARED_LIMITS:
        ours = getattr(config.data, name)
        if name in limits and limits[name] != ours:
            raise TrainError(f"{key}: data.{name} is {ours}, that of {folder} is {limits[name]}; use the same")


def save_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    modalities: Sequence[str],
    config: TrainConfig,
    limits: Limits,
    replayed: Mapping[str, SetConfig],
) -> None:
    """Write `model.safetensors` and `config.json`; the tokenizer stands there since training started.

    `replayed` are the sets of the run that this one began with, with their shares, which its training file names not.
    """
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(TRAINING_ONLY)}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
    write_whole(folder / "model.safetensors", lambda scratch: save_file(weights, scratch))
    description = {
        "format": _FORMAT,
        "version": _VERSION,
        "modalities": list(modalities),
        "architecture": config.architecture().model_dump(),
        "limits": asdict(limits),
        "training": config.model_dump(),
        "replayed": {name: one.model_dump() for name, one in replayed.items()},
    }
    write_json(folder / "config.json", description)


def load_model(folder: Path, device: torch.device | None = None) -> tuple[FusedModel, Tokenizer | None]:
    """A trained model, ready to embed, and its tokenizer where text is one of its modalities.

    Raises TrainError where the folder holds no such model.
    """
    try:
        description = read_description(folder)
        modalities = tuple(description["modalities"])
        architecture = Architecture.model_validate(description["architecture"])
        model = FusedModel(architecture, modalities, Limits(**description["limits"]))
        model.load_state_dict(read_weights(folder))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _unreadable(folder, error) from None
    tokenizer = load_tokenizer(folder / "tokenizer.json") if "text" in modalities else None
    return model.to(device or torch.device("cpu")).eval(), tokenizer


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON in one piece."""
    text = json.dumps(value, indent=1) + "\n"
    write_whole(path, lambda scratch: scratch.write_text(text))
