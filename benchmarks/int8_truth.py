"""What int8 products do to embeddings: of random weights, of random weights with large channels, and of trained ones.

* ViT-B/32 of `align_peers/clip_data.py`, stamps and captions: cosines of all pairs beside those in float32; as it is,
  and with four channels of what each MLP multiplies 20 or 50 times as large, their weights as much smaller (the same
  function).
* MiniLM on captions, the encoders of Whisper on spoken prompts (frames): trained transformers, whose channels are not
  alike. The MLPs of the encoder in bf16 or int8, all else in float32.

Usage: python benchmarks/int8_truth.py. One line for each model and precision; `gap` is the root mean square of what
cosines of different items move by, `spread` their standard deviation.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from align_peers import clip_data, speech_data
from PIL import Image
from torch import nn
from torch.nn.functional import normalize

from mmdata.models.clip import Clip
from mmdata.models.clip_image import prepare_image
from mmdata.models.int8 import Int8Linear
from mmdata.models.weights import cache_dir

_HALF = torch.bfloat16
_CLIP_S = 6.0
Embed = Callable[[Any], torch.Tensor]


def main() -> None:
    """Run all."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as folder:
        of_clip(Path(folder))
        of_minilm(Path(folder))
        for name in ("whisper-tiny.en", "whisper-base"):
            of_whisper(Path(folder), name)


def of_clip(folder: Path) -> None:
    """Images beside texts."""
    import open_clip

    weights = clip_data.write_weights(folder)
    pairs = clip_data.read_pairs(clip_data.write_pairs(folder, 64, (640, 1000)))
    texts = [pair["text"] for pair in pairs]
    tokenizer = open_clip.get_tokenizer(weights["model"])
    plain = open_clip.create_model(weights["model"], weights["checkpoint"]).eval()
    recipe = Clip.load(weights["model"], weights["checkpoint"], "cpu", "float32").recipe
    images = np.stack([prepare_image(recipe, Image.open(pair["image"])) for pair in pairs])
    for factor in (1, 20, 50):
        model = with_large_channels(plain, factor)
        found = {}
        for precision in ("float32", "auto", "int8"):
            clip = Clip(copy.deepcopy(model), tokenizer, recipe, 512, torch.device("cpu"), precision)
            found[precision] = [torch.from_numpy(e) for e in (clip.embed_images(images), clip.embed_texts(texts))]
        for precision in ("auto", "int8"):
            say(f"ViT-B/32, channels x {factor}", precision, found[precision], found["float32"])


def with_large_channels(model: Any, factor: float) -> Any:
    """The same function with four large channels in what each MLP multiplies."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for tower in (other.visual.transformer, other.transformer):
        for block in tower.resblocks:
            some = torch.randperm(tower.width, generator=generator)[:4]
            block.ln_2.weight.data[some] *= factor
            block.ln_2.bias.data[some] *= factor
            block.mlp.c_fc.weight.data[:, some] /= factor
    return other


def of_minilm(folder: Path) -> None:
    """Sentences, pooled as the model's authors do."""
    from transformers import AutoModel, AutoTokenizer

    path = str(cache_dir() / "models" / "minilm")
    model = AutoModel.from_pretrained(path).eval().float()
    texts = [pair["text"] for pair in clip_data.read_pairs(folder / "pairs.jsonl")]
    batch = AutoTokenizer.from_pretrained(path)(texts, padding=True, return_tensors="pt")
    mask_BL1 = batch["attention_mask"][..., None]

    def embed(network: Any) -> torch.Tensor:
        return (network(**batch).last_hidden_state * mask_BL1).sum(1) / mask_BL1.sum(1)

    compare("MiniLM", model, lambda network: network.encoder, embed)


def of_whisper(folder: Path, name: str) -> None:
    """Every tenth frame of the encoder's states."""
    from mmdata.models.whisper import Whisper
    from mmdata.models.whisper_network import encode

    network = Whisper.load(str(cache_dir() / "models" / name), "cpu", precision="float32").network
    clips, _ = speech_data.read_clips(speech_data.write_clips(folder, 32, joined=False))
    clips = [clip[: int(_CLIP_S * 16_000)].astype(np.float32) for clip in clips]

    def embed(changed: Any) -> torch.Tensor:
        states = [encode(changed, clips[start : start + 8], _CLIP_S) for start in range(0, len(clips), 8)]
        return torch.cat(states)[:, ::10].flatten(0, 1)[:800]

    compare(name, network, lambda changed: changed.encoder, embed)


def compare(what: str, model: Any, part: Callable[[Any], nn.Module], embed: Embed) -> None:
    """Say what each precision of the linear layers of a part does."""
    found = {}
    for precision in ("float32", "auto", "int8"):
        changed = copy.deepcopy(model)
        if precision != "float32":
            for parent, name, layer in list(_linears(part(changed))):
                setattr(parent, name, _Between(layer, precision))
        with torch.inference_mode():
            found[precision] = normalize(embed(changed).float(), dim=-1)
    for precision in ("auto", "int8"):
        say(what, precision, [found[precision]] * 2, [found["float32"]] * 2)


class _Between(nn.Module):
    """A layer of another precision between activations in float32."""

    def __init__(self, layer: nn.Linear, precision: str) -> None:
        super().__init__()
        bias_N = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
        self.inner = Int8Linear(layer.weight, bias_N, _HALF) if precision == "int8" else layer.to(_HALF)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x.to(_HALF)).to(x.dtype)
        return found


def _linears(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for name, child in module.named_modules():
        # An MLP widens or narrows; projections of attention are square.
        if isinstance(child, nn.Linear) and child.in_features != child.out_features:
            parent, _, last = name.rpartition(".")
            yield module.get_submodule(parent), last, child


def say(what: str, precision: str, got: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    """One line: cosines of an embedding with what it was, and of all pairs of two sides."""
    own = torch.cat([(g * e).sum(1) for g, e in zip(got, exact, strict=True)])
    cosines, before = got[0] @ got[1].T, exact[0] @ exact[1].T
    other = ~torch.eye(len(before), dtype=torch.bool)
    gap = (cosines - before)[other].square().mean().sqrt()
    name = f"{what:<28}{'bf16' if precision == 'auto' else precision:<6}"
    pairs = f"gap {gap:.5f}  spread {before[other].std():.4f}"
    print(f"{name}{pairs}  cosine with itself: mean {own.mean():.5f}, least {own.min():.5f}", flush=True)


if __name__ == "__main__":
    main()
