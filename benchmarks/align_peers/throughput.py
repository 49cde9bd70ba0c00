"""How much of a device scoring keeps busy: items a second from files, over the bare forward passes on the same inputs.

CLIP: JPEG bytes are decoded and prepared by worker processes while the device embeds; bare is open_clip's two towers on
batches that lie on the device already, texts cut to the longest. Whisper: clips of 15 s and more in memory to scores;
bare is the network's encoder and decoder on mels and tokens of the same sizes.

Weights are random: `tiny` and `large-v3` name sizes. Off an accelerator the same code runs on small numbers and cut
depths, which shows that it runs and little else.

Shapes: N pairs, H and W pixels, C colour channels, L tokens, B clips, M mel bands.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from align_peers.clip_data import read_pairs, write_pairs
from align_peers.speech_data import read_clips, write_clips

_BATCH = 256
_SIDES_PX = (640, 1000)
_SAMPLE_RATE = 16_000
_CLIP_MODELS = ("ViT-B-32-quickgelu", "ViT-L-14-quickgelu")
# openai-whisper's ModelDimensions of these names (Radford et al. 2022, table 1; large-v3 has 128 bands).
_WHISPER_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"n_mels": 80, "width": 384, "heads": 6, "layers": 4},
    "large-v3": {"n_mels": 128, "width": 1280, "heads": 20, "layers": 32},
}


def measure(folder: Path, device: str, *, quick: bool) -> dict[str, Any]:
    """Rates of each model; `share` is the scoring's rate over the bare one."""
    small = quick or device == "cpu"
    images, speech = folder / "throughput_images", folder / "throughput_speech"
    images.mkdir()
    speech.mkdir()
    pairs = read_pairs(write_pairs(images, 8 if small else 104, _SIDES_PX)) * (1 if small else 80)
    clips = read_clips(write_clips(speech, 2 if small else 30, joined=True))
    found: dict[str, Any] = {"small": small}
    for name in _CLIP_MODELS[:1] if small else _CLIP_MODELS:
        found[name] = _clip(folder, name, pairs, device)
    for name in _WHISPER_SIZES:
        found[name] = _whisper(name, clips, device, small=small)
    return found


# --- CLIP -----------------------------------------------------------------------------------------------------------


def _clip(folder: Path, name: str, pairs: list[dict[str, str]], device: str) -> dict[str, float]:
    import open_clip
    from safetensors.torch import save_file

    from mmdata.models.clip import Clip

    checkpoint = folder / f"{name}.safetensors"
    bare = open_clip.create_model(name).eval()
    save_file({key: tensor.contiguous() for key, tensor in bare.state_dict().items()}, checkpoint)
    rate = len(pairs) / _clip_seconds(Clip.load(name, str(checkpoint), device), pairs)
    bare_rate = len(pairs) / _bare_clip_seconds(name, pairs, device)
    checkpoint.unlink()
    return {"pairs_per_s": round(rate, 1), "bare_pairs_per_s": round(bare_rate, 1), "share": round(rate / bare_rate, 3)}


def _clip_seconds(clip: Any, pairs: list[dict[str, str]]) -> float:
    """From bytes to cosines, the workers a few batches ahead."""
    batches = [pairs[start : start + _BATCH] for start in range(0, len(pairs), _BATCH)]
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        tasks = [(clip.recipe, pair["image"]) for pair in pairs[: workers * 4]]
        warm_NCHW = _stacked(pool.map(_prepare, tasks, chunksize=4))
        clip.embed_images(warm_NCHW)
        clip.embed_texts([pair["text"] for pair in batches[0]])
        began = time.perf_counter()
        prepared = pool.map(_prepare, [(clip.recipe, pair["image"]) for pair in pairs], chunksize=16)
        for batch in batches:
            image_emb_ND = clip.embed_images(_stacked(next(prepared) for _ in batch))
            text_emb_ND = clip.embed_texts([pair["text"] for pair in batch])
            (image_emb_ND * text_emb_ND).sum(-1)
        return time.perf_counter() - began


def _prepare(task: tuple[Any, str]) -> Any:
    from mmdata.media.image import open_image
    from mmdata.models.clip_image import prepare_image

    recipe, path = task
    return prepare_image(recipe, open_image(Path(path).read_bytes(), 1 << 40, recipe.enough_px))


def _stacked(images: Iterator[Any]) -> Any:
    import numpy as np

    return np.stack(list(images))


def _bare_clip_seconds(name: str, pairs: list[dict[str, str]], device: str) -> float:
    import open_clip
    import torch

    texts = [pair["text"] for pair in pairs[:_BATCH]]
    longest = int((open_clip.get_tokenizer(name)(texts) != 0).sum(-1).max())
    model = open_clip.create_model(name, force_context_length=longest).to(device).eval()
    size = min(len(pairs), _BATCH)
    ids_NL = open_clip.get_tokenizer(name, context_length=longest)(texts).to(device)
    pixels_NCHW = torch.rand(size, 3, 224, 224, device=device)

    def forward() -> None:
        model.encode_image(pixels_NCHW)
        model.encode_text(ids_NL)

    return _seconds(forward, device) * math.ceil(len(pairs) / size)


# --- Whisper --------------------------------------------------------------------------------------------------------


def _whisper(name: str, clips: tuple[list[Any], list[str]], device: str, *, small: bool) -> dict[str, float]:
    import torch
    from whisper.model import ModelDimensions
    from whisper.model import Whisper as Network

    from mmdata.models.whisper import Whisper

    torch.manual_seed(0)
    size = _WHISPER_SIZES[name]
    layers = 1 if small else size["layers"]
    tower = {"ctx": 1500, "state": size["width"], "head": size["heads"], "layer": layers}
    text_tower = {**tower, "ctx": 448}
    dims = {f"n_audio_{key}": value for key, value in tower.items()}
    dims |= {f"n_text_{key}": value for key, value in text_tower.items()}
    network = Network(ModelDimensions(n_mels=size["n_mels"], n_vocab=51866, **dims)).eval()
    whisper = Whisper(network, torch.device(device))
    audio, texts = clips
    copies = 1 if small else 16
    seconds = _whisper_seconds(whisper, audio * copies, texts * copies)
    bare_s = _bare_whisper_seconds(whisper.network, audio, device) * copies
    hours = sum(len(clip) for clip in audio) * copies / _SAMPLE_RATE / 3600
    return {
        "audio_hours_per_s": round(hours / seconds, 5),
        "bare_audio_hours_per_s": round(hours / bare_s, 5),
        "share": round(bare_s / seconds, 3),
    }


def _whisper_seconds(whisper: Any, audio: list[Any], texts: list[str]) -> float:
    """From samples to scores; the texts are numbered, so that none is remembered."""
    whisper.score(audio[:8], texts[:8], ["en"] * len(audio[:8]))
    numbered = [f"{row}. {text}" for row, text in enumerate(texts)]
    began = time.perf_counter()
    whisper.score(audio, numbered, ["en"] * len(audio))
    return time.perf_counter() - began


def _bare_whisper_seconds(network: Any, audio: list[Any], device: str) -> float:
    """Encoder and decoder over the clips' mean length; no mels, no silence, no likelihoods."""
    import torch

    from mmdata.models import whisper_network

    mean_s = sum(len(clip) for clip in audio) / _SAMPLE_RATE / len(audio)
    width = whisper_network.frames(mean_s)
    dtype = network.decoder.token_embedding.weight.dtype
    mels_BMT = torch.rand(len(audio), network.dims.n_mels, 2 * width, device=device, dtype=dtype)
    tokens_BL = torch.ones(len(audio), max(8, round(mean_s * 3)), dtype=torch.long, device=device)
    encoder = network.encoder

    def forward() -> None:
        hidden = torch.nn.functional.gelu(encoder.conv1(mels_BMT))
        hidden = torch.nn.functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
        hidden = (hidden + encoder.positional_embedding[:width]).to(dtype)
        for block in encoder.blocks:
            hidden = block(hidden)
        heard = whisper_network.keys_values(network, encoder.ln_post(hidden))
        whisper_network.decoder_states(network, tokens_BL, heard)

    return _seconds(forward, device, cast=False)


# --- clocks ---------------------------------------------------------------------------------------------------------


def _seconds(forward: Callable[[], None], device: str, *, cast: bool = True) -> float:
    """Median of five calls after two, the device waited for; bf16 on an accelerator, as our CLIP does."""
    import torch

    times = []
    with torch.inference_mode(), _autocast(device, cast):
        for _ in range(7):
            _wait(device)
            began = time.perf_counter()
            forward()
            _wait(device)
            times.append(time.perf_counter() - began)
    return sorted(times[2:])[2]


def _autocast(device: str, cast: bool) -> AbstractContextManager[Any]:
    import torch

    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=cast and kind == "cuda")


def _wait(device: str) -> None:
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
