"""Measure a model on a held-out split: retrieval between every two modalities, and from the fusion to each.

Shapes: B samples in a batch, N samples of the split, M modalities, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from mmdata.errors import TrainError
from mmdata.train.batch import Batch, Failure
from mmdata.train.losses.contrastive import visible_inputs
from mmdata.train.model.fused import FusedModel
from mmdata.train.recall import recall_at


@dataclass(frozen=True)
class Embedded:
    """A split after the model, on the CPU.

    Attributes:
        row_N: places in the index.
        present_NM: which modalities a sample has.
        text_hash_N: a hash of its first text, 0 for none.
        single_MND: embedding of each modality; zeros where absent.
        fused_MND: fusion of all modalities but that one.
        failures: samples that could not be decoded.
    """

    row_N: Tensor
    present_NM: Tensor
    text_hash_N: Tensor
    single_MND: Tensor
    fused_MND: Tensor
    failures: list[Failure]


def embed(model: FusedModel, batches: Iterable[Batch], device: torch.device) -> Embedded:
    """Embed every sample, in the precision that the caller set.

    Raises TrainError where none can be decoded or the model gives no finite numbers.
    """
    was_training = model.training
    model.eval()
    failures: list[Failure] = []
    parts: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        for batch in batches:
            failures += batch.failures
            if len(batch):
                parts.append(_embed_batch(model, batch, device))
    model.train(was_training)
    if not parts:
        raise TrainError(f"no sample of the held-out split can be decoded; the first: {next(iter(failures), 'none')}")
    row_N, present_NM, hash_N = (torch.cat(column) for column in list(zip(*parts, strict=True))[:3])
    single_MND, fused_MND = (torch.cat(column, dim=1) for column in list(zip(*parts, strict=True))[3:])
    if not (single_MND.isfinite().all() and fused_MND.isfinite().all()):
        raise TrainError("the model gives embeddings that are not finite; train again with a lower optim.lr")
    return Embedded(row_N, present_NM, hash_N, single_MND, fused_MND, failures)


def _embed_batch(model: FusedModel, batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
    encoded = model.encode(batch.to(device))
    visible_MBM = visible_inputs(batch.present_BM, chance=0).to(device)
    fused_MBD = model.fuse(encoded, visible_MBM)
    single_MBD = torch.stack(encoded.embeddings).float()
    return batch.row_B, batch.present_BM, batch.text_hash_BK[:, 0], single_MBD.cpu(), fused_MBD.float().cpu()


def measure(embedded: Embedded, modalities: tuple[str, ...], ks: list[int]) -> dict[str, Any]:
    """Recall in every direction, `image->text`, and from all else, `fusion->text`.

    The queries of a direction are the samples that have both ends, and its candidates are their partners.
    """
    return {
        name: {"queries": len(rows_N), "candidates": len(rows_N)}
        | recall_at(query_ND[rows_N], candidate_ND[rows_N], embedded.text_hash_N[rows_N], ks)
        for name, query_ND, candidate_ND, rows_N in _directions(embedded, modalities)
        if len(rows_N) > 1
    }


def _directions(embedded: Embedded, modalities: tuple[str, ...]) -> Iterable[tuple[str, Tensor, Tensor, Tensor]]:
    """(name, queries, candidates, rows that have both)."""
    present_NM, single_MND = embedded.present_NM, embedded.single_MND
    for left, right in permutations(range(len(modalities)), 2):
        rows_N = (present_NM[:, left] & present_NM[:, right]).nonzero()[:, 0]
        yield f"{modalities[left]}->{modalities[right]}", single_MND[left], single_MND[right], rows_N
    for column, name in enumerate(modalities):
        # Of what is only asked about, nothing may be left when this one is hidden.
        rows_N = (present_NM[:, column] & (present_NM.sum(dim=1) > 1)).nonzero()[:, 0]
        yield f"fusion->{name}", embedded.fused_MND[column], single_MND[column], rows_N


def table(metrics: dict[str, Any], ks: list[int]) -> list[str]:
    """Lines for people: a direction each, recall with chance in brackets."""
    lines = [f"{'':16}{'candidates':>10}" + "".join(f"{f'recall@{k} (chance)':>20}" for k in ks)]
    for name, values in metrics.items():
        cells = [values[f"recall@{k}"] for k in ks]
        shown = "".join(f"{cell['value']:>11.3f} ({cell['chance']:.3f})" for cell in cells)
        lines.append(f"{name:16}{values['candidates']:>10}  {shown}")
    return lines
