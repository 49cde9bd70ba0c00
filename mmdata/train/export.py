"""The trained model as files that stand for themselves: weights, configuration, tokenizer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from mmdata.errors import TrainError
from mmdata.train.checkpoint import write_whole
from mmdata.train.config import TrainConfig
from mmdata.train.model.fused import FusedModel
from mmdata.train.model.sizes import Architecture
from mmdata.train.model.towers import Limits
from mmdata.train.tokens import load_tokenizer

_FORMAT = "mmdata-model"
_VERSION = 1


def limits_of(config: TrainConfig, vocab_size: int) -> Limits:
    """Sizes of the inputs of a model for this configuration."""
    data = config.data
    return Limits(vocab_size, data.text_max_tokens, data.image_side_px, data.audio_max_s)


def save_model(folder: Path, model: FusedModel, config: TrainConfig, limits: Limits) -> None:
    """Write `model.safetensors` and `config.json`; the tokenizer stands there since training started."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_whole(folder / "model.safetensors", lambda scratch: save_file(weights, scratch))
    description = {
        "format": _FORMAT,
        "version": _VERSION,
        "modalities": list(model.modalities),
        "architecture": config.architecture().model_dump(),
        "limits": asdict(limits),
        "training": config.model_dump(),
    }
    write_json(folder / "config.json", description)


def load_model(folder: Path, device: torch.device | None = None) -> tuple[FusedModel, Tokenizer | None]:
    """A trained model, ready to embed, and its tokenizer where text is one of its modalities.

    Raises TrainError where the folder holds no such model.
    """
    try:
        description = json.loads((folder / "config.json").read_text())
        if (description["format"], description["version"]) != (_FORMAT, _VERSION):
            raise TrainError(f"{folder}: no model of version {_VERSION}; train it again")
        modalities = tuple(description["modalities"])
        architecture = Architecture.model_validate(description["architecture"])
        model = FusedModel(architecture, modalities, Limits(**description["limits"]))
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise TrainError(f"{folder}: no trained model that can be read: {error}") from None
    tokenizer = load_tokenizer(folder / "tokenizer.json") if "text" in modalities else None
    return model.to(device or torch.device("cpu")).eval(), tokenizer


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON in one piece."""
    text = json.dumps(value, indent=1) + "\n"
    write_whole(path, lambda scratch: scratch.write_text(text))
