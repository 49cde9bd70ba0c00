"""`pdq`: how a picture looks, in 256 bits; pictures that look alike are linked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mmdata.sample import Member, Modality
from mmdata.steps.measure.linked import Known, NearDuplicates, from_hex, sorted_by_id

if TYPE_CHECKING:
    from mmdata.near.pairs import Pairs


class Pdq(NearDuplicates):
    """PDQ hashes: near-duplicates by scaling, encoding, brightness, small marks; not by cropping more than a little.

    `distance` is the number of bits that differ, of 256; between unrelated pictures it is about 128.
    """

    step: ClassVar[str] = "pdq"
    extras: ClassVar[tuple[str, ...]] = ("near",)
    modality: ClassVar[Modality] = "image"
    only_linking: ClassVar[frozenset[str]] = frozenset({"reference", "max_distance", "min_quality", "mirrored"})
    max_distance: int = Field(31, ge=0, le=47, description="bits; PDQ's authors take 31 for the same picture")
    min_quality: int = Field(50, ge=0, le=100, description="flatter pictures are compared with none: all are alike")
    mirrored: bool = Field(False, description="whether a mirror image counts as the same picture")

    def columns(self) -> dict[str, str]:
        """`quality`: 0 (flat) to 100."""
        return {"quality": "INTEGER"}

    def fingerprint(self) -> dict[str, str]:
        """The hash, and that of the mirror image."""
        return {"hash": "VARCHAR", "mirror": "VARCHAR", "quality": "INTEGER"}

    def links_up_to(self) -> tuple[float, str]:
        """So many bits."""
        return self.max_distance, "raise `max_distance`"

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:  # noqa: ARG002 - it needs none
        """Hashes and quality. Raises SampleError."""
        from mmdata.near.picture import hashes

        as_is, mirror, quality = hashes(member.data)
        return {"hash": as_is.hex(), "mirror": mirror.hex(), "quality": quality}

    def gather(self, tables: Iterator[Any], folder: Path) -> Known:  # noqa: ARG002 - all fits in memory
        """Both hashes of pictures that are not flat."""
        import numpy as np
        import pyarrow.compute as pc

        from mmdata.near.picture import HASH_BYTES

        whole = sorted_by_id(tables, self.fingerprint())
        whole = whole.filter(pc.greater_equal(whole.column("quality"), self.min_quality))
        hash_NB = np.hstack([from_hex(whole.column(name), HASH_BYTES) for name in ("hash", "mirror")])
        return Known(whole.column("sample_id").combine_chunks(), hash_NB, hash_NB)

    def pairs(self, rows: Any, other: Any) -> Iterator[Pairs]:
        """By multi-index hashing; of mirror images each pair twice."""
        from mmdata.near.bits import pairs_within
        from mmdata.near.picture import HASH_BYTES

        hash_NB, mirror_NB = rows[:, :HASH_BYTES], rows[:, HASH_BYTES:]
        yield from pairs_within(hash_NB, self.max_distance, None if other is None else other[:, :HASH_BYTES])
        if self.mirrored:
            flipped = pairs_within(mirror_NB, self.max_distance, (rows if other is None else other)[:, :HASH_BYTES])
            for pairs in flipped:
                yield pairs.where(pairs.left_P < pairs.right_P) if other is None else pairs
