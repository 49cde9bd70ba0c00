"""Pairs of embeddings within a cosine distance, by faiss: all compared up to some ten thousands, else by cells (IVF).

Beyond that a pair is missed where its two lie in cells that are far apart: at small distances, which is what duplicates
are looked for by, hardly any (benchmarks/duplicates.py counts them).

Dimensions: N vectors, M others, D their length, K neighbours, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mmdata.errors import MissingExtraError
from mmdata.near.pairs import Pairs

Vectors: TypeAlias = npt.NDArray[np.floating[Any]]

# Up to here comparing all takes less than making cells.
_FLAT_ROWS: Final = 20_000
_PROBES: Final = 12
# faiss asks for 39 a cell; more make the cells no better.
_LEARN_FROM: Final = 48
_BLOCK: Final = 4096
# What cosines of cells are off by, at most: they hold fp16.
_ROUGH: Final = 0.005


def search(
    vector_ND: Vectors, distance: float, other_MD: Vectors | None = None, neighbours: int = 64
) -> Iterator[Pairs]:
    """Pairs of rows whose cosine distance (1 - cosine) is at most `distance`, found once or twice, in order of rows.

    Args:
        vector_ND: of length 1; may be fp16, and lie on disk (a memory map).
        distance: between 0 and 2.
        other_MD: vectors to compare them with; None: with each other, left row < right row.
        neighbours: of each only so many of the nearest are looked at.

    Raises MissingExtraError where faiss is not installed.
    """
    right_MD = vector_ND if other_MD is None else other_MD
    if not len(vector_ND) or not len(right_MD):
        return
    index = _index(right_MD)
    count = min(neighbours + (other_MD is None), len(right_MD))
    for start in range(0, len(vector_ND), _BLOCK):
        block_BD = _floats(vector_ND[start : start + _BLOCK])
        cosine_BK, near_BK = index.search(block_BD, count)
        row, place = np.nonzero((near_BK >= 0) & (cosine_BK >= 1 - distance - _ROUGH))
        left_P, right_P = row + start, near_BK[row, place]
        if other_MD is None:
            left_P, right_P = np.minimum(left_P, right_P), np.maximum(left_P, right_P)
        pairs = _measured(vector_ND, right_MD, left_P, right_P)
        keep_P = pairs.distance_P <= distance
        yield pairs.where(keep_P & (left_P < right_P) if other_MD is None else keep_P)


def _measured(left_ND: Vectors, right_MD: Vectors, left_P: Any, right_P: Any) -> Pairs:
    """Distances in the order of numpy's sums, which is the same on any number of threads; five digits, as of fp16."""
    apart = np.empty(len(left_P), np.float64)
    for start in range(0, len(left_P), _BLOCK):
        rows = slice(start, start + _BLOCK)
        left, right = _floats(left_ND[left_P[rows]]), _floats(right_MD[right_P[rows]])
        apart[rows] = 1 - np.einsum("pd,pd->p", left, right)
    return Pairs(left_P, right_P, np.clip(apart, 0, 2).round(5).astype(np.float64))


def _floats(vector_ND: Vectors) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(vector_ND, np.float32)


def _index(vector_ND: Vectors) -> Any:
    faiss = _faiss()
    rows, length = vector_ND.shape
    if rows <= _FLAT_ROWS:
        index = faiss.IndexFlatIP(length)
    else:
        cells = int(4 * np.sqrt(rows))
        index = faiss.index_factory(length, f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
        index.nprobe = _PROBES
        step = max(rows // (cells * _LEARN_FROM), 1)
        index.train(_floats(vector_ND[::step]))
    for start in range(0, rows, _BLOCK):
        index.add(_floats(vector_ND[start : start + _BLOCK]))
    return index


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("a search among embeddings", "faiss", "near") from None
    return faiss
