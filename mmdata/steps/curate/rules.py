"""`rules`: what a sample must satisfy; one that does not is dropped, and the catalog says by which value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from pydantic import Discriminator, Field, Tag, model_validator

from mmdata.document import Keys, closest, nearest
from mmdata.errors import FatalError
from mmdata.spec import Frozen, Names, ParameterError
from mmdata.steps.base import Curate
from mmdata.steps.curate import lists
from mmdata.steps.curate.expressions import (
    check_condition,
    check_number,
    check_text,
    checked_type,
    conjuncts,
    written,
)
from mmdata.store import sql
from mmdata.store.curation import Columns, Curation, explained_value
from mmdata.store.sql import quoted

# A name that no column of a pipeline can have.
_FAILED: Final = '"#failed"'
_SHOWN_CHARS: Final = 200
_NEEDED: Final = "a rule needs one of `sql:`, `by_source:`, `top:`, `bottom:`, `allow:`, `deny:`"


@dataclass(frozen=True)
class Test:
    """What a sample must pass, as SQL over `candidates` and the tables joined to it.

    Attributes:
        fails: true for who is dropped.
        value: what was compared.
        threshold: what with.
        detail: the expression, or what else explains it.
        join: SQL behind `FROM undecided AS candidates`.
    """

    fails: str
    value: str = "NULL"
    threshold: str = "NULL"
    detail: str = "NULL"
    join: str = ""


class _Rule(Frozen):
    """What rules of every kind have."""

    only_for: Names | None = Field(None, description="sources whose samples are judged; default: all")
    not_for: Names | None = Field(None, description="sources whose samples are not judged")

    def sources(self) -> Iterator[str]:
        """Every source that is named."""
        yield from self.only_for or []
        yield from self.not_for or []

    def sql_texts(self) -> Iterator[str]:
        """Every expression in it."""
        yield from ()

    def applies(self) -> str:
        """SQL: whether a sample is judged."""
        only = [f"source IN ({_texts(self.only_for)})"] if self.only_for is not None else []
        return " AND ".join([*only, *([f"source NOT IN ({_texts(self.not_for)})"] if self.not_for else [])]) or "true"


class Expression(_Rule):
    """An SQL expression, and others in its place for some sources."""

    sql: str | None = Field(None, description="true for what is kept; NULL passes")
    by_source: dict[str, str | None] = Field(
        default={}, description="source: the expression for its samples instead; null: they are not judged"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Expression:
        if self.sql is None and not any(self.by_source.values()):
            raise ValueError(_NEEDED)
        return self

    def sources(self) -> Iterator[str]:
        """Every source that is named."""
        yield from super().sources()
        yield from self.by_source

    def expressions(self) -> Iterator[tuple[str, str]]:
        """Each expression, and SQL that tells for whom it stands."""
        if self.sql is not None:
            others = f" AND source NOT IN ({_texts(list(self.by_source))})" if self.by_source else ""
            yield self.sql, self.applies() + others
        for source, expression in self.by_source.items():
            if expression is not None:
                yield expression, f"{self.applies()} AND source = {quoted(source)}"

    def sql_texts(self) -> Iterator[str]:
        """Each expression."""
        yield from (expression for expression, _ in self.expressions())

    def check(self, curation: Curation) -> None:
        """Raises ValueError."""
        for expression in self.sql_texts():
            check_condition(curation, expression)

    def tests(self, curation: Curation, _: str) -> Iterator[Test]:
        """One for each of the expressions that AND joins."""
        for expression, applies in self.expressions():
            for part in conjuncts(curation, expression):
                value = f"TRY_CAST({part.value} AS DOUBLE)"
                yield Test(f"({applies}) AND NOT ({part.sql})", value, part.threshold, quoted(part.sql))


class Quantile(_Rule):
    """The best share of the samples by a number: those that have at least the value of the last one that fits in.

    Of n samples with a value, the value of the `ceil(top * n)`-th is the threshold, exactly reckoned. Who equals it is
    kept too, so ties are never cut. NULL and NaN pass and do not count.
    """

    top: float | None = Field(None, gt=0, le=1, description="share with the highest values that is kept")
    bottom: float | None = Field(None, gt=0, le=1, description="share with the lowest values that is kept")
    by: str = Field(description="SQL expression of a number")
    within: Names = Field(
        default=[], description="SQL expressions; the share is taken of each group where they are equal"
    )
    among: str = Field(
        "parent_id IS NULL", description="SQL condition: of whom the share is taken; others meet the same threshold"
    )

    @model_validator(mode="after")
    def _one_end(self) -> Quantile:
        if (self.top is None) == (self.bottom is None):
            raise ValueError("give one of `top:` and `bottom:`")
        return self

    def sql_texts(self) -> Iterator[str]:
        """The number, of whom the share is taken, the groups."""
        yield from (self.by, self.among, *self.within)

    def check(self, curation: Curation) -> None:
        """Raises ValueError."""
        check_number(curation, self.by)
        check_condition(curation, self.among)
        for expression in self.within:
            checked_type(curation, expression)

    def tests(self, curation: Curation, table: str) -> Iterator[Test]:
        """Find the threshold of each group, in the table named; then the test."""
        within = [written(curation, expression) for expression in self.within]
        self._find_thresholds(curation, within, table)
        same = [f'({group}) IS NOT DISTINCT FROM "{table} w{n}"' for n, group in enumerate(within)]
        join = f'LEFT JOIN "{table}" ON {" AND ".join(same) or "true"}'
        value, sign = self._value(curation), ">=" if self.top is not None else "<="
        bound = f'"{table} bound"'
        fails = f"({self.applies()}) AND NOT (({value}) {sign} {bound})"
        yield Test(fails, value, bound, self._detail(curation, within, table), join)

    def _detail(self, curation: Curation, within: list[str], table: str) -> str:
        """SQL of `(clip.image_caption.score >= 0.31): top 0.3 of 1200, caption.lang = en`."""
        end, sign = (f"top {self.top:g}", ">=") if self.top is not None else (f"bottom {self.bottom:g}", "<=")
        template = quoted(f"({{}} {sign} {{:.6g}}): {end} of {{}}")
        text = f'format({template}, {quoted(written(curation, self.by))}, "{table} bound", "{table} samples")'
        groups = [f"{quoted(f', {group} = ')} || coalesce(CAST(({group}) AS VARCHAR), 'NULL')" for group in within]
        return " || ".join([text, *groups])

    def _value(self, curation: Curation) -> str:
        number = f"CAST(({written(curation, self.by)}) AS DOUBLE)"
        return f"CASE WHEN isnan({number}) THEN NULL ELSE {number} END"

    def _find_thresholds(self, curation: Curation, within: list[str], table: str) -> None:
        names = "".join(f'"{table} w{n}", ' for n in range(len(within)))
        groups = "".join(f'({group}) AS "{table} w{n}", ' for n, group in enumerate(within))
        part = f"PARTITION BY {names.removesuffix(', ')}" if within else ""
        order = "DESC" if self.top is not None else "ASC"
        # As it is written: 0.07 of 100 are 7, though the nearest binary fraction is a little more.
        share = Fraction(repr(self.top if self.top is not None else self.bottom))
        last = f"(samples * {share.numerator}::HUGEINT + {share.denominator - 1}) // {share.denominator}"
        curation.connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE "{table}" AS
            WITH judged AS (SELECT {groups}{self._value(curation)} AS bound FROM undecided AS candidates
                WHERE ({self.applies()}) AND ({written(curation, self.among)})),
            ranked AS (SELECT *, row_number() OVER ({part} ORDER BY bound {order}) AS place,
                count(*) OVER ({part}) AS samples FROM judged WHERE bound IS NOT NULL)
            SELECT {names}bound AS "{table} bound", samples AS "{table} samples" FROM ranked WHERE place = {last}"""
        )


class Listed(_Rule):
    """What a list names is kept (`allow`) or dropped (`deny`)."""

    allow: Names | None = Field(None, description="files of what is kept: .txt (a line each), .csv, .tsv or .parquet")
    deny: Names | None = Field(None, description="files of what is dropped")
    column: str | None = Field(None, description="of a table; may be left out where it has but one")
    of: str = Field("key", description="SQL expression of the text that is looked up: key, image.sha256, caption.text")
    match: lists.Match = Field(
        "exact",
        description="exact; text: but for case and white space; host: of a URL; domain: of a URL, or one above it "
        "(münchen.de is xn--mnchen-3ya.de)",
    )

    @model_validator(mode="after")
    def _one_list(self) -> Listed:
        if (self.allow is None) == (self.deny is None):
            raise ValueError("give one of `allow:` and `deny:`")
        return self

    @property
    def files(self) -> list[Path]:
        """The lists."""
        return [Path(file) for file in self.allow or self.deny or []]

    def sql_texts(self) -> Iterator[str]:
        """What is looked up."""
        yield self.of

    def check(self, curation: Curation) -> None:
        """Raises ValueError."""
        check_text(curation, self.of)
        for file in self.files:
            lists.check_list(file, self.column)

    def tests(self, curation: Curation, table: str) -> Iterator[Test]:
        """Load the lists and find the distinct values that they name; then the test."""
        lists.load_list(curation, self.files, self.column, self.match, f"{table} entries")
        looked_up = lists.comparable(f"({written(curation, self.of)})", self.match)
        self._find_named(curation, looked_up, table)
        names = ", ".join(file.name for file in self.files)
        fails, about = ("IS NULL", f" not in {names}") if self.allow is not None else ("IS NOT NULL", f" in {names}")
        yield Test(
            f'({self.applies()}) AND ({looked_up}) IS NOT NULL AND "{table} named" {fails}',
            detail=f'left(coalesce("{table} named", {looked_up}), {_SHOWN_CHARS}) || {quoted(about)}',
            join=f'LEFT JOIN "{table}" ON "{table} looked_up" = ({looked_up})',
        )

    def _find_named(self, curation: Curation, looked_up: str, table: str) -> None:
        """Table (looked_up, named): the values that are named, and by which entry, the most specific one."""
        if self.match == "domain":
            above = lists.suffixes("looked_up")
            query = f"""SELECT looked_up, max_by(entry, len(entry)) AS named FROM
                (SELECT looked_up, unnest({above}) AS domain FROM asked)
                JOIN "{table} entries" ON entry = domain GROUP BY looked_up"""
        else:
            query = f'SELECT looked_up, entry AS named FROM asked JOIN "{table} entries" ON entry = looked_up'
        curation.connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE "{table}" AS
            WITH asked AS (SELECT DISTINCT {looked_up} AS looked_up FROM undecided AS candidates)
            SELECT looked_up AS "{table} looked_up", named AS "{table} named" FROM ({query})"""
        )


# Each of these keys is of one kind only; where several stand, the first kind is meant.
_TELLING: Final[dict[type[_Rule], set[str]]] = {
    Quantile: {"top", "bottom"},
    Listed: {"allow", "deny"},
    Expression: {"sql", "by_source"},
}


def _kind(rule: Any) -> str | None:
    """Which kind a rule is: by a key that tells, else the kind that has most of its keys, or keys like them."""
    if not isinstance(rule, dict | _Rule):
        return "text"
    keys = rule.model_fields_set if isinstance(rule, _Rule) else set(rule)
    for kind, telling in _TELLING.items():
        if keys & telling:
            return kind.__name__
    own = {kind.__name__: kind.model_fields.keys() - _Rule.model_fields.keys() for kind in _TELLING}
    like = {name: sum(closest(str(key), known) is not None for key in keys) for name, known in own.items()}
    return max(like, key=like.__getitem__) if any(like.values()) else None


Rule = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Expression, Tag("Expression")]
    | Annotated[Quantile, Tag("Quantile")]
    | Annotated[Listed, Tag("Listed")],
    Discriminator(_kind, custom_error_type="rule", custom_error_message=_NEEDED),
]


class Rules(Curate):
    """What samples must satisfy, by name: SQL expressions, quantiles, lists. Who fails several is dropped by the first.

    All rules of a step judge all samples that come into it: their order decides which one is named, never who is kept.
    NULL passes, as in SQL's CHECK: a rule about a member that a sample does not have says nothing about it. To demand
    a member write `speech IS NOT NULL`.
    """

    step: ClassVar[str] = "rules"
    version: ClassVar[int] = 2  # hosts in both of their spellings
    keep: dict[str, Rule] = Field(
        min_length=1, description="name: an SQL expression that is true for what is kept, or a mapping"
    )

    @property
    def rules(self) -> dict[str, Expression | Quantile | Listed]:
        """The rules, short forms written out."""
        return {name: Expression(sql=rule) if isinstance(rule, str) else rule for name, rule in self.keep.items()}

    def identity(self) -> dict[str, Any]:
        """Parameters, and the content of the lists."""
        files = [file for rule in self.rules.values() if isinstance(rule, Listed) for file in rule.files]
        return {**super().identity(), **({"lists": [lists.digest(file) for file in files]} if files else {})}

    def check(self, curation: Curation) -> None:
        """Bind each rule. Raises ParameterError that names the rules and the nearest columns or sources."""
        problems: list[tuple[Keys, str]] = []
        for name, rule in self.rules.items():
            try:
                _check_sources(rule, curation.columns)
                rule.check(curation)
            except ValueError as error:
                problems.append((("keep", name), f"rule '{name}': {error}"))
        if problems:
            raise ParameterError(problems)

    def sql_texts(self) -> Iterator[tuple[Keys, str]]:
        """Those of each rule."""
        for name, rule in self.rules.items():
            yield from ((("keep", name), text) for text in rule.sql_texts())

    def apply(self, curation: Curation) -> None:
        """One pass over the samples: each gets the fate of the first rule it fails. Raises FatalError with the rule."""
        tests: list[tuple[str, Test]] = []
        for number, (name, rule) in enumerate(self.rules.items()):
            try:
                tests += [(name, test) for test in rule.tests(curation, f"rule {number}")]
            except sql.Error as error:
                raise FatalError(f"rule '{name}': {explained_value(error, curation.columns)}") from None
        try:
            curation.connection.execute(_insertion(tests))
        except sql.Error as error:
            # What binds may still meet a value that it cannot take: a text that is no number, say.
            culprit = _culprit(curation, tests)
            raise FatalError(f"rule '{culprit}': {explained_value(error, curation.columns)}") from None


def _insertion(tests: list[tuple[str, Test]]) -> str:
    """The fates of all who fail a test."""
    failed = " ".join(f"WHEN {test.fails} THEN {number}" for number, (_, test) in enumerate(tests))
    rule = _case((quoted(name) for name, _ in tests), "VARCHAR")
    value = _case((test.value for _, test in tests), "DOUBLE")
    threshold = _case((test.threshold for _, test in tests), "DOUBLE")
    detail = _case((test.detail for _, test in tests), "VARCHAR")
    joins = "\n".join(dict.fromkeys(test.join for _, test in tests))
    return f"""INSERT INTO fates
    SELECT sample_id, 'dropped', 'rules', {rule}, {value}, {threshold}, {detail}
    FROM (SELECT *, CASE {failed} END AS {_FAILED} FROM undecided AS candidates {joins}) AS candidates
    WHERE {_FAILED} IS NOT NULL"""


def _case(values: Iterator[str], kind: str) -> str:
    cases = " ".join(f"WHEN {number} THEN {value}" for number, value in enumerate(values))
    return f"CASE {_FAILED} {cases} ELSE NULL::{kind} END"


def _culprit(curation: Curation, tests: list[tuple[str, Test]]) -> str:
    """The rule that cannot be judged, when together they cannot."""
    for name, test in tests:
        try:
            curation.one(f"SELECT count(*) FROM undecided AS candidates {test.join} WHERE {test.fails}")
        except sql.Error:
            return name
    return tests[-1][0]


def _check_sources(rule: _Rule, columns: Columns) -> None:
    for source in rule.sources():
        if source not in columns.sources:
            raise ValueError(f"no source is called '{source}'{nearest(source, columns.sources)}")


def _texts(names: list[str]) -> str:
    return ", ".join(map(quoted, names)) or "NULL"
