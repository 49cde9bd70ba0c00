"""Give the scores of a build their meaning: of each edge the percentile, the match, the corpus's noise.

An edge's null is what its aligner scored between members of different samples; where the aligner keeps vectors instead,
pairs are deranged here. Calibration looks at originals; children are judged by the curve of their parents. First the
curves are fitted, over the whole corpus; then they are applied to one block of samples after the other.

Shapes: N samples, M null pairs, R null pairs a sample, D width of an embedding, E edges, H hypotheses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmdata.models.two_groups import (
    Calibration,
    Curve,
    apply,
    calibrate,
    from_json,
    joint_match,
    learn_shares,
    pair_strength,
    to_json,
)
from mmdata.steps.base import Align, Fitted
from mmdata.steps.exchange import Edge
from mmdata.store import sql
from mmdata.store.gather import CALIBRATED
from mmdata.store.parts import iter_vectors, vectors_path
from mmdata.store.sql import parquet, quoted

if TYPE_CHECKING:
    import duckdb

Floats = NDArray[np.float64]

# Samples whose pairs the null is made of: the noise is then known to a point, and a million cost no more memory.
_MOST_PAIRS: Final = 50_000
# So many deranged pairs in all, from as many shifts as that takes, but no more than this.
_NULL_PAIRS: Final = 20_000
_MOST_SHIFTS: Final = 20
CALIBRATIONS: Final = pa.schema(
    [
        ("aligner", pa.string()),
        ("edge", pa.string()),
        ("pairs", pa.int64()),
        ("null_pairs", pa.int64()),
        ("noise", pa.float64()),
        ("noise_low", pa.float64()),
        ("noise_high", pa.float64()),
        ("problem", pa.string()),
        ("curve", pa.string()),
    ]
)


@dataclass(frozen=True)
class _Found:
    """What an aligner found on an edge, of originals; the order of pairs means nothing."""

    score_N: Floats
    strength_N: Floats | None
    null_M: Floats
    null_strength_M: Floats | None


@dataclass(frozen=True)
class _Fitted:
    """An edge and its curve; strengths by sample where they stand beside no score."""

    aligner: str
    edge: Edge
    calibration: Calibration
    strength: Mapping[str, float] = field(default_factory=dict)

    @property
    def ends(self) -> tuple[str, str]:
        return self.edge.left, self.edge.right

    def summary(self) -> dict[str, Any]:
        found = self.calibration
        noise = {name: getattr(found, name) for name in ("noise", "noise_low", "noise_high")}
        return {
            "aligner": self.aligner,
            "edge": self.edge.name,
            "pairs": found.scores,
            "null_pairs": found.null,
            **({} if np.isnan(found.noise) else noise),
            "problem": found.why or None,
            "curve": to_json(found.curve),
        }

    def judged(self, connection: duckdb.DuckDBPyConnection) -> _Judged:
        """Of all samples of the tables `base` and `scores` that have a score."""
        rows = sql.arrow(
            connection,
            "SELECT s.sample_id, coalesce(b.parent_id, s.sample_id) AS parent_id, s.score::DOUBLE AS score, "
            "s.strength::DOUBLE AS strength FROM scores s JOIN base b USING (sample_id) "
            f"{_of(self.aligner, self.edge)} ORDER BY s.sample_id",
        )
        strength_N: Floats | None = None
        if self.strength:
            strength_N = np.array([self.strength.get(key, np.nan) for key in rows.column("parent_id").to_pylist()])
        elif rows.column("strength").null_count < len(rows):
            strength_N = _floats(rows, "strength")
        return _Judged(rows.column("sample_id"), *apply(self.calibration.curve, _floats(rows, "score"), strength_N))


@dataclass(frozen=True)
class _Judged:
    """Samples of a block and what their score on one edge means, `[N]` each."""

    ids: pa.ChunkedArray
    percentile_N: Floats
    match_N: Floats
    ratio_N: Floats


@dataclass(frozen=True)
class Curves:
    """All edges that were fitted, and how common it is in the corpus that members belong together."""

    fitted: Sequence[_Fitted]
    share_H: Floats | None = None

    @property
    def _ends(self) -> list[tuple[str, str]]:
        return sorted({one.ends for one in self.fitted if one.calibration.enough})

    def write(self, path: Path) -> None:
        """What is known of each edge: `CALIBRATIONS`."""
        pq.write_table(pa.Table.from_pylist([one.summary() for one in self.fitted], CALIBRATIONS), path)

    def apply(self, connection: duckdb.DuckDBPyConnection) -> pa.Table:
        """`CALIBRATED` rows of the samples of the tables `base` and `scores`."""
        judged = [(one, one.judged(connection)) for one in self.fitted]
        tables = [_table(row.ids, one.aligner, one.edge.name, row.match_N, row.percentile_N) for one, row in judged]
        ids, ratio_NE = self._ratios(judged)
        if self._ends:
            match_N, _ = joint_match(ratio_NE, self._ends, self.share_H)
            tables.append(_table(pa.chunked_array([ids], pa.string()), "", "", match_N))
        return pa.concat_tables([CALIBRATED.empty_table(), *tables])

    def with_shares(self, connection: duckdb.DuckDBPyConnection) -> Curves:
        """Learn what is common from the samples of these tables."""
        _, ratio_NE = self._ratios([(one, one.judged(connection)) for one in self.fitted])
        return Curves(self.fitted, learn_shares(ratio_NE, self._ends)) if self._ends else self

    def _ratios(self, judged: Sequence[tuple[_Fitted, _Judged]]) -> tuple[pa.Array, Floats]:
        """Samples and their ratios `[N, E]`: where aligners share an edge, their mean evidence."""
        known = [(one, row) for one, row in judged if one.calibration.enough]
        ids = pa.concat_arrays([chunk for _, row in known for chunk in row.ids.chunks] or [pa.array([], pa.string())])
        ids = ids.unique().sort()
        logs_NE = np.full((len(ids), len(self._ends)), np.nan)
        for column, ends in enumerate(self._ends):
            evidence = [row for one, row in known if one.ends == ends]
            logs_NA = np.full((len(ids), len(evidence)), np.nan)
            for a, row in enumerate(evidence):
                at_N = pc.index_in(row.ids, value_set=ids).to_numpy()
                logs_NA[at_N, a] = np.log(np.maximum(row.ratio_N, 1e-12))
            there_N = ~np.isnan(logs_NA).all(axis=1)
            logs_NE[there_N, column] = np.nanmean(logs_NA[there_N], axis=1)
        return ids, np.exp(logs_NE)


def fit_curves(
    align: Sequence[Align], base: str, scores: Mapping[str, Sequence[Path]], connection: duckdb.DuckDBPyConnection
) -> Curves:
    """Calibrate every edge over the whole corpus.

    Args:
        align: the aligners.
        base: a query of the rows of all base parts.
        scores: the score parts of each aligner, by label.
        connection: makes temporary views, and leaves none.
    """
    connection.execute(f"CREATE TEMP VIEW base AS {base}")
    fitted = [_edge(connection, step, edge, scores[step.label]) for step in align for edge in step.edges()]
    curves = Curves([one for one in fitted if one is not None])
    if curves.fitted:
        curves = _shared(curves, connection, scores)
    connection.execute("DROP VIEW base")
    return curves


def _shared(curves: Curves, connection: duckdb.DuckDBPyConnection, scores: Mapping[str, Sequence[Path]]) -> Curves:
    """With what is common learnt from the first samples by id, a hash: a random choice that stays."""
    paths = [path for one in {one.aligner: one for one in curves.fitted}.values() for path in scores[one.aligner]]
    firsts = (
        f"(SELECT sample_id FROM {parquet(scores[one.aligner])} s {_of(one.aligner, one.edge)} "
        f"ORDER BY sample_id LIMIT {_MOST_PAIRS})"
        for one in curves.fitted
    )
    chosen = f"SELECT DISTINCT sample_id FROM ({' UNION ALL '.join(firsts)}) ORDER BY sample_id LIMIT {_MOST_PAIRS}"
    connection.execute(f"CREATE TEMP TABLE chosen AS {chosen}")
    connection.execute(f"CREATE TEMP TABLE scores AS SELECT * FROM {parquet(paths)} SEMI JOIN chosen USING (sample_id)")
    curves = curves.with_shares(connection)
    connection.execute("DROP TABLE scores")
    connection.execute("DROP TABLE chosen")
    return curves


def _of(label: str, edge: Edge) -> str:
    """SQL: the scores `s` of an edge."""
    where = f"s.aligner = {quoted(label)} AND s.edge = {quoted(edge.name)}"
    return f"WHERE {where} AND s.reason IS NULL AND s.score IS NOT NULL"


def _edge(connection: duckdb.DuckDBPyConnection, step: Align, edge: Edge, parts: Sequence[Path]) -> _Fitted | None:
    found = _read(connection, step.label, edge, parts)
    skipped = _skipped(connection, step.label, edge, parts)
    # Some aligners only measure, or make texts. One that was to learn from the corpus and could not is to be heard of,
    # and so is one that could judge nothing: rules pass what has no score.
    if not len(found.score_N) and not skipped and not isinstance(step, Fitted):
        return None
    strength: dict[str, float] = {}
    if not len(found.null_M):
        found, strength = _deranged(connection, found, step.label, edge, parts)
    calibration = calibrate(
        found.score_N,
        found.null_M,
        strength_N=found.strength_N,
        null_strength_M=found.null_strength_M,
        reference=_reference(step, edge),
    )
    calibration = replace(calibration, why="; ".join(filter(None, (calibration.why, skipped))))
    return _Fitted(step.label, edge, calibration, strength)


def _skipped(connection: duckdb.DuckDBPyConnection, label: str, edge: Edge, parts: Sequence[Path]) -> str:
    """How many originals the aligner could not judge, and the commonest reason; empty where it judged all."""
    if not parts:
        return ""
    rows = connection.execute(
        f"SELECT measures ->> '$.skipped' AS why, count(*) AS pairs FROM {parquet(parts)} s "
        f"ANTI JOIN ({_CHILDREN}) c USING (sample_id) WHERE aligner = {quoted(label)} AND edge = {quoted(edge.name)} "
        "AND why IS NOT NULL GROUP BY why ORDER BY pairs DESC, why"
    ).fetchall()
    return f"{sum(pairs for _, pairs in rows)} not judged, most often: {rows[0][0]}" if rows else ""


def _read(connection: duckdb.DuckDBPyConnection, label: str, edge: Edge, parts: Sequence[Path]) -> _Found:
    if not parts:
        return _Found(np.zeros(0), None, np.zeros(0), None)
    query = f"FROM {parquet(parts)} s ANTI JOIN ({_CHILDREN}) c USING (sample_id) {_of(label, edge)}"
    rows = sql.arrow(connection, f"SELECT s.score::DOUBLE AS score, s.strength::DOUBLE AS strength {query}")
    nulls = sql.arrow(
        connection,
        "SELECT unnest(n)::DOUBLE AS n, unnest(t)::DOUBLE AS t FROM ("
        f'SELECT s."null" AS n, s.null_strength AS t {query} AND s."null" IS NOT NULL '
        f"ORDER BY s.sample_id LIMIT {_MOST_PAIRS})",
    )
    strong = rows.column("strength").null_count < len(rows)
    return _Found(
        _floats(rows, "score"),
        _floats(rows, "strength") if strong else None,
        _floats(nulls, "n"),
        _floats(nulls, "t") if strong else None,
    )


_CHILDREN: Final = "SELECT sample_id FROM base WHERE parent_id IS NOT NULL"


def _floats(table: pa.Table, name: str) -> Floats:
    """A column, NaN where it is NULL."""
    return np.asarray(table.column(name).to_numpy(), float)


def _table(
    ids: pa.ChunkedArray, aligner: str, edge: str, match_N: Floats, percentile_N: Floats | None = None
) -> pa.Table:
    count = len(ids)
    percentile = pa.nulls(count, pa.float32())
    if percentile_N is not None:
        percentile = pa.array(percentile_N.astype(np.float32), pa.float32(), from_pandas=True)
    match = pa.array(match_N.astype(np.float32), pa.float32(), from_pandas=True)
    names = [pa.repeat(pa.scalar(name), count) for name in (aligner, edge)]
    return pa.table([ids, *names, percentile, match], schema=CALIBRATED)


def _deranged(
    connection: duckdb.DuckDBPyConnection, found: _Found, label: str, edge: Edge, parts: Sequence[Path]
) -> tuple[_Found, dict[str, float]]:
    """The null and the strengths out of the vectors of the first pairs by id, a hash: a random choice that stays."""
    chosen = _with_vectors(connection, label, edge, parts)
    if not chosen:
        return found, {}
    left_ND, right_ND = (_vectors_of(parts, name, chosen) for name in (edge.left, edge.right))
    left_N, right_N = pair_strength(left_ND, right_ND, np.zeros(len(chosen), np.int64))
    rows_M, partner_M = _partners(_contents(connection, edge, chosen))
    null_M = np.einsum("md,md->m", left_ND[rows_M], right_ND[partner_M]).astype(float)
    if len(chosen) < len(found.score_N):
        # More pairs than were chosen: judged by the score alone, as nothing is known of how strong the others are.
        return _Found(found.score_N, None, null_M, None), {}
    strength_N = left_N + right_N
    scores = _scores_of(connection, label, edge, parts, chosen)
    null_strength_M = left_N[rows_M] + right_N[partner_M]
    return _Found(scores, strength_N, null_M, null_strength_M), dict(zip(chosen, strength_N.tolist(), strict=True))


def _with_vectors(connection: duckdb.DuckDBPyConnection, label: str, edge: Edge, parts: Sequence[Path]) -> list[str]:
    """The first originals that have a score and both embeddings, sorted."""
    sides = [[p for part in parts if (p := vectors_path(part, name)).exists()] for name in (edge.left, edge.right)]
    if not all(sides):
        return []
    both = " ".join(f"SEMI JOIN {parquet(side)} v{n} USING (sample_id)" for n, side in enumerate(sides))
    rows = connection.execute(
        f"SELECT s.sample_id FROM {parquet(parts)} s ANTI JOIN ({_CHILDREN}) c USING (sample_id) {both} "
        f"{_of(label, edge)} ORDER BY s.sample_id LIMIT {_MOST_PAIRS}"
    ).fetchall()
    return [key for (key,) in rows]


def _scores_of(
    connection: duckdb.DuckDBPyConnection, label: str, edge: Edge, parts: Sequence[Path], ids: Sequence[str]
) -> Floats:
    """Scores of these originals `[N]`, which are all that have one."""
    rows = connection.execute(
        f"SELECT s.sample_id, s.score FROM {parquet(parts)} s ANTI JOIN ({_CHILDREN}) c USING (sample_id) "
        f"{_of(label, edge)}"
    ).fetchall()
    by_id = dict(rows)
    return np.array([by_id[key] for key in ids], float)


def _vectors_of(parts: Sequence[Path], member: str, ids: Sequence[str]) -> Floats:
    """Embeddings of these samples, which all have one, float32 `[N, D]`; a part in memory at a time."""
    place = {key: n for n, key in enumerate(ids)}
    found: list[Floats | None] = [None] * len(ids)
    for keys, vector_MD in iter_vectors(parts, member):
        for key, vector_D in zip(keys, vector_MD, strict=True):
            if key in place:
                found[place[key]] = vector_D.astype(np.float32)
    return np.stack([vector_D for vector_D in found if vector_D is not None])


def _contents(connection: duckdb.DuckDBPyConnection, edge: Edge, ids: Sequence[str]) -> list[tuple[str, str, str]]:
    """Of each sample the language of the right member and the content of both, equal for equal payloads and words."""

    def of(name: str) -> str:
        found = f"list_filter(members, lambda m: m.name = {quoted(name)} AND m.error IS NULL)[1]"
        return f"coalesce(lower(({found}).text), ({found}).sha256, ''), coalesce(({found}).lang, '')"

    connection.execute("CREATE OR REPLACE TEMP TABLE chosen (sample_id VARCHAR)")
    connection.execute("INSERT INTO chosen SELECT unnest(?)", [list(ids)])
    rows = connection.execute(
        f"SELECT sample_id, {of(edge.left)}, {of(edge.right)} FROM base SEMI JOIN chosen USING (sample_id) "
        "WHERE failed_step IS NULL"
    ).fetchall()
    connection.execute("DROP TABLE chosen")
    by_id = {row[0]: (row[4], row[1], row[3]) for row in rows}
    return [by_id[key] for key in ids]


def _partners(contents: Sequence[tuple[str, str, str]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Deranged pairs: rows, and whose right member each gets: of its language, never with an equal member."""
    langs: dict[str, list[int]] = {}
    for row, (lang, _, _) in enumerate(contents):
        langs.setdefault(lang, []).append(row)
    shifts = int(min(_MOST_SHIFTS, max(1, -(-_NULL_PAIRS // max(len(contents), 1)))))
    pairs = [
        (row, rows[(place + shift) % len(rows)])
        for rows in langs.values()
        for shift in range(1, min(shifts, len(rows) - 1) + 1)
        for place, row in enumerate(rows)
    ]
    good = [(a, b) for a, b in pairs if contents[a][1] != contents[b][1] and contents[a][2] != contents[b][2]]
    return np.array([a for a, _ in good], np.intp), np.array([b for _, b in good], np.intp)


def _reference(step: Align, edge: Edge) -> Curve | None:
    if step.reference_file is None:
        return None
    for row in pq.read_table(step.reference_file).to_pylist():
        # Several aligners may judge one edge, each on a scale of its own.
        if (row["aligner"], row["edge"]) == (step.label, edge.name):
            return from_json(row["curve"])
    return None
