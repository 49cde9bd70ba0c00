"""What passes from the loader to the model.

Shapes: B samples in a batch, M modalities, N samples of the batch that have a modality, K hashes a sample,
E dimensions of a teacher's embedding; values are (N, S) token ids, (N, 3, H, W) uint8 pixels, (N, T) int16 samples in
time at 16 kHz, (N, 3, H, W, F) pixels of the frames of a video, or (N, C, P) float32 channels of a sensor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Space:
    """Where a teacher's vectors lie.

    Attributes:
        name: vectors of one name can be compared with each other.
        width: how many numbers a vector has.
    """

    name: str
    width: int


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of a modality, which may have several.

    Attributes:
        modality: that learns.
        space: where the teacher's vectors lie; those of a live teacher in one without a name.
    """

    modality: str
    space: Space


@dataclass(frozen=True)
class Example:
    """One decoded sample.

    Attributes:
        row: its place in the index.
        values: an array for each modality that it has.
        text_hash_K: hashes by which samples count as having the same text; 0 where there is none.
        taught: the teachers' embeddings that there are of it, of shape (E,).
        text: the text as it was read, for a live teacher; None where there is none.
        asked: token ids of `question` and `answer`; empty where it has not both.
    """

    row: int
    values: dict[str, npt.NDArray[np.generic]]
    text_hash_K: tuple[int, ...]
    taught: dict[Lesson, npt.NDArray[np.float32]] = field(default_factory=dict)
    text: str | None = None
    asked: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A sample that cannot be used, with what is needed to find it."""

    shard: str
    sample_id: str
    key: str
    member: str
    reason: str
    message: str

    @property
    def name(self) -> str:
        """What tells it from others: `shard/id/member`."""
        return f"{self.shard}/{self.sample_id}/{self.member}"

    def __str__(self) -> str:
        """One line for people."""
        return f"'{self.member}' of {self.key} ({self.sample_id} in {self.shard}): {self.message}"


def told_failures(failures: Sequence[Failure], samples: int) -> str:
    """What is said of held-out samples that were left out of figures."""
    share = f"{len(failures)} of {samples} held-out samples cannot be decoded and are not measured"
    return f"{share}; the first: {failures[0]}"


@dataclass(frozen=True)
class Inputs:
    """One modality of a batch; only the samples that have it.

    Attributes:
        row_N: their rows in the batch.
        values: see the top of the file; shorter ones are padded with zeros.
        length_N: true lengths along the last axis.
    """

    row_N: Tensor
    values: Tensor
    length_N: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """With every tensor changed."""
        return Inputs(change(self.row_N), change(self.values), change(self.length_N))

    def rows(self, rows: range) -> Inputs | None:
        """Those of some samples of the batch, which are counted anew; None where none of them has the modality."""
        mine_N = (self.row_N >= rows.start) & (self.row_N < rows.stop)
        if not mine_N.any():
            return None
        return Inputs(self.row_N[mine_N] - rows.start, self.values[mine_N], self.length_N[mine_N])


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        row_B: places in the index.
        present_BM: which modalities a sample has.
        text_hash_BK: see `Example`.
        inputs: the modalities' values; a modality that no sample has is left out.
        failures: samples that were asked for and are not here.
        taught: the teachers' embeddings, (B, E); zeros where there is none of a sample.
        texts: as they were read, for a live teacher; None where there is none.
        asked: `question` and `answer`, token ids (N, S) of the same samples; empty where none has both.
    """

    row_B: Tensor
    present_BM: Tensor
    text_hash_BK: Tensor
    inputs: dict[str, Inputs]
    failures: list[Failure] = field(default_factory=list)
    taught: dict[Lesson, Tensor] = field(default_factory=dict)
    texts: list[str | None] = field(default_factory=list)
    asked: dict[str, Inputs] = field(default_factory=dict)

    def __len__(self) -> int:
        """Samples."""
        return len(self.row_B)

    def rows(self, rows: range) -> Batch:
        """Some of the samples, one after the other; values keep their length. Failures stay behind."""
        return Batch(
            self.row_B[rows.start : rows.stop],
            self.present_BM[rows.start : rows.stop],
            self.text_hash_BK[rows.start : rows.stop],
            {name: part for name, whole in self.inputs.items() if (part := whole.rows(rows))},
            [],
            {lesson: vector_BE[rows.start : rows.stop] for lesson, vector_BE in self.taught.items()},
            self.texts[rows.start : rows.stop],
            {name: part for name, whole in self.asked.items() if (part := whole.rows(rows))},
        )

    def without(self, modalities: Collection[str], order: Sequence[str]) -> Batch:
        """As if no sample had these modalities; `order` is that of the columns of `present_BM`."""
        if not modalities:
            return self
        seen_M = torch.tensor([name not in modalities for name in order], device=self.present_BM.device)
        inputs = {name: part for name, part in self.inputs.items() if name not in modalities}
        taught = {lesson: part for lesson, part in self.taught.items() if lesson.modality not in modalities}
        return replace(self, inputs=inputs, taught=taught, present_BM=self.present_BM & seen_M)

    def to(self, device: torch.device) -> Batch:
        """The same on another device; out of page-locked memory, CUDA copies while the host goes on."""
        return self._each(lambda part: part.to(device, non_blocking=device.type == "cuda"))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; a loader that pins calls it."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            change(self.row_B),
            change(self.present_BM),
            change(self.text_hash_BK),
            {name: part.each(change) for name, part in self.inputs.items()},
            self.failures,
            {lesson: change(vector_BE) for lesson, vector_BE in self.taught.items()},
            self.texts,
            {name: part.each(change) for name, part in self.asked.items()},
        )


@dataclass(frozen=True)
class Collate:
    """Makes a batch of examples, for modalities in a fixed order.

    Attributes:
        modalities: in that order.
        lessons: of which there may be embeddings; the same on every rank.
    """

    modalities: tuple[str, ...]
    lessons: tuple[Lesson, ...] = ()

    def __call__(self, items: Sequence[Example | Failure]) -> Batch:
        """Failures are set apart; what is left may be nothing."""
        examples = [item for item in items if isinstance(item, Example)]
        failures = [item for item in items if isinstance(item, Failure)]
        present = [[name in example.values for name in self.modalities] for example in examples]
        hashes = [example.text_hash_K for example in examples]
        columns = len(hashes[0]) if hashes else 1
        values, asked = [example.values for example in examples], [example.asked for example in examples]
        return Batch(
            row_B=torch.tensor([example.row for example in examples], dtype=torch.int64),
            present_BM=torch.tensor(present, dtype=torch.bool).reshape(-1, len(self.modalities)),
            text_hash_BK=torch.tensor(hashes, dtype=torch.int64).reshape(-1, columns),
            inputs={name: part for name in self.modalities if (part := _inputs(name, values))},
            failures=failures,
            taught={lesson: _vectors(lesson, examples) for lesson in self.lessons},
            texts=[example.text for example in examples],
            asked={name: part for name in ("question", "answer") if (part := _inputs(name, asked))},
        )


def _vectors(lesson: Lesson, examples: Sequence[Example]) -> Tensor:
    vector_BE = np.zeros((len(examples), lesson.space.width), dtype=np.float32)
    for slot, example in zip(vector_BE, examples, strict=True):
        if lesson in example.taught:
            slot[:] = example.taught[lesson]
    return torch.from_numpy(vector_BE)


def _inputs(name: str, examples: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Inputs | None:
    rows = [row for row, values in enumerate(examples) if name in values]
    if not rows:
        return None
    arrays = [examples[row][name] for row in rows]
    lengths = [array.shape[-1] for array in arrays]
    padded = np.zeros((len(arrays), *arrays[0].shape[:-1], max(lengths)), dtype=arrays[0].dtype)
    for slot, array in zip(padded, arrays, strict=True):
        slot[..., : array.shape[-1]] = array
    return Inputs(torch.tensor(rows), torch.from_numpy(padded), torch.tensor(lengths))
