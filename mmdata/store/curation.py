"""The tables that curation decides over.

`candidates` has one row for each sample that did not fail, with a struct column for each declared member (NULL where
the sample has none), for each aligner, with a struct for each edge, and for each measure, with a struct for each
member: `image.width`, `clip.image_caption.score`, `picture.image.sharpness`. `match` is the probability that all
members belong together. `parent` holds what aligners and measures found in a child's parent. `fates` grows as steps
decide; `undecided` are the candidates without a fate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdata.sample import MEASURES, Modality
from mmdata.spec import nearest
from mmdata.store import sql
from mmdata.store.sql import identifier, parquet, quoted

if TYPE_CHECKING:
    import duckdb

_FATES = (
    "CREATE TABLE fates (sample_id VARCHAR, fate VARCHAR, step VARCHAR, rule VARCHAR, value DOUBLE, threshold DOUBLE, "
    "detail VARCHAR)"
)
_PLACES = "CREATE TABLE places (sample_id VARCHAR, group_id VARCHAR, split VARCHAR)"


# Of each edge: what the aligner gave; the share of mismatched pairs that score less; the probability of a true pair.
_JUDGED = {"score": "FLOAT", "percentile": "FLOAT", "match": "FLOAT"}
# Of each member that a `Linked` looks at: distances to the nearest other original and reference item within reach.
LINKED = {"nearest": "DOUBLE", "in_reference": "DOUBLE"}


@dataclass(frozen=True)
class Columns:
    """What the candidates have.

    Attributes:
        members: the modality of each.
        aligners: of each, its edges and the measures of each edge with their SQL types.
        measures: of each, its members and their columns with their SQL types.
        linked: those of `measures` that link samples.
        sources: their names.
    """

    members: Mapping[str, Modality]
    aligners: Mapping[str, Mapping[str, Mapping[str, str]]]
    measures: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    linked: frozenset[str] = frozenset()
    sources: Sequence[str] = ()

    @property
    def findings(self) -> dict[str, dict[str, dict[str, str]]]:
        """Of each aligner and measure, in that order: its edges or members, and what rules see of each."""
        found = {a: {e: {**_JUDGED, **fields} for e, fields in edges.items()} for a, edges in self.aligners.items()}
        return found | {label: {m: dict(c) for m, c in members.items()} for label, members in self.measures.items()}

    def names(self) -> list[str]:
        """Every name a rule may use, for error messages."""
        found = ["sample_id", "source", "key", "parent_id", "variant", "attributes", "match"]
        found += [f"{m}.{field}" for m, modality in self.members.items() for field in MEASURES[modality]]
        return found + [
            f"{label}.{part}.{field}"
            for label, parts in self.findings.items()
            for part, fields in parts.items()
            for field in fields
        ]


@dataclass(frozen=True)
class Rows:
    """The parts that a build is made of.

    Attributes:
        base: base parts.
        scores: score parts.
        retried: those of `base` whose failed fetches are spoken of by others of `base`.
        links: of each `Linked`, the part of its links.
    """

    base: Sequence[Path]
    scores: Sequence[Path]
    retried: Sequence[Path] = ()
    links: Mapping[str, Path] = field(default_factory=dict)


class Curation:
    """A DuckDB session over one build's candidates."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, columns: Columns, seed: int) -> None:
        """Use `empty` or `load`."""
        self.connection = connection
        self.columns = columns
        self.seed = seed

    @classmethod
    def empty(cls, columns: Columns) -> Curation:
        """Tables of the right types without rows: what a plan checks SQL against."""
        connection = sql.connect(enable_external_access=False)
        struct = [f"{identifier(m)} STRUCT({_fields(MEASURES[kind])})" for m, kind in columns.members.items()]
        findings = [f"{identifier(label)} {_found_type(parts)}" for label, parts in columns.findings.items()]
        struct += findings
        if findings:
            struct.append(f"parent STRUCT({', '.join(findings)})")
        texts = ("sample_id", "source", "key", "parent_id", "variant")
        names = ", ".join(
            [*(f"{name} VARCHAR" for name in texts), "attributes MAP(VARCHAR, VARCHAR)", "match FLOAT", *struct]
        )
        connection.execute(f"CREATE TABLE candidates ({names})")
        connection.execute("CREATE VIEW undecided AS SELECT * FROM candidates")
        connection.execute(_FATES)
        connection.execute(_PLACES)
        return cls(connection, columns, 0)

    @classmethod
    def load(cls, columns: Columns, seed: int, rows: Rows, scratch: Path, memory: str) -> Curation:
        """Tables of the rows of parts; what does not fit in `memory` spills into the folder `scratch`.

        After loading, no SQL can read or write any file but in that folder: rules may come from strangers. There are no
        candidates before `judge`.
        """
        config = {"memory_limit": memory, "temp_directory": str(scratch / "spill"), "preserve_insertion_order": False}
        connection = sql.connect(str(scratch / "curation.duckdb"), **config)
        connection.execute(f"SET allowed_directories = [{quoted(str(scratch))}]")
        connection.execute(
            f"CREATE TABLE base AS SELECT *, filename AS part FROM ({base_rows(rows.base, rows.retried)})"
        )
        if rows.scores:
            connection.execute(f"CREATE TABLE scores AS SELECT * FROM {parquet(rows.scores)}")
        else:
            connection.execute(_NO_SCORES)
        connection.execute(f"CREATE TABLE links AS {links_of(rows.links)}")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        connection.execute(_FATES)
        connection.execute(_PLACES)
        connection.execute(_FAILED)
        return cls(connection, columns, seed)

    def judge(self, calibrated: Path | None = None) -> None:
        """Make the candidates.

        Args:
            calibrated: Parquet of (sample_id, aligner, edge, percentile, match) in the scratch folder; rows with the
                aligner '' hold the match of whole samples.
        """
        rows = f"SELECT * FROM {parquet([calibrated])}" if calibrated else _NOTHING_CALIBRATED
        self.connection.execute(f"CREATE TABLE calibrated AS {rows}")
        self.connection.execute(_candidates(self.columns))
        self.connection.execute(
            "CREATE VIEW undecided AS SELECT * FROM candidates c "
            "WHERE NOT EXISTS (SELECT 1 FROM fates f WHERE f.sample_id = c.sample_id)"
        )

    def one(self, query: str) -> Any:
        """The single value of a query."""
        row = self.connection.execute(query).fetchone()
        return row[0] if row else None


def explained(error: Exception, columns: Columns) -> str:
    """DuckDB's complaint about SQL of a pipeline file on one line, with the nearest column where a name is unknown."""
    message = str(error).splitlines()[0]
    if not ("not found" in message or "Could not find" in message) or '"' not in message:
        return message
    names = columns.names()
    ends = (name.partition(".")[2] for name in names if "." in name)
    known = {*names, *(part for name in names for part in name.split(".")), *ends}
    return message + nearest(message.split('"')[1], known)


def base_rows(base: Sequence[Path], retried: Sequence[Path]) -> str:
    """A query of the rows of base parts; failed fetches of the parts in `retried` are spoken of by others."""
    query = f"SELECT * FROM {parquet(base, filename=True)}"
    if retried:
        names = ", ".join(quoted(str(path)) for path in retried)
        query += f" WHERE failed_step IS DISTINCT FROM 'fetch' OR filename NOT IN ({names})"
    return query


def links_of(parts: Mapping[str, Path]) -> str:
    """A query of the links that each measure found, with the measure's label beside them."""
    queries = [f"SELECT {quoted(label)} AS measure, * FROM {parquet([path])}" for label, path in parts.items()]
    return " UNION ALL BY NAME ".join(queries) or _NO_LINKS


_NOTHING_CALIBRATED = (
    "SELECT NULL::VARCHAR AS sample_id, NULL::VARCHAR AS aligner, NULL::VARCHAR AS edge, NULL::FLOAT AS percentile, "
    "NULL::FLOAT AS match WHERE false"
)
_NO_LINKS = (
    "SELECT NULL::VARCHAR AS measure, NULL::VARCHAR AS member, NULL::VARCHAR AS sample_id, NULL::VARCHAR AS other_id, "
    "NULL::DOUBLE AS distance, NULL::VARCHAR AS other_source WHERE false"
)
_NO_SCORES = (
    "CREATE TABLE scores (sample_id VARCHAR, aligner VARCHAR, edge VARCHAR, score FLOAT, strength FLOAT, "
    '"null" FLOAT[], null_strength FLOAT[], '
    "measures VARCHAR, new_name VARCHAR, new_text VARCHAR, new_lang VARCHAR, reason VARCHAR, detail VARCHAR)"
)
# A vetoed child was never made: nobody lost a sample, so it is dropped, not failed. A reason beside an edge says why a
# measure has no values there, which costs nobody anything.
_FAILED = """
INSERT INTO fates
SELECT sample_id, 'failed', failed_step, reason, NULL, NULL, detail FROM base
WHERE failed_step IS NOT NULL AND parent_id IS NULL
UNION ALL
SELECT sample_id, 'dropped', failed_step, reason, NULL, NULL, detail FROM base
WHERE failed_step IS NOT NULL AND parent_id IS NOT NULL
UNION ALL
SELECT s.sample_id, 'failed', min(s.aligner), min_by(s.reason, s.aligner), NULL, NULL, min_by(s.detail, s.aligner)
FROM scores s WHERE s.reason IS NOT NULL AND s.edge IS NULL GROUP BY s.sample_id
"""


# A link is of both its ends, unless one is of a reference set.
_NEAREST = """
SELECT sample_id, measure AS aligner, member AS edge, min(distance) FILTER (WHERE other_source IS NULL) AS nearest,
    min(distance) FILTER (WHERE other_source IS NOT NULL) AS in_reference
FROM (SELECT measure, member, sample_id, distance, other_source FROM links UNION ALL
    SELECT measure, member, other_id, distance, NULL FROM links WHERE other_source IS NULL)
GROUP BY sample_id, measure, member
"""


def _fields(measures: Mapping[str, str]) -> str:
    return ", ".join(f"{identifier(name)} {kind}" for name, kind in measures.items())


def _found_type(parts: Mapping[str, Mapping[str, str]]) -> str:
    return f"STRUCT({', '.join(f'{identifier(part)} STRUCT({_fields(fields)})' for part, fields in parts.items())})"


def _candidates(columns: Columns) -> str:
    """One pass over the rows for the members, one grouping of the scores, one join of children to parents."""
    members = [_member_column(name, kind) for name, kind in columns.members.items()]
    findings = [_found_column(columns, label, parts) for label, parts in columns.findings.items()]
    named = [identifier(label) for label in columns.findings]
    own = "".join(f", p.{name}" for name in named)
    parent = "".join(f", {name} := q.{name}" for name in named).removeprefix(", ")
    parents = f", CASE WHEN b.parent_id IS NULL THEN NULL ELSE struct_pack({parent}) END AS parent" if named else ""
    pivot = f"SELECT sample_id{''.join(', ' + f for f in findings)} FROM judged GROUP BY sample_id"
    return f"""
CREATE TABLE candidates AS
WITH judged AS (
    SELECT s.sample_id, s.aligner, s.edge, s.score, s.measures, c.percentile, c.match
    FROM scores s LEFT JOIN calibrated c USING (sample_id, aligner, edge)
    UNION ALL BY NAME {_NEAREST}),
pivoted AS ({pivot})
SELECT b.sample_id, b.source, b.key, b.parent_id, b.variant,
    CAST(json(b.attributes) AS MAP(VARCHAR, VARCHAR)) AS attributes,
    w.match{"".join(", " + m for m in members)}{own}{parents}
FROM base b LEFT JOIN pivoted p ON p.sample_id = b.sample_id LEFT JOIN pivoted q ON q.sample_id = b.parent_id
LEFT JOIN calibrated w ON w.sample_id = b.sample_id AND w.aligner = ''
WHERE NOT EXISTS (SELECT 1 FROM fates f WHERE f.sample_id = b.sample_id)
"""


def _member_column(name: str, kind: Modality) -> str:
    found = f"list_filter(b.members, lambda m: m.name = {quoted(name)} AND m.error IS NULL)[1]"
    fields = ", ".join(f"{identifier(f)} := ({found}).{identifier(f)}" for f in MEASURES[kind])
    return f"CASE WHEN {found} IS NULL THEN NULL ELSE struct_pack({fields}) END AS {identifier(name)}"


def _found_column(columns: Columns, label: str, parts: Mapping[str, Mapping[str, str]]) -> str:
    each = (f"{identifier(part)} := {_found_struct(columns, label, part)}" for part in parts)
    return f"struct_pack({', '.join(each)}) AS {identifier(label)}"


def _found_struct(columns: Columns, label: str, part: str) -> str:
    where = f"FILTER (WHERE aligner = {quoted(label)} AND edge = {quoted(part)})"
    plain = _JUDGED if label in columns.aligners else LINKED if label in columns.linked else {}
    fields = []
    for name, kind in columns.findings[label][part].items():
        # `->>` of a list or an object is its JSON.
        value = name if name in plain else f"TRY_CAST(measures ->> {quoted('$.' + name)} AS {kind})"
        fields.append(f"{identifier(name)} := max({value}) {where}")
    return f"struct_pack({', '.join(fields)})"
