"""`rules`: named SQL expressions; a sample for which one is false is dropped, and the catalog says by which value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from mmdata.errors import FatalError
from mmdata.steps.base import Curate
from mmdata.store import sql
from mmdata.store.curation import Curation, explained
from mmdata.store.sql import quoted

_COMPARISONS = ("COMPARE_GREATERTHAN", "COMPARE_GREATERTHANOREQUALTO", "COMPARE_LESSTHAN", "COMPARE_LESSTHANOREQUALTO")


class Rules(Curate):
    """Named SQL expressions over the candidates' columns: a sample is dropped by the first that is false for it.

    NULL passes, as in SQL's CHECK: a rule about a member that a sample does not have says nothing about it. To demand
    a member write `speech IS NOT NULL`.
    """

    step: ClassVar[str] = "rules"
    keep: dict[str, str] = Field(min_length=1, description="name: expression; what a sample must satisfy")

    def check(self, curation: Curation) -> None:
        """Bind each rule. Raises ValueError that names the rule and the nearest column."""
        for name, expression in self.keep.items():
            try:
                for part in conjuncts(curation, expression):
                    # As `apply` uses it: what may not stand in WHERE (an aggregate, a window) is no rule.
                    curation.connection.execute(f"EXPLAIN SELECT 1 FROM candidates WHERE NOT ({part.sql})")
            except (sql.Error, ValueError) as error:
                raise ValueError(f"rule '{name}': {explained(error, curation.columns)}") from None

    def apply(self, curation: Curation) -> None:
        """One INSERT a conjunct: whoever fails it and has no fate yet gets one. Raises FatalError with the rule."""
        for name, expression in self.keep.items():
            for part in conjuncts(curation, expression):
                try:
                    curation.connection.execute(
                        f"""INSERT INTO fates SELECT sample_id, 'dropped', 'rules', {quoted(name)},
                        TRY_CAST({part.value} AS DOUBLE), {part.threshold}, {quoted(part.sql)}
                        FROM undecided WHERE NOT ({part.sql})"""
                    )
                except sql.Error as error:
                    # What binds may still meet a value that it cannot take: a text that is no number, say.
                    raise FatalError(f"rule '{name}': {explained(error, curation.columns)}") from None


@dataclass(frozen=True)
class Conjunct:
    """One of the expressions that AND joins.

    Attributes:
        sql: the expression.
        value: SQL of what was compared, `NULL` where it is no comparison with a constant.
        threshold: SQL of the constant.
    """

    sql: str
    value: str = "NULL"
    threshold: str = "NULL"


def conjuncts(curation: Curation, expression: str) -> list[Conjunct]:
    """Split `a >= 1 AND b` by DuckDB's own parser. Raises ValueError for what is not one expression."""
    query = f"SELECT {expression}\nFROM candidates"
    tree = json.loads(curation.one(f"SELECT json_serialize_sql({quoted(query)})"))
    if tree.get("error"):
        raise ValueError(f"does not parse: {tree.get('error_message')}")
    node = tree["statements"][0]["node"] if len(tree["statements"]) == 1 else {}
    plain = node.get("from_table", {}).get("table_name") == "candidates" and not node.get("where_clause")
    if not plain or node.get("modifiers") or len(node["select_list"]) != 1 or node["group_expressions"]:
        raise ValueError("a rule is one expression, true for what is kept")
    return [_conjunct(curation, tree, part) for part in _split(node["select_list"][0])]


def _split(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if node["type"] == "CONJUNCTION_AND":
        for child in node["children"]:
            yield from _split(child)
    else:
        yield {**node, "alias": ""}


def _conjunct(curation: Curation, tree: dict[str, Any], node: dict[str, Any]) -> Conjunct:
    text = _written(curation, tree, node)
    if node["type"] in _COMPARISONS:
        for value, constant in (("left", "right"), ("right", "left")):
            if node[constant]["class"] == "CONSTANT" and node[value]["class"] != "CONSTANT":
                limit = _written(curation, tree, node[constant])
                return Conjunct(text, _written(curation, tree, node[value]), f"TRY_CAST({limit} AS DOUBLE)")
    return Conjunct(text)


def _written(curation: Curation, tree: dict[str, Any], node: dict[str, Any]) -> str:
    """The SQL of one node of the tree, written by DuckDB."""
    statement = json.loads(json.dumps(tree))
    statement["statements"][0]["node"]["select_list"] = [node]
    text = str(curation.one(f"SELECT json_deserialize_sql({quoted(json.dumps(statement))})"))
    return text.removeprefix("SELECT ").removesuffix(" FROM candidates")
