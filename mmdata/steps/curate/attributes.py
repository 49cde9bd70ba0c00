"""Attributes that curation speaks of and no sample has.

A plan cannot refuse them: which there are is known when all inputs are gathered. A misspelt one is NULL everywhere, and
what is NULL passes rules, is of no kind for a quota, and groups nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mmdata.document import closest, dotted
from mmdata.steps.base import Curate
from mmdata.steps.curate.expressions import attribute_keys
from mmdata.store.curation import Curation
from mmdata.store.sql import quoted

_LISTED: Final = "SELECT DISTINCT unnest(map_keys(attributes)) FROM samples WHERE fate <> 'failed'"


def unknown_attributes(curation: Curation, steps: Sequence[Curate]) -> list[dict[str, Any]]:
    """Rows of `place` (`rules.keep.good`), `attribute`, and `closest`, the key most like it that some sample has."""
    spoken = dict.fromkeys(
        (dotted((step.step, *keys)), attribute)
        for step in steps
        for keys, text in step.sql_texts()
        for attribute in attribute_keys(curation, text)
    )
    # Where all have failed, nothing is known.
    if not spoken or not curation.one("SELECT count(*) FROM candidates"):
        return []
    rows = curation.connection.execute("SELECT DISTINCT unnest(map_keys(attributes)) FROM candidates").fetchall()
    known = {key for (key,) in rows}
    return [
        {"place": place, "attribute": attribute, "closest": closest(attribute, known)}
        for place, attribute in spoken
        if attribute not in known
    ]


def told(row: dict[str, Any]) -> str:
    """A line about such a row."""
    fix = (
        f"did you mean '{row['closest']}'?"
        if row["closest"]
        else f'to see what they have: mmdata query BUILD "{_LISTED}"'
    )
    return f"{row['place']}: no sample has attributes[{quoted(row['attribute'])}]; {fix}"
