"""What the steps that look for near-duplicates share: gather fingerprints, pair them, name the pairs by their samples.

Dimensions: N samples, C classes of samples with equal fingerprints, M items of a reference set, P pairs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from mmdata.errors import FatalError
from mmdata.steps.base import Linked

if TYPE_CHECKING:
    import pyarrow as pa

    from mmdata.near.pairs import Pairs
    from mmdata.store.links import Fingerprints
    from mmdata.store.references import Reference


def _named(value: Any) -> Any:
    """A path alone is called by its name."""
    paths = [value] if isinstance(value, str) else value
    return {Path(path).stem: path for path in paths} if isinstance(paths, list) else paths


References = Annotated[dict[str, str], BeforeValidator(_named, json_schema_input_type=str | list[str] | dict[str, str])]


@dataclass(frozen=True)
class Known:
    """Fingerprints of samples, sorted by id.

    Attributes:
        ids: of the samples.
        rows: [N, ...] what pairs are looked for by; an array, or what takes an index as one does.
        equal_NB: bytes by which equal fingerprints are found.
    """

    ids: pa.Array
    rows: Any
    equal_NB: Any


class NearDuplicates(Linked):
    """Links samples whose fingerprints are close; of equal ones each is linked to the first."""

    reference: References = Field(
        default_factory=dict,
        description="sets that samples must not be in (evaluation data): name: folder of a build that has this measure "
        "too, or a Parquet with `id` and its fingerprint. A list of paths is named by their files",
    )
    only_linking: ClassVar[frozenset[str]] = frozenset({"reference"})

    def check_references(self) -> None:
        """Raises ValueError for a reference set that is not there, or was built without such a measure."""
        for reference in self.references().values():
            reference.check()

    def references(self) -> dict[str, Reference]:
        """The reference sets by name."""
        from mmdata.store.references import Reference as Opened

        label = self.vectors_of() or self.label
        return {name: Opened(Path(path).expanduser(), label) for name, path in self.reference.items()}

    def linking(self) -> dict[str, Any]:
        """Besides what decides the fingerprints: limits, and the content of the reference sets."""
        return {**super().linking(), "reference": {name: r.version() for name, r in self.references().items()}}

    @abstractmethod
    def gather(self, tables: Iterator[Any], folder: Path) -> Known:
        """What was measured, ready to be paired.

        Args:
            tables: as of `Fingerprints.tables`; (ids, vectors) where `vectors_of` names an aligner.
            folder: for what does not fit in memory.
        """

    @abstractmethod
    def pairs(self, rows: Any, other: Any) -> Iterator[Pairs]:
        """Rows that are close: to rows of `other`, or where it is None to each other, left row < right row."""

    def link(self, found: Fingerprints, folder: Path) -> Iterator[pa.Table]:
        """Per member: links between samples, then those to the nearest item of each reference set."""
        for number, member in enumerate(self.of):
            tables = found.vectors(member) if self.vectors_of() else found.tables(member)
            known = self._gathered(tables, folder / f"{number}")
            yield from self._among(member, known)
            for name, reference in self.references().items():
                items = reference.vectors() if self.vectors_of() else reference.tables(self.fingerprint())
                yield from self._against(member, known, name, self._gathered(items, folder / f"{number}-{name}"))

    def _gathered(self, tables: Iterator[Any], folder: Path) -> Known:
        folder.mkdir()
        return self.gather(tables, folder)

    def _among(self, member: str, known: Known) -> Iterator[pa.Table]:
        from mmdata.near.pairs import bounded, classes, joined

        same = classes(known.equal_NB)
        close = bounded(self.pairs(known.rows[same.first_C], None), len(same.first_C))
        found = ([same.stars()], (_renamed(pairs, same.first_C) for pairs in close))
        yield _links(member, known.ids, known.ids, joined(pairs for block in found for pairs in block), None)

    def _against(self, member: str, known: Known, name: str, items: Known) -> Iterator[pa.Table]:
        """Every sample with its nearest item: there are no more links than samples."""
        import numpy as np

        from mmdata.near.pairs import Pairs, classes, nearest

        same = classes(known.equal_NB)
        if not (len(known.ids) and len(items.ids)):
            return
        if known.equal_NB.shape[1] != items.equal_NB.shape[1]:
            raise FatalError(f"{self.label}: fingerprints of the reference '{name}' are of another kind")
        close = nearest(self.pairs(known.rows[same.first_C], items.rows), len(same.first_C))
        of_C, apart_C = np.full(len(same.first_C), -1), np.zeros(len(same.first_C))
        of_C[close.left_P], apart_C[close.left_P] = close.right_P, close.distance_P
        there = np.flatnonzero(of_C[same.class_N] >= 0)
        class_P = same.class_N[there]
        yield _links(member, known.ids, items.ids, Pairs(there, of_C[class_P], apart_C[class_P]), name)


def _renamed(pairs: Pairs, first_C: Any) -> Pairs:
    from mmdata.near.pairs import Pairs as Renamed

    return Renamed(first_C[pairs.left_P], first_C[pairs.right_P], pairs.distance_P)


def _links(member: str, ids: pa.Array, others: pa.Array, pairs: Pairs, source: str | None) -> pa.Table:
    import pyarrow as pa

    from mmdata.store.links import LINKS

    columns = [
        pa.repeat(member, len(pairs)),
        ids.take(pa.array(pairs.left_P)),
        others.take(pa.array(pairs.right_P)),
        pa.array(pairs.distance_P),
        pa.repeat(pa.scalar(source, pa.string()), len(pairs)),
    ]
    return pa.table(columns, schema=LINKS)


def sorted_by_id(tables: Iterator[pa.Table], columns: Mapping[str, str]) -> pa.Table:
    """Tables in one, where the first of the columns is not NULL, by id."""
    import pyarrow as pa
    import pyarrow.compute as pc

    types = {"VARCHAR": pa.string(), "INTEGER": pa.int32()}
    schema = pa.schema([("sample_id", pa.string()), *((name, types[kind]) for name, kind in columns.items())])
    first = next(iter(columns))
    parts = [table.filter(pc.is_valid(table.column(first))).select(schema.names).cast(schema) for table in tables]
    return pa.concat_tables([schema.empty_table(), *parts]).combine_chunks().sort_by("sample_id")


def from_hex(column: pa.ChunkedArray, size: int) -> Any:
    """[N, B] bytes of hexadecimal strings of so many bytes each. Raises FatalError where one is no such."""
    import numpy as np

    texts = column.to_pylist()
    try:
        return np.frombuffer(bytes.fromhex("".join(texts)), np.uint8).reshape(len(texts), size)
    except ValueError:
        raise FatalError(f"fingerprints are not all {2 * size} hexadecimal digits") from None
