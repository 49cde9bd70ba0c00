"""What curation speaks of and no sample has: attributes, and values that are given a weight or a quota.

A plan cannot refuse them: which there are is known when all inputs are gathered. A misspelt attribute is NULL
everywhere, and what is NULL passes rules, is of no kind for a quota, and groups nothing; a misspelt value is mixed as
if it were not named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mmdata.document import closest, dotted
from mmdata.steps.base import Curate
from mmdata.steps.curate.expressions import attribute_keys, written
from mmdata.store.curation import Curation
from mmdata.store.sql import quoted

_LISTED: Final = "SELECT DISTINCT unnest(map_keys(attributes)) FROM samples WHERE fate <> 'failed'"
_SHOWN: Final = 5


def unknown(curation: Curation, step: Curate) -> list[dict[str, Any]]:
    """What a step that is not applied yet speaks of and no sample has.

    Rows of `place` (`rules.keep.good`), `name` (`attributes['speaker']`, `caption.lang = 'de'`), and `problem`, a
    sentence with the nearest that some sample has, else with what there is. Values are looked for in the samples that
    no step before has dropped.
    """
    # Where all have failed, nothing is known.
    if not curation.one("SELECT count(*) FROM candidates"):
        return []
    rows = dict.fromkeys([*_attributes(curation, step), *_values(curation, step)])
    return [{"place": place, "name": name, "problem": problem} for place, name, problem in rows]


def _attributes(curation: Curation, step: Curate) -> Iterator[tuple[str, str, str]]:
    spoken = [
        (dotted((step.step, *keys)), attribute)
        for keys, text in step.sql_texts()
        for attribute in attribute_keys(curation, text)
    ]
    if not spoken:
        return
    rows = curation.connection.execute("SELECT DISTINCT unnest(map_keys(attributes)) FROM candidates").fetchall()
    known = {key for (key,) in rows}
    for place, attribute in spoken:
        if attribute not in known:
            near = closest(attribute, known)
            fix = f"did you mean '{near}'?" if near else f'to see what they have: mmdata query BUILD "{_LISTED}"'
            name = f"attributes[{quoted(attribute)}]"
            yield place, name, f"no sample has {name}; {fix}"


def _values(curation: Curation, step: Curate) -> Iterator[tuple[str, str, str]]:
    for keys, expression, among, values in step.named_values():
        value = f"CAST(({written(curation, expression)}) AS VARCHAR)"
        left = f"undecided AS candidates WHERE ({written(curation, among)}) AND {value} IS NOT NULL"
        query = f"SELECT {value}, count(*) FROM {left} GROUP BY 1 ORDER BY 2 DESC, 1"
        there: dict[str, int] = dict(curation.connection.execute(query).fetchall())
        for named in values:
            if named not in there:
                near = closest(named, there)
                fix = f"did you mean '{near}'?" if near else _listed(there)
                name = f"{expression} = {quoted(named)}"
                yield dotted((step.step, *keys)), name, f"of the samples that are left none has {name}; {fix}"


def _listed(there: Mapping[str, int]) -> str:
    """`what there is: 'en' (120), 'fr' (3)`, with the samples of each."""
    shown = ", ".join(f"{quoted(value)} ({there[value]})" for value in list(there)[:_SHOWN])
    more = f" and {len(there) - _SHOWN} values more" if len(there) > _SHOWN else ""
    return f"what there is: {shown}{more}" if there else "none has any value"


def told(row: Mapping[str, Any]) -> str:
    """A line about such a row."""
    return f"{row['place']}: {row['problem']}"
