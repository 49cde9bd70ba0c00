"""`rules`: named SQL expressions; a sample for which one is false is dropped, and the catalog says by which value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from mmdata.spec import nearest
from mmdata.steps.base import Curate
from mmdata.store import sql
from mmdata.store.curation import Curation
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
                    curation.connection.execute(f"EXPLAIN SELECT CAST(({part.sql}) AS BOOLEAN) FROM candidates")
            except (sql.Error, ValueError) as error:
                raise ValueError(f"rule '{name}': {_plain(error, curation)}") from None

    def apply(self, curation: Curation) -> None:
        """One INSERT a conjunct: whoever fails it and has no fate yet gets one."""
        for name, expression in self.keep.items():
            for part in conjuncts(curation, expression):
                curation.connection.execute(
                    f"""INSERT INTO fates SELECT sample_id, 'dropped', 'rules', {quoted(name)},
                    TRY_CAST({part.value} AS DOUBLE), {part.threshold}, {quoted(part.sql)}
                    FROM undecided WHERE NOT ({part.sql})"""
                )


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


def _plain(error: Exception, curation: Curation) -> str:
    message = str(error).split("\n\n")[0].splitlines()[0]
    unknown = message.split('"')[1] if '"' in message else ""
    names = curation.columns.names()
    known = names + [n.split(".")[0] for n in names] + [n.split(".")[1] for n in names if "." in n]
    return message + (nearest(unknown, set(known)) if "not found" in message or "Could not find" in message else "")
