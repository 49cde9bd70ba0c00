"""`clusters`: k-means over the embeddings that an aligner kept; a column for the rules and quotas that follow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field

from mmdata.document import nearest
from mmdata.errors import FatalError
from mmdata.spec import ParameterError
from mmdata.steps.base import Curate
from mmdata.store.curation import Curation
from mmdata.store.sql import identifier, parquet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TYPE: Final = "STRUCT(cluster INTEGER, distance FLOAT)"


class Clusters(Curate):
    """Gives each sample the cluster of its embedding, as a column: `clusters.cluster`, `clusters.distance`.

    The distance is the cosine distance to the centre. Fitted on a sample of the originals that is drawn by their ids,
    and kept until other data is gathered: then centres are found anew, and a number says nothing of the one before.
    """

    step: ClassVar[str] = "clusters"
    extras: ClassVar[tuple[str, ...]] = ("near",)
    name: str = Field("clusters", pattern=r"^[a-z][a-z0-9_]*$", description="the column")
    of: str = Field(pattern=r"^\w+\.\w+$", description="aligner and member: `clip.image`; the aligner keeps embeddings")
    count: int = Field(100, ge=2, le=100_000, description="how many clusters")

    def check(self, curation: Curation) -> None:
        """Raises ParameterError for an aligner or a member that is not there, and a name that is taken."""
        label, _, member = self.of.partition(".")
        columns = curation.columns
        for name, known, what in ((label, columns.aligners, "aligner"), (member, columns.members, "member")):
            if name not in known:
                raise ParameterError([(("of",), f"no {what} is called '{name}'{nearest(name, known)}")])
        taken = curation.one(f"SELECT count(*) FROM (DESCRIBE candidates) WHERE column_name = '{self.name}'")
        if taken:
            raise ParameterError(
                [(("name",), f"the candidates have a column '{self.name}'; give this one another name")]
            )
        curation.extend(self.name, _TYPE)

    def apply(self, curation: Curation) -> None:
        """Fit and assign, unless that was done; add the column. Raises FatalError where no embeddings are kept."""
        if curation.gathered is None:
            raise FatalError("clusters: nothing is gathered")
        made = curation.gathered / f"clusters-{self._digest(curation.seed)}.parquet"
        if not made.exists():
            self._cluster(curation, made)
        table = f"{self.name} of samples"
        # A child whose member is its parent's has no embedding of its own.
        curation.connection.execute(
            f"""CREATE TABLE {identifier(table)} AS
            WITH found AS (SELECT * FROM {parquet([made])})
            SELECT c.sample_id, struct_pack(cluster := coalesce(o.cluster, p.cluster),
                distance := coalesce(o.distance, p.distance)) AS value
            FROM candidates c LEFT JOIN found o ON o.sample_id = c.sample_id
            LEFT JOIN found p ON p.sample_id = c.parent_id
            WHERE coalesce(o.cluster, p.cluster) IS NOT NULL"""
        )
        curation.extend(self.name, _TYPE, table)

    def _digest(self, seed: int) -> str:
        return hashlib.sha256(json.dumps([self.version, self.of, self.count, seed]).encode()).hexdigest()[:32]

    def _cluster(self, curation: Curation, made: Path) -> None:
        """Read the embeddings twice, a part in memory at a time: to fit, then to assign."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from mmdata.near.cells import fit_centres, nearest_centre
        from mmdata.store.files import appearing
        from mmdata.store.parts import iter_vectors

        label, _, member = self.of.partition(".")
        parts = curation.score_parts(label)
        centre_CD = fit_centres(self._sampled(curation, parts), self.count, curation.seed)
        schema = pa.schema([("sample_id", pa.string()), ("cluster", pa.int32()), ("distance", pa.float32())])
        with appearing(made) as scratch, pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
            for ids, vector_ND in iter_vectors(parts, member):
                writer.write_table(
                    pa.table([pa.array(ids), *map(pa.array, nearest_centre(vector_ND, centre_CD))], schema)
                )

    def _sampled(self, curation: Curation, parts: Sequence[Path]) -> NDArray[np.float16]:
        """Embeddings `[N, D]` of originals, sorted by id: all of them, or as many as make good centres."""
        import numpy as np

        from mmdata.near.cells import POINTS_PER_CENTRE
        from mmdata.store.parts import iter_vectors, read_vector_ids

        _, _, member = self.of.partition(".")
        rows = len(read_vector_ids(parts, member))
        if not rows:
            raise FatalError(f"clusters: the aligner keeps no embeddings of '{member}' ({self.of})")
        share = self.count * POINTS_PER_CENTRE / rows
        chosen = list(_drawn(iter_vectors(parts, member), share, curation.seed))
        ids = np.concatenate([ids for ids, _ in chosen])
        vector_ND = np.concatenate([vectors for _, vectors in chosen])
        curation.connection.register("sampled", {"sample_id": ids, "row": np.arange(len(ids))})
        query = (
            """SELECT row FROM sampled JOIN candidates USING (sample_id) WHERE parent_id IS NULL ORDER BY sample_id"""
        )
        row_N = curation.connection.execute(query).fetchnumpy()["row"]
        curation.connection.unregister("sampled")
        if not len(row_N):
            raise FatalError(f"clusters: of the originals none has an embedding by {self.of}")
        sampled_ND: NDArray[np.float16] = vector_ND[np.asarray(row_N)]
        return sampled_ND


def _drawn(
    vectors: Iterator[tuple[list[str], NDArray[np.float16]]], share: float, seed: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.float16]]]:
    """About that share of the samples, drawn by their ids, which are hashes that a multiplication stirs by the seed."""
    import numpy as np

    odd = np.uint64(int.from_bytes(hashlib.blake2b(f"{seed}:clusters".encode(), digest_size=8).digest(), "big") | 1)
    limit = np.uint64(min(share, 1.0) * (2**64 - 2**11))
    for ids, vector_ND in vectors:
        hash_N = np.frombuffer(bytes.fromhex("".join(ids)), ">u8").reshape(-1, 2)[:, 0].astype(np.uint64)
        keep_N = hash_N * odd <= limit if share < 1 else np.ones(len(ids), bool)
        yield np.array(ids, dtype=object)[keep_N], vector_ND[keep_N]
