"""Values that an expression cannot take: a text that is no number, a number that is too large.

A plan checks that expressions bind; which values samples have is known when all inputs are gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmdata.document import dotted
from mmdata.errors import FatalError
from mmdata.steps.base import Curate
from mmdata.steps.curate.expressions import written_order
from mmdata.store import sql
from mmdata.store.curation import Curation, explained_value


@contextmanager
def faults_told(curation: Curation, step: Curate) -> Iterator[None]:
    """While a step is applied. Raises FatalError that names its expression and the value."""
    try:
        yield
    except sql.VALUE_ERRORS as error:
        place = _culprit(curation, step)
        raise FatalError(f"{place}: {explained_value(error, curation.columns)}") from None


def _culprit(curation: Curation, step: Curate) -> str:
    """`splits.by`: the first expression that cannot be reckoned of all samples; of those that are left, if it is one.

    Orders are among them, and what may stand alone may be ordered by.
    """
    for rows in ("undecided AS candidates", "candidates"):
        for keys, text in step.sql_texts():
            try:
                curation.one(f"SELECT key FROM {rows} ORDER BY {written_order(curation, text)} LIMIT 1")
            except sql.VALUE_ERRORS:
                return dotted((step.step, *keys))
    return step.step
