"""Reference sets: what another build measured, or a file of fingerprints, that a build's samples are held against.

A file is a Parquet with a column `id` and one for each column of the fingerprint (`hash`, say); a build has a measure
of the same name, whose members all count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmdata.document import nearest
from mmdata.errors import FatalError
from mmdata.store import sql
from mmdata.store.links import Fingerprints
from mmdata.store.parts import iter_vectors

_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Reference:
    """A set of items that are no samples of this build.

    Attributes:
        path: a folder that a build wrote, or a Parquet.
        label: the measure of that build, or the aligner whose embeddings count.
    """

    path: Path
    label: str

    def check(self) -> None:
        """Raises ValueError where it is not there, or was built without such a measure."""
        if self.path.is_dir():
            if not self._parts():
                labels = sorted({label for label, _ in self._build()["scores"]})
                has = f"it has {', '.join(labels)}" if labels else "nothing was measured in it"
                raise ValueError(f"{self.path}: the build has no '{self.label}'{nearest(self.label, labels)}; {has}")
        elif not self.path.is_file():
            raise ValueError(f"{self.path} is not there; give the folder of a build, or a Parquet of fingerprints")
        elif "id" not in (names := pq.read_schema(self.path).names):
            raise ValueError(f"{self.path} has no column 'id'; it has {', '.join(names)}")

    def version(self) -> str:
        """What changes when its content does."""
        if self.path.is_dir():
            return hashlib.sha256(json.dumps([part.name for part in self._parts()]).encode()).hexdigest()
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def tables(self, columns: Mapping[str, str]) -> Iterator[pa.Table]:
        """`sample_id` and the columns, some at a time. Raises FatalError where a file lacks one."""
        if self.path.is_dir():
            found = Fingerprints(self.label, columns, self._parts())
            for member in self._members():
                yield from found.tables(member)
            return
        with pq.ParquetFile(self.path) as file:
            self._check_columns(file.schema_arrow.names, columns)
            for batch in file.iter_batches(_BATCH_ROWS, columns=["id", *columns]):
                table = pa.Table.from_batches([batch]).rename_columns(["sample_id", *columns])
                yield table.set_column(0, "sample_id", table.column("sample_id").cast(pa.string()))

    def vectors(self) -> Iterator[tuple[list[str], Any]]:
        """Ids and embeddings `[N, D]`, some at a time; of a file its column `vector`."""
        if self.path.is_dir():
            for member in self._embedded():
                yield from iter_vectors(self._parts(), member)
            return
        for table in self.tables({"vector": "FLOAT[]"}):
            rows = table.filter(pc.is_valid(table.column("vector"))).combine_chunks()
            flat = pc.list_flatten(rows.column("vector")).to_numpy()
            yield rows.column("sample_id").to_pylist(), flat.reshape(len(rows), -1)

    def _check_columns(self, names: list[str], columns: Mapping[str, str]) -> None:
        for name in columns:
            if name not in names:
                raise FatalError(f"{self.path} has no column '{name}'{nearest(name, names)}")

    def _build(self) -> dict[str, Any]:
        try:
            build: dict[str, Any] = json.loads((self.path / "build.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{self.path}: no build here (build.json is missing)") from None
        return build

    def _parts(self) -> list[Path]:
        mine = [name for label, name in self._build()["scores"] if label == self.label]
        parts = [self.path / "parts" / self.label / f"{name}.parquet" for name in mine]
        return [part for part in parts if part.exists()]

    def _members(self) -> list[str]:
        query = f"SELECT DISTINCT edge FROM {sql.parquet(self._parts())} WHERE edge IS NOT NULL ORDER BY edge"
        connection = sql.connect()
        try:
            return [row[0] for row in connection.execute(query).fetchall()]
        finally:
            connection.close()

    def _embedded(self) -> list[str]:
        names = (
            path.name.split(".")[1]
            for part in self._parts()
            for path in part.parent.glob(f"{part.stem}.*.vectors.parquet")
        )
        return sorted(set(names))
