"""Where every sample's members lie in the tars: offsets and sizes, found by one pass over the tar headers.

Of an object store the index beside each shard is read instead, where there is one.

Tars are trusted no more than any other input: nothing is unpacked, every read is bounded, links, sparse files and
devices are passed over, and what disagrees with the manifest stops the training before it starts.

Shapes: N samples, F files a sample (its JSON, then one for each member).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmdata.errors import SampleError, TrainError
from mmdata.train.manifest import EmbeddingEntry, Manifest, ShardEntry, ShardFolder
from mmdata.train.places import LocalPlace, Place

_JSON = 0
_MAX_JSON_BYTES = 1 << 20
_MAX_INDEX_BYTES = 1 << 30
_NPY_HEADER_BYTES = 1024


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one split, in the order of the shards.

    Attributes:
        place_of_shards: where they are.
        shards: their names.
        members: names of the members that are looked at.
        shard_N: which shard a sample is in.
        place_N: the how manieth of its samples it is.
        ids_N: sample ids, ASCII.
        offset_NF: where a file's content starts in its shard, -1 where the sample lacks it.
        size_NF: its bytes.
    """

    place_of_shards: Place
    shards: tuple[str, ...]
    members: tuple[str, ...]
    shard_N: npt.NDArray[np.int32]
    place_N: npt.NDArray[np.int32]
    ids_N: npt.NDArray[np.bytes_]
    offset_NF: npt.NDArray[np.int64]
    size_NF: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Samples."""
        return len(self.shard_N)

    def has(self, member: str) -> npt.NDArray[np.bool_]:
        """Shape (N,): whether a sample has the member, and a byte in it."""
        return np.asarray(self.size_NF[:, 1 + self.members.index(member)] > 0)

    def has_member(self, row: int, member: str) -> bool:
        """Whether one sample has the member, and a byte in it."""
        return bool(self.size_NF[row, 1 + self.members.index(member)] > 0)

    def take(self, rows: npt.NDArray[np.int64]) -> ShardIndex:
        """The samples at `rows`."""
        arrays = (self.shard_N[rows], self.place_N[rows], self.ids_N[rows], self.offset_NF[rows], self.size_NF[rows])
        return ShardIndex(self.place_of_shards, self.shards, self.members, *arrays)

    def id(self, row: int) -> str:
        """The sample's id."""
        return bytes(self.ids_N[row]).decode()

    def place(self, row: int) -> str:
        """The name of the sample's shard."""
        return self.shards[int(self.shard_N[row])]


def index_split(folder: ShardFolder, split: str, members: Sequence[str]) -> ShardIndex:
    """Index the members of every sample of a split.

    Raises TrainError where a shard is missing, is no tar, or does not hold what the manifest says.
    """
    columns = _columns(folder.manifest, members)
    entries = folder.split(split).shards
    scans = [_scan_shard(folder.place, entry, columns, 1 + len(members)) for entry in entries]
    counts = [len(scan) for scan in scans]
    table_NF2 = np.array([files for scan in scans for files in scan.values()], dtype=np.int64)
    return ShardIndex(
        place_of_shards=folder.place,
        shards=tuple(entry.path for entry in entries),
        members=tuple(members),
        shard_N=np.repeat(np.arange(len(entries), dtype=np.int32), counts),
        place_N=np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        ids_N=np.array([name.encode() for scan in scans for name in scan], dtype=np.bytes_),
        offset_NF=np.ascontiguousarray(table_NF2[..., 0]),
        size_NF=np.ascontiguousarray(table_NF2[..., 1]),
    )


def _columns(manifest: Manifest, members: Sequence[str]) -> dict[str, int]:
    """Column of each file ending. A set may lack members that another has."""
    columns = {"json": _JSON}
    for column, member in enumerate(members, start=1):
        entry = manifest.members.get(member)
        columns.update(dict.fromkeys(entry.fields if entry else (), column))
    return columns


def _scan_shard(
    place: Place, entry: ShardEntry, columns: dict[str, int], width: int
) -> dict[str, list[tuple[int, int]]]:
    """(offset, size) of the files of each sample of one tar, `width` of them, by sample id."""
    path = f"{place}/{entry.path}"
    try:
        size = place.size(entry.path)
        if size != entry.bytes:
            raise TrainError(f"{path}: has {size} bytes, the manifest says {entry.bytes}; build the shards again")
        samples = _grouped(path, _files(place, entry.path, size), columns, width)
    except (OSError, tarfile.TarError, UnicodeError, ValueError) as error:
        raise TrainError(f"{path}: cannot be read as a tar: {error}") from None
    if len(samples) != entry.samples:
        counts = f"holds {len(samples)} samples, the manifest says {entry.samples}"
        raise TrainError(f"{path}: {counts}; build the shards again")
    return samples


def _grouped(
    path: str, files_of_shard: Iterator[tuple[str, int, int]], columns: dict[str, int], width: int
) -> dict[str, list[tuple[int, int]]]:
    samples: dict[str, list[tuple[int, int]]] = {}
    last = ""
    for name, offset, size in files_of_shard:
        sample_id, _, ending = name.partition(".")
        if sample_id != last and sample_id in samples:
            raise TrainError(f"{path}: the files of sample {sample_id} do not stand together")
        files = samples.setdefault(sample_id, [(-1, 0)] * width)
        last = sample_id
        column = columns.get(ending)
        if column is None:
            continue
        if files[column][0] >= 0:
            raise TrainError(f"{path}: sample {sample_id} has two files for one member, the second is '{name}'")
        files[column] = (offset, size)
    return samples


def _files(place: Place, name: str, shard_bytes: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every plain file of a tar. Offsets only ever rise, so this ends."""
    indexed = None if isinstance(place, LocalPlace) else _indexed(place, name)
    position = -1
    for path, offset, size in _headers(place, name) if indexed is None else indexed:
        if size < 0 or offset <= position or offset + size > shard_bytes:
            raise TrainError(f"{place}/{name}: the entry '{path}' leads out of the tar; the file is damaged")
        position = offset
        if path is not None and path.isascii():
            yield path, offset, size


def _headers(place: Place, name: str) -> Iterator[tuple[str | None, int, int]]:
    """The same for every entry; None for the name of what is no plain file."""
    with place.open(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while info := tar.next():
            # `next` keeps every entry: a list that grows by the shard, for nothing.
            tar.members.clear()  # type: ignore[attr-defined]  # the stubs leave it out
            plain = info.isreg() and not info.issparse()
            yield info.name if plain else None, info.offset_data, info.size


def _indexed(place: Place, name: str) -> Iterator[tuple[str, int, int]] | None:
    """The same from the index beside the shard, None where there is none."""
    import pyarrow.parquet as pq

    index = f"{name.removesuffix('.tar')}.index.parquet"
    try:
        if place.size(index) > _MAX_INDEX_BYTES:
            raise ValueError(f"its index has more than {_MAX_INDEX_BYTES} bytes")
        data = place.read(index)
    except FileNotFoundError:
        return None
    table = pq.read_table(io.BytesIO(data), columns=["sample_id", "field", "offset", "bytes"]).to_pydict()
    names = (f"{sample_id}.{ending}" for sample_id, ending in zip(table["sample_id"], table["field"], strict=True))
    return zip(names, table["offset"], table["bytes"], strict=True)


class ShardReader:
    """Reads members by offset."""

    def __init__(self, index: ShardIndex, member_max_bytes: int) -> None:
        """Read the samples of `index`, no more than `member_max_bytes` at once."""
        self._index = index
        self._max_bytes = member_max_bytes
        self._vectors: dict[str, int] = {}

    def read(self, row: int, member: str, at_most: int | None = None) -> bytes:
        """Bytes of a member of a sample, or its first `at_most`.

        Raises SampleError where it is too large or the shard ends before it does.
        """
        column = 1 + self._index.members.index(member)
        size = int(self._index.size_NF[row, column])
        size = size if at_most is None else min(size, at_most)
        if size > self._max_bytes:
            raise SampleError("member_too_large", f"{size} bytes, at most {self._max_bytes} are read")
        return self._pread(row, column, size)

    def vector(self, row: int, entry: EmbeddingEntry) -> npt.NDArray[np.float32] | None:
        """A stored vector of a sample, shape (D,), None where it has none.

        Raises SampleError where the file beside the shard is missing or is not what the manifest says.
        """
        index = self._index
        file = index.place(row).removesuffix(".tar") + entry.suffix
        size = 2 * entry.dim
        try:
            start = self._vector_start(file, entry)
            data = index.place_of_shards.range(file, start + int(index.place_N[row]) * size, size)
        except (OSError, ValueError) as error:
            raise SampleError("bad_vector", f"{file}: no vectors of {entry.dim} numbers: {error}") from None
        vector = np.frombuffer(data, dtype="<f2").astype(np.float32)
        if len(data) != size or not np.isfinite(vector).all():
            raise SampleError("bad_vector", f"{file}: has no {entry.dim} finite numbers for it")
        return vector if vector.any() else None

    def _vector_start(self, file: str, entry: EmbeddingEntry) -> int:
        """Where the numbers of a `.npy` begin. Raises ValueError for other numbers than the manifest says."""
        if file not in self._vectors:
            header = io.BytesIO(self._index.place_of_shards.range(file, 0, _NPY_HEADER_BYTES))
            if np.lib.format.read_magic(header) != (1, 0):
                raise ValueError("a .npy of another version")
            shape, in_columns, kind = np.lib.format.read_array_header_1_0(header)
            if len(shape) != len(("N", "D")) or shape[1] != entry.dim or in_columns or kind != np.dtype("<f2"):
                raise ValueError(f"of shape {shape} and type {kind}")
            self._vectors[file] = header.tell()
        return self._vectors[file]

    def record(self, row: int) -> dict[str, Any]:
        """The sample's JSON. Raises SampleError `bad_record`."""
        size = int(self._index.size_NF[row, _JSON])
        if not 0 < size <= _MAX_JSON_BYTES:
            raise SampleError("bad_record", f"its JSON has {size} bytes")
        try:
            record = json.loads(self._pread(row, _JSON, size))
        except (ValueError, RecursionError) as error:
            raise SampleError("bad_record", f"its JSON cannot be read: {error}") from None
        if not isinstance(record, dict):
            raise SampleError("bad_record", "its JSON is no object")
        return record

    def shard(self, row: int) -> str:
        """The name of the sample's shard."""
        return self._index.place(row)

    def key(self, row: int) -> str:
        """The sample's key, where its source named it; its id where the JSON cannot be read."""
        try:
            return str(self.record(row)["key"])[:200]
        except (SampleError, KeyError):
            return self._index.id(row)

    def _pread(self, row: int, column: int, size: int) -> bytes:
        index = self._index
        try:
            data = index.place_of_shards.range(index.place(row), int(index.offset_NF[row, column]), size)
        except OSError as error:
            raise SampleError("unreadable", f"its shard cannot be read: {error}") from None
        if len(data) != size:
            raise SampleError("short_read", f"the shard ends after {len(data)} of {size} bytes")
        return data

    def close(self) -> None:
        """Close what is open."""
        self._index.place_of_shards.close()
