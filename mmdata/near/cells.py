"""Clusters of embeddings: spherical k-means by faiss, fitted on a sample; then each vector's nearest centre.

Dimensions: N vectors, D their length, C centres.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmdata.errors import MissingExtraError

Floats = npt.NDArray[np.float32]

# As faiss does by itself: more vectors a centre make it no better (its Clustering.max_points_per_centroid).
POINTS_PER_CENTRE: Final = 256
_ROUNDS: Final = 20
# k-means stops where it starts badly: of several starts the best is taken, as long as they are cheap.
_STARTS: Final = 4
_CHEAP: Final = 1000
_BLOCK: Final = 8192


def fit_centres(vector_ND: npt.NDArray[Any], count: int, seed: int) -> Floats:
    """`[C, D]` of length 1, fewer than `count` where there are fewer vectors.

    Raises MissingExtraError where faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("clusters of embeddings", "faiss", "near") from None
    rows, length = vector_ND.shape
    # faiss complains on standard error of few points a centre.
    starts = _STARTS if count <= _CHEAP else 1
    options = {"nredo": starts, "min_points_per_centroid": 1, "max_points_per_centroid": max(rows, 1)}
    kmeans = faiss.Kmeans(length, min(count, rows), niter=_ROUNDS, seed=seed % 2**31, spherical=True, **options)
    kmeans.train(np.ascontiguousarray(vector_ND, np.float32))
    centre_CD: Floats = np.asarray(kmeans.centroids, np.float32).reshape(-1, length)
    return centre_CD


def nearest_centre(vector_ND: npt.NDArray[Any], centre_CD: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
    """Of each vector the nearest centre `[N]`, and the cosine distance to it `[N]`."""
    rows = len(vector_ND)
    cluster_N, distance_N = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
    for start in range(0, rows, _BLOCK):
        block = slice(start, start + _BLOCK)
        cosine_BC = vector_ND[block].astype(np.float32) @ centre_CD.T
        cluster_N[block] = cosine_BC.argmax(axis=1)
        distance_N[block] = 1 - cosine_BC.max(axis=1)
    return cluster_N, distance_N
