"""What joint augmentation costs beside the libraries' own calls, and whether workers scale.

The same pictures and sounds go through the same operators: `bare` decodes, calls albumentations or audiomentations, and
encodes, as a script would, and leaves texts alone; `joint` is `Policy.child`, with its records, notes and texts. Both
in one process, one after the other, the cheapest of some rounds each. Then the policy by 1 and by all cores. Last, of
the stamps (`mmdata fetch stamps`), what it takes to rewrite a caption, or to veto it.

glibc gives large pieces of memory back, or keeps them, by what a process has done before: some thousand page faults a
picture for the one or the other, a fifth of the time, and by chance. So here it keeps them, for both alike.

Usage: python benchmarks/augment.py [--samples N] [--rounds N] [--stamps FOLDER]. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmdata.augment.base import VetoError
from mmdata.augment.lexicon import language
from mmdata.augment.load import load_policy
from mmdata.augment.meaning import rewrite
from mmdata.augment.policy import Policy
from mmdata.sample import Member, Sample

_GOAL = 1.15
_SIDE_PX = 512
_RATE_HZ = 16_000
POLICIES: dict[str, list[dict[str, Any]]] = {
    "flip": [{"op": "HorizontalFlip", "params": {}}],
    "rotate_and_blur": [
        {"op": "SafeRotate", "params": {"limit": 10}},
        {"op": "GaussianBlur", "params": {"blur_limit": [3, 7]}},
    ],
    "elastic_and_noise": [
        {"op": "ElasticTransform", "params": {"alpha": 30, "sigma": 6}},
        {"op": "GaussNoise", "params": {}},
    ],
    "pitch": [{"op": "PitchShift", "params": {}}],
    "noise_and_stretch": [
        {"op": "AddGaussianSNR", "params": {}},
        {"op": "TimeStretch", "params": {"leave_length_unchanged": False}},
    ],
}
_SOUNDS = frozenset({"pitch", "noise_and_stretch"})
# Read by glibc when a process starts: mallopt(3).
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 28)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stamps", type=Path, help="folder of the stamps")
    arguments = parser.parse_args()
    if not _KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_KEEP_MEMORY})
    pictures = [sample_of(n, picture(n)) for n in range(arguments.samples)]
    sounds = [sample_of(n, sound(n)) for n in range(arguments.samples)]
    found = {}
    for name, apply in POLICIES.items():
        samples = sounds if name in _SOUNDS else pictures
        joint, bare = policy(apply), (bare_sounds if name in _SOUNDS else bare_pictures)(apply)
        pair = alternating([partial(children, joint, samples), partial(bare, samples)], arguments.rounds)
        each = [round(1000 * seconds / len(samples), 3) for seconds in pair]
        found[name] = {"joint_ms": each[0], "bare_ms": each[1], "ratio": round(each[0] / each[1], 3)}
        print(name, found[name], flush=True)
    scaling = scale(POLICIES["elastic_and_noise"], pictures, arguments.rounds)
    found["scaling"] = scaling
    if arguments.stamps:
        found["rewriting_us"] = rewriting(captions(arguments.stamps), arguments.rounds)
    print(json.dumps({"goal_ratio": _GOAL, "load": os.getloadavg(), **found}))


def policy(apply: Sequence[dict[str, Any]]) -> Policy:
    """Every operator for every child."""
    return load_policy({"label": "joint", "apply": apply, "spoken": {}})


def children(joint: Policy, samples: Sequence[Sample]) -> None:
    """One child each."""
    for sample in samples:
        joint.child(sample, 0, 0)


def bare_pictures(apply: Sequence[dict[str, Any]]) -> Callable[[Sequence[Sample]], None]:
    """Pillow, albumentations, Pillow."""
    import albumentations
    from PIL import Image

    steps = [getattr(albumentations, one["op"])(**_tuples(one["params"]), p=1.0) for one in apply]
    compose = albumentations.Compose(steps)

    def run(samples: Sequence[Sample]) -> None:
        for sample in samples:
            pixels = np.asarray(Image.open(io.BytesIO(sample.members["media"].data)).convert("RGB"))
            Image.fromarray(compose(image=pixels)["image"]).save(io.BytesIO(), "JPEG", quality=95)

    return run


def bare_sounds(apply: Sequence[dict[str, Any]]) -> Callable[[Sequence[Sample]], None]:
    """soundfile, audiomentations, soundfile."""
    import audiomentations
    import soundfile

    compose = audiomentations.Compose([getattr(audiomentations, one["op"])(**one["params"], p=1.0) for one in apply])

    def run(samples: Sequence[Sample]) -> None:
        for sample in samples:
            audio_T, rate_hz = soundfile.read(io.BytesIO(sample.members["media"].data), dtype="float32")
            changed_T = compose(audio_T, sample_rate=rate_hz)
            soundfile.write(io.BytesIO(), changed_T, rate_hz, format="FLAC", subtype="PCM_16")

    return run


def alternating(jobs: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Processor seconds of the cheapest round of each job; they take turns, so that both meet the same machine."""
    best = [float("inf")] * len(jobs)
    for _ in range(rounds + 1):
        for n, job in enumerate(jobs):
            began = time.process_time()
            job()
            best[n] = min(best[n], time.process_time() - began)
    return best


def scale(apply: Sequence[dict[str, Any]], samples: Sequence[Sample], rounds: int) -> dict[str, Any]:
    """Children a second by one process and by one a core."""
    rates = {}
    for workers in (1, os.cpu_count() or 1):
        with ProcessPoolExecutor(workers) as pool:
            parts = [samples[n :: 4 * workers] for n in range(4 * workers)]
            list(pool.map(partial(worker, apply), parts))
            times = []
            for _ in range(rounds):
                began = time.perf_counter()
                list(pool.map(partial(worker, apply), parts))
                times.append(time.perf_counter() - began)
        rates[workers] = round(len(samples) / min(times), 1)
    return {"children_per_s": rates, "times_one": round(rates[max(rates)] / rates[1], 2)}


def captions(folder: Path) -> list[tuple[str, str]]:
    """Language and text, in those languages whose words are known."""
    found = []
    for path in sorted(folder.rglob("*.txt")):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
            head, _, rest = line.partition(".utf8=")
            tag, text = (head, rest) if number else ("en", line)
            if text and language(tag):
                found.append((tag, text))
    return found


def rewriting(texts: Sequence[tuple[str, str]], rounds: int) -> dict[str, float]:
    """Microseconds a caption, by effect; a veto is the cheaper the sooner its word is found."""

    def each(effects: frozenset[str]) -> None:
        for tag, text in texts:
            with contextlib.suppress(VetoError):
                rewrite(text, tag, effects)

    names = ("mirror", "colour", "move", "detail")
    seconds = alternating([partial(each, frozenset({name})) for name in names], rounds)
    return {name: round(1e6 * second / len(texts), 2) for name, second in zip(names, seconds, strict=True)}


_made: dict[str, Policy] = {}


def worker(apply: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> None:
    """In a process of its own."""
    key = json.dumps(apply)
    if key not in _made:
        _made[key] = policy(apply)
    children(_made[key], samples)


def sample_of(number: int, media: Member) -> Sample:
    """The medium and a caption that every operator leaves true."""
    text = "some animals run along a river"
    caption = Member("caption", "text", "text/plain", "txt", text.encode(), "en", {"text": text})
    return Sample(f"{number:032x}", "s", str(number), {"media": media, "caption": caption})


def picture(number: int) -> Member:
    """A photograph's worth of detail: noise, smoothed."""
    from PIL import Image, ImageFilter

    noise = random.Random(number).randbytes(3 * _SIDE_PX**2)
    image = Image.frombytes("RGB", (_SIDE_PX, _SIDE_PX), noise).filter(ImageFilter.GaussianBlur(3))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    measures = {"width": _SIDE_PX, "height": _SIDE_PX}
    return Member("media", "image", "image/jpeg", "jpg", buffer.getvalue(), None, measures)


def sound(number: int) -> Member:
    """Five seconds of a chord that changes."""
    import soundfile

    time_T = np.arange(5 * _RATE_HZ) / _RATE_HZ
    tones = [np.sin(2 * np.pi * (110 + 37 * ((number + n) % 9)) * time_T) * (1 + np.sin(n * time_T)) for n in range(4)]
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.sum(tones, axis=0), _RATE_HZ, format="FLAC", subtype="PCM_16")
    measures = {"duration_s": 5.0, "sample_rate": _RATE_HZ, "channels": 1}
    return Member("media", "audio", "audio/flac", "flac", buffer.getvalue(), None, measures)


def _tuples(params: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in params.items()}


if __name__ == "__main__":
    main()
