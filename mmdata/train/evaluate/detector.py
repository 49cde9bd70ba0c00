"""The inconsistency detector: a small head that tells real samples from forged ones by how their members agree.

It learns from real samples and forgeries of them, best of a split that the model was not trained on: what the model
knows by heart agrees more than anything it has not seen. How it does on kinds of forgery that it was not shown is
measured by leaving out a family (swaps, shifts, splices) at a time.

Shapes: B samples of a batch, N samples, M modalities, P pairs of modalities, F = 2 P features, H hidden.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional

from mmdata.errors import TrainError
from mmdata.train.batch import Batch
from mmdata.train.checkpoint import write_whole
from mmdata.train.evaluate.config import EvalConfig
from mmdata.train.evaluate.features import Run
from mmdata.train.evaluate.forgeries import donors, kinds, stripped
from mmdata.train.evaluate.intervals import Array, auc_figure
from mmdata.train.export import write_json
from mmdata.train.model.fused import Encoded, FusedModel

_HIDDEN, _STEPS, _BATCH, _LR = 64, 800, 512, 1e-2
# Ranks are sorted anew in each resample.
_MOST_RESAMPLES = 300
REAL = "real"
# Another one reads other features.
_VERSION = 2


class DetectorHead(nn.Module):
    """One hidden layer on standardised cosines; a logit above 0 says forged.

    Less agreement never makes it surer that a sample is real: weights of cosines have one sign. Without that, what was
    learnt of forgeries that hardly show (splices) told swaps the wrong way round.
    """

    mean_P: Tensor
    spread_P: Tensor

    def __init__(self, pairs: int) -> None:
        """Of so many pairs of modalities."""
        super().__init__()
        self.register_buffer("mean_P", torch.zeros(pairs))
        self.register_buffer("spread_P", torch.ones(pairs))
        # Their softplus counts; what it is at first is about 1 over what it sums.
        self.weight_PH = nn.Parameter(torch.randn(pairs, _HIDDEN) - 1)
        self.weight_H = nn.Parameter(torch.full((_HIDDEN,), math.log(math.expm1(1 / _HIDDEN))))
        self.having = nn.Linear(pairs, _HIDDEN)
        self.bias = nn.Linear(pairs, 1)

    def standardise(self, agreement_NF: Tensor) -> None:
        """Take over mean and spread of the cosines of pairs that are there."""
        cosine_NP, both_NP = agreement_NF.chunk(2, dim=1)
        count_P = both_NP.sum(dim=0).clamp(min=1)
        self.mean_P.copy_((cosine_NP * both_NP).sum(dim=0) / count_P)
        variance_P = (((cosine_NP - self.mean_P) * both_NP) ** 2).sum(dim=0) / count_P
        self.spread_P.copy_(variance_P.sqrt().clamp(min=1e-4))

    def forward(self, agreement_NF: Tensor) -> Tensor:
        """Logits, shape (N,)."""
        cosine_NP, both_NP = agreement_NF.chunk(2, dim=1)
        apart_NP = (self.mean_P - cosine_NP) / self.spread_P * both_NP
        hidden_NH = functional.softplus(apart_NP @ functional.softplus(self.weight_PH) + self.having(both_NP))
        logit_N: Tensor = hidden_NH @ functional.softplus(self.weight_H) + self.bias(both_NP)[:, 0]
        return logit_N


@dataclass(frozen=True)
class Shown:
    """Features of samples, real ones or those of a kind of forgery.

    Attributes:
        row_N: rows of the samples they were made of.
        agreement_NF: see `agreement`.
    """

    row_N: Tensor
    agreement_NF: Tensor


def agreement(model: FusedModel, encoded: Encoded) -> Tensor:
    """The cosine of every pair, 0 where a sample lacks one of the two; last, which pairs it has. Shape (B, F).

    Products and distances by dimension, and cosines to the fusion, found forgeries of their own kind only.
    """
    cosines, both = [], []
    for left, right in combinations(range(len(model.modalities)), 2):
        both.append((encoded.present_BM[:, left] & encoded.present_BM[:, right]).float())
        cosine_B = (encoded.embeddings[left].float() * encoded.embeddings[right].float()).sum(dim=1)
        cosines.append(cosine_B * both[-1])
    return torch.stack([*cosines, *both], dim=1)


def show(run: Run, source: Iterable[Batch], seed: int, forged: bool = True) -> dict[str, Shown]:
    """Features of the samples, under `real`, and of a forgery of each kind of each of them."""
    parts: dict[str, list[Shown]] = {}
    with torch.inference_mode():
        for number, batch in enumerate(source):
            if len(batch):
                for kind, shown in _show_batch(run, batch, [seed, number] if forged else None).items():
                    parts.setdefault(kind, []).append(shown)
    if REAL not in parts:
        raise TrainError("no sample of the split can be decoded")
    return {kind: _joined(some) for kind, some in parts.items()}


def _joined(parts: list[Shown]) -> Shown:
    return Shown(torch.cat([part.row_N for part in parts]), torch.cat([part.agreement_NF for part in parts]))


def _show_batch(run: Run, batch: Batch, seed: list[int] | None) -> dict[str, Shown]:
    sounds = {name: stripped(part) for name, part in batch.inputs.items() if name == "audio"}
    batch = replace(batch, inputs={**batch.inputs, **sounds})
    encoded = run.model.encode(batch.to(run.device))
    found = {REAL: Shown(batch.row_B, agreement(run.model, encoded).cpu())}
    for number, (kind, forge) in enumerate(kinds(run.modalities).items() if seed else ()):
        name = kind.partition(".")[2]
        if name not in batch.inputs:
            continue
        donor_N = donors(batch.inputs[name], batch.text_hash_BK[:, 0])
        inputs = forge(batch.inputs[name], donor_N.clamp(min=0), np.random.default_rng([*(seed or []), number]))
        changed = _with(run, encoded, batch, name, replace(inputs))
        # Who has nobody to take from stays out, whatever was made of it.
        row_N = batch.inputs[name].row_N[donor_N >= 0]
        found[kind] = Shown(batch.row_B[row_N], agreement(run.model, changed).cpu()[row_N])
    return found


def _with(run: Run, encoded: Encoded, batch: Batch, name: str, inputs: Any) -> Encoded:
    """The same samples with another member: only its tower runs again."""
    changed = run.model.encode(replace(batch, inputs={name: inputs}).to(run.device))
    column = run.modalities.index(name)
    lists = [
        [new if at == column else old for at, (old, new) in enumerate(zip(was, now, strict=True))]
        for was, now in (
            (encoded.tokens, changed.tokens),
            (encoded.masks, changed.masks),
            (encoded.embeddings, changed.embeddings),
        )
    ]
    return Encoded(lists[0], lists[1], lists[2], encoded.present_BM)


def fit(shown: dict[str, Shown], families: Sequence[str], seed: int) -> DetectorHead:
    """Train a head on the real samples and these families of forgeries; both weigh the same."""
    real_NF = shown[REAL].agreement_NF
    forged_NF = torch.cat([part.agreement_NF for kind, part in shown.items() if kind.partition(".")[0] in families])
    agreement_NF = torch.cat([real_NF, forged_NF])
    truth_N = torch.arange(len(agreement_NF)) >= len(real_NF)
    weight_N = torch.where(truth_N, 0.5 / max(1, len(forged_NF)), 0.5 / len(real_NF)) * len(agreement_NF)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = DetectorHead(agreement_NF.shape[1] // 2)
        head.standardise(agreement_NF)
        optimizer = torch.optim.Adam(head.parameters(), lr=_LR)
        for _ in range(_STEPS):
            row_N = torch.randint(0, len(agreement_NF), (_BATCH,))
            loss_N = functional.binary_cross_entropy_with_logits(
                head(agreement_NF[row_N]), truth_N[row_N].float(), weight_N[row_N]
            )
            optimizer.zero_grad()
            loss_N.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return head.eval()


def auc(real_N: Array, forged_N: Array) -> float:
    """How often a forged sample scores above a real one, ties for half (Mann and Whitney 1947)."""
    rank_N = rankdata(np.concatenate([real_N, forged_N]))
    above = float(rank_N[len(real_N) :].sum()) - len(forged_N) * (len(forged_N) + 1) / 2
    return above / (len(real_N) * len(forged_N))


def assess(
    train: dict[str, Shown], held_out: dict[str, Shown], config: EvalConfig
) -> tuple[DetectorHead, dict[str, Any]]:
    """The head that saw all families, and AUC by kind: of that head, and of one that did not see the kind's family."""
    families = list(dict.fromkeys(kind.partition(".")[0] for kind in train if kind != REAL))
    if not families:
        raise TrainError("nothing can be forged out of these samples: no two of a batch differ")
    head = fit(train, families, config.seed)
    blind = {
        family: fit(train, [other for other in families if other != family], config.seed)
        for family in families
        if len(families) > 1
    }
    found: dict[str, Any] = {}
    for kind, shown in held_out.items():
        if kind == REAL or not len(shown.row_N):
            continue
        found[kind] = {"samples": len(shown.row_N), "auc": _figure(head, held_out[REAL], shown, config)}
        if (unseeing := blind.get(kind.partition(".")[0])) is not None:
            found[kind]["auc_not_trained_on"] = _figure(unseeing, held_out[REAL], shown, config)
    return head, found


def _figure(head: DetectorHead, real: Shown, forged: Shown, config: EvalConfig) -> dict[str, Any]:
    """AUC over the samples that were forged, each drawn with its forgery."""
    place = {row: at for at, row in enumerate(real.row_N.tolist())}
    own_N = [place[row] for row in forged.row_N.tolist()]
    with torch.inference_mode():
        real_N = head(real.agreement_NF[own_N]).double().numpy()
        forged_N = head(forged.agreement_NF).double().numpy()
    resamples = min(config.resamples, _MOST_RESAMPLES)
    return auc_figure(lambda row: auc(real_N[row], forged_N[row]), len(own_N), config.seed, resamples)


def save_detector(folder: Path, head: DetectorHead, modalities: Sequence[str]) -> None:
    """Write the head beside the model."""
    write_whole(folder / "detector.safetensors", lambda scratch: save_file(head.state_dict(), scratch))
    write_json(
        folder / "detector.json", {"format": "mmdata-detector", "version": _VERSION, "modalities": list(modalities)}
    )


def load_detector(folder: Path, modalities: Sequence[str]) -> DetectorHead:
    """The head of a run. Raises TrainError where it has none that fits its model."""
    try:
        described = json.loads((folder / "detector.json").read_text())
        if (described["format"], described["version"]) != ("mmdata-detector", _VERSION):
            raise ValueError("of another version")
        if described["modalities"] != list(modalities):
            raise ValueError(f"of {', '.join(described['modalities'])}")
        weights = load_file(folder / "detector.safetensors")
        head = DetectorHead(len(weights["mean_P"]))
        head.load_state_dict(weights)
    except FileNotFoundError:
        raise TrainError(f"{folder}: has no detector; train one: mmdata eval {folder} --tasks detector") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise TrainError(f"{folder}: no detector that can be read: {error}; train it again") from None
    return head.eval()


def probabilities(head: DetectorHead, shown: Shown) -> list[float]:
    """How likely each sample is forged, where half of what was shown is."""
    with torch.inference_mode():
        found: list[float] = head(shown.agreement_NF).sigmoid().tolist()
    return found
