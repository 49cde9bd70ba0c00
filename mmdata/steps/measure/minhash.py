"""`minhash`: what a text says, in 128 bytes; texts that share most of their words are linked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mmdata.errors import SampleError
from mmdata.sample import Member, Modality
from mmdata.steps.measure.linked import Known, NearDuplicates, from_hex, sorted_by_id

if TYPE_CHECKING:
    from mmdata.near.pairs import Pairs


class Minhash(NearDuplicates):
    """MinHash of runs of characters: near-duplicates by case, punctuation, typos, a word more or less, in any language.

    `distance` is 1 less the Jaccard similarity of the runs, as 128 functions estimate it (standard error 0.04).
    """

    step: ClassVar[str] = "minhash"
    modality: ClassVar[Modality] = "text"
    only_linking: ClassVar[frozenset[str]] = frozenset({"reference", "min_similarity"})
    min_similarity: float = Field(0.7, ge=0.5, le=1, description="Jaccard similarity")
    shingle_chars: int = Field(
        3, ge=2, le=16, description="characters a run: 3 for captions, 5 for pages; Chinese, Japanese and Korean take 2"
    )

    def columns(self) -> dict[str, str]:
        """`runs`: how many different ones; of few the distance is coarse."""
        return {"runs": "INTEGER"}

    def fingerprint(self) -> dict[str, str]:
        """Eight bits of each function's minimum."""
        return {"signature": "VARCHAR"}

    def links_up_to(self) -> tuple[float, str]:
        """1 less the similarity."""
        return round(1 - self.min_similarity, 6), "lower `min_similarity`"

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:  # noqa: ARG002 - it needs none
        """The signature. Raises SampleError where nothing is said."""
        from mmdata.near.words import shingles, signature

        hash_S = shingles(member.text, self.shingle_chars)
        if not len(hash_S):
            raise SampleError("no_words", "no letter and no digit in it")
        return {"runs": len(hash_S), "signature": signature(hash_S).tobytes().hex()}

    def gather(self, tables: Iterator[Any], folder: Path) -> Known:  # noqa: ARG002 - all fits in memory
        """All signatures."""
        from mmdata.near.words import FUNCTIONS

        whole = sorted_by_id(tables, self.fingerprint())
        signature_NK = from_hex(whole.column("signature"), FUNCTIONS)
        return Known(whole.column("sample_id").combine_chunks(), signature_NK, signature_NK)

    def pairs(self, rows: Any, other: Any) -> Iterator[Pairs]:
        """By bands of functions."""
        from mmdata.near.words import pairs_within

        yield from pairs_within(rows, self.links_up_to()[0], other)
