"""A finished run, and a split after its frozen model.

Shapes: B samples in a batch, N samples of the split, M modalities, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from mmdata.errors import TrainError
from mmdata.train.batch import Batch, Failure
from mmdata.train.config import TrainConfig
from mmdata.train.dataset import MixedDataset, SampleDataset, Split, eval_loader, open_split
from mmdata.train.evaluate.config import EvalConfig
from mmdata.train.export import load_model, read_description
from mmdata.train.launch import rank_device
from mmdata.train.manifest import open_folder
from mmdata.train.model.fused import FusedModel

Subset = tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it lies.
        config: its training file, with the shards that are measured on.
        model: in evaluation mode.
        tokenizer: None where text is no modality.
        device: of the model.
    """

    folder: Path
    config: TrainConfig
    model: FusedModel
    tokenizer: Tokenizer | None
    device: torch.device

    @property
    def modalities(self) -> tuple[str, ...]:
        """In the order of the model."""
        return self.model.modalities


@dataclass(frozen=True)
class Opened:
    """A split: its data set, and who stands in it."""

    splits: list[Split]
    dataset: MixedDataset

    def ids(self, rows: Iterable[int]) -> list[str]:
        """Ids of samples by their rows in the data set."""
        names = [split.index.id(row) for split in self.splits for row in range(len(split.index))]
        return [names[row] for row in rows]


@dataclass(frozen=True)
class Features:
    """A split after the model, on the CPU.

    Attributes:
        row_N: rows in the data set.
        present_NM: which modalities a sample has.
        text_hash_N: a hash of its first text, 0 for none.
        single_MND: embedding of each modality; zeros where absent.
        fused: embeddings (N, D) by the fusion of each set of modalities; what a sample lacks is not read.
        failures: samples that could not be decoded.
    """

    row_N: Tensor
    present_NM: Tensor
    text_hash_N: Tensor
    single_MND: Tensor
    fused: dict[Subset, Tensor]
    failures: list[Failure]


def open_run(folder: Path, wanted: EvalConfig) -> Run:
    """Load a finished run. Raises TrainError where it is none."""
    description = read_description(folder)
    config = TrainConfig.model_validate(description["training"])
    data = config.data
    if wanted.shards:
        data = data.model_copy(update={"shards": wanted.shards, "sets": {}})
    # Teachers teach, and weights say how often; nothing of them is measured.
    data = data.model_copy(update={"val_split": wanted.split or data.val_split, "teachers": {}, "weight_by": None})
    config = config.model_copy(update={"data": data, "workers": wanted.workers})
    device = rank_device(wanted.device or config.device)
    model, tokenizer = load_model(folder, device)
    return Run(folder, config, model, tokenizer, device)


def open_data(run: Run, name: str) -> Opened:
    """A split of the run's shards. Raises TrainError where there is none of that name, or nothing the run reads."""
    data = run.config.data
    folders = [open_folder(one.shards) for one in data.all_sets().values()]
    holding = [folder for folder in folders if name in folder.manifest.splits] or folders[:1]
    splits = [open_split(folder, name, data) for folder in holding]
    if not any(len(split.index) for split in splits):
        read = ", ".join(f"{name} of {' or '.join(members)}" for name, members in data.modalities.items())
        known = ", ".join(f"{name} ({one.modality})" for name, one in sorted(holding[0].manifest.members.items()))
        what = f"no sample of '{name}' has two of what the run reads: {read}"
        raise TrainError(f"{holding[0].place}: {what}; the shards hold {known}")
    sources = [SampleDataset(split, data, run.config.seed, run.tokenizer, 0) for split in splits]
    return Opened(splits, MixedDataset(sources))


def subsets(count: int) -> list[Subset]:
    """Every set of modalities but the empty one, small ones first."""
    return [chosen for size in range(1, count + 1) for chosen in combinations(range(count), size)]


def batches(run: Run, opened: Opened, most: int | None = None, seed: int = 0) -> Iterator[Batch]:
    """Every sample once, in order; with `most`, at most so many of them, shuffled within their data set.

    So what is exchanged between the samples of a batch does not tell by the data set that it comes from.
    """
    if most is None:
        yield from eval_loader(opened.dataset, run.config)
        return
    drawn = np.random.default_rng(seed).permutation(len(opened.dataset))[:most]
    set_N = np.searchsorted(np.cumsum([len(source) for source in opened.dataset.sources]), drawn, side="right")
    for number in np.unique(set_N):
        yield from eval_loader(opened.dataset, run.config, drawn[set_N == number])


def embed_all(run: Run, source: Iterable[Batch], wanted: Sequence[Subset]) -> Features:
    """Embed every sample. Raises TrainError where none can be decoded or the model gives no finite numbers."""
    failures: list[Failure] = []
    parts = []
    with torch.inference_mode():
        for batch in source:
            failures += batch.failures
            if len(batch):
                parts.append(_embed_batch(run, batch, wanted))
    if not parts:
        raise TrainError(f"no sample of the split can be decoded; the first: {next(iter(failures), 'none')}")
    row_N, present_NM, hash_N = (torch.cat(column) for column in list(zip(*parts, strict=True))[:3])
    single_MND, fused_VND = (torch.cat(column, dim=1) for column in list(zip(*parts, strict=True))[3:])
    if not (single_MND.isfinite().all() and fused_VND.isfinite().all()):
        raise TrainError("the model gives embeddings that are not finite; train again with a lower optim.lr")
    return Features(row_N, present_NM, hash_N, single_MND, dict(zip(wanted, fused_VND, strict=True)), failures)


def _embed_batch(run: Run, batch: Batch, wanted: Sequence[Subset]) -> tuple[Tensor, ...]:
    encoded = run.model.encode(batch.to(run.device))
    fused = [torch.zeros(0, len(batch), run.model.embed_dim)]
    for chosen in wanted:  # one view at a time: of five modalities there are 31
        seen_M = torch.tensor([column in chosen for column in range(len(run.modalities))], device=run.device)
        fused.append(run.model.fuse(encoded, seen_M.expand(1, len(batch), -1)).float().cpu())
    single_MBD = torch.stack(encoded.embeddings).float().cpu()
    return batch.row_B, batch.present_BM, batch.text_hash_BK[:, 0], single_MBD, torch.cat(fused)
