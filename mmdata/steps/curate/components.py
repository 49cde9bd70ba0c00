"""What hangs together: connected components over pairs of rows that SQL finds.

Shapes: N rows, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmdata.store.curation import Curation
from mmdata.store.sql import identifier

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def components(curation: Curation, table: str, edges: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Label the rows of a table so that two have the same label exactly if edges lead from one to the other.

    Args:
        curation: has the table.
        table: its rows are 0 to N - 1 by `rowid`.
        edges: queries of pairs of rows, `a` and `b`; a pair may stand several times.

    Returns:
        `row` and `component`, int64 `[N]`, for `register`.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = int(curation.one(f"SELECT count(*) FROM {identifier(table)}"))
    found: list[Any] = [_pairs(curation, query) for query in edges]
    left_P, right_P = (np.concatenate([pair[end] for pair in found]) for end in (0, 1))
    graph = coo_array((np.ones(len(left_P), np.int8), (left_P, right_P)), shape=(rows, rows))
    _, label_N = connected_components(graph, directed=False)
    return {"row": np.arange(rows, dtype=np.int64), "component": label_N.astype(np.int64)}


def _pairs(curation: Curation, query: str) -> tuple[Any, Any]:
    """Both ends `[P]` as int32: ten million rows of three keys are 240 MB."""
    columns = curation.connection.execute(
        f"SELECT a::INTEGER AS a, b::INTEGER AS b FROM ({query}) WHERE a <> b"
    ).fetchnumpy()
    return columns["a"], columns["b"]
