"""Write what cross-fitting learned of images and texts as an open_clip model, which any CLIP tool opens.

Shapes: F image features, E text features, P components of a space, D embedding size.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models.clip_weights import CHECKPOINT_NAMES, CONFIG_NAME
from mmdata.models.crossfit_aligner import Aligner
from mmdata.models.crossfit_heads import Floats
from mmdata.models.tower_spec import TowerSpec
from mmdata.models.towers import load_sentence, load_timm, timm_recipe

_CONTEXT_LENGTH: Final = 128
_TEXT_FILES: Final = (
    "config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
# `logit_scale` only matters to who trains on: CLIP's own start (Radford et al. 2021, section 2.5).
_LOGIT_SCALE: Final = float(np.log(1 / 0.07))


def save_open_clip(folder: Path, aligner: Aligner, image: TowerSpec, text: TowerSpec) -> None:
    """Write both towers and the heads of all pairs; `Clip.load` gives their embeddings.

    A space and a head are linear up to the scale of a row, so that both make one projection.

    Args:
        folder: made where it is not there.
        aligner: its left features are of `image`, its right ones of `text`.
        image: of kind `timm`.
        text: of kind `sentence`, a BERT-like encoder with mean pooling.

    Raises:
        ValueError: the towers are of other kinds.
        WeightsError: open_clip builds another network than the towers are.
        MissingExtraError: open_clip is not installed.
    """
    if (image.kind, text.kind) != ("timm", "sentence"):
        raise ValueError(f"open_clip takes a timm and a sentence tower, not {image.kind} and {text.kind}")
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError("writing an open_clip model", "open-clip-torch", "clip") from error
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(text.model).expanduser()
    for name in _TEXT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    viewer, reader = load_timm(image), load_sentence(source)[0]
    heads = aligner.models[aligner.everyone].heads
    config = _config(image, timm_recipe(viewer, image.resize_mode).__dict__, heads.left_PD.shape[1])
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    text_cfg = {**config["model_cfg"]["text_cfg"], "hf_model_name": str(folder), "hf_model_pretrained": False}
    model = open_clip.CustomTextCLIP(**{**config["model_cfg"], "text_cfg": text_cfg})
    _save(folder, model, {**_tower_state(model, viewer, reader), **_projections(aligner)})


def _config(image: TowerSpec, recipe: dict[str, Any], embed_dim: int) -> dict[str, Any]:
    """What open_clip builds the model from; `.` is the folder itself, so that it can be moved."""
    vision = {
        "timm_model_name": image.model,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "timm_proj_bias": True,
        "image_size": recipe["side_px"],
    }
    text = {
        "hf_model_name": ".",
        "hf_tokenizer_name": ".",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
        "context_length": _CONTEXT_LENGTH,
    }
    preprocess = {
        "size": recipe["side_px"],
        "mean": recipe["mean"],
        "std": recipe["std"],
        "interpolation": recipe["interpolation"],
        "resize_mode": recipe["resize_mode"],
        "fill_color": recipe["fill"],
    }
    model = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _projections(aligner: Aligner) -> dict[str, Floats]:
    heads = aligner.models[aligner.everyone].heads
    left, right = aligner.left_space, aligner.right_space
    if np.any(right.shift_P):
        raise WeightsError("open_clip's text projection has no bias, and this text space needs one")
    return {
        "visual.head.proj.weight": (left.map_XP @ heads.left_PD).T,
        "visual.head.proj.bias": left.shift_P @ heads.left_PD,
        "text.proj.weight": (right.map_XP @ heads.right_PD).T,
        "logit_scale": np.asarray(_LOGIT_SCALE, dtype=np.float32),
    }


def _tower_state(model: Any, viewer: Any, reader: Any) -> dict[str, Any]:
    """The towers' parameters under open_clip's names; classifiers and poolers are left behind."""
    parts = (("visual.trunk.", viewer.state_dict()), ("text.transformer.", reader.state_dict()))
    wanted = set(model.state_dict())
    return {
        prefix + name: tensor for prefix, state in parts for name, tensor in state.items() if prefix + name in wanted
    }


def _save(folder: Path, model: Any, state: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import save_file

    own = model.state_dict()
    tensors = {
        name: torch.as_tensor(np.array(value) if isinstance(value, np.ndarray) else value)
        for name, value in state.items()
    }
    wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    if wrong:
        raise WeightsError(f"open_clip builds other networks than these towers: {', '.join(wrong[:3])}")
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        folder / CHECKPOINT_NAMES[0],
    )
    (folder / CHECKPOINT_NAMES[0]).chmod(0o644)  # safetensors keeps it to its owner; a cache may be shared
