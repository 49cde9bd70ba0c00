"""Samples by number: read, decoded, and put together into batches.

Nothing is drawn from a shared generator: which of several members an epoch sees depends on (seed, epoch, sample) alone,
and which samples a step sees on `mmdata.train.order`. So the number of workers and of ranks changes nothing, and the
reader's whole position is the step.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset, Sampler

from mmdata.errors import SampleError, TrainError
from mmdata.models.device import resolve_device
from mmdata.train.batch import Batch, Collate, Example, Failure, Lesson, Space
from mmdata.train.config import MIN_MODALITIES, DataConfig, TrainConfig
from mmdata.train.decode import decode_text
from mmdata.train.decoders import decode_media
from mmdata.train.manifest import EmbeddingEntry, ShardFolder
from mmdata.train.online import OnlineAugment
from mmdata.train.order import Pick
from mmdata.train.shards import ShardIndex, ShardReader, index_split
from mmdata.train.tokens import encode, text_hash

# The longest text by far that is cut to `text_max_tokens`; keeps one hostile member from holding up a worker.
MAX_TEXT_BYTES = 1 << 16


@dataclass(frozen=True)
class Split:
    """The usable samples of a split.

    Attributes:
        index: samples with members of at least two modalities.
        skipped: samples left out because they have fewer.
        teachers: the stored vectors that are read, by modality and name.
        weight_N: how often a sample is seen beside others; None: all alike.
    """

    index: ShardIndex
    skipped: int
    teachers: Mapping[tuple[str, str], EmbeddingEntry]
    weight_N: npt.NDArray[np.float64] | None


def open_split(folder: ShardFolder, split: str, data: DataConfig) -> Split:
    """Index a split. Raises TrainError where the shards are damaged or the split is missing or empty."""
    manifest = folder.manifest
    members = [member for names in data.modalities.values() for member in names]
    members += data.answers.members.values() if data.answers else ()
    if manifest.augment and manifest.augment.online:
        # A policy changes a sample as a whole.
        members += [member for member in manifest.members if member not in members]
    index = index_split(folder, split, members)
    held_MN = np.array([np.any([index.has(m) for m in names], axis=0) for names in data.modalities.values()])
    usable_N = held_MN.sum(axis=0) >= MIN_MODALITIES
    if data.answers:
        # A picture is enough where it is asked about.
        asked = [index.has(member) for member in data.answers.members.values()]
        usable_N |= held_MN.any(axis=0) & np.all(asked, axis=0)
    rows = np.flatnonzero(usable_N)
    taken = index.take(rows)
    teachers = {
        (modality, name): manifest.embeddings[name]
        for modality, names in data.teachers.items()
        for name in names
        if name in manifest.embeddings
    }
    return Split(taken, len(index) - len(rows), teachers, _weights(taken, data) if data.weight_by else None)


def _weights(index: ShardIndex, data: DataConfig) -> npt.NDArray[np.float64] | None:
    """Weights out of the samples' JSON, 1 where there is none; None where no sample has one.

    Raises TrainError for one that is no weight, and where all are 0.
    """
    reader = ShardReader(index, data.member_max_bytes)
    path = (data.weight_by or "").split(".")
    weight_N = np.array([_weight(reader, row, path) for row in range(len(index))], dtype=np.float64)
    if len(weight_N) and not weight_N.any():
        raise TrainError(f"{index.place_of_shards}: data.weight_by: all weights are 0")
    return None if np.isnan(weight_N).all() else np.nan_to_num(weight_N, nan=1.0)


def _weight(reader: ShardReader, row: int, path: Sequence[str]) -> float:
    """NaN where there is none."""
    try:
        value: object = reader.record(row)
    except SampleError:
        return np.nan  # it is met again in training, and named there
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return np.nan
    try:
        weight = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 <= weight < float("inf"):
        where = f"{reader.key(row)} in {reader.shard(row)}"
        what = f"data.weight_by: {'.'.join(path)} of {where} is {value!r}, which is no weight"
        raise TrainError(f"{what}; write a number from 0 on")
    return weight


def iter_texts(split: Split, data: DataConfig) -> Iterator[str]:
    """Every text of a split, in order; those that cannot be read are left out, and met again in training."""
    reader = ShardReader(split.index, data.member_max_bytes)
    members = [*data.modalities.get("text", []), *(data.answers.members.values() if data.answers else ())]
    has = {member: split.index.has(member) for member in members}
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

    @cached_property
    def lessons(self) -> Mapping[tuple[str, str], Lesson]:
        """What the stored vectors teach, by modality and name; a space of its own for each name where none is said."""
        return {
            (modality, name): Lesson(modality, Space(entry.space or name, entry.dim))
            for (modality, name), entry in self._split.teachers.items()
        }

    @property
    def weight_N(self) -> npt.NDArray[np.float64] | None:
        """How often a sample is seen beside others; None: all alike."""
        return self._split.weight_N

    def __getitem__(self, pick: tuple[int | None, int]) -> Example | Failure:
        """Decode the members chosen for this epoch; the first that fails makes the whole sample a failure.

        `pick` is an epoch and a row; without an epoch nothing is chosen by chance.
        """
        epoch, row = pick
        values: dict[str, npt.NDArray[np.generic]] = {}
        hashes, text = (0, 0), None
        try:
            child = self._online.child(epoch, row) if self._online and epoch is not None else None
        except SampleError as error:
            return self._failure(row, "", error)
        for modality, member in self._chosen(epoch, row, child).items():
            try:
                if modality == "text":
                    values[modality], hashes, text = self._text(row, member, child)
                else:
                    values[modality] = self._media(row, modality, member, child)
            except SampleError as error:
                return self._failure(row, member, error)
        try:
            return Example(row, values, (*hashes, row + 1), self._taught(row), text, self._asked(row, child))
        except SampleError as error:
            return self._failure(row, "", error)

    def _taught(self, row: int) -> dict[Lesson, npt.NDArray[np.float32]]:
        """The stored vectors of a sample, of each space the first; a child learns from those of its original."""
        found = [(self.lessons[key], self._reader.vector(row, entry)) for key, entry in self._split.teachers.items()]
        return {lesson: vector for lesson, vector in reversed(found) if vector is not None}

    def _asked(self, row: int, child: Mapping[str, bytes] | None) -> dict[str, npt.NDArray[np.int64]]:
        """Tokens of the question and the answer, of a sample that has both."""
        members = self._data.answers.members if self._data.answers else {}
        held = [bool(self._has[member][row] if child is None else child.get(member)) for member in members.values()]
        if not held or not all(held):
            return {}
        assert self._tokenizer is not None
        texts = {name: decode_text(self._read(row, member, child, MAX_TEXT_BYTES)) for name, member in members.items()}
        most = self._data.text_max_tokens
        return {name: encode(self._tokenizer, text, most) for name, text in texts.items()}

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
    ) -> tuple[npt.NDArray[np.int64], tuple[int, int], str]:
        """Tokens, two hashes (of this text, and of the first, which all of a sample's texts stand for), the text."""
        if self._tokenizer is None:
            raise RuntimeError("a text without a tokenizer")
        names = self._data.modalities["text"]
        first = next(name for name in names if (self._has[name][row] if child is None else child.get(name)))
        text = decode_text(self._read(row, member, child, MAX_TEXT_BYTES))
        other = text if first == member else decode_text(self._read(row, first, child, MAX_TEXT_BYTES))
        return encode(self._tokenizer, text, self._data.text_max_tokens), (text_hash(text), text_hash(other)), text

    def _media(
        self, row: int, modality: str, member: str, child: Mapping[str, bytes] | None
    ) -> npt.NDArray[np.generic]:
        cached = self._cache.get((row, member)) if child is None else None
        if cached is not None:
            return cached
        data = self._read(row, member, child)
        values = decode_media(modality, data, self._data)
        # A child is another one in the next epoch.
        if child is None and values.nbytes <= self._cache_bytes_left:
            self._cache_bytes_left -= values.nbytes
            self._cache[row, member] = values
        return values

    def _failure(self, row: int, member: str, error: SampleError) -> Failure:
        index = self._split.index
        sample_id = index.id(row)
        return Failure(index.place(row), sample_id, self._reader.key(row), member, error.reason, str(error))


class MixedDataset(Dataset[Example | Failure]):
    """Several data sets under one numbering: the rows of one follow on those of the one before."""

    def __init__(self, sources: Sequence[SampleDataset]) -> None:
        """In the order of the mix."""
        self.sources = sources
        self._first = [0, *accumulate(len(source) for source in sources)]

    def __len__(self) -> int:
        """Samples of all."""
        return self._first[-1]

    def __getitem__(self, pick: Pick) -> Example | Failure:
        """The sample, its row counted over all."""
        item = self.sources[pick.source][pick.epoch, pick.row]
        first = self._first[pick.source]
        if not first or isinstance(item, Failure):
            return item
        row = first + item.row
        return replace(item, row=row, text_hash_K=(*item.text_hash_K[:-1], row + 1))

    @property
    def lessons(self) -> tuple[Lesson, ...]:
        """What stored vectors teach, each once. Raises TrainError where those of one name differ between two sets."""
        found: dict[tuple[str, str], Lesson] = {}
        for key, lesson in (item for source in self.sources for item in source.lessons.items()):
            if (other := found.setdefault(key, lesson)) != lesson:
                one, two = (f"{space.width} numbers by {space.name}" for space in (other.space, lesson.space))
                raise TrainError(
                    f"data.teachers.{key[0]}: {key[1]} is {one} in one set, {two} in another; build both with one "
                    "model, and with this version of mmdata"
                )
        return tuple(dict.fromkeys(found.values()))


def train_loader(dataset: MixedDataset, config: TrainConfig, batches: Sampler[list[Pick]]) -> DataLoader[Batch]:
    """The batches of a sampler."""
    return _loader(dataset, batches, config)


def eval_loader(
    dataset: MixedDataset, config: TrainConfig, drawn: npt.NDArray[np.intp] | None = None
) -> DataLoader[Batch]:
    """Every sample once, in order, without random choices; or those `drawn`, by their rows in the data set."""
    size = config.optim.batch_size
    picks = [Pick(number, None, row) for number, one in enumerate(dataset.sources) for row in range(len(one))]
    picks = picks if drawn is None else [picks[row] for row in drawn]
    return _loader(dataset, [picks[at : at + size] for at in range(0, len(picks), size)], config)


def _loader(
    dataset: MixedDataset, batches: Sampler[list[Pick]] | list[list[Pick]], config: TrainConfig
) -> DataLoader[Batch]:
    if config.workers:
        # Workers are forked after the tokenizer was fitted in threads; it warns of that on every fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return _Loader(
        cast(Dataset[Batch], dataset),  # what comes out is the collated batch
        batch_sampler=batches,
        num_workers=config.workers,
        collate_fn=Collate(tuple(config.data.modalities), dataset.lessons),
        worker_init_fn=_quiet_worker,
        # Its own generator: a loader draws a seed when it starts, which must not shift the model's dropout.
        generator=torch.Generator(),
        pin_memory=resolve_device(config.device).type == "cuda",
    )


class _Loader(DataLoader[Batch]):
    """Says what a decoding process that dies may have died of."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch's own iterator, seen through
        """Batches. Raises TrainError where a process that decodes dies."""
        try:
            yield from super().__iter__()
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            why = "for want of memory, most likely: fewer `workers`, a smaller cache_mib or member_max_bytes take less"
            what = str(error).splitlines()[0].rstrip(". ").removeprefix("DataLoader worker ")
            raise TrainError(f"a process that decodes has died {what}, {why}; the same command goes on") from None


def _quiet_worker(_: int) -> None:
    """Leave Ctrl-C and SIGTERM to the training process, which ends its workers itself.

    torchrun and batch systems send them to workers too: one that dies of it takes the training down before it can save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
