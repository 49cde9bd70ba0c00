"""A small CLIP of random weights, as an open_clip folder."""

from __future__ import annotations

import json
from pathlib import Path


def write_small_clip(folder: Path) -> Path:
    """A ViT for images of 32 px with the causal text tower, 256 dimensions."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    config = {"embed_dim": 256, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in open_clip.CLIP(**config).state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    preprocess = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3], "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder
