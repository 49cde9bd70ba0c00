"""Clip-art with shuffled titles, recorded and seeded: what crossfit and calibration find out without being told."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mmdata.errors import SampleError
from mmdata.media.image import open_image
from mmdata.models.clip_image import prepare_image
from mmdata.models.tower_spec import TowerSpec
from mmdata.models.two_groups import calibrate
from mmdata.steps.align.crossfit import Crossfit
from mmdata.steps.exchange import Edge, Pairs

SEED = 3
MAX_PIXELS = 30_000_000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def step(lite_dir: Path) -> Crossfit:
    models = lite_dir.parent
    checkpoint = str(models / "efficientnet-lite0" / "efficientnet-lite0.pth")
    left = {"kind": "timm", "model": "tf_efficientnet_lite0", "checkpoint": checkpoint, "resize_mode": "longest"}
    right = {"kind": "sentence", "model": str(models / "minilm")}
    return Crossfit.model_validate({"pair": ["image", "caption"], "left": left, "right": right})


@pytest.fixture(scope="module")
def clipart(step: Crossfit, clipart_dir: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features of the drawings, as fp16 as a build keeps them, and of their titles."""
    from mmdata.demo.lite_data import read_clipart

    seer, reader = (TowerSpec(**side.model_dump()).load("cpu") for side in (step.left, step.right))
    drawings = sorted(read_clipart(clipart_dir), key=lambda drawing: drawing.path)

    def seen(batch):
        images, titles = [], []
        for drawing in batch:
            try:
                images.append(prepare_image(seer.recipe, open_image(drawing.path.read_bytes(), MAX_PIXELS)))
            except SampleError:
                continue
            titles.append(drawing.texts[0])
        return seer.embed(images), titles

    batches = [drawings[start : start + 16] for start in range(0, len(drawings), 16)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(seen, batches))
    titles = [title for _, batch in found for title in batch]
    image_NF = np.concatenate([features for features, _ in found])
    return image_NF.astype(np.float16), reader.embed(titles).astype(np.float16), titles


def pairs(clipart, shuffled_share: float) -> tuple[Pairs, np.ndarray]:
    image_NF, text_NE, titles = clipart
    rng = random.Random(SEED)
    order_N = np.array(rng.sample(range(len(titles)), len(titles)))  # as ids, hashes, order them
    chosen = rng.sample(range(len(titles)), round(shuffled_share * len(titles)))
    partner_N = np.arange(len(titles))
    partner_N[chosen] = np.roll(chosen, 1)
    matched_N = np.array([titles[a] == titles[b] for a, b in enumerate(partner_N)])
    images = {content: n for n, content in enumerate(dict.fromkeys(map(bytes, image_NF)))}
    words = {content: n for n, content in enumerate(dict.fromkeys(title.casefold() for title in titles))}
    left_id_N = np.array([images[bytes(row)] for row in image_NF])
    right_id_N = np.array([words[title.casefold()] for title in titles])[partner_N]
    zeros_N = np.zeros(len(titles), np.int64)
    of = {
        "left_NF": image_NF,
        "right_NE": text_NE[partner_N],
        "left_id_N": left_id_N,
        "right_id_N": right_id_N,
        "lang_N": zeros_N,
        "parent_N": zeros_N - 1,
    }
    ids = [f"{n:032x}" for n in range(len(titles))]
    return Pairs(Edge("image", "caption"), ids, **{key: values[order_N] for key, values in of.items()}), matched_N[
        order_N
    ]


@pytest.mark.parametrize(("shuffled", "least_auc"), [(0.0, None), (0.2, 0.93), (0.4, 0.90), (0.6, 0.86)])
def test_crossfit_tells_shuffled_titles_and_calibration_how_many(step, clipart, tmp_path, shuffled, least_auc):
    given, matched_N = pairs(clipart, shuffled)
    assert len(matched_N) > 3500
    found = step.fit(given, SEED, tmp_path)
    assert not np.isnan(found.score_N).any()
    judged = calibrate(
        found.score_N, found.null_NR, strength_N=found.strength_N, null_strength_M=found.null_strength_NR
    )
    truth = 1 - matched_N.mean()
    bins = np.array_split(np.argsort(judged.match_N), 15)
    error = sum(len(b) * abs(judged.match_N[b].mean() - matched_N[b].mean()) for b in bins) / len(matched_N)
    auc = roc_auc_score(matched_N, found.score_N) if least_auc else 1.0
    said = f"AUC {auc:.3f}, noise {judged.noise:.3f} of {truth:.3f}, calibration error {error:.3f}"
    print(f"{shuffled:.0%}: {said}")  # noqa: T201
    assert auc >= (least_auc or 0)
    assert abs(judged.noise - truth) <= 0.05
    assert error <= 0.05
