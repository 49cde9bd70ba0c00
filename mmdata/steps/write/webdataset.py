"""`webdataset`: tar shards that open_clip, webdataset, HF datasets and Energon read as they are."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ByteSize, Field

from mmdata.sample import Modality
from mmdata.steps.base import Write


class WebDataset(Write):
    """Deterministic tar shards `{split}-{000000}.tar`, each with its index, and a manifest with the counts.

    In a tar a sample is `<id>.json` and a file for each member. The first member that a pipeline declares of a modality
    goes by its bare extension (`<id>.png`, `<id>.txt`), which is what other readers look for; the others carry their
    names (`<id>.caption_fr.txt`). Vectors that are asked for lie beside each tar, in the order of its samples.
    """

    step: ClassVar[str] = "webdataset"
    version: ClassVar[int] = 2
    samples_per_shard: int = Field(1000, ge=1, description="a shard holds at most so many samples")
    bytes_per_shard: ByteSize = Field(
        ByteSize(256 << 20), ge=1 << 16, description="and at most so many bytes, but always one sample"
    )
    members: list[str] | None = Field(None, description="members to write; default: all")
    embeddings: list[str] = Field(
        [],
        description="vectors to write beside the shards, as `aligner.member` (clip.image), to distil from",
    )

    def reads(self) -> dict[str, Modality | None]:
        """The members it was told to write."""
        return dict.fromkeys(self.members or [])
