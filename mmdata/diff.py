"""What differs between two builds, or between two versions of one: who came, who went, who moved, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmdata.store import sql
from mmdata.store.sql import parquet, quoted
from mmdata.store.versions import Kept, open_version

COLUMNS: Final = ("sample_id", "source", "key", "change", "split_before", "split_after", "why")
# Mappings of a pipeline file whose order decides.
_ORDERED: Final = ("keep", "shares", "near")
_CHANGES: Final = ("in", "out", "moved", "other_fate", "new", "gone")


@dataclass(frozen=True)
class Difference:
    """Two versions, held against each other.

    Attributes:
        before: title of the one.
        after: title of the other.
        spec: what their pipeline files say differently: (path, before, after) as JSON, None where it is not said.
        counts: how many samples changed, by `change` and `why` without its numbers.
        rows: one for each sample that changed, see `COLUMNS`: `in` and `out` of what is kept, `moved` to another split,
            `other_fate` (left out for another reason), `new` and `gone` inputs that are kept in neither.
    """

    before: str
    after: str
    spec: list[tuple[str, str | None, str | None]]
    counts: list[tuple[str, str, int]]
    rows: list[tuple[Any, ...]]


def difference(before: str, after: str) -> Difference:
    """Hold `after` against `before`. Raises MmdataError where one of them is not there."""
    old, new = open_version(before), open_version(after)
    spec = list(_spec_changes(old.version.spec, new.version.spec, ""))
    connection = sql.connect()
    try:
        _load(connection, old, new)
        _load_changes(connection, _altered(old.version.spec, new.version.spec))
        rows = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM changes ORDER BY change, why, key, sample_id")
        found = rows.fetchall()
        counts = connection.execute(
            "SELECT change, reason, count(*) AS samples FROM changes GROUP BY ALL ORDER BY samples DESC, change, reason"
        ).fetchall()
    finally:
        connection.close()
    return Difference(old.title, new.title, spec, counts, found)


def _load(connection: Any, old: Kept, new: Kept) -> None:
    for name, version in (("before", old), ("after", new)):
        fates, places = parquet([version.fates]), parquet([version.places])
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {fates} f LEFT JOIN {places} p USING (sample_id)")
    connection.execute(f"CREATE TABLE names AS {old.names} UNION {new.names}")


def _load_changes(connection: Any, altered: Sequence[str]) -> None:
    connection.execute(_JOINED.format(altered=", ".join(map(quoted, altered))))
    connection.execute(_CHANGED)


def _altered(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The rules that do not say what they said."""
    before, after = _rules(old), _rules(new)
    return [name for name in before | after if before.get(name) != after.get(name)]


def _rules(spec: dict[str, Any]) -> dict[str, list[Any]]:
    """By name what the rules of all steps say."""
    found: dict[str, list[Any]] = {}
    for step in spec.get("curate") or []:
        if isinstance(step, dict) and "rules" in step:
            for name, rule in step["rules"]["keep"].items():
                found.setdefault(name, []).append(rule)
    return found


def _spec_changes(old: Any, new: Any, path: str) -> Iterator[tuple[str, str | None, str | None]]:
    """Differences of two values, leaf by leaf; the steps of a list are held against those of the same name."""
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _of_mappings(old, new, path)
    elif isinstance(old, list) and isinstance(new, list) and (_named(old) or _named(new)):
        yield from _of_mappings(_named(old), _named(new), path)
    elif old != new:
        yield path, _as_json(old), _as_json(new)


def _of_mappings(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[tuple[str, str | None, str | None]]:
    for key in dict.fromkeys([*old, *new]):
        yield from _spec_changes(old.get(key), new.get(key), f"{path}.{key}".removeprefix("."))
    before, after = ([key for key in one if key in other] for one, other in ((old, new), (new, old)))
    if path.rpartition(".")[2] in _ORDERED and before != after:
        yield f"order of {path}", _as_json(before), _as_json(after)


def _named(steps: list[Any]) -> dict[str, Any]:
    """A list of steps by name and, where several have one, number; nothing for any other list."""
    found: dict[str, Any] = {}
    for step in steps:
        name, value = next(iter(step.items())) if isinstance(step, dict) and len(step) == 1 else (step, {})
        if not isinstance(name, str):
            return {}
        number = sum(known.partition("#")[0] == name for known in found)
        found[f"{name}#{number + 1}" if number else name] = value or {}
    return found


def _as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)


# A fate in words: `dropped by not_too_long (11.2, limit 10)`; the reason is the same without numbers.
_WORDS: Final = """
CASE WHEN {0}.fate IS NULL THEN 'no input' WHEN {0}.fate = 'kept' THEN 'kept'
ELSE {0}.fate || ' by ' || coalesce({0}.step || '.', '') || coalesce({0}.rule, '') END
"""
_NUMBERS: Final = """
CASE WHEN {0}.value IS NOT NULL AND {0}.threshold IS NOT NULL
THEN printf(' (%.6g, limit %.6g)', {0}.value, {0}.threshold) ELSE '' END
"""
_JOINED: Final = f"""
CREATE TABLE joined AS
SELECT coalesce(a.sample_id, b.sample_id) AS sample_id, b.fate AS fate_before, a.fate AS fate_after,
    b.split AS split_before, a.split AS split_after,
    {_WORDS.format("b")} AS words_before, {_WORDS.format("a")} AS words_after,
    {_NUMBERS.format("b")} AS numbers_before, {_NUMBERS.format("a")} AS numbers_after,
    list_has_any([b.rule, a.rule]::VARCHAR[], [{{altered}}]::VARCHAR[]) AS altered
FROM before b FULL JOIN after a USING (sample_id)
"""
_CHANGED: Final = """
CREATE TABLE changes AS
WITH sorted AS (SELECT *, CASE
    WHEN fate_after = 'kept' AND fate_before IS DISTINCT FROM 'kept' THEN 'in'
    WHEN fate_before = 'kept' AND fate_after IS DISTINCT FROM 'kept' THEN 'out'
    WHEN fate_before = 'kept' AND split_before IS DISTINCT FROM split_after THEN 'moved'
    WHEN fate_before IS NULL THEN 'new'
    WHEN fate_after IS NULL THEN 'gone'
    WHEN words_before <> words_after THEN 'other_fate' END AS change FROM joined)
SELECT sample_id, source, key, change, split_before, split_after,
    CASE change WHEN 'moved' THEN split_before || ' -> ' || split_after
    ELSE words_before || numbers_before || ' -> ' || words_after || numbers_after || cause END AS why,
    CASE change WHEN 'moved' THEN split_before || ' -> ' || split_after
    ELSE words_before || ' -> ' || words_after || cause END AS reason
FROM (SELECT *, CASE WHEN fate_before IS NULL OR fate_after IS NULL THEN ''
    WHEN altered THEN '; the rule changed' ELSE '' END AS cause FROM sorted)
LEFT JOIN names USING (sample_id) WHERE change IS NOT NULL
"""
