"""How well cross-fitted scores tell mismatched pairs from matched ones, where the truth is known.

Captions of clip-art and of stamps are shuffled at 0, 20, 40 and 60 % and scored by nothing but the pairs themselves:
frozen features of an ImageNet network and a sentence encoder, no CLIP weights. The score is the AUC of matched against
mismatched; `ks` is the largest distance between the distributions of mismatched pairs' scores and of nulls'.

Usage: python benchmarks/crossfit_truth.py FEATURES.npz [FEATURES.npz ...] [--seeds 1] [--save FOLDER]

Each file holds `image_NF`, `text_NE`, `texts` and `keys`. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmdata.models.crossfit import Crossfit, CrossfitConfig, Features, crossfit
from mmdata.models.crossfit_folds import ids_of

_SHARES = (0.0, 0.2, 0.4, 0.6)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=1, help="shuffles of each share")
    parser.add_argument("--save", type=Path, help="write crossfit_{percent}.npz of the first file here")
    arguments = parser.parse_args()
    found = {}
    for path in arguments.features:
        for share in _SHARES:
            runs = [measure(path, share, seed, arguments.save) for seed in range(arguments.seeds)]
            mean = {name: round(float(np.mean([run[name] for run in runs])), 4) for name in runs[0]}
            print(path.stem, f"{share:.0%}", mean, flush=True)
            found[f"{path.stem}_{round(100 * share)}"] = mean
    print(json.dumps(found))


def measure(path: Path, share: float, seed: int, save: Path | None) -> dict[str, float]:
    """Shuffle, fit, compare with the truth."""
    with np.load(path) as file:
        image_NF, text_NE, texts, keys = (file[name] for name in ("image_NF", "text_NE", "texts", "keys"))
    given_N = shuffle(len(texts), share, seed)
    shuffled_N = texts[given_N] != texts
    pixels = [row.tobytes() for row in image_NF]
    features = Features(image_NF, text_NE[given_N], ids_of(pixels), ids_of(texts[given_N].tolist()))
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        result = crossfit(features, CrossfitConfig(), pool.map)
    took_s = time.monotonic() - started
    if save is not None and seed == 0:
        name = f"crossfit_{round(100 * share)}.npz" if "stamps" not in path.stem else f"crossfit_stamps_{share:.0%}.npz"
        np.savez(
            save / name.replace("%", ""),
            score_N=result.score_N,
            null_NR=result.null_NR,
            shuffled_N=shuffled_N,
            fold_N=result.fold_N,
            keys=keys,
        )
    return {**compare(result, shuffled_N), "fit_s": took_s}


def shuffle(count: int, share: float, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rotate a random share of the texts among themselves."""
    chosen = np.random.default_rng(seed).permutation(count)[: round(share * count)]
    given_N = np.arange(count)
    given_N[chosen] = np.roll(chosen, 1)
    return given_N


def compare(result: Crossfit, shuffled_N: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, float]:
    """AUC against the truth; without mismatched pairs, against nulls."""
    from sklearn.metrics import roc_auc_score

    null_N = result.null_NR[np.isfinite(result.null_NR)]
    wrong_N = result.score_N[shuffled_N] if shuffled_N.any() else null_N
    right_N = result.score_N[~shuffled_N]
    label_N = np.arange(len(right_N) + len(wrong_N)) < len(right_N)
    auc = float(roc_auc_score(label_N, np.concatenate([right_N, wrong_N])))
    grid = np.quantile(null_N, np.linspace(0, 1, 1001))
    at = [np.searchsorted(np.sort(scores), grid, side="right") / len(scores) for scores in (wrong_N, null_N)]
    return {
        "auc": auc,
        "ks": float(np.abs(at[0] - at[1]).max()),
        "true_share": float(shuffled_N.mean()),
        "estimated_share": result.mismatched_share,
    }


if __name__ == "__main__":
    main()
