"""The data sets of a training: opened, mixed for each stage, and put in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer

from mmdata.document import nearest
from mmdata.errors import SampleError, TrainError
from mmdata.train.config import REPLAY, DataConfig, SetConfig, TrainConfig
from mmdata.train.dataset import MixedDataset, SampleDataset, Split, iter_texts, open_split
from mmdata.train.launch import world_size
from mmdata.train.manifest import ShardFolder, open_folder
from mmdata.train.online import online_augment
from mmdata.train.order import Endless, Mix
from mmdata.train.places import LocalPlace, RemotePlace
from mmdata.train.shards import ShardReader
from mmdata.train.stages import Stage

# One sample has no negatives.
_MIN_SAMPLES = 2
# Sets draw different members and epochs of different orders from one seed.
_SEED_STEP = 1_000_003


@dataclass(frozen=True)
class OpenSet:
    """A data set.

    Attributes:
        name: empty for the only one.
        share: of the samples, where a stage says nothing else.
        folder: its shards.
        train: what is trained on; None where its share is 0 in every stage.
        val: what is measured on; None where it has no such split.
    """

    name: str
    share: float
    folder: ShardFolder
    train: Split | None
    val: Split | None

    @property
    def is_replay(self) -> bool:
        """Whether it comes with the run that this training begins with."""
        return is_replay(self.name)


def open_sets(config: TrainConfig, sets: Mapping[str, SetConfig]) -> list[OpenSet]:
    """Open and index them. Raises TrainError where one is damaged, or too small."""
    opened = [_open(config, name, one) for name, one in sets.items()]
    if not any(one.val for one in opened if not one.is_replay):
        raise TrainError(f"no set has a split '{config.data.val_split}' with samples; build one, or name another split")
    splits = [one.train for one in opened if one.train]
    if splits and config.data.weight_by and all(split.weight_N is None for split in splits):
        raise TrainError(_no_weight(config.data.weight_by, splits[0]))
    return opened


def _no_weight(path: str, split: Split) -> str:
    """What is said of a path that no sample has, with the nearest that the first one has."""
    record = {}
    with contextlib.suppress(SampleError):
        record = ShardReader(split.index, 1).record(0)
    inner = [f"{key}.{name}" for key, value in record.items() if isinstance(value, dict) for name in value]
    return f"data.weight_by: no sample has '{path}' in its JSON{nearest(path, [*record, *inner])}"


def _open(config: TrainConfig, name: str, one: SetConfig) -> OpenSet:
    folder = open_folder(one.shards)
    data = config.data
    wanted = one.share or any(stage.mix.get(name) for stage in config.stages)
    train = _split(folder, data.train_split, data) if wanted else None
    has_val = data.val_split in folder.manifest.splits
    measured = measured_data(config, replay=is_replay(name))
    val = _split(folder, data.val_split, measured) if has_val or not config.data.sets else None
    return OpenSet(name, one.share, folder, train, val)


def is_replay(name: str) -> bool:
    """Whether a set comes with the run that this training begins with."""
    return name.partition(".")[0] == REPLAY


def measured_data(config: TrainConfig, *, replay: bool) -> DataConfig:
    """What is read of held-out samples, each once, whatever it weighs.

    Of those that come with a run that is what it knew before a modality was added.
    """
    data, new = config.data, config.start.add_modality if config.start else None
    known = {name: members for name, members in data.modalities.items() if not (replay and name == new)}
    return data.model_copy(update={"modalities": known, "weight_by": None})


def _split(folder: ShardFolder, name: str, data: DataConfig) -> Split:
    cached = _cached(folder, name, data)
    split = open_split(cached, name, data)
    if len(split.index) < _MIN_SAMPLES:
        raise TrainError(f"{folder.place}: {name} has {len(split.index)} usable samples; two are needed")
    return split


def _cached(folder: ShardFolder, split: str, data: DataConfig) -> ShardFolder:
    """With a cache for whole shards, where the split comes from an object store and fits."""
    if not isinstance(folder.place, RemotePlace) or data.cache_dir is None:
        return folder
    size = sum(shard.bytes for shard in folder.split(split).shards)
    if size > data.cache_gib * 2**30:
        return folder
    # By digest: a data set that is built again is another one.
    cache = Path(data.cache_dir).expanduser() / folder.digest[:32]
    cache.mkdir(parents=True, exist_ok=True)
    return ShardFolder(RemotePlace(folder.place.url, LocalPlace(cache)), folder.manifest, folder.digest)


def texts(sets: Sequence[OpenSet], data: DataConfig) -> Iterator[str]:
    """Every text that is trained on."""
    for one in sets:
        if one.train:
            yield from iter_texts(one.train, data)


def train_set(sets: Sequence[OpenSet], config: TrainConfig, tokenizer: Tokenizer | None) -> MixedDataset:
    """What is trained on, in the order of the sets that have a part in it."""
    sources = []
    for number, one in enumerate(trained(sets)):
        assert one.train is not None
        online = online_augment(one.folder, one.train.index, config.data.member_max_bytes)
        seed = config.seed + number * _SEED_STEP
        sources.append(SampleDataset(one.train, config.data, seed, tokenizer, config.cache_mib, online))
    return MixedDataset(sources)


def val_set(
    sets: Sequence[OpenSet], config: TrainConfig, tokenizer: Tokenizer | None, *, replay: bool
) -> MixedDataset | None:
    """What is measured on: of the new sets, or of those that come with the run; None where there is nothing."""
    splits = [one.val for one in sets if one.val and one.is_replay is replay]
    data = measured_data(config, replay=replay)
    sources = [SampleDataset(split, data, config.seed, tokenizer, config.cache_mib) for split in splits]
    return MixedDataset(sources) if sources else None


def trained(sets: Sequence[OpenSet]) -> list[OpenSet]:
    """The sets that are trained on."""
    return [one for one in sets if one.train]


def batch_size(dataset: MixedDataset, config: TrainConfig) -> int:
    """Samples a step over all ranks, at most the whole of the data. Raises TrainError for more ranks than that."""
    size = min(config.optim.batch_size, len(dataset))
    if size < world_size():
        raise TrainError(f"a batch of {size} samples has nothing for {world_size()} ranks; start fewer")
    return size


def make_mix(
    sets: Sequence[OpenSet], dataset: MixedDataset, stages: Sequence[Stage], number: int, batch: int, seed: int
) -> Mix:
    """The order of a stage: each set goes on with the epoch after those that earlier stages began."""
    first = [0] * len(dataset.sources)
    mix = _mix(sets, dataset, stages[0], first, batch, seed)
    for stage, after in pairwise(stages[: number + 1]):
        drawn = mix.drawn(mix.blocks(stage.steps * batch))
        first = [e + one.epochs(draws) for e, one, draws in zip(first, mix.sequences, drawn, strict=True)]
        mix = _mix(sets, dataset, after, first, batch, seed)
    return mix


def _mix(
    sets: Sequence[OpenSet], dataset: MixedDataset, stage: Stage, first: Sequence[int], batch: int, seed: int
) -> Mix:
    names = [one.name for one in trained(sets)]
    # Several sets share a batch: none of them can keep its epochs whole batches.
    rows_a_step = batch if len(names) == 1 else 1
    sequences = [
        Endless(len(source), rows_a_step, seed + number * _SEED_STEP, source.weight_N, first[number])
        for number, source in enumerate(dataset.sources)
    ]
    shares = [stage.shares.get(name, 0.0) for name in names]
    if not any(shares):
        raise TrainError(f"stage '{stage.name}': no set has a share above 0")
    return Mix(sequences, shares, seed)
