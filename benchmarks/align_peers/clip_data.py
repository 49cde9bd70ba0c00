"""What the CLIP peers are given: one set of random weights in two forms, and pairs of JPEG files and captions.

No CLIP weights can be had where this is tested; a ViT-B/32 of random weights costs as much a pair, and tells as well
whether two programs compute the same score.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

from mmdata.models.weights import cache_dir

ARCHITECTURE = "ViT-B-32-quickgelu"
_LAYER_PARTS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_SINGLE = {
    "logit_scale": "logit_scale",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


def write_weights(folder: Path) -> dict[str, str]:
    """Make `hf/` (model, tokenizer, processor) and `open_clip.safetensors` of the same weights.

    Returns:
        settings of the peers: `hf`, `checkpoint`, `model`.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    # CLIPConfig's defaults are those of openai/clip-vit-base-patch32.
    model = CLIPModel(CLIPConfig()).eval()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100.0))  # what CLIP was trained to; Data-Juicer divides by it
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embedding" not in name:
                # At HF's initial scale all pairs score alike, and equal scores would prove little.
                weight.mul_(3.0)
    model.save_pretrained(folder / "hf")
    _write_processor(folder / "hf")
    checkpoint = folder / "open_clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in _renamed(model.state_dict()).items()}, checkpoint)
    return {"hf": str(folder / "hf"), "checkpoint": str(checkpoint), "model": ARCHITECTURE}


def write_pairs(folder: Path, pairs: int, sides_px: tuple[int, int]) -> Path:
    """Stamps as JPEG files with a longer side in `sides_px`, and `pairs.jsonl` (`image`, `text`: the English caption).

    They are scaled up, laid on white, and given the grain of a photograph: a drawing would decode sooner.
    """
    chosen = _stamps(pairs)
    lines = []
    for index, (picture, caption) in enumerate(chosen):
        target = folder / f"{index:05d}.jpg"
        _as_photo(picture, index, sides_px).save(target, quality=85)
        lines.append(json.dumps({"image": str(target), "text": caption}))
    listing = folder / "pairs.jsonl"
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return listing


def read_pairs(listing: Path) -> list[dict[str, str]]:
    """The lines of `pairs.jsonl`."""
    return [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]


def _stamps(count: int) -> list[tuple[Path, str]]:
    """Pictures with captions of 6 words or more (COCO's have 10.5 on average, these 10), each caption once.

    ASCII alone: the tokenizers differ in how they mend typographic quotes, and scores must be comparable.
    """
    root = cache_dir() / "media" / "stamps"
    pictures = [path for path in sorted(root.rglob("*.png")) if path.with_suffix(".txt").is_file()]
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8").split("\n")[0].strip() for path in pictures]
    found = {
        text: picture
        for text, picture in zip(captions, pictures, strict=True)
        if text.isascii() and len(text.split()) >= 6
    }
    if not found:
        raise SystemExit("the stamps are not here; run: mmdata fetch stamps")
    pairs = [(picture, text) for text, picture in found.items()]
    random.Random(0).shuffle(pairs)
    return pairs[:count]


def _as_photo(picture: Path, seed: int, sides_px: tuple[int, int]) -> Any:
    import numpy as np
    from PIL import Image

    from mmdata.media.image import to_rgb

    rng = np.random.default_rng(seed)
    with Image.open(picture) as stamp:
        image = to_rgb(stamp)
    scale = int(rng.integers(sides_px[0], sides_px[1] + 1)) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels_HWC = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    grain_HW1 = rng.normal(0.0, 4.0, (*pixels_HWC.shape[:2], 1)).astype(np.float32)
    return Image.fromarray((pixels_HWC + grain_HW1).clip(0, 255).astype(np.uint8))


def _renamed(state: dict[str, Any]) -> dict[str, Any]:
    """Hugging Face's parameter names to open_clip's; query, key and value are one matrix there."""
    found = {ours: state[theirs] for theirs, ours in _SINGLE.items()}
    found["visual.proj"] = state["visual_projection.weight"].T
    found["text_projection"] = state["text_projection.weight"].T
    for tower, target in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        layers = {name.split(".")[3] for name in state if name.startswith(f"{tower}.encoder.layers.")}
        for layer in sorted(layers):
            block = _layer(state, f"{tower}.encoder.layers.{layer}")
            found |= {f"{target}.resblocks.{layer}.{name}": tensor for name, tensor in block.items()}
    return found


def _layer(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    import torch

    found = {}
    for kind in ("weight", "bias"):
        found[f"attn.in_proj_{kind}"] = torch.cat([state[f"{prefix}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
        found |= {f"{ours}.{kind}": state[f"{prefix}.{theirs}.{kind}"] for theirs, ours in _LAYER_PARTS.items()}
    return found


def _write_processor(folder: Path) -> None:
    """CLIP's tokenizer from the merges that open_clip ships, and its image processor (the defaults are CLIP's)."""
    import open_clip
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    encoder = dict(open_clip.tokenizer.SimpleTokenizer().encoder)
    vocabulary = {_special(token): number for token, number in encoder.items()}
    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    # As open_clip's SimpleTokenizer reads it: the first line is a header, 48,894 merges are used.
    merges = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    tokenizer.model_max_length = 77
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)


def _special(token: str) -> str:
    return {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(token, token)
