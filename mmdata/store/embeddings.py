"""Vectors that aligners computed, beside the shards in the order of their samples: what a smaller model learns from.

`train-000000.tar` has `train-000000.<aligner>.<member>.npy` beside it: fp16 `[samples, D]`, a row of zeros where a
sample has no vector. So the tars stay as they are, whatever is asked for, and other readers are not disturbed.

Shapes: K samples of all shards in order, D dimensions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmdata.errors import FatalError
from mmdata.store import sql
from mmdata.store.files import SCRATCH_MARK, appearing
from mmdata.store.parts import iter_vectors, read_vector_ids

_OURS: Final = re.compile(r".+-\d{6}\.[^.]+\.[^.]+\.npy")
Ids = NDArray[np.bytes_]


def write_embeddings(
    output: Path, shards: Sequence[tuple[str, str]], wanted: Mapping[str, Sequence[Path]], base: Sequence[Path]
) -> dict[str, Any]:
    """Write the vectors of each shard; remove those of earlier builds.

    Args:
        output: the build folder.
        shards: name and split of each, all of them written.
        wanted: by `aligner.member`, the aligner's score parts.
        base: base parts; a child whose member did not change has its parent's vector.

    Returns:
        What the manifest says of each name: `dim`, `suffix` of the files, how many `samples` of each split have one.

    Raises FatalError where an aligner keeps no vectors of the member.
    """
    folder = output / "shards"
    files = {f"{Path(shard).stem}.{name}.npy" for name in wanted for shard, _ in shards}
    for path in folder.glob("*.npy"):
        if _OURS.fullmatch(path.name) and path.name not in files:
            path.unlink()
    if not wanted:
        return {}
    id_K, counts = _ids(folder, [shard for shard, _ in shards])
    parent_K = _parents(id_K, base)
    found = {}
    for name, scores in wanted.items():
        aligner, member = name.split(".")
        own = np.array(read_vector_ids(scores, member), dtype="S32")
        if not len(own):
            raise FatalError(
                f"embeddings: '{aligner}' keeps no vectors of '{member}'; name an aligner that does (clip)"
            )
        wanted_K = np.where(np.isin(id_K, own), id_K, parent_K)
        found[name] = _write(folder, name, shards, counts, (wanted_K, scores))
    return found


def _write(
    folder: Path, name: str, shards: Sequence[tuple[str, str]], counts: Sequence[int], what: tuple[Ids, Sequence[Path]]
) -> dict[str, Any]:
    """The files of one name, by way of a file of all rows: shards are shuffled, so each needs some of every part."""
    member, scratch = name.split(".")[1], folder / f"{name}{SCRATCH_MARK}{os.getpid()}"
    try:
        vector_KD = _scattered(scratch, member, *what)
        samples: dict[str, int] = {}
        first = 0
        for (shard, split), count in zip(shards, counts, strict=True):
            rows_ND = vector_KD[first : first + count]
            with appearing(folder / f"{Path(shard).stem}.{name}.npy") as part, part.open("wb") as file:
                np.save(file, rows_ND, allow_pickle=False)
            samples[split] = samples.get(split, 0) + int(rows_ND.any(axis=1).sum())
            first += count
        return {"dim": vector_KD.shape[1], "suffix": f".{name}.npy", "samples": samples}
    finally:
        scratch.unlink(missing_ok=True)


def _scattered(scratch: Path, member: str, wanted_K: Ids, scores: Sequence[Path]) -> NDArray[np.float16]:
    """All rows in the order of the shards, in a file. Shape (K, D)."""
    order_K = np.argsort(wanted_K, kind="stable")
    sorted_K = wanted_K[order_K]
    vector_KD: NDArray[np.float16] | None = None
    for ids, part_ND in iter_vectors(scores, member):
        if vector_KD is None:
            vector_KD = np.memmap(scratch, np.float16, "w+", shape=(len(wanted_K), part_ND.shape[1]))
        id_N = np.array(ids, dtype="S32")
        left_N, right_N = (np.searchsorted(sorted_K, id_N, side) for side in ("left", "right"))
        # A sample stands in the shards once, but its children may want its vector too.
        spread = np.repeat(np.arange(len(id_N)), right_N - left_N)
        at = np.concatenate([np.arange(a, b) for a, b in zip(left_N, right_N, strict=True)], dtype=np.int64)
        vector_KD[order_K[at]] = part_ND[spread]
    assert vector_KD is not None
    return vector_KD


def _ids(folder: Path, shards: Sequence[str]) -> tuple[Ids, list[int]]:
    """Samples of all shards in order, and how many each shard has."""
    found: list[Ids] = []
    for shard in shards:
        index = pq.read_table((folder / shard).with_suffix(".index.parquet"), columns=["sample_id", "name"])
        names = index.column("name").to_numpy(zero_copy_only=False)
        found.append(index.column("sample_id").to_numpy(zero_copy_only=False)[names == ""].astype("S32"))
    return np.concatenate(found), [len(ids) for ids in found]


def _parents(id_K: Ids, base: Sequence[Path]) -> Ids:
    """The parent of each sample, empty where it is no child."""
    parent_K = np.zeros(len(id_K), dtype="S32")
    query = f"SELECT sample_id, parent_id FROM {sql.parquet(base)} WHERE parent_id IS NOT NULL ORDER BY sample_id"
    table = sql.arrow(sql.connect(), query)
    if len(table):
        columns = (table.column(name).to_numpy(zero_copy_only=False) for name in ("sample_id", "parent_id"))
        child_N, parent_N = (column.astype("S32") for column in columns)
        at_K = np.minimum(np.searchsorted(child_N, id_K), len(child_N) - 1)
        is_child_K = child_N[at_K] == id_K
        parent_K[is_child_K] = parent_N[at_K[is_child_K]]
    return parent_K
