"""SQL expressions of pipeline files: what may stand in one, taken apart and written anew by DuckDB's own parser.

An expression looks at one sample, and gives the same whenever and wherever it is asked. What does not is refused by a
plan: subqueries, aggregates and windows (they look at other samples), `random()`, `now()` and the like (DuckDB's
catalogue of functions says which).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmdata.store import sql
from mmdata.store.curation import Curation, explained
from mmdata.store.sql import quoted

_COMPARISONS: Final = (
    "COMPARE_GREATERTHAN",
    "COMPARE_GREATERTHANOREQUALTO",
    "COMPARE_LESSTHAN",
    "COMPARE_LESSTHANOREQUALTO",
)
# Functions that take a map and a key, as `attributes['speaker']` does.
_LOOKUPS: Final = frozenset({"array_extract", "element_at", "map_contains", "map_extract", "map_extract_value"})
_NUMBERS: Final = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "U", "BIGNUM")
NULL_TYPE: Final = '"NULL"'
# Parsed as columns, not as calls.
_CLOCKS: Final = frozenset({"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"})
# What rules are made of: asking DuckDB's catalogue takes 0.05 s, and a plan has 0.5. A test holds them against it.
STEADY: Final = frozenset(
    {
        "~~",
        "!~~",
        "abs",
        "coalesce",
        "contains",
        "ends_with",
        "greatest",
        "least",
        "len",
        "length",
        "list_value",
        "lower",
    }
    | {"regexp_extract", "regexp_matches", "round", "split_part", "starts_with", "substr", "trim", "upper"}
)
# What `_unsteady` found: the same for every connection of a process.
_FOUND: Final[set[str]] = set()


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
    """Split `a >= 1 AND b`, or `a BETWEEN 1 AND 2`, by DuckDB's own parser.

    Raises ValueError for what is not one expression.
    """
    tree = _parsed(curation, expression)
    return [_conjunct(curation, tree, part) for part in _split(_selected(tree))]


def written(curation: Curation, expression: str) -> str:
    """The expression as DuckDB writes it: without comments, and safe to put between brackets.

    Raises ValueError for what is not one expression.
    """
    tree = _parsed(curation, expression)
    return _written(curation, tree, {**_selected(tree), "alias": ""})


def checked_type(curation: Curation, expression: str) -> str:
    """The SQL type of an expression over one sample.

    Raises ValueError, with the nearest name where a column is unknown, for what does not bind, looks at other samples,
    or does not give the same twice.
    """
    tree = _parsed(curation, expression)
    _refuse_unsteady(curation, _selected(tree))
    text = written(curation, expression)
    try:
        # As steps use it: what may not stand in WHERE (an aggregate, a window) is refused. Not EXPLAIN: a pattern that
        # does not compile is found when it runs, over the empty tables of a plan too.
        curation.connection.execute(f"SELECT 1 FROM candidates WHERE ({text}) IS NULL")
        kind = curation.one(f"SELECT column_type FROM (DESCRIBE SELECT {text} FROM candidates)")
        _check_constants(curation, tree)
    except sql.Error as error:
        raise ValueError(explained(error, curation.columns)) from None
    return str(kind)


def _check_constants(curation: Curation, tree: dict[str, Any]) -> None:
    """Raises sql.Error for a text that what it is compared with can never be: `date >= '2020-13-01'` of a DATE."""
    kinds: dict[str, str] = {}
    # What a lambda calls its argument is no column.
    for node in _nodes(_selected(tree), closed=("SUBQUERY", "LAMBDA")):
        if node["class"] != "COMPARISON":
            continue
        for one, other in (("left", "right"), ("right", "left")):
            is_text = node[one].get("literal", {}).get("kind") == "STRING"
            if is_text and node[other]["class"] != "CONSTANT":
                constant, compared = (_written(curation, tree, node[end]) for end in (one, other))
                if compared not in kinds:
                    described = f"DESCRIBE SELECT {compared} FROM candidates"
                    kinds[compared] = curation.one(f"SELECT column_type FROM ({described})")
                if kinds[compared] != "VARCHAR":
                    curation.one(f"SELECT CAST({constant} AS {kinds[compared]})")


def check_condition(curation: Curation, expression: str) -> None:
    """Raises ValueError for an expression that is not true or false (see `checked_type`)."""
    kind = checked_type(curation, expression)
    if kind not in ("BOOLEAN", NULL_TYPE):
        raise ValueError(f"must be true or false, but is {kind}; compare it: `{expression} >= ...`")


def check_number(curation: Curation, expression: str) -> None:
    """Raises ValueError for an expression that is no number (see `checked_type`)."""
    kind = checked_type(curation, expression)
    if not kind.startswith(_NUMBERS) or kind.startswith(("UUID", "UNION")) or kind.endswith("]"):
        raise ValueError(f"must be a number, but `{expression}` is {kind}")


def check_text(curation: Curation, expression: str) -> None:
    """Raises ValueError for an expression that is no text (see `checked_type`)."""
    kind = checked_type(curation, expression)
    if kind != "VARCHAR":
        raise ValueError(f"must be a text, but `{expression}` is {kind}; cast it: `CAST(... AS VARCHAR)`")


def check_order(curation: Curation, order: str) -> None:
    """Raises ValueError for what cannot stand behind ORDER BY, or does not give the same order twice."""
    try:
        for one in _ordered(curation, order)["orders"]:
            _refuse_unsteady(curation, one["expression"])
        text = written_order(curation, order)
        curation.connection.execute(f"EXPLAIN SELECT row_number() OVER (ORDER BY {text}) FROM candidates")
    except sql.Error as error:
        raise ValueError(explained(error, curation.columns)) from None


def written_order(curation: Curation, order: str) -> str:
    """What stands behind ORDER BY as DuckDB writes it. Raises ValueError for what is no order."""
    _ordered(curation, order)
    query = f"SELECT 1 FROM candidates ORDER BY {order}\n"
    text = str(curation.one(f"SELECT json_deserialize_sql(json_serialize_sql({quoted(query)}))"))
    return text.removeprefix("SELECT 1 FROM candidates ORDER BY ")


def attribute_keys(curation: Curation, text: str) -> list[str]:
    """The attributes that an expression, or an order, names: `speaker` of `attributes['speaker']`.

    Keys that are reckoned (`attributes[source || '_score']`) are none. Raises ValueError for what does not parse.
    """
    # What may be selected may be ordered by, and the other way round there may be several.
    return list(dict.fromkeys(key for node in _nodes(_ordered(curation, text)) for key in _looked_up(curation, node)))


def _looked_up(curation: Curation, node: dict[str, Any]) -> Iterator[str]:
    """The attribute that a node asks for by a constant, if it does."""
    path = _path(node)
    if len(path) > 1 and path[-2] == "attributes":
        yield node["column_names"][-1]
    if node["type"] != "ARRAY_EXTRACT" and _called(node) not in _LOOKUPS:
        return
    match [one.get("expression", one) for name in ("children", "arguments") for one in node.get(name, ())]:
        case [of, key] if _path(of)[-1:] == ["attributes"] and key["class"] == "CONSTANT":
            yield str(curation.one(f"SELECT {_written(curation, _parsed(curation, 'NULL'), key)}"))


def _path(node: dict[str, Any]) -> list[str]:
    """Of `candidates.attributes` both names, in lower case as they are compared; of what is no column none."""
    return [name.lower() for name in node["column_names"]] if node["class"] == "COLUMN_REF" else []


def _ordered(curation: Curation, order: str) -> dict[str, Any]:
    """The parsed order. Raises ValueError."""
    tree = _tree(curation, f"SELECT 1 FROM candidates ORDER BY {order}\n")
    node = tree["statements"][0]["node"] if len(tree["statements"]) == 1 else {}
    modifiers: list[dict[str, Any]] = node.get("modifiers", [])
    if [modifier["type"] for modifier in modifiers] != ["ORDER_MODIFIER"]:
        raise ValueError("must be an order, as behind SQL's ORDER BY: `image.width DESC, key`")
    return modifiers[0]


def _parsed(curation: Curation, expression: str) -> dict[str, Any]:
    """The tree of `SELECT expression FROM candidates`. Raises ValueError."""
    tree = _tree(curation, f"SELECT {expression}\nFROM candidates")
    node = tree["statements"][0]["node"] if len(tree["statements"]) == 1 else {}
    table = node.get("from_table", {})
    plain = table.get("table_name") == "candidates" and not table.get("alias") and not node.get("where_clause")
    more = plain and (node["modifiers"] or len(node["select_list"]) != 1 or node["group_expressions"])
    if not plain or more or node.get("having") or node.get("qualify") or node.get("sample"):
        raise ValueError("must be one SQL expression over the columns of a sample")
    return tree


def _tree(curation: Curation, query: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(curation.one(f"SELECT json_serialize_sql({quoted(query)})"))
    if tree.get("error"):
        raise ValueError(f"does not parse: {str(tree.get('error_message')).splitlines()[0]}")
    return tree


def _selected(tree: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = tree["statements"][0]["node"]["select_list"][0]
    return node


def _split(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if node["type"] == "CONJUNCTION_AND":
        for child in node["children"]:
            yield from _split(child)
    elif node["type"] == "COMPARE_BETWEEN":
        for kind, bound in (("COMPARE_GREATERTHANOREQUALTO", "lower"), ("COMPARE_LESSTHANOREQUALTO", "upper")):
            yield {"class": "COMPARISON", "type": kind, "alias": "", "left": node["input"], "right": node[bound]}
    else:
        yield {**node, "alias": ""}


def _conjunct(curation: Curation, tree: dict[str, Any], node: dict[str, Any]) -> Conjunct:
    text = _written(curation, tree, node)
    if node["type"] in _COMPARISONS:
        for value, constant in (("left", "right"), ("right", "left")):
            if node[constant]["class"] == "CONSTANT" and node[value]["class"] != "CONSTANT":
                limit, compared = (_written(curation, tree, node[end]) for end in (constant, value))
                number = f"TRY_CAST({limit} AS DOUBLE)"
                if limit.startswith("'"):
                    # Of texts it is letters that are compared: '10' comes before '5', and no number says so.
                    no_text = f"CASE WHEN typeof({compared}) <> 'VARCHAR' THEN"
                    compared, number = f"{no_text} {compared} END", f"{no_text} {number} END"
                return Conjunct(text, compared, number)
    return Conjunct(text)


def _written(curation: Curation, tree: dict[str, Any], node: dict[str, Any]) -> str:
    """The SQL of one node of the tree, written by DuckDB."""
    # Of what is around it a copy that is not deep: a rule may have a thousand parts.
    (first,) = tree["statements"]
    alone = {**tree, "statements": [{**first, "node": {**first["node"], "select_list": [node]}}]}
    text = str(curation.one(f"SELECT json_deserialize_sql({quoted(json.dumps(alone))})"))
    return text.removeprefix("SELECT ").removesuffix(" FROM candidates")


def _refuse_unsteady(curation: Curation, node: dict[str, Any]) -> None:
    """Raises ValueError where the expression looks at other samples, or may give another result another time."""
    for inner in _nodes(node):
        if inner["class"] == "SUBQUERY":
            raise ValueError(
                "looks at other samples (a subquery), but an expression is about one; for a share of them use "
                "`{top: 0.3, by: ...}` or the step `quota`"
            )
        if inner["class"] == "STAR":
            raise ValueError("must name its columns, `*` and COLUMNS() are many")
        name = _called(inner)
        if name and name not in STEADY and _is_unsteady(curation, name, len(inner.get("arguments", ()))):
            raise ValueError(f"{name}() gives something else each time, and builds repeat; leave it out")


def _called(node: dict[str, Any]) -> str:
    """The function that a node calls, '' where it calls none; `current_date` parses as a column."""
    if node["class"] == "FUNCTION" and not node["is_operator"]:
        return str(node["function_name"]).lower()
    names: list[str] = node["column_names"] if node["class"] == "COLUMN_REF" else []
    return names[0].lower() if len(names) == 1 and names[0].lower() in _CLOCKS else ""


def _is_unsteady(curation: Curation, name: str, arguments: int) -> bool:
    return name in _CLOCKS or (name == "age" and arguments == 1) or name in _unsteady(curation)


def _nodes(value: Any, closed: Sequence[str] = ("SUBQUERY",)) -> Iterator[dict[str, Any]]:
    """All nodes of a parsed expression, but those inside of `closed` ones."""
    if isinstance(value, list):
        for one in value:
            yield from _nodes(one, closed)
    elif isinstance(value, dict):
        if "class" in value:
            yield value
        if value.get("class") not in closed:
            yield from _nodes(list(value.values()), closed)


def _unsteady(curation: Curation) -> frozenset[str]:
    """Functions that depend on more than their arguments, by DuckDB's own catalogue.

    VOLATILE is `random()`; CONSISTENT_WITHIN_QUERY is `now()`, but also arithmetic with time zones: a function counts
    where all its forms are so. Macros are as what they call.
    """
    if not _FOUND:
        query = "SELECT function_name, stability, macro_definition FROM duckdb_functions() WHERE function_type IN {}"
        rows = curation.connection.execute(query.format("('scalar', 'macro')")).fetchall()
        forms: dict[str, set[str]] = {}
        for name, stability, body in rows:
            if body is None:
                forms.setdefault(name, set()).add(stability)
        _FOUND.update(n for n, kinds in forms.items() if "VOLATILE" in kinds or kinds == {"CONSISTENT_WITHIN_QUERY"})
        _FOUND.update(_CLOCKS)
        _FOUND.update([name for name, _, body in rows if body is not None and _FOUND.intersection(_words(body))])
    return frozenset(_FOUND)


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isidentifier() or letter.isdecimal() else " " for letter in text).split()
