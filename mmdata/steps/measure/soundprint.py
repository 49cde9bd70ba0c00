"""`soundprint`: how a recording sounds, in bits; recordings that sound alike are linked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field

from mmdata.errors import SampleError
from mmdata.sample import Member, Modality
from mmdata.steps.measure.linked import Known, NearDuplicates, sorted_by_id

if TYPE_CHECKING:
    from mmdata.near.pairs import Pairs

_WORD_HEX: Final = 8


class Soundprint(NearDuplicates):
    """Audio fingerprints: near-duplicates by encoding, gain, noise, a beginning that is cut or silent.

    `distance` is the share of bits that differ at the best shift; between unrelated sounds it is about 0.5, and seldom
    below 0.25. Sounds shorter than about half a second have none.
    """

    step: ClassVar[str] = "soundprint"
    version: ClassVar[int] = 2
    extras: ClassVar[tuple[str, ...]] = ("near",)
    modality: ClassVar[Modality] = "audio"
    only_linking: ClassVar[frozenset[str]] = frozenset({"reference", "max_distance", "max_shift_s"})
    max_distance: float = Field(0.2, ge=0, le=0.35, description="share of bits")
    max_shift_s: float = Field(0.5, ge=0, le=10, description="how far beginnings may lie apart, silence left out")
    max_duration_s: float = Field(60.0, gt=0, le=600, description="what comes after it is not compared")

    def columns(self) -> dict[str, str]:
        """`heard_s`: how much of it is compared."""
        return {"heard_s": "DOUBLE"}

    def fingerprint(self) -> dict[str, str]:
        """Words of 32 bits, one for each 24 ms."""
        return {"print": "VARCHAR"}

    def links_up_to(self) -> tuple[float, str]:
        """That share of the bits."""
        return self.max_distance, "raise `max_distance`"

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:  # noqa: ARG002 - it needs none
        """The words. Raises SampleError where it cannot be decoded, or too little of it sounds."""
        from mmdata.media.audio import decode_mono
        from mmdata.near import sound

        word_F = sound.fingerprint(decode_mono(member.data, self.max_duration_s, sound.RATE_HZ))
        if not len(word_F):
            raise SampleError("too_short", "too short or too silent to be compared")
        heard_s = round(int((word_F != 0).sum()) * sound.HOP / sound.RATE_HZ, 3)
        return {"heard_s": heard_s, "print": word_F.astype(">u4").tobytes().hex()}

    def gather(self, tables: Iterator[Any], folder: Path) -> Known:
        """Words and outlines, on disk; in memory are ids and digests."""
        import hashlib

        import numpy as np
        import pyarrow as pa

        from mmdata.near import sound

        lengths, outlines, digests = [], [], []
        ids: list[str] = []
        with (folder / "words").open("wb") as file:
            for table in tables:
                part = sorted_by_id(iter([table]), self.fingerprint())
                ids += part.column("sample_id").to_pylist()
                for text in part.column("print").to_pylist():
                    word_F = np.frombuffer(bytes.fromhex(text), ">u4").astype(np.uint32)
                    word_F.tofile(file)
                    lengths.append(len(word_F))
                    outlines.append(sound.outline(word_F).astype(np.float16))
                    digests.append(hashlib.blake2b(word_F.tobytes(), digest_size=16).digest())
        if not ids:
            return Known(pa.array([], pa.string()), _nothing(), np.zeros((0, 16), np.uint8))
        order = np.argsort(np.array(ids), kind="stable")
        length_N = np.array(lengths, np.int64)
        words = np.memmap(folder / "words", np.uint32, "r")
        prints = sound.Prints(words, np.cumsum(length_N) - length_N, length_N, np.stack(outlines))
        digest_NB = np.frombuffer(b"".join(digests), np.uint8).reshape(len(ids), 16)
        return Known(pa.array(ids).take(pa.array(order)), prints[order], digest_NB[order])

    def pairs(self, rows: Any, other: Any) -> Iterator[Pairs]:
        """Near outlines, compared bit by bit."""
        from mmdata.near import sound

        shift = round(self.max_shift_s * sound.RATE_HZ / sound.HOP)
        yield from sound.pairs_within(rows, self.max_distance, shift, other)


def _nothing() -> Any:
    import numpy as np

    from mmdata.near import sound

    none = np.zeros(0, np.int64)
    return sound.Prints(np.zeros(0, np.uint32), none, none, np.zeros((0, 1), np.float16))
