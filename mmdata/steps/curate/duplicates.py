"""`duplicates`: of samples with the same content, one stays."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from mmdata.spec import nearest
from mmdata.steps.base import Curate
from mmdata.store.curation import Curation
from mmdata.store.sql import identifier


class Duplicates(Curate):
    """Exact duplicates by sha256 of the members named: the best of each group stays, the others say of which."""

    step: ClassVar[str] = "duplicates"
    of: list[str] = Field(min_length=1, description="members that must all be equal; samples that lack one are left")
    best: str = Field("key", description="SQL order; the first of a group stays, for example `image.width DESC`")

    def check(self, curation: Curation) -> None:
        """Raises ValueError for an unknown member, duckdb.Error for an order that does not bind."""
        for name in self.of:
            if name not in curation.columns.members:
                raise ValueError(f"no member '{name}'{nearest(name, curation.columns.members)}")
        curation.connection.execute(f"EXPLAIN {self._query('candidates')}")

    def apply(self, curation: Curation) -> None:
        """Children are not judged: they share members with their parent on purpose."""
        curation.connection.execute(f"INSERT INTO fates {self._query('undecided')}")

    def _query(self, table: str) -> str:
        digests = ", ".join(f"{identifier(name)}.sha256" for name in self.of)
        there = " AND ".join(f"{identifier(name)} IS NOT NULL" for name in self.of)
        return f"""
SELECT sample_id, 'duplicate', 'duplicates', {"'" + "+".join(self.of) + "'"}, NULL, NULL, kept FROM (
    SELECT sample_id, first_value(sample_id) OVER same AS kept FROM {table} WHERE parent_id IS NULL AND {there}
    WINDOW same AS (PARTITION BY {digests} ORDER BY {self.best}, source, key)
) WHERE sample_id <> kept"""
