"""`neighbours`: samples whose embeddings are close are linked: what means the same, not what looks the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mmdata.sample import Member, Modality
from mmdata.steps.measure.linked import Known, NearDuplicates

if TYPE_CHECKING:
    from mmdata.near.pairs import Pairs


class Neighbours(NearDuplicates):
    """Semantic duplicates: links samples by the embeddings that an aligner (`clip`, say) kept of a member.

    `distance` is 1 less the cosine. What it should be depends on the model: look at `links` of a first build.
    """

    step: ClassVar[str] = "neighbours"
    extras: ClassVar[tuple[str, ...]] = ("near",)
    modality: ClassVar[Modality | None] = None
    only_linking: ClassVar[frozenset[str]] = frozenset({"reference", "max_distance"})
    aligner: str = Field(description="label of the aligner")
    max_distance: float = Field(0.05, ge=0, le=2, description="1 - cosine")

    def vectors_of(self) -> str | None:
        """The aligner."""
        return self.aligner

    def columns(self) -> dict[str, str]:
        """None beside `nearest` and `in_reference`."""
        return {}

    def links_up_to(self) -> tuple[float, str]:
        """1 less the cosine."""
        return self.max_distance, "raise `max_distance`"

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:
        """Never asked for: the aligner has measured."""
        raise NotImplementedError

    def gather(self, tables: Iterator[Any], folder: Path) -> Known:
        """Embeddings of length 1, on disk."""
        import numpy as np
        import pyarrow as pa

        ids: list[str] = []
        length = 0
        with (folder / "vectors").open("wb") as file:
            for names, vector_ND in tables:
                norm_N1 = np.linalg.norm(vector_ND.astype(np.float32), axis=1, keepdims=True)
                there_N = (norm_N1 > 0)[:, 0] & np.isfinite(norm_N1)[:, 0]
                (vector_ND[there_N] / norm_N1[there_N]).astype(np.float16).tofile(file)
                ids += [name for name, there in zip(names, there_N, strict=True) if there]
                length = vector_ND.shape[1]
        if not ids:
            return Known(pa.array([], pa.string()), np.zeros((0, 1), np.float16), np.zeros((0, 2), np.uint8))
        order = np.argsort(np.array(ids), kind="stable")
        vector_ND = np.memmap(folder / "vectors", np.float16, "r").reshape(len(ids), length)[order]
        return Known(pa.array(ids).take(pa.array(order)), vector_ND, vector_ND.view(np.uint8))

    def pairs(self, rows: Any, other: Any) -> Iterator[Pairs]:
        """By faiss."""
        from mmdata.near.vectors import search

        yield from search(rows, self.max_distance, other)
