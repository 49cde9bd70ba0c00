"""What the decoders make of held-out samples: texts against those written, images against those drawn.

Shapes: B samples of a batch, N images, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdata.errors import MissingExtraError
from mmdata.train.batch import Batch
from mmdata.train.evaluate.config import EvalConfig
from mmdata.train.evaluate.features import Run
from mmdata.train.evaluate.intervals import figure
from mmdata.train.model.generate import Making, make_media, write_texts
from mmdata.train.model.layers import masked_mean

# Subsets of half the samples that KID's interval is made of.
_HALVES = 100
_MIN_IMAGES = 4


def captions(run: Run, source: Iterable[Batch], config: EvalConfig) -> dict[str, Any]:
    """BLEU and chrF (sacrebleu's, 0 to 100) of the texts written from the other modalities, likeliest token each time.

    `chance` is the score against other samples' texts. Raises MissingExtraError without sacrebleu.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise MissingExtraError("the task captions", "sacrebleu", "eval") from None
    written, truth = _write(run, source)
    if not truth:
        return {"refused": "no sample has a text beside another modality"}
    metrics = {"bleu": BLEU(effective_order=False), "chrf": CHRF()}
    scores = {name: text_figure(metric, written, truth, config.resamples) for name, metric in metrics.items()}
    return {"samples": len(truth), **scores}


def text_figure(metric: Any, written: Sequence[str], truth: Sequence[str], resamples: int) -> dict[str, Any]:
    """A corpus score of sacrebleu with its bootstrap interval, and that against the next sample's texts."""
    score = metric.corpus_score(written, [truth], n_bootstrap=resamples)
    chance = metric.corpus_score(written, [[*truth[1:], *truth[:1]]]).score
    mean, half = float(score._mean), float(score._ci)
    return {"value": float(score.score), "low": mean - half, "high": mean + half, "chance": float(chance)}


def images(run: Run, source: Iterable[Batch], network: nn.Module, config: EvalConfig) -> dict[str, Any]:
    """FID and KID of images made from the other modalities, against those of the same samples."""
    drawn_NF, made_NF = _features(run, source, network, config.seed)
    return {
        "samples": len(drawn_NF),
        "features": drawn_NF.shape[1],
        "fid": fid(drawn_NF, made_NF),
        "kid": kid(drawn_NF, made_NF, config.seed),
    }


def fid(drawn_NF: Tensor, made_NF: Tensor) -> dict[str, Any]:
    """FID (Heusel et al. 2017) by torchmetrics; refused where a covariance cannot be known.

    Raises MissingExtraError without torchmetrics.
    """
    count, features = drawn_NF.shape
    if count <= features:
        why = f"{count} images cannot tell a covariance of {features} features: it needs more images than features"
        return {"refused": f"{why}; see KID, which has no bias of few samples"}
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError:
        raise MissingExtraError("FID", "torchmetrics", "eval") from None
    metric = FrechetInceptionDistance(feature=_Passed(features)).set_dtype(torch.float64)
    metric.update(drawn_NF.double(), real=True)
    metric.update(made_NF.double(), real=False)
    return {"value": float(metric.compute())}


def kid(drawn_NF: Tensor, made_NF: Tensor, seed: int) -> dict[str, Any]:
    """KID (Binkowski et al. 2018): the unbiased MMD of all images, with the kernel of torchmetrics.

    The interval is of subsets of half the images, without replacement: those spread as the whole does around the truth
    (Politis, Romano and Wolf 1999), and no image meets itself, which in a bootstrap would pass for likeness.

    Raises MissingExtraError without torchmetrics.
    """
    try:
        from torchmetrics.image.kid import poly_mmd
    except ImportError:
        raise MissingExtraError("KID", "torchmetrics", "eval") from None
    if len(drawn_NF) < _MIN_IMAGES:
        return {"refused": f"{len(drawn_NF)} images, needs at least {_MIN_IMAGES}"}
    rng, half = np.random.default_rng(seed), len(drawn_NF) // 2
    drawn_NF, made_NF = drawn_NF.double(), made_NF.double()
    halves = [
        float(poly_mmd(drawn_NF[rng.permutation(len(drawn_NF))[:half]], made_NF[rng.permutation(len(made_NF))[:half]]))
        for _ in range(_HALVES)
    ]
    value = float(poly_mmd(drawn_NF, made_NF))
    return figure(value, value + np.array(halves) - float(np.mean(halves)))


class Described(nn.Module):
    """An image network as FID and KID want it: pixels in, a vector out."""

    def __init__(self, tower: nn.Module) -> None:
        """Of a tower, whose tokens are averaged."""
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (N, F) of uint8 pixels (N, 3, H, W)."""
        size_N = torch.full((len(pixels),), pixels.shape[-1], device=pixels.device)
        return masked_mean(*self.tower(pixels, size_N)).float()


class _Passed(nn.Module):
    """Features as they are, for a metric that wants to make them itself."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, feature_NF: Tensor) -> Tensor:
        return feature_NF


def _write(run: Run, source: Iterable[Batch]) -> tuple[list[str], list[str]]:
    assert run.tokenizer is not None
    written: list[str] = []
    truth: list[str] = []
    making = Making(max_tokens=run.config.data.text_max_tokens)
    for batch in source:
        latents, rows = _latents(run, batch, "text")
        if rows:
            made = write_texts(run.model, latents, making)
            written += [run.tokenizer.decode(ids).strip() for ids in made]
            truth += [batch.texts[row] or "" for row in rows]
    return written, truth


def _latents(run: Run, batch: Batch, name: str) -> tuple[Tensor, list[int]]:
    """The fusion of all but a modality, of the samples that have it and another; and which those are."""
    column = run.modalities.index(name)
    other_M = torch.arange(len(run.modalities)) != column
    rows = (batch.present_BM[:, column] & (batch.present_BM & other_M).any(dim=1)).nonzero()[:, 0].tolist()
    if not rows:
        return torch.zeros(0), []
    with torch.no_grad():
        encoded = run.model.encode(batch.to(run.device))
        latents_BQW = run.model.latents(encoded, other_M.to(run.device).expand(1, len(batch), -1))[0]
    return latents_BQW[rows], rows


def _features(run: Run, source: Iterable[Batch], network: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    drawn, made = [], []
    describe = Described(network).to(run.device).eval()
    for batch in source:
        latents, rows = _latents(run, batch, "image")
        if rows:
            inputs, row_N = batch.inputs["image"], batch.row_B[rows].to(run.device)
            place = {row: at for at, row in enumerate(inputs.row_N.tolist())}
            with torch.inference_mode():
                drawn.append(describe(inputs.values[[place[row] for row in rows]].to(run.device)).cpu())
                pixels = make_media(run.model, "image", latents, Making(seed=seed), row_N)
                made.append(describe(pixels).cpu())
    none = torch.zeros(0, 1)
    return torch.cat(drawn or [none]), torch.cat(made or [none])
