"""Give the scores of a build their meaning: of each edge the percentile, the match, the corpus's noise.

An edge's null is what its aligner scored between members of different samples; where the aligner keeps vectors instead,
pairs are deranged here. Calibration looks at originals; children are judged by the curve of their parents.

Shapes: N samples, M null pairs, R null pairs a sample, D width of an embedding, E edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmdata.models.two_groups import (
    Calibration,
    Curve,
    apply,
    calibrate,
    from_json,
    joint_match,
    pair_strength,
    to_json,
)
from mmdata.steps.base import Align, Edge, Fitted
from mmdata.store.curation import Curation
from mmdata.store.parts import iter_vectors, read_vector_ids
from mmdata.store.sql import quoted

Floats = NDArray[np.float64]

# Pairs that the null is made of: the noise is then known to a point, and a million samples cost no more memory.
_MOST_PAIRS: Final = 50_000
# So many deranged pairs in all, from as many shifts as that takes, but no more than this.
_NULL_PAIRS: Final = 20_000
_MOST_SHIFTS: Final = 20
_CALIBRATED: Final = pa.schema(
    [
        ("sample_id", pa.string()),
        ("aligner", pa.string()),
        ("edge", pa.string()),
        ("percentile", pa.float32()),
        ("match", pa.float32()),
    ]
)
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
class _Scores:
    """What an aligner found on an edge, in the order of the ids; `parent` is None for originals."""

    ids: list[str]
    parents: list[str | None]
    score_N: Floats
    strength_N: Floats | None
    null_M: Floats
    null_strength_M: Floats | None

    @property
    def original_N(self) -> NDArray[np.bool_]:
        return np.array([parent is None for parent in self.parents], bool)


def calibrate_build(
    curation: Curation, align: Sequence[Align], scores: Mapping[str, Sequence[Path]], folder: Path
) -> Path:
    """Calibrate every edge; writes `calibrated.parquet` and `calibrations.parquet` into `folder`.

    Args:
        curation: loaded, not judged.
        align: the aligners.
        scores: the score parts of each, by label.
        folder: is there.

    Returns:
        the path of `calibrated.parquet`, for `Curation.judge`.
    """
    found = [_edge(curation, step, edge, scores[step.label]) for step in align for edge in step.edges()]
    judged = [edge for edge in found if edge is not None]
    with pq.ParquetWriter(folder / "calibrated.parquet", _CALIBRATED, compression="zstd") as writer:
        for edge in judged:
            writer.write_table(edge.table())
        writer.write_table(_joint([edge for edge in judged if edge.calibration.enough]))
    rows = [edge.summary() for edge in judged]
    pq.write_table(pa.Table.from_pylist(rows, CALIBRATIONS), folder / "calibrations.parquet")
    return folder / "calibrated.parquet"


@dataclass(frozen=True)
class _Judged:
    """An edge, calibrated: values `[N]` for all its samples, children included."""

    aligner: str
    edge: Edge
    ids: list[str]
    percentile_N: Floats
    match_N: Floats
    ratio_N: Floats
    calibration: Calibration

    def table(self) -> pa.Table:
        count = len(self.ids)
        columns = [
            pa.array(self.ids, pa.string()),
            pa.array([self.aligner] * count, pa.string()),
            pa.array([self.edge.name] * count, pa.string()),
            pa.array(self.percentile_N.astype(np.float32), pa.float32(), from_pandas=True),
            pa.array(self.match_N.astype(np.float32), pa.float32(), from_pandas=True),
        ]
        return pa.table(columns, schema=_CALIBRATED)

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


def _edge(curation: Curation, step: Align, edge: Edge, parts: Sequence[Path]) -> _Judged | None:
    found = _read(curation, step.label, edge)
    # Some aligners only measure, or make texts. One that was to learn from the corpus and could not is to be heard of.
    if not found.ids and not isinstance(step, Fitted):
        return None
    if not len(found.null_M):
        found = _deranged(curation, found, edge, parts)
    original_N = found.original_N
    strength_N = found.strength_N
    calibration = calibrate(
        found.score_N[original_N],
        found.null_M,
        strength_N=None if strength_N is None else strength_N[original_N],
        null_strength_M=found.null_strength_M,
        reference=_reference(step, edge),
    )
    return _Judged(step.label, edge, found.ids, *apply(calibration.curve, found.score_N, strength_N), calibration)


def _read(curation: Curation, label: str, edge: Edge) -> _Scores:
    where = f"WHERE s.aligner = {quoted(label)} AND s.edge = {quoted(edge.name)} AND s.reason IS NULL"
    rows = curation.connection.execute(
        f"SELECT s.sample_id, b.parent_id, s.score, s.strength FROM scores s JOIN base b USING (sample_id) {where} "
        "AND s.score IS NOT NULL ORDER BY s.sample_id"
    ).fetchall()
    ids, parents, score, strength = zip(*rows, strict=True) if rows else ((), (), (), ())
    nulls = curation.connection.execute(
        'SELECT unnest(s."null") AS n, unnest(s.null_strength) AS t FROM scores s JOIN base b USING (sample_id) '
        f"{where} AND b.parent_id IS NULL ORDER BY s.sample_id LIMIT {_MOST_PAIRS * _MOST_SHIFTS}"
    ).fetchall()
    null, null_strength = zip(*nulls, strict=True) if nulls else ((), ())
    strong = bool(rows) and strength[0] is not None
    return _Scores(
        list(ids),
        list(parents),
        np.array(score, float),
        np.array(strength, float) if strong else None,
        np.array(null, float),
        np.array(null_strength, float) if strong else None,
    )


def _deranged(curation: Curation, found: _Scores, edge: Edge, parts: Sequence[Path]) -> _Scores:
    """The null and the strengths out of the vectors of the first pairs by id, a hash: a random choice that stays."""
    both = set(read_vector_ids(parts, edge.left)) & set(read_vector_ids(parts, edge.right))
    originals = (key for key, parent in zip(found.ids, found.parents, strict=True) if parent is None)
    chosen = list(islice((key for key in originals if key in both), _MOST_PAIRS))
    if not chosen:
        return found
    left_ND, right_ND = (_vectors_of(parts, name, chosen) for name in (edge.left, edge.right))
    left_N, right_N = pair_strength(left_ND, right_ND, np.zeros(len(chosen), np.int64))
    rows_M, partner_M = _partners(_contents(curation, edge, chosen))
    null_M = np.einsum("md,md->m", left_ND[rows_M], right_ND[partner_M])
    # More pairs than were chosen: judged by the score alone, as nothing is known of how strong the others are.
    whole = len(chosen) == int(found.original_N.sum())
    strength = {key: left_N[n] + right_N[n] for n, key in enumerate(chosen)} if whole else {}
    of = [strength.get(p or key, np.nan) for key, p in zip(found.ids, found.parents, strict=True)]
    return _Scores(
        found.ids,
        found.parents,
        found.score_N,
        np.array(of) if whole else None,
        null_M.astype(float),
        left_N[rows_M] + right_N[partner_M] if whole else None,
    )


def _vectors_of(parts: Sequence[Path], member: str, ids: Sequence[str]) -> Floats:
    """Embeddings of these samples, which all have one, float32 `[N, D]`; a part in memory at a time."""
    place = {key: n for n, key in enumerate(ids)}
    found: list[Floats | None] = [None] * len(ids)
    for keys, vector_MD in iter_vectors(parts, member):
        for key, vector_D in zip(keys, vector_MD, strict=True):
            if key in place:
                found[place[key]] = vector_D.astype(np.float32)
    return np.stack([vector_D for vector_D in found if vector_D is not None])


def _contents(curation: Curation, edge: Edge, ids: Sequence[str]) -> list[tuple[str, str, str]]:
    """Of each sample the language of the right member and the content of both, equal for equal payloads and words."""

    def of(name: str) -> str:
        found = f"list_filter(members, lambda m: m.name = {quoted(name)} AND m.error IS NULL)[1]"
        return f"coalesce(lower(({found}).text), ({found}).sha256, ''), coalesce(({found}).lang, '')"

    curation.connection.execute("CREATE OR REPLACE TEMP TABLE chosen (sample_id VARCHAR)")
    curation.connection.execute("INSERT INTO chosen SELECT unnest(?)", [list(ids)])
    rows = curation.connection.execute(
        f"SELECT sample_id, {of(edge.left)}, {of(edge.right)} FROM base SEMI JOIN chosen USING (sample_id)"
    ).fetchall()
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
    if step.reference is None:
        return None
    for row in pq.read_table(step.reference).to_pylist():
        if row["edge"] == edge.name:
            return from_json(row["curve"])
    return None


def _joint(judged: Sequence[_Judged]) -> pa.Table:
    """The match of whole samples: all edges of a sample together; where aligners share an edge, their mean evidence."""
    places = {key: n for n, key in enumerate(sorted({key for one in judged for key in one.ids}))}
    edges = sorted({(one.edge.left, one.edge.right) for one in judged})
    logs_NE = np.full((len(places), len(edges)), np.nan)
    for column, edge in enumerate(edges):
        evidence = [one for one in judged if (one.edge.left, one.edge.right) == edge]
        logs_NA = np.full((len(places), len(evidence)), np.nan)
        for a, one in enumerate(evidence):
            logs_NA[[places[key] for key in one.ids], a] = np.log(np.maximum(one.ratio_N, 1e-12))
        known_N = ~np.isnan(logs_NA).all(axis=1)
        logs_NE[known_N, column] = np.nanmean(logs_NA[known_N], axis=1)
    if not edges:
        return _CALIBRATED.empty_table()
    match_N, _ = joint_match(np.exp(logs_NE), edges)
    rows = len(places)
    blank, none = pa.array([""] * rows, pa.string()), pa.nulls(rows, pa.float32())
    match = pa.array(match_N.astype(np.float32), pa.float32(), from_pandas=True)
    return pa.table([pa.array(list(places), pa.string()), blank, blank, none, match], schema=_CALIBRATED)
