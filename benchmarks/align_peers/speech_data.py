"""What the Whisper peers are given: clips at 16 kHz and texts, half of them another clip's; and what their scores tell.

`short`: one studio prompt a clip, as they are. `long`: consecutive prompts joined, with a fifth of a second between, to
15 s or more, as the clips of speech corpora are cut; a text is joined alike.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdata.models.weights import cache_dir

_RATE = 16_000
_GAP_S = 0.2
_JOINED_S = 15.0
_MAX_S = 28.0
_MIN_WORDS = 3


def write_clips(folder: Path, clips: int, *, joined: bool) -> Path:
    """Write `clips.npz` (one array a clip) and `clips.json` (texts, `matched` and the second of audio).

    Half of the texts are given to their right neighbour among that half, so that none keeps its own.
    """
    import numpy as np

    pairs = list(_joined(clips) if joined else _prompts(clips))
    rng = random.Random(0)
    rows = sorted(rng.sample(range(len(pairs)), len(pairs) // 2))
    texts = [text for _, text in pairs]
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        texts[row] = pairs[other][1]
    np.savez(folder / "clips.npz", *[audio for audio, _ in pairs])
    listing = folder / "clips.json"
    matched = [row not in set(rows) for row in range(len(pairs))]
    duration_s = sum(len(audio) for audio, _ in pairs) / _RATE
    listing.write_text(json.dumps({"texts": texts, "matched": matched, "duration_s": duration_s}))
    return listing


def read_clips(listing: Path) -> tuple[list[Any], list[str]]:
    """Audio as float32 `[samples]` each, and texts."""
    import numpy as np

    texts: list[str] = json.loads(listing.read_text())["texts"]
    with np.load(listing.with_suffix(".npz")) as arrays:
        return [arrays[f"arr_{row}"] for row in range(len(texts))], texts


def mismatch_auc(scores: Sequence[float], matched: Sequence[bool]) -> float:
    """The chance that a matched pair scores above a mismatched one; ties count half (Mann-Whitney)."""
    above = [score for score, match in zip(scores, matched, strict=True) if match]
    below = [score for score, match in zip(scores, matched, strict=True) if not match]
    wins = sum((good > bad) + (good == bad) / 2 for good in above for bad in below)
    return wins / (len(above) * len(below))


def agreement(text: str, heard: str, normalise: Any) -> float:
    """Less the word error rate between the text and what was heard, both normalised, by jiwer."""
    import jiwer

    reference = normalise(text)
    return -float(jiwer.wer(reference, normalise(heard))) if reference else 0.0


def _prompts(count: int | None) -> list[tuple[Any, str]]:
    from mmdata.media.audio import decode_mono

    root = cache_dir() / "media" / "prompts"
    listing = root / "prompts.csv"
    if not listing.is_file():
        raise SystemExit("the prompts are not here; run: mmdata fetch prompts")
    with listing.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if len(row["text"].split()) >= _MIN_WORDS]
    random.Random(1).shuffle(rows)
    distinct = list({row["text"]: row for row in rows}.values())[:count]
    return [(decode_mono((root / row["path"]).read_bytes(), _MAX_S), row["text"]) for row in distinct]


def _joined(count: int) -> list[tuple[Any, str]]:
    import numpy as np

    gap = np.zeros(int(_GAP_S * _RATE), np.float32)
    joined: list[tuple[Any, str]] = []
    audio: list[Any] = []
    texts: list[str] = []
    for clip, text in _prompts(None):
        audio += [clip, gap]
        texts.append(text)
        samples = sum(map(len, audio))
        if samples > _MAX_S * _RATE:
            audio, texts = [], []
        elif samples >= _JOINED_S * _RATE:
            joined.append((np.concatenate(audio), " ".join(texts)))
            audio, texts = [], []
        if len(joined) == count:
            break
    return joined
