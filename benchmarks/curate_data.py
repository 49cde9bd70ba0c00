"""Part files of a made-up corpus: images with captions, one aligner with null scores, two measures.

The shape of a crawl: twenty kilobytes an image, eight words a caption, 2 % exact duplicates, 20 % mismatched pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.models.weights import Weights
from mmdata.sample import Modality, Sample
from mmdata.steps.base import Align
from mmdata.steps.exchange import Edge, Scorer
from mmdata.store.curation import Columns
from mmdata.store.parts import BASE_SCHEMA, MEMBER, SCORE_SCHEMA, write_table

PART_ROWS = 250_000
LABELS = ("ingest", "clip", "picture", "wording")
MEMBERS = ["image", "caption"]
PICTURE = dict.fromkeys(["sharpness", "entropy", "brightness", "contrast", "flat"], "DOUBLE")
WORDING = dict.fromkeys(["confidence", "letters", "digits", "repetition"], "DOUBLE")
COLUMNS = Columns(
    {"image": "image", "caption": "text"},
    {"clip": {"image_caption": {}}},
    {"picture": {"image": PICTURE}, "wording": {"caption": WORDING}},
)
_TEXT = "a the red blue small dog cat house on near tree old street with two people at night"
_WORDS = np.array(_TEXT.split(" "))


class Clip(Align):
    """Stands for an aligner whose scores are there."""

    step: ClassVar[str] = "clip"
    modalities: ClassVar[tuple[Modality, Modality]] = ("image", "text")

    def edges(self) -> list[Edge]:
        """One."""
        return [Edge("image", "caption")]

    def weights(self) -> Weights:
        """Never asked for, as is what follows."""
        raise NotImplementedError

    def load(self, device: str) -> Scorer:
        """Load nothing."""
        raise NotImplementedError

    def prepare(self, recipe: Any, sample: Sample, edges: Sequence[Edge]) -> Any:
        """Prepare nothing."""
        raise NotImplementedError


def write_part(folder: Path, number: int, rows: int) -> None:
    """A base part and its three score parts, of so many samples."""
    rng = np.random.default_rng(number)
    ids = _hex(rng, rows, 16)
    write_table(folder / "ingest" / f"{number:05d}.parquet", _base(rng, ids, number * PART_ROWS))
    write_table(folder / "clip" / f"{number:05d}.parquet", _scores(rng, ids))
    picture = {name: rng.random(rows) for name in PICTURE}
    write_table(folder / "picture" / f"{number:05d}.parquet", _measured(ids, "picture", "image", picture))
    wording = {name: rng.random(rows) for name in WORDING}
    write_table(folder / "wording" / f"{number:05d}.parquet", _measured(ids, "wording", "caption", wording))


def _base(rng: np.random.Generator, ids: pa.Array, first: int) -> pa.Table:
    rows = len(ids)
    image, text = _hex(rng, rows, 32), _hex(rng, rows, 32)
    # Every fiftieth is the one before it again.
    same = pa.array(np.where(np.arange(rows) % 50 == 49, np.arange(rows) - 1, np.arange(rows)))
    image, text = image.take(same), text.take(same)
    words = rng.integers(4, 13, rows)
    captions = _joined([pa.array(_WORDS[rng.integers(0, len(_WORDS), rows)]) for _ in range(8)], " ")
    sizes = rng.lognormal(9.8, 0.5, rows).astype(np.int64) + 500
    ends = np.cumsum(sizes + 1536)
    members = [
        {
            "name": _same("image", rows), "modality": _same("image", rows), "mime": _same("image/jpeg", rows),
            "extension": _same("jpg", rows), "bytes": pa.array(sizes), "sha256": image,
            "offset": pa.array(ends - sizes), "width": pa.array(rng.integers(64, 1025, rows), pa.int32()),
            "height": pa.array(rng.integers(64, 1025, rows), pa.int32()),
        },
        {
            "name": _same("caption", rows), "modality": _same("text", rows), "mime": _same("text/plain", rows),
            "extension": _same("txt", rows), "lang": pa.array(np.where(rng.random(rows) < 0.8, "en", "fr")),
            "bytes": pc.binary_length(captions).cast(pa.int64()), "sha256": text, "offset": pa.array(ends),
            "text": captions, "chars": pc.utf8_length(captions), "words": pa.array(words, pa.int32()),
        },
    ]  # fmt: skip
    structs = [
        pa.StructArray.from_arrays(
            [m.get(f.name, pa.nulls(rows, f.type)).cast(f.type) for f in MEMBER], fields=list(MEMBER)
        )
        for m in members
    ]
    both = pa.concat_arrays(structs).take(pa.array(np.arange(2 * rows).reshape(2, rows).T.ravel()))
    key = pa.array(np.arange(first, first + rows)).cast(pa.string())
    columns: dict[str, Any] = {
        "sample_id": ids,
        "source": pa.array(np.where(rng.random(rows) < 0.5, "crawl", "archive")),
        "key": _joined([_same("https://example.org/picture/", rows), key], ""),
        "attributes": _joined([_same('{"host": "h', rows), _text(rng.integers(0, 5000, rows)), _same('"}', rows)], ""),
        "members": pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * rows + 1, 2), pa.int32()), both),
    }
    return _table(columns, BASE_SCHEMA, rows)


def _scores(rng: np.random.Generator, ids: pa.Array) -> pa.Table:
    rows = len(ids)
    true = rng.random(rows) > 0.2
    score = np.where(true, rng.normal(0.30, 0.05, rows), rng.normal(0.15, 0.05, rows)).astype(np.float32)
    null = pa.array(rng.normal(0.15, 0.05, 2 * rows).astype(np.float32))
    columns = {
        "sample_id": ids,
        "aligner": _same("clip", rows),
        "edge": _same("image_caption", rows),
        "score": pa.array(score),
        "null": pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * rows + 1, 2), pa.int32()), null),
    }
    return _table(columns, SCORE_SCHEMA, rows)


def _measured(ids: pa.Array, label: str, member: str, values: dict[str, Any]) -> pa.Table:
    rows = len(ids)
    pieces: list[pa.Array] = []
    for number, (name, value) in enumerate(values.items()):
        pieces += [_same(f'{", " if number else "{"}"{name}": ', rows), _text(value.round(4))]
    columns = {
        "sample_id": ids,
        "aligner": _same(label, rows),
        "edge": _same(member, rows),
        "measures": _joined([*pieces, _same("}", rows)], ""),
    }
    return _table(columns, SCORE_SCHEMA, rows)


def _table(columns: dict[str, Any], schema: pa.Schema, rows: int) -> pa.Table:
    return pa.table({f.name: columns.get(f.name, pa.nulls(rows, f.type)) for f in schema}, schema)


def _same(value: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), rows)


def _text(values: Any) -> pa.Array:
    return pa.array(values).cast(pa.string())


def _joined(pieces: list[pa.Array], between: str) -> pa.Array:
    return pc.binary_join_element_wise(*pieces, between)


def _hex(rng: np.random.Generator, rows: int, size: int) -> pa.Array:
    """Random digests, hexadecimal."""
    text = rng.bytes(rows * size).hex().encode()
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * (2 * size))
    return pa.StringArray.from_buffers(rows, offsets.buffers()[1], pa.py_buffer(text))
