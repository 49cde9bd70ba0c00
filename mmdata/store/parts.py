"""Parts: the unit of work and of commit.

A base part is a tar of payloads beside a Parquet of rows, one row for each input, those that failed included. A score
part is a Parquet of long rows; beside it lie the members' embeddings, a Parquet for each member. A part's name is the
fingerprint of everything that made it; a part that exists is done. The tar and the embeddings are renamed into place
before the Parquet: the Parquet's presence is the commit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmdata.errors import FatalError
from mmdata.sample import Failure, Member, Sample
from mmdata.store.files import appearing
from mmdata.store.part_writer import PartWriter
from mmdata.store.tar import read_range

MEMBER = pa.struct(
    [
        ("name", pa.string()),
        ("modality", pa.string()),
        ("mime", pa.string()),
        ("extension", pa.string()),
        ("lang", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("offset", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("faces", pa.int32()),
        ("duration_s", pa.float64()),
        ("start_s", pa.float64()),
        ("sample_rate", pa.int32()),
        ("channels", pa.int32()),
        ("text", pa.string()),
        ("lang_guessed", pa.bool_()),
        ("chars", pa.int32()),
        ("words", pa.int32()),
        ("masked", pa.int32()),
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("ndim", pa.int32()),
        ("elements", pa.int64()),
        ("finite_share", pa.float64()),
        ("min", pa.float64()),
        ("max", pa.float64()),
        ("mean", pa.float64()),
        ("rate_hz", pa.float64()),
        ("error", pa.string()),
    ]
)
BASE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source", pa.string()),
        ("key", pa.string()),
        ("parent_id", pa.string()),
        ("variant", pa.string()),
        ("attributes", pa.string()),
        ("augmentation", pa.string()),
        ("failed_step", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("members", pa.list_(MEMBER)),
    ]
)
SCORE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("aligner", pa.string()),
        ("edge", pa.string()),
        ("score", pa.float32()),
        ("strength", pa.float32()),
        ("null", pa.list_(pa.float32())),
        ("null_strength", pa.list_(pa.float32())),
        ("measures", pa.string()),
        ("new_name", pa.string()),
        ("new_text", pa.string()),
        ("new_lang", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
# Of a member beside what it is called, where it lies and what it weighs.
_MEASURES = tuple(
    field.name
    for field in MEMBER
    if field.name not in {"name", "modality", "mime", "extension", "lang", "bytes", "sha256", "offset", "error"}
)


@dataclass(frozen=True)
class BadMember:
    """An optional member that could not be read; the sample goes on without it, the row says why."""

    name: str
    modality: str
    error: str


class BasePartWriter(PartWriter):
    """Writes one base part; commits when the block ends well."""

    def __init__(self, parquet: Path) -> None:
        """As any `PartWriter`."""
        super().__init__(parquet)
        self._rows: list[dict[str, Any]] = []

    def _commit(self) -> None:
        write_table(self._parquet, pa.Table.from_pylist(self._rows, BASE_SCHEMA))

    def add(self, sample: Sample, bad: Iterable[BadMember] = ()) -> None:
        """Append a sample's payloads and row."""
        members = [self._member(sample.sample_id, member) for member in sample.members.values()]
        members += [{"name": b.name, "modality": b.modality, "error": b.error} for b in bad]
        self._rows.append({**_identity(sample), "members": members})

    def add_failure(self, sample: Sample, failure: Failure) -> None:
        """Append the row of a sample that is out; nothing of it is stored."""
        row = {"failed_step": failure.step, "reason": failure.reason, "detail": failure.detail}
        self._rows.append({**_identity(sample), **row, "members": []})

    def _member(self, sample_id: str, member: Member) -> dict[str, Any]:
        offset = self._tar.add(f"{sample_id}.{member.name}.{member.extension}", member.data)
        return {
            "name": member.name,
            "modality": member.modality,
            "mime": member.mime,
            "extension": member.extension,
            "lang": member.lang,
            "bytes": len(member.data),
            "sha256": member.sha256,
            "offset": offset,
            **member.measures,
        }


def _identity(sample: Sample) -> dict[str, Any]:
    return {
        "sample_id": sample.sample_id,
        "source": sample.source,
        "key": sample.key,
        "parent_id": sample.parent_id,
        "variant": sample.variant,
        "attributes": json.dumps(sample.attributes, sort_keys=True, ensure_ascii=False),
        "augmentation": sample.augmentation and json.dumps(sample.augmentation, sort_keys=True, ensure_ascii=False),
    }


def write_table(path: Path, table: pa.Table) -> None:
    """A table as Parquet, whole or not at all."""
    with appearing(path) as scratch:
        pq.write_table(table, scratch, compression="zstd")


def read_base_rows(parquet: Path, start: int = 0, stop: int | None = None) -> list[dict[str, Any]]:
    """Rows of a base part as dictionaries, those that failed included, in the order of the part."""
    table = pq.read_table(parquet)
    rows: list[dict[str, Any]] = table.slice(start, None if stop is None else stop - start).to_pylist()
    return rows


def vectors_path(scores: Path, member: str) -> Path:
    """Where the embeddings of a member lie that were computed for a score part."""
    return scores.with_name(f"{scores.stem}.{member}.vectors.parquet")


def write_vectors(scores: Path, vectors: Mapping[str, Sequence[tuple[str, Any]]]) -> None:
    """Embeddings beside a score part, as fp16 lists of fixed size: (sample, float `[D]`) for each member."""
    for member, rows in vectors.items():
        vector_ND = np.stack([vector_D for _, vector_D in rows]).astype(np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vector_ND.ravel()), vector_ND.shape[1])
        table = pa.table({"sample_id": pa.array([sample for sample, _ in rows]), "vector": column})
        write_table(vectors_path(scores, member), table)


def iter_vectors(
    scores: Iterable[Path], member: str
) -> Iterator[tuple[list[str], np.ndarray[Any, np.dtype[np.float16]]]]:
    """Samples and embeddings `[N, D]` of a member, a score part at a time; those without vectors are passed over."""
    for path in _vector_files(scores, member):
        table = pq.read_table(path)
        column = table.column("vector").combine_chunks()
        vector_ND = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), column.type.list_size)
        yield table.column("sample_id").to_pylist(), vector_ND


def read_vector_ids(scores: Iterable[Path], member: str) -> list[str]:
    """The samples whose member was embedded, part after part."""
    tables = (pq.read_table(path, columns=["sample_id"]) for path in _vector_files(scores, member))
    return [key for table in tables for key in table.column("sample_id").to_pylist()]


def _vector_files(scores: Iterable[Path], member: str) -> list[Path]:
    return [path for part in scores if (path := vectors_path(part, member)).exists()]


def read_new_texts(scores: Iterable[Path]) -> dict[str, list[Member]]:
    """The texts that aligners made for the samples of a base part, given their score parts."""
    found: dict[str, list[Member]] = {}
    for path in scores:
        table = pq.read_table(path, columns=["sample_id", "new_name", "new_text", "new_lang"])
        for row in table.filter(pc.is_valid(table.column("new_text"))).to_pylist():
            found.setdefault(row["sample_id"], []).append(made_text(row["new_name"], row["new_text"], row["new_lang"]))
    return found


def made_text(name: str, text: str, lang: str | None) -> Member:
    """A text that an aligner made, as a member."""
    measures = {"text": text, "chars": len(text), "words": len(text.split())}
    return Member(name, "text", "text/plain", "txt", text.encode(), lang, measures)


def iter_samples(parquet: Path, rows: Iterable[dict[str, Any]], names: frozenset[str]) -> Iterator[Sample]:
    """Samples of a base part that did not fail, with the payloads of the members named; the others without payload."""
    with open_payloads(parquet) as tar:
        for row in rows:
            if row["failed_step"] is None:
                members = [_load_member(m, tar, names) for m in row["members"] if m["error"] is None]
                yield Sample(
                    sample_id=row["sample_id"],
                    source=row["source"],
                    key=row["key"],
                    members={member.name: member for member in members},
                    parent_id=row["parent_id"],
                    variant=row["variant"],
                    attributes=json.loads(row["attributes"]),
                    augmentation=row["augmentation"] and json.loads(row["augmentation"]),
                )


def open_payloads(parquet: Path) -> FileIO:
    """The tar of a base part. Raises FatalError where it is not there."""
    tar = parquet.with_suffix(".tar")
    try:
        # Each payload is read once, somewhere: a buffer would only be copied.
        return tar.open("rb", buffering=0)
    except FileNotFoundError:
        raise FatalError(f"{tar} is not there; delete the .parquet beside it too, and the part is made again") from None


def _load_member(row: dict[str, Any], tar: Any, names: frozenset[str]) -> Member:
    data = read_range(tar, row["offset"], row["bytes"]) if row["name"] in names else b""
    measures = {name: row[name] for name in _MEASURES if row[name] is not None}
    return Member(row["name"], row["modality"], row["mime"], row["extension"], data, row["lang"], measures)


def failed_fetches(parquet: Path) -> set[str]:
    """The samples of a base part that failed because something could not be fetched; none where it is not there."""
    if not parquet.exists():
        return set()
    table = pq.read_table(parquet, columns=["sample_id", "failed_step"])
    return set(table.filter(pc.equal(table.column("failed_step"), "fetch")).column("sample_id").to_pylist())
