"""What a score costs, beside the tools that people use for the same: CLIP similarity, and whether speech says a text.

Each peer is a process of its own with the same weights, inputs and threads; they take turns, and the cheapest pass of
each counts. Ratios are the peer's CPU-seconds (`--device cpu`) or seconds (other devices) over ours: higher is better.

* CLIP, ViT-B/32 with seeded random weights, JPEG files and captions to cosines: plain batched open_clip, and
  Data-Juicer's image_text_similarity_filter (`--data-juicer-python`: a Python with py-data-juicer 1.6.0, aiohttp,
  torch and transformers). Their scores must be equal to ours within `_TOLERANCES`.
* Whisper tiny.en, half of the texts another clip's: decoding and word error rate, by openai-whisper (`transcribe`, and
  `decode` in batches) and by faster-whisper's batched pipeline. Beside each cost the AUC of telling the two halves.
* Throughput on the device as a share of the bare forward passes, in the same run (`align_peers/throughput.py`).

Usage: python benchmarks/align.py [--quick] [--device cuda] [--threads N] [--data-juicer-python PATH]
[--only clip,whisper,throughput]. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from align_peers import clip_data, speech_data, throughput
from align_peers.serve import Peer, take_turns

from mmdata.models.weights import cache_dir

# Root mean square of the differences. open_clip's transform is Pillow's, as ours is: scores differ by the reduced
# decoding of large JPEG files, and by bf16 where the processor multiplies it. Data-Juicer's goes through torchvision's
# bicubic filter on tensors, which rounds otherwise. The standard deviation of the scores is 0.011 to 0.017.
_TOLERANCES = {"open_clip": 1.5e-3, "data_juicer": 2e-3}
# Longer sides of the JPEG files: of the web, and of a camera.
_SIDES_PX = {"clip": (640, 1000), "clip_camera": (2400, 4000)}
_GOALS = {
    "clip_over_open_clip": 1.5,
    "clip_over_data_juicer": 4.0,
    "clip_camera_over_open_clip": 1.5,
    "clip_camera_over_data_juicer": 4.0,
    "whisper_short_over_openai_transcribe": 10.0,
    "whisper_short_over_openai_decode": 10.0,
    "whisper_short_over_faster_whisper": 5.0,
}
_PACKAGES = ("torch", "open_clip_torch", "transformers", "openai-whisper", "faster-whisper", "ctranslate2", "pillow")


def main() -> None:
    """Run and print."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), arguments)))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the parts that were asked for; what each found, and the ratios of all."""
    settings = {"device": arguments.device}
    parts: dict[str, Any] = {}
    if "clip" in arguments.only:
        for name, sides_px in _SIDES_PX.items():
            (folder / name).mkdir()
            parts[name] = compare_clip(folder / name, settings, arguments, sides_px)
    if "whisper" in arguments.only:
        for name in ("short", "long"):
            (folder / name).mkdir()
            parts[f"whisper_{name}"] = compare_whisper(folder / name, settings, arguments, joined=name == "long")
    if "throughput" in arguments.only:
        parts["throughput"] = throughput.measure(folder, arguments.device, quick=arguments.quick)
    ratios = {f"{part}_over_{peer}": r for part, found in parts.items() for peer, r in found.get("ratios", {}).items()}
    for name, ratio in ratios.items():
        print(f"{name:<40}{ratio:>7.2f}   {f'goal {_GOALS[name]:g}' if name in _GOALS else ''}")
    return {"ratios": ratios, "goals": _GOALS, "parts": parts, "machine": _machine(arguments)}


def compare_clip(
    folder: Path, settings: dict[str, Any], arguments: argparse.Namespace, sides_px: tuple[int, int]
) -> dict[str, Any]:
    """Pairs of JPEG files and captions."""
    listing = clip_data.write_pairs(folder, arguments.pairs, sides_px)
    pairs = clip_data.read_pairs(listing)
    own = {**settings, **clip_data.write_weights(folder), "listing": str(listing)}
    peers = {"ours": Peer("clip_ours.py", own, arguments.threads)}
    peers["open_clip"] = Peer("clip_open_clip.py", own, arguments.threads)
    if arguments.data_juicer_python:
        python = arguments.data_juicer_python
        peers["data_juicer"] = Peer("clip_data_juicer.py", own, arguments.threads, python)
    else:
        print("data_juicer is left out: --data-juicer-python names no Python that has it")
    take_turns(peers, arguments.rounds)
    sizes = {"pairs": len(pairs), "jpeg_bytes": sum(Path(pair["image"]).stat().st_size for pair in pairs)}
    return {**_costs(peers, settings, len(pairs)), "scores": _score_gaps(peers), "sizes": sizes}


def compare_whisper(
    folder: Path, settings: dict[str, Any], arguments: argparse.Namespace, *, joined: bool
) -> dict[str, Any]:
    """Clips and texts, half of them another clip's."""
    listing = speech_data.write_clips(folder, arguments.clips // (4 if joined else 1), joined=joined)
    known = json.loads(listing.read_text())
    own = {**settings, "model": str(cache_dir() / "models" / "whisper-tiny.en"), "listing": str(listing)}
    peers = {
        "ours": Peer("whisper_ours.py", own, arguments.threads),
        "openai_transcribe": Peer("whisper_openai.py", {**own, "how": "transcribe"}, arguments.threads),
        "openai_decode": Peer("whisper_openai.py", {**own, "how": "decode"}, arguments.threads),
        "faster_whisper": Peer("whisper_faster.py", own, arguments.threads),
    }
    take_turns(peers, arguments.rounds)
    aucs = {name: round(speech_data.mismatch_auc(peer.result, known["matched"]), 4) for name, peer in peers.items()}
    sizes = {"clips": len(known["texts"]), "audio_s": round(known["duration_s"], 1)}
    return {**_costs(peers, settings, len(known["texts"])), "mismatch_auc": aucs, "sizes": sizes}


def _costs(peers: dict[str, Peer], settings: dict[str, Any], items: int) -> dict[str, Any]:
    """Seconds an item, and ratios over ours by what is scarce: processor time, or the device's."""
    scarce = "cpu_s" if settings["device"] == "cpu" else "wall_s"
    ours = peers["ours"].least(scarce)
    each = {
        name: {what: round(peer.least(what) / items, 5) for what in ("cpu_s", "wall_s")} for name, peer in peers.items()
    }
    ratios = {name: round(peer.least(scarce) / ours, 3) for name, peer in peers.items() if name != "ours"}
    return {"ratios": ratios, "each": each}


def _score_gaps(peers: dict[str, Peer]) -> dict[str, Any]:
    """How far each peer's scores are from ours; SystemExit where too far, for the ratio would mean nothing."""
    import numpy as np

    ours_N = np.array(peers["ours"].result)
    found: dict[str, Any] = {"standard_deviation": round(float(ours_N.std()), 5)}
    for name, tolerance in _TOLERANCES.items():
        if name in peers:
            theirs_N = np.array(peers[name].result)
            gap = float(np.sqrt(np.mean((ours_N - theirs_N) ** 2)))
            largest = float(np.abs(ours_N - theirs_N).max())
            if not gap <= tolerance:
                raise SystemExit(f"{name}: scores differ by {gap:.2g}, more than {tolerance:g}: no fair comparison")
            correlation = float(np.corrcoef(ours_N, theirs_N)[0, 1])
            found[name] = {
                "rms_gap": round(gap, 6),
                "tolerance": tolerance,
                "largest_gap": round(largest, 6),
                "correlation": round(correlation, 6),
            }
    return found


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    versions = {name: version(name) for name in _PACKAGES}
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "threads": arguments.threads,
        "device": arguments.device,
        "rounds": arguments.rounds,
        "versions": {"python": platform.python_version(), **versions},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few items, ends within three minutes on two cores")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; Data-Juicer runs on the CPU in any case")
    parser.add_argument("--threads", type=int, default=1, help="of every peer")
    parser.add_argument("--pairs", type=int, help="pictures with captions; default 104, all there are; quick 16")
    parser.add_argument("--clips", type=int, help="short clips, and four times the long ones; default 150, quick 16")
    parser.add_argument("--rounds", type=int, help="passes of each peer; default 3, quick 1")
    parser.add_argument("--data-juicer-python", help="Python of an environment with Data-Juicer")
    parser.add_argument("--only", default="clip,whisper,throughput", type=lambda names: names.split(","))
    arguments = parser.parse_args()
    arguments.pairs = arguments.pairs or (16 if arguments.quick else 104)
    arguments.clips = arguments.clips or (16 if arguments.quick else 150)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    return arguments


if __name__ == "__main__":
    main()
