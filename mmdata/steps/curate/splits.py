"""`splits`: by a hash of the group, so that a group never straddles and a sample never moves when others come."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from mmdata.spec import nearest
from mmdata.steps.base import Curate
from mmdata.store.curation import Curation
from mmdata.store.sql import quoted

_SUM_TOLERANCE = 1e-6


class Splits(Curate):
    """Shares of the samples, by a hash of their group; children stay with their parents."""

    step: ClassVar[str] = "splits"
    shares: dict[str, float] = Field(
        default={"train": 0.9, "val": 0.1},
        min_length=1,
        description="name: share of the groups; the shares add up to 1",
    )
    by: str = Field("sample_id", description="SQL expression of the originals; samples where it is equal are one group")
    augmented: list[str] | None = Field(
        None, description="splits that children may be in; default: the first. Elsewhere they are dropped"
    )

    @field_validator("shares")
    @classmethod
    def _adds_up(cls, shares: dict[str, float]) -> dict[str, float]:
        for name, share in shares.items():
            if share < 0:
                raise ValueError(f"the share of '{name}' is negative")
        if abs(sum(shares.values()) - 1) > _SUM_TOLERANCE:
            raise ValueError(f"the shares add up to {sum(shares.values()):g}, not to 1")
        for name in shares:
            if not name.isidentifier():
                raise ValueError(f"the split '{name}' must be letters, digits and '_': it names files")
        return shares

    def check(self, curation: Curation) -> None:
        """Raises ValueError for a split that is not there, duckdb.Error for an expression that does not bind."""
        for name in self.augmented or []:
            if name not in self.shares:
                raise ValueError(f"augmented: no split '{name}'{nearest(name, self.shares)}")
        curation.connection.execute(f"EXPLAIN SELECT CAST(({self.by}) AS VARCHAR) FROM candidates")

    def apply(self, curation: Curation) -> None:
        """Place every candidate, then drop the children that ended in a split of originals only."""
        curation.connection.execute("DELETE FROM places")
        curation.connection.execute(
            f"""INSERT INTO places
            WITH grouped AS (SELECT sample_id, md5(coalesce(CAST(({self.by}) AS VARCHAR), sample_id)) AS group_id
                FROM candidates WHERE parent_id IS NULL),
            hashed AS (SELECT *, {unit_interval(curation.seed, "group_id")} AS u FROM grouped)
            SELECT c.sample_id, h.group_id, {self._split_of("h.u")}
            FROM candidates c JOIN hashed h ON h.sample_id = coalesce(c.parent_id, c.sample_id)"""
        )
        allowed = ", ".join(map(quoted, self.augmented if self.augmented is not None else [next(iter(self.shares))]))
        curation.connection.execute(
            f"""INSERT INTO fates SELECT u.sample_id, 'dropped', 'splits', 'augmented_only_in', NULL, NULL, p.split
            FROM undecided u JOIN places p USING (sample_id)
            WHERE u.parent_id IS NOT NULL AND p.split NOT IN ({allowed or "''"})"""
        )

    def _split_of(self, unit: str) -> str:
        cases, bound = [], 0.0
        for name, share in self.shares.items():
            bound += share
            cases.append(f"WHEN {unit} < {bound!r} THEN {quoted(name)}")
        return f"CASE {' '.join(cases)} ELSE {quoted(list(self.shares)[-1])} END"


def unit_interval(seed: int, column: str) -> str:
    """SQL of a number in [0, 1) that depends only on the seed and the column: 32 bits of MD5."""
    return f"(('0x' || substr(md5('{seed}:' || {column}), 1, 8))::UBIGINT / 4294967296.0)"
