"""Samples by number: read, decoded, and put together into batches whose order is a function of the seed and the step.

Nothing is drawn from a shared generator: which samples a step sees, and which of several members, depends on (seed,
epoch, sample) alone. So the number of workers changes nothing, and the reader's whole position is the step.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset, Sampler

from mmdata.errors import SampleError
from mmdata.train.batch import Batch, Collate, Example, Failure
from mmdata.train.config import MIN_MODALITIES, DataConfig, TrainConfig
from mmdata.train.decode import decode_audio, decode_image, decode_text
from mmdata.train.manifest import ShardFolder
from mmdata.train.online import OnlineAugment
from mmdata.train.shards import ShardIndex, ShardReader, index_split
from mmdata.train.tokens import encode, text_hash

# The longest text by far that is cut to `text_max_tokens`; keeps one hostile member from holding up a worker.
MAX_TEXT_BYTES = 1 << 16

# (epoch, row of the index); epoch None: no random choice.
Pick = tuple[int | None, int]


@dataclass(frozen=True)
class Split:
    """The usable samples of a split.

    Attributes:
        index: samples with members of at least two modalities.
        skipped: samples left out because they have fewer.
    """

    index: ShardIndex
    skipped: int


def open_split(folder: ShardFolder, split: str, data: DataConfig) -> Split:
    """Index a split. Raises TrainError where the shards are damaged or the split is missing or empty."""
    members = [member for names in data.modalities.values() for member in names]
    if folder.manifest.augment and folder.manifest.augment.online:
        # A policy changes a sample as a whole.
        members += [member for member in folder.manifest.members if member not in members]
    index = index_split(folder, split, members)
    held_MN = np.array([np.any([index.has(m) for m in names], axis=0) for names in data.modalities.values()])
    rows = np.flatnonzero(held_MN.sum(axis=0) >= MIN_MODALITIES)
    return Split(index.take(rows), len(index) - len(rows))


def iter_texts(split: Split, data: DataConfig) -> Iterator[str]:
    """Every text of a split, in order; those that cannot be read are left out, and met again in training."""
    reader = ShardReader(split.index, data.member_max_bytes)
    has = {member: split.index.has(member) for member in data.modalities.get("text", [])}
    for row in range(len(split.index)):
        for member in has:
            if has[member][row]:
                try:
                    yield decode_text(reader.read(row, member, MAX_TEXT_BYTES))
                except SampleError:
                    continue


class SampleDataset(Dataset[Example | Failure]):
    """A split as a map from (epoch, row) to a decoded sample, or to why it cannot be used."""

    def __init__(
        self,
        split: Split,
        data: DataConfig,
        seed: int,
        tokenizer: Tokenizer | None,
        cache_mib: int,
        online: OnlineAugment | None = None,
    ) -> None:
        """Keep up to `cache_mib` of decoded members; `tokenizer` may be None where text is no modality."""
        self._online = online
        self._split = split
        self._data = data
        self._seed = seed
        self._tokenizer = tokenizer
        self._reader = ShardReader(split.index, data.member_max_bytes)
        self._cache: dict[tuple[int, str], npt.NDArray[np.generic]] = {}
        self._cache_bytes_left = cache_mib << 20
        self._has = {member: split.index.has(member) for member in split.index.members}

    def __len__(self) -> int:
        """Usable samples."""
        return len(self._split.index)

    def __getitem__(self, pick: Pick) -> Example | Failure:
        """Decode the members chosen for this epoch; the first that fails makes the whole sample a failure."""
        epoch, row = pick
        values: dict[str, npt.NDArray[np.generic]] = {}
        hashes = (0, 0)
        try:
            child = self._online.child(epoch, row) if self._online and epoch is not None else None
        except SampleError as error:
            return self._failure(row, "", error)
        for modality, member in self._chosen(epoch, row, child).items():
            try:
                if modality == "text":
                    values[modality], hashes = self._text(row, member, child)
                else:
                    values[modality] = self._media(row, modality, member, child)
            except SampleError as error:
                return self._failure(row, member, error)
        return Example(row, values, hashes)

    def _chosen(self, epoch: int | None, row: int, child: Mapping[str, bytes] | None = None) -> dict[str, str]:
        """The member of each modality that the sample has, or its child."""
        rng = None if epoch is None else np.random.default_rng([self._seed, epoch, row])
        chosen = {}
        for modality, members in self._data.modalities.items():
            held = [member for member in members if (self._has[member][row] if child is None else child.get(member))]
            if held:
                chosen[modality] = held[0 if rng is None else int(rng.integers(len(held)))]
        return chosen

    def _read(self, row: int, member: str, child: Mapping[str, bytes] | None, at_most: int | None = None) -> bytes:
        return self._reader.read(row, member, at_most) if child is None else child[member][:at_most]

    def _text(
        self, row: int, member: str, child: Mapping[str, bytes] | None
    ) -> tuple[npt.NDArray[np.int64], tuple[int, int]]:
        """Tokens, and two hashes: of this text, and of the first text, which all of a sample's texts stand for."""
        if self._tokenizer is None:
            raise RuntimeError("a text without a tokenizer")
        names = self._data.modalities["text"]
        first = next(name for name in names if (self._has[name][row] if child is None else child.get(name)))
        text = decode_text(self._read(row, member, child, MAX_TEXT_BYTES))
        other = text if first == member else decode_text(self._read(row, first, child, MAX_TEXT_BYTES))
        return encode(self._tokenizer, text, self._data.text_max_tokens), (text_hash(text), text_hash(other))

    def _media(
        self, row: int, modality: str, member: str, child: Mapping[str, bytes] | None
    ) -> npt.NDArray[np.generic]:
        cached = self._cache.get((row, member)) if child is None else None
        if cached is not None:
            return cached
        data = self._read(row, member, child)
        values: npt.NDArray[np.generic]
        if modality == "image":
            values = decode_image(data, self._data.image_side_px, self._data.image_max_pixels)
        else:
            values = decode_audio(data, self._data.audio_max_s)
        # A child is another one in the next epoch.
        if child is None and values.nbytes <= self._cache_bytes_left:
            self._cache_bytes_left -= values.nbytes
            self._cache[row, member] = values
        return values

    def _failure(self, row: int, member: str, error: SampleError) -> Failure:
        index = self._split.index
        sample_id = index.id(row)
        return Failure(index.place(row), sample_id, self._reader.key(row), member, error.reason, str(error))


class StepSampler(Sampler[list[Pick]]):
    """The batches of the steps from `start` up to `stop`: each epoch a new order, its remainder left out."""

    def __init__(self, samples: int, batch_size: int, seed: int, start: int, stop: int) -> None:
        """`batch_size` may be larger than `samples`: a batch is then the whole split."""
        self._samples, self._seed = samples, seed
        self._batch = min(batch_size, samples)
        self._range = range(start, stop)

    def __len__(self) -> int:
        """Steps."""
        return len(self._range)

    def __iter__(self) -> Iterator[list[Pick]]:
        """Batches of (epoch, row)."""
        per_epoch = steps_per_epoch(self._samples, self._batch)
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in self._range:
            epoch, at = divmod(step, per_epoch)
            if epoch != order_epoch:
                order, order_epoch = np.random.default_rng([self._seed, epoch]).permutation(self._samples), epoch
            yield [(epoch, int(row)) for row in order[at * self._batch : (at + 1) * self._batch]]


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Full batches in a pass; at least one."""
    return max(1, samples // batch_size)


def train_loader(dataset: SampleDataset, config: TrainConfig, start: int, stop: int) -> DataLoader[Batch]:
    """The batches of the steps `start` up to `stop`."""
    sampler = StepSampler(len(dataset), config.optim.batch_size, config.seed, start, stop)
    return _loader(dataset, sampler, config)


def eval_loader(dataset: SampleDataset, config: TrainConfig) -> DataLoader[Batch]:
    """Every sample once, in order, without random choices."""
    size = config.optim.batch_size
    rows = range(len(dataset))
    batches: list[list[Pick]] = [[(None, row) for row in rows[at : at + size]] for at in rows[::size]]
    return _loader(dataset, batches, config)


def _loader(dataset: SampleDataset, batches: StepSampler | list[list[Pick]], config: TrainConfig) -> DataLoader[Batch]:
    if config.workers:
        # Workers are forked after the tokenizer was fitted in threads; it warns of that on every fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return DataLoader(
        cast(Dataset[Batch], dataset),  # what comes out is the collated batch
        batch_sampler=batches,
        num_workers=config.workers,
        collate_fn=Collate(tuple(config.data.modalities)),
        worker_init_fn=_quiet_worker,
        # Its own generator: a loader draws a seed when it starts, which must not shift the model's dropout.
        generator=torch.Generator(),
    )


def _quiet_worker(_: int) -> None:
    """Leave Ctrl-C to the training process, which ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
