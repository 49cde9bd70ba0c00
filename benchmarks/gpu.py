"""What an accelerator is used for: our rates beside plain ones and beside what it multiplies at most, all in one run.

* ceiling: the rate of a large matrix product (bf16, float32), of copies on the device and to it.
* image, text: ViT-B/32 of random weights from arrays and texts in memory to embeddings, beside open_clip's own methods.
* decode: the same from JPEG bytes, by worker processes, beside open_clip's own transform in as many.
* speech: Whisper of random weights, clips to scores, beside openai-whisper's greedy decoding of as many tokens.
* train: `mmdata train` from shards, beside its step on a batch that lies in memory.

`share` is of the ceiling in bf16, by the operations that torch counts in a forward (and backward) pass.

Usage: python benchmarks/gpu.py [--quick] [--device cuda] [--only image,train]. Prints JSON, a line a part.

Shapes: N items, H and W pixels, C colour channels, L tokens.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from train import write_shards

ARCHITECTURE = "ViT-B-32"
WHISPER = {"tiny": (384, 6, 4), "base": (512, 8, 6), "small": (768, 12, 12)}
WORDS = (
    "the",
    "a",
    "red",
    "small",
    "old",
    "bird",
    "ship",
    "house",
    "sings",
    "over",
    "runs",
    "near",
    "sea",
    "with",
    "two",
)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few items, small models")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="ceiling,image,text,decode,speech,train", type=lambda names: names.split(","))
    arguments = parser.parse_args()
    device, quick = torch.device(arguments.device), arguments.quick
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "ceiling": lambda: ceiling(device, 512 if quick else 8192),
        "image": lambda: image(device, 16 if quick else 6144),
        "text": lambda: text(device, 16 if quick else 16_384),
        "decode": lambda: decode(device, 16 if quick else 4096),
        "speech": lambda: speech(device, ["tiny"] if quick else list(WHISPER), 4 if quick else 512),
        "train": lambda: train(device, ["tiny"] if quick else ["small", "base"], quick),
    }
    for name in arguments.only:
        print(json.dumps({"part": name, "device": device_name(device), "quick": quick, **parts[name]()}), flush=True)


# --- The ceiling ----------------------------------------------------------------------------------------------------


def ceiling(device: torch.device, side: int) -> dict[str, Any]:
    """Rates that nothing here can pass."""
    return {"bf16_tflops": matrix_rate(device, side) / 1e12, **copies(device, 64 << 20 if side < 8192 else 1 << 30)}


def matrix_rate(device: torch.device, side: int = 8192, dtype: torch.dtype = torch.bfloat16) -> float:
    """Operations a second of a product of random square matrices."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: left @ right, device)


def copies(device: torch.device, size: int) -> dict[str, float]:
    """GB a second: on the device (read and written), and to it out of plain and page-locked memory."""
    here = torch.randint(0, 256, (size,), dtype=torch.uint8)
    there = here.to(device)
    found = {
        "float32_tflops": matrix_rate(device, 512 if device.type == "cpu" else 8192, torch.float32) / 1e12,
        "copy_gb_per_s": 2 * size / seconds(there.clone, device) / 1e9,
        "to_device_gb_per_s": size / seconds(lambda: here.to(device), device) / 1e9,
    }
    if device.type == "cuda":
        locked = here.pin_memory()
        found["to_device_locked_gb_per_s"] = size / seconds(lambda: locked.to(device, non_blocking=True), device) / 1e9
    return found


# --- CLIP -----------------------------------------------------------------------------------------------------------


def image(device: torch.device, count: int) -> dict[str, Any]:
    """Images a second."""
    clip, network = make_clip(device)
    pixels_NCHW = np.random.default_rng(0).integers(0, 256, (min(count, 1024), 3, 224, 224), dtype=np.uint8)
    pixels_NCHW = np.concatenate([pixels_NCHW] * -(-count // len(pixels_NCHW)))[:count]
    clip.embed_images(pixels_NCHW)  # finds its passes
    found = {"ours": count / once(lambda: clip.embed_images(pixels_NCHW)), "rows_a_pass": clip._image_passes.rows}
    batch = min(256, count)
    unit_NCHW = torch.randn(batch, 3, 224, 224)
    for name, dtype in (("open_clip_float32", torch.float32), ("open_clip_bf16", torch.bfloat16)):
        model = network.to(device, dtype)
        one = partial(embed_images, model, unit_NCHW, dtype)
        found[name] = batch / seconds(one, device, 5)
        there = unit_NCHW.to(device, dtype)
        found[f"{name}_on_device"] = batch / seconds(partial(infer, model.encode_image, there), device, 5)
    return shares(found, flops(partial(network.encode_image, unit_NCHW[:1].to(device, torch.bfloat16))), device)


def text(device: torch.device, count: int) -> dict[str, Any]:
    """Short captions a second, all different."""
    import open_clip

    clip, network = make_clip(device)
    rng = np.random.default_rng(0)
    texts = [f"{' '.join(rng.choice(WORDS, int(rng.integers(4, 12))))} {row}" for row in range(count)]
    began = time.perf_counter()
    ids_NL = open_clip.get_tokenizer(ARCHITECTURE)(texts)
    found: dict[str, Any] = {"tokenizer": count / (time.perf_counter() - began)}
    clip.embed_texts(texts[:512])
    found["ours_with_tokenizer"] = count / once(lambda: clip.embed_texts(texts))
    clip._tokenize = lambda _: ids_NL
    found["ours"] = count / once(lambda: clip.embed_texts(texts))
    batch = min(256, count)
    for name, dtype in (("open_clip_float32", torch.float32), ("open_clip_bf16", torch.bfloat16)):
        model = network.to(device, dtype)
        one = partial(embed_texts, model, ids_NL[:batch])
        found[name] = batch / seconds(one, device, 5)
    mean_tokens = float((ids_NL != 0).sum(1).float().mean())
    operations = flops(partial(network.encode_text, ids_NL[:1].to(device))) * mean_tokens / ids_NL.shape[1]
    return {"mean_tokens": round(mean_tokens, 1), **shares(found, operations, device)}


def decode(device: torch.device, count: int) -> dict[str, Any]:
    """Images a second from JPEG bytes (640 to 1000 px), by a process for each core."""
    clip, network = make_clip(device)
    model = network.to(device, torch.bfloat16)
    files = [jpeg(number) for number in range(min(count, 48))]
    files = (files * -(-count // len(files)))[:count]
    workers, batch = os.cpu_count() or 1, 256
    found: dict[str, Any] = {"workers": workers}
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver"), initializer=_one_thread) as pool:

        def run(prepare: Callable[[bytes], Any], embed: Callable[[Any], object]) -> float:
            list(pool.map(prepare, files[: 4 * workers]))
            began, prepared = time.perf_counter(), pool.map(prepare, files, chunksize=16)
            for start in range(0, count, batch):
                embed(np.stack([next(prepared) for _ in range(min(batch, count - start))]))
            return count / (time.perf_counter() - began)

        ours = partial(prepare_ours, clip.recipe)
        found["ours_decoding_alone"] = run(ours, lambda _: None)
        clip.embed_images(np.stack([ours(one) for one in files[:batch]]))
        found["ours"] = run(ours, clip.embed_images)
        found["open_clip_bf16"] = run(
            prepare_theirs, lambda unit: embed_images(model, torch.from_numpy(unit), torch.bfloat16)
        )
    return {name: round(value, 1) for name, value in found.items()}


def make_clip(device: torch.device) -> tuple[Any, Any]:
    """Ours, and open_clip's network for its own methods; random weights cost as much as others."""
    import open_clip

    from mmdata.models.clip import Clip, _recipe_of

    tokenizer = open_clip.get_tokenizer(ARCHITECTURE)
    built, network = (open_clip.create_model(ARCHITECTURE).eval() for _ in range(2))
    return Clip(built, tokenizer, _recipe_of(built), 512, device), network


def infer(run: Callable[..., Any], *inputs: Any) -> Any:
    """Without gradients."""
    with torch.inference_mode():
        return run(*inputs)


def embed_images(model: Any, unit_NCHW: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """As scripts do that use open_clip: what its transform made goes to the device, the embeddings come back."""
    device = model.logit_scale.device
    with torch.inference_mode():
        return model.encode_image(unit_NCHW.to(device, dtype), normalize=True).float().cpu().numpy()


def embed_texts(model: Any, ids_NL: torch.Tensor) -> np.ndarray:
    """The same for texts."""
    with torch.inference_mode():
        return model.encode_text(ids_NL.to(model.logit_scale.device), normalize=True).float().cpu().numpy()


def prepare_ours(recipe: Any, data: bytes) -> np.ndarray:
    """In a worker."""
    from mmdata.media.image import open_image
    from mmdata.models.clip_image import prepare_image

    return prepare_image(recipe, open_image(data, 1 << 30, recipe.enough_px))


def prepare_theirs(data: bytes) -> np.ndarray:
    """In a worker: float32, normalised."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    global _transform  # noqa: PLW0603 - made once a process
    _transform = _transform or image_transform_v2(PreprocessCfg(size=224), is_train=False)
    return _transform(Image.open(io.BytesIO(data))).numpy()


_transform: Any = None


def _one_thread() -> None:
    torch.set_num_threads(1)


def jpeg(number: int) -> bytes:
    """A picture of coarse noise and grain."""
    from PIL import Image

    rng = np.random.default_rng(number)
    size = (int(rng.integers(640, 1001)), int(rng.integers(480, 801)))
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 4, (size[1], size[0], 1))
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# --- Whisper --------------------------------------------------------------------------------------------------------


def speech(device: torch.device, sizes: list[str], count: int) -> dict[str, Any]:
    """Clips of 2 to 8 s a second, with a text of 12 words each."""
    from whisper.audio import log_mel_spectrogram, pad_or_trim
    from whisper.decoding import DecodingOptions
    from whisper.decoding import decode as decode_greedily

    from mmdata.models.whisper import Whisper

    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 0.1, int(16_000 * s)).astype(np.float32) for s in rng.uniform(2, 8, count)]
    texts = [f"{' '.join(rng.choice(WORDS, 12))} {row}" for row in range(count)]
    found: dict[str, Any] = {"audio_s": round(sum(map(len, clips)) / 16_000, 1)}
    for size in sizes:
        whisper = Whisper(whisper_network(*WHISPER[size]), device)
        some = slice(min(count, 64))
        whisper.score(clips[some], [f"{one} again" for one in texts[some]], ["en"] * len(clips[some]))
        ours = count / once(lambda w=whisper: w.score(clips, texts, ["en"] * count))
        tokens = len(whisper._texts.encode(texts[0]))
        options = DecodingOptions(
            language="en", without_timestamps=True, fp16=device.type == "cuda", sample_len=tokens, suppress_tokens=""
        )
        network = whisper.network if device.type == "cuda" else whisper_network(*WHISPER[size])
        dtype = torch.float16 if device.type == "cuda" else torch.float32

        def transcribe(part: list[Any], network: Any = network, options: Any = options, dtype: Any = dtype) -> None:
            mels = [log_mel_spectrogram(pad_or_trim(clip), device=device) for clip in part]
            decode_greedily(network, torch.stack(mels).to(dtype), options)

        part = clips[: min(count, 64)]
        transcribe(part[:2])
        theirs = len(part) / once(lambda p=part, t=transcribe: t(p))
        found[size] = {"ours": round(ours, 1), "openai_decode": round(theirs, 1), "ratio": round(ours / theirs, 2)}
        found[size]["tokens"] = tokens
    return found


def whisper_network(width: int, heads: int, layers: int) -> Any:
    """Random, of a known size."""
    from whisper.model import ModelDimensions
    from whisper.model import Whisper as Network

    torch.manual_seed(0)
    return Network(ModelDimensions(80, 1500, width, heads, layers, 51865, 448, width, heads, layers)).eval()


# --- Training -------------------------------------------------------------------------------------------------------


def train(device: torch.device, sizes: list[str], quick: bool) -> dict[str, Any]:
    """Samples a second of `mmdata train`, from shards and from memory."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name) / "shards", 64 if quick else 1536)
        for size in sizes:
            found[size] = train_one(Path(name), size, device, quick)
    return found


def train_one(folder: Path, size: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """The first third of the steps is left out of the rates: the workers start, kernels are chosen."""
    import yaml

    from mmdata.train import run
    from mmdata.train.loop import Trainer

    steps, batch = (6, 8) if quick else (60, 128)
    side, workers = (64, 1) if quick else (224, max(1, (os.cpu_count() or 2) - 2))
    config = {
        "data": {
            "shards": str(folder / "shards"), "modalities": {"text": ["caption"], "image": ["image"]},
            "image_side_px": side,
        },
        "model": {"size": size, "patch_px": 16}, "optim": {"batch_size": batch, "warmup": 2}, "steps": steps,
        "device": str(device), "workers": workers, "cache_mib": 0, "log_every": steps // 3, "checkpoint_every": 100_000,
        "output": f"{folder}/{size}",
    }  # fmt: skip
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    kept: dict[str, Any] = {}
    original = Trainer._step

    def remember(trainer: Trainer, *arguments: Any) -> Any:
        kept.update(trainer=trainer, arguments=arguments)
        return original(trainer, *arguments)

    Trainer._step = remember  # type: ignore[method-assign]
    try:
        run.train(folder / "train.yaml", [], None, lambda _: None)
    finally:
        Trainer._step = original  # type: ignore[method-assign]
    lines = (folder / size / "log.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "samples_per_s" in record][1:]
    trainer, arguments = kept["trainer"], kept["arguments"]
    trainer.model.train()
    found = {
        "from_shards": sum(record["samples_per_s"] for record in records) / len(records),
        "from_memory": batch / seconds(lambda: original(trainer, *arguments), device, 9),
    }
    wait = sum(record["wait_share"] for record in records) / len(records)
    operations = flops(partial(_back, trainer, arguments[0])) / batch
    millions = sum(part.numel() for part in trainer.model.parameters()) / 1e6
    return {"parameters_m": round(millions, 1), "wait_share": round(wait, 4), **shares(found, operations, device)}


def _back(trainer: Any, batch: Any) -> None:
    trainer._losses(batch)[0].backward()


# --- Clocks and counts ----------------------------------------------------------------------------------------------


def shares(rates: dict[str, Any], operations: float, device: torch.device) -> dict[str, Any]:
    """The rates, and each as a share of the ceiling."""
    peak = matrix_rate(device, 512 if device.type == "cpu" else 8192)
    found = {name: round(rate, 1) for name, rate in rates.items()}
    part = {name: round(rate * operations / peak, 4) for name, rate in rates.items() if "rows" not in name}
    part.pop("tokenizer", None)
    return {**found, "gflop_each": round(operations / 1e9, 3), "ceiling_tflops": round(peak / 1e12, 1), "share": part}


def flops(run: Callable[[], Any]) -> float:
    """Operations of what is run, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def once(run: Callable[[], object]) -> float:
    """Seconds of the faster of two calls, each of which ends with its results on the host."""
    times = []
    for _ in range(2):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def seconds(run: Callable[[], object], device: torch.device, calls: int = 7) -> float:
    """Median of some calls after two, the device waited for."""
    times = []
    for _ in range(calls + 2):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - began)
    return median(times[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def device_name(device: torch.device) -> str:
    """For people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
