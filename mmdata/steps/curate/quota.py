"""`quota`: at most so many samples of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from mmdata.document import Keys
from mmdata.spec import Names, ParameterError
from mmdata.steps.base import Curate
from mmdata.steps.curate.draws import shuffled
from mmdata.steps.curate.expressions import check_condition, check_order, checked_type, written, written_order
from mmdata.store.curation import Curation
from mmdata.store.sql import quoted

_Count = Annotated[int, Field(ge=0)]


class Quota(Curate):
    """At most so many samples of each value of an expression: a domain, a language, a cluster, an hour of a recording.

    Who stays is drawn by a hash of the sample, or is the best by an order; so a newcomer takes at most one place. A
    sample for which an expression is NULL is of no kind, and stays.
    """

    step: ClassVar[str] = "quota"
    by: Names = Field(min_length=1, description="SQL expressions; samples where all are equal are of one kind")
    most: _Count | dict[str, _Count] = Field(
        description="samples of each kind that stay, or `value: samples` for the values of one expression"
    )
    others: _Count | None = Field(None, description="of each value that `most` does not name; default: all stay")
    best: str | None = Field(
        None, description="SQL order; the first stay: `clip.image_caption.score DESC`; default: draw"
    )
    among: str = Field("parent_id IS NULL", description="SQL condition: who is counted; children go with their parents")

    @model_validator(mode="after")
    def _names_values_of_one(self) -> Quota:
        if isinstance(self.most, dict) and len(self.by) > 1:
            raise ValueError("`most:` names values of one expression, but `by:` has several; join them in one")
        if self.others is not None and not isinstance(self.most, dict):
            raise ValueError("`others:` needs `most:` to name values")
        return self

    def check(self, curation: Curation) -> None:
        """Raises ParameterError for what does not bind."""
        problems: list[tuple[Keys, str]] = []
        checks = [("by", checked_type, one) for one in self.by] + [("among", check_condition, self.among)]
        for field, check, expression in [*checks, *([("best", check_order, self.best)] if self.best else [])]:
            try:
                check(curation, expression)
            except ValueError as error:
                problems.append(((field,), str(error)))
        if problems:
            raise ParameterError(problems)

    def sql_texts(self) -> Iterator[tuple[Keys, str]]:
        """Kinds, the order, who is counted."""
        yield from ((("by",), expression) for expression in self.by)
        yield from [(("best",), self.best)] if self.best else []
        yield ("among",), self.among

    def named_values(self) -> Iterator[tuple[Keys, str, str, list[str]]]:
        """Those that have a quota of their own."""
        if isinstance(self.most, dict):
            yield ("most",), self.by[0], self.among, list(self.most)

    def apply(self, curation: Curation) -> None:
        """Count, and drop who has no place: `value` is its place, `threshold` the quota."""
        keys = [f"CAST(({written(curation, one)}) AS VARCHAR)" for one in self.by]
        kind = ", ".join(f'{key} AS "#k{n}"' for n, key in enumerate(keys))
        kinds = f"PARTITION BY {', '.join(keys)}"
        there = " AND ".join(f"{key} IS NOT NULL" for key in keys)
        order = ", ".join([*([written_order(curation, self.best)] if self.best else []), shuffled(curation.seed)])
        detail = " || ', ' || ".join(f'{quoted(f"{one} = ")} || "#k{n}"' for n, one in enumerate(self.by))
        curation.connection.execute(
            f"""INSERT INTO fates
            SELECT sample_id, 'dropped', 'quota', {quoted(", ".join(self.by))}, "#place", "#most",
                {detail} || ': ' || "#all" || ' samples'
            FROM (SELECT sample_id, {kind}, {self._most(keys[0])} AS "#most",
                row_number() OVER ({kinds} ORDER BY {order}) AS "#place", count(*) OVER ({kinds}) AS "#all"
                FROM undecided AS candidates WHERE ({written(curation, self.among)}) AND {there})
            WHERE "#place" > "#most\""""
        )

    def _most(self, key: str) -> str:
        """SQL of the quota of a kind, NULL where there is none."""
        if isinstance(self.most, int):
            return str(self.most)
        others = "NULL" if self.others is None else str(self.others)
        cases = " ".join(f"WHEN {quoted(value)} THEN {most}" for value, most in self.most.items())
        return f"CASE {key} {cases} ELSE {others} END" if cases else others
