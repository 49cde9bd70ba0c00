"""`mix`: sources, or other kinds of samples, in the proportions that are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from mmdata.document import Keys, nearest
from mmdata.spec import ParameterError
from mmdata.steps.base import Curate
from mmdata.steps.curate.draws import shuffled
from mmdata.steps.curate.expressions import check_condition, checked_type, written
from mmdata.store.curation import Curation
from mmdata.store.sql import quoted

_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Mix(Curate):
    """As many samples of each kind as its weight says; the kind that is scarcest for its weight stays whole.

    Samples are left out, never doubled. Where a kind has no samples, the others are mixed as if it were not named, and
    the build says so. A kind that is not named has weight 0; where the expression is NULL, a sample is of no kind and
    stays.
    """

    step: ClassVar[str] = "mix"
    weights: dict[str, _Weight] = Field(min_length=1, description="value: weight; only their proportions count")
    by: str = Field("source", description="SQL expression whose values are weighted")
    total: int | None = Field(None, ge=1, description="at most so many samples in all")
    among: str = Field("parent_id IS NULL", description="SQL condition: who is counted; children go with their parents")

    @field_validator("weights")
    @classmethod
    def _weighs_something(cls, weights: dict[str, float]) -> dict[str, float]:
        if not any(weights.values()):
            raise ValueError("all weights are 0: nothing would stay")
        return weights

    def check(self, curation: Curation) -> None:
        """Raises ParameterError for what does not bind; for sources that have no weight, and weights that have none."""
        problems: list[tuple[Keys, str]] = []
        for field, check, expression in (("by", checked_type, self.by), ("among", check_condition, self.among)):
            try:
                check(curation, expression)
            except ValueError as error:
                problems.append(((field,), str(error)))
        if self.by == "source":
            known = curation.columns.sources
            problems += [
                (("weights", name), f"no source is called '{name}'{nearest(name, known)}")
                for name in self.weights
                if name not in known
            ]
            unnamed = [name for name in known if name not in self.weights]
            if unnamed and not problems:
                problems.append(
                    (("weights",), f"the source '{unnamed[0]}' has no weight; give it one, 0 leaves it out")
                )
        if problems:
            raise ParameterError(problems)

    def sql_texts(self) -> Iterator[tuple[Keys, str]]:
        """What is weighted, and who is counted."""
        yield ("by",), self.by
        yield ("among",), self.among

    def named_values(self) -> Iterator[tuple[Keys, str, str, list[str]]]:
        """Those that have a weight."""
        yield ("weights",), self.by, self.among, [value for value, weight in self.weights.items() if weight]

    def apply(self, curation: Curation) -> None:
        """Drop who has no place: `value` is its place in the draw of its kind, `threshold` how many of it stay."""
        kind = f"CAST(({written(curation, self.by)}) AS VARCHAR)"
        counted = f"undecided AS candidates WHERE ({written(curation, self.among)}) AND {kind} IS NOT NULL"
        query = f"SELECT {kind}, count(*) FROM {counted} GROUP BY 1"
        there: dict[str, int] = dict(curation.connection.execute(query).fetchall())
        cases = "".join(f" WHEN {quoted(value)} THEN {stay}" for value, stay in self.staying(there).items())
        curation.connection.execute(
            f"""INSERT INTO fates
            SELECT sample_id, 'dropped', 'mix', {quoted(self.by)}, "#place", "#stay",
                {quoted(f"{self.by} = ")} || "#kind"
            FROM (SELECT sample_id, {kind} AS "#kind", CASE {kind} {cases} ELSE 0 END AS "#stay",
                row_number() OVER (PARTITION BY {kind} ORDER BY {shuffled(curation.seed)}) AS "#place" FROM {counted})
            WHERE "#place" > "#stay\""""
        )

    def staying(self, there: dict[str, int]) -> dict[str, int]:
        """How many samples of each kind stay, of those that are there: exact, in fractions of the decimals written."""
        weights = {
            value: Fraction(repr(weight)) for value, weight in self.weights.items() if weight and there.get(value)
        }
        if not weights:
            return dict.fromkeys(self.weights, 0)
        size = min(there[value] / weight for value, weight in weights.items())
        if self.total is not None:
            size = min(size, self.total / sum(weights.values(), Fraction(0)))
        return dict.fromkeys(self.weights, 0) | {value: int(weight * size) for value, weight in weights.items()}
