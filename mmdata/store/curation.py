"""The tables that curation decides over.

`candidates` has one row for each sample that did not fail, with a struct column for each declared member (NULL where
the sample has none), for each aligner, with a struct for each edge, and for each measure, with a struct for each
member: `image.width`, `clip.image_caption.score`, `picture.image.sharpness`. `match` is the probability that all
members belong together. `parent` holds what aligners and measures found in a child's parent. `fates` grows as steps
decide; `undecided` are the candidates without a fate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdata.document import closest
from mmdata.sample import MEASURES, Modality
from mmdata.store import sql
from mmdata.store.sql import identifier, parquet, quoted

if TYPE_CHECKING:
    import duckdb

_FATES = (
    "CREATE TABLE fates (sample_id VARCHAR, fate VARCHAR, step VARCHAR, rule VARCHAR, value DOUBLE, threshold DOUBLE, "
    "detail VARCHAR)"
)
_PLACES = "CREATE TABLE places (sample_id VARCHAR, group_id VARCHAR, split VARCHAR)"


_UNDECIDED = (
    "CREATE OR REPLACE VIEW undecided AS SELECT * FROM candidates c "
    "WHERE NOT EXISTS (SELECT 1 FROM fates f WHERE f.sample_id = c.sample_id)"
)
# In a gathered folder: of each aligner its score parts, as paths in the build folder.
SCORE_PARTS = "score-parts.json"
_GATHERED = (("VIEW", "candidates", "candidates-*"), ("VIEW", "base", "everyone-*"), ("TABLE", "links", "links"))
# Of each edge: what the aligner gave; the share of mismatched pairs that score less; the probability of a true pair.
JUDGED = {"score": "FLOAT", "percentile": "FLOAT", "match": "FLOAT"}
# Of each member that a `Linked` looks at: distances to the nearest other original and reference item within reach.
LINKED = {"nearest": "DOUBLE", "in_reference": "DOUBLE"}


@dataclass(frozen=True)
class Columns:
    """What the candidates have.

    Attributes:
        members: the modality of each.
        aligners: of each, its edges and the measures of each edge with their SQL types.
        measures: of each, its members and their columns with their SQL types.
        linked: those of `measures` that link samples: up to which distance, and what to do for more; None: no limit.
        sources: their names.
    """

    members: Mapping[str, Modality]
    aligners: Mapping[str, Mapping[str, Mapping[str, str]]]
    measures: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    linked: Mapping[str, tuple[float, str] | None] = field(default_factory=dict)
    sources: Sequence[str] = ()

    @property
    def findings(self) -> dict[str, dict[str, dict[str, str]]]:
        """Of each aligner and measure, in that order: its edges or members, and what rules see of each."""
        found = {a: {e: {**JUDGED, **fields} for e, fields in edges.items()} for a, edges in self.aligners.items()}
        return found | {label: {m: dict(c) for m, c in members.items()} for label, members in self.measures.items()}

    def beyond(self, label: str, distance: float) -> str | None:
        """Why a measure links no samples that far apart, and what to do; None where it may."""
        limit = self.linked[label]
        if limit is None or distance <= limit[0]:
            return None
        farthest, fix = limit
        return f"{distance:g} is too far: '{label}' links samples up to {farthest:g}; {fix} of the measure for more"

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
        """Use `empty` or `open`."""
        self.connection = connection
        self.columns = columns
        self.seed = seed
        self.gathered: Path | None = None

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
        connection.execute(_FATES)
        connection.execute(_PLACES)
        connection.execute(_UNDECIDED)
        return cls(connection, columns, 0)

    @classmethod
    def open(cls, columns: Columns, seed: int, gathered: Path, scratch: Path, memory: str) -> Curation:
        """The tables of a gathered folder; what does not fit in `memory` spills into the folder `scratch`.

        From then on no SQL can read or write any file but in those two folders: rules may come from strangers.
        """
        config: dict[str, Any] = {
            "memory_limit": memory,
            "temp_directory": str(scratch / "spill"),
            "preserve_insertion_order": False,
        }
        # In memory, and so not compressed: tables that are written and read once are worth no more.
        connection = sql.connect(**config)
        # DuckDB makes its own names for files absolute, and compares them as they stand.
        folders = [str(folder.resolve()) for folder in (scratch, gathered)]
        connection.execute(f"SET allowed_directories = [{', '.join(map(quoted, folders))}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        for kind, name, pattern in _GATHERED:
            files = sorted(gathered.resolve().glob(f"{pattern}.parquet"))
            connection.execute(f"CREATE {kind} {name} AS SELECT * FROM {parquet(files)}")
        connection.execute(_FATES)
        connection.execute(_PLACES)
        connection.execute(
            "INSERT INTO fates SELECT sample_id, fate, step, rule, NULL, NULL, detail FROM base WHERE fate IS NOT NULL"
        )
        connection.execute(_UNDECIDED)
        curation = cls(connection, columns, seed)
        curation.gathered = gathered.resolve()
        return curation

    def extend(self, name: str, kind: str, rows: str | None = None) -> None:
        """Give the candidates a column, for the steps that follow.

        Args:
            name: of the column; none has it.
            kind: its SQL type.
            rows: a table of (sample_id, value); None, or no row there: NULL.
        """
        run, before = self.connection.execute, identifier(f"candidates before {name}")
        is_view = self.one("SELECT count(*) FROM duckdb_views() WHERE view_name = 'candidates'")
        run(f"ALTER {'VIEW' if is_view else 'TABLE'} candidates RENAME TO {before}")
        value, join = ("NULL", "") if rows is None else ("v.value", f"LEFT JOIN {identifier(rows)} v USING (sample_id)")
        column = f"CAST({value} AS {kind}) AS {identifier(name)}"
        run(f"CREATE VIEW candidates AS SELECT c.*, {column} FROM {before} c {join}")
        run(_UNDECIDED)

    def score_parts(self, label: str) -> list[Path]:
        """The score parts of an aligner: its embeddings lie beside them. None where nothing was gathered."""
        if self.gathered is None:
            return []
        named = json.loads((self.gathered / SCORE_PARTS).read_text(encoding="utf-8"))
        return [self.gathered.parents[1] / path for path in named.get(label, [])]

    def one(self, query: str) -> Any:
        """The single value of a query."""
        # All rows: a result that is not read to its end keeps the connection from registering a table.
        rows = self.connection.execute(query).fetchall()
        return rows[0][0] if rows else None


def explained(error: Exception, columns: Columns) -> str:
    """DuckDB's complaint about SQL of a pipeline file on one line, with what to write where a name is unknown."""
    message = str(error).splitlines()[0]
    if not ("not found" in message or "Could not find" in message) or '"' not in message:
        return message
    names = columns.names()
    ends = (name.partition(".")[2] for name in names if "." in name)
    known = {*names, *(part for name in names for part in name.split(".")), *ends}
    name = message.split('"')[1]
    if whole := [f"'{one}'" for one in sorted(names) if one.endswith(f".{name}")]:
        return f"{message}; did you mean {' or '.join(whole)}?"
    if close := closest(name, known):
        return f"{message}; did you mean '{close}'?"
    # A column of a table that no member is made of: what is tried first by who knows the table.
    carried = f"attributes['{name}'] where the source has a column of that name, else " if "column" in message else ""
    return f"{message}; write {carried}one of {', '.join(sorted(names))}"


def explained_value(error: Exception, columns: Columns) -> str:
    """The same of a value that an expression met and cannot take, with what to write."""
    message = explained(error, columns)
    is_cast = message.startswith("Conversion Error")
    return f"{message}; TRY_CAST(... AS ...) is NULL where a value cannot be cast" if is_cast else message


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


_NO_LINKS = (
    "SELECT NULL::VARCHAR AS measure, NULL::VARCHAR AS member, NULL::VARCHAR AS sample_id, NULL::VARCHAR AS other_id, "
    "NULL::DOUBLE AS distance, NULL::VARCHAR AS other_source WHERE false"
)
NO_SCORES = (
    "SELECT NULL::VARCHAR AS sample_id, NULL::VARCHAR AS aligner, NULL::VARCHAR AS edge, NULL::FLOAT AS score, "
    'NULL::FLOAT AS strength, NULL::FLOAT[] AS "null", NULL::FLOAT[] AS null_strength, NULL::VARCHAR AS measures, '
    "NULL::VARCHAR AS new_name, NULL::VARCHAR AS new_text, NULL::VARCHAR AS new_lang, NULL::VARCHAR AS reason, "
    "NULL::VARCHAR AS detail WHERE false"
)
# A vetoed child was never made: nobody lost a sample, so it is dropped, not failed. A reason beside an edge says why a
# measure has no values there, which costs nobody anything.
FAILED_FATES = """
SELECT sample_id, if(parent_id IS NULL, 'failed', 'dropped') AS fate, failed_step AS step, reason AS rule, detail
FROM base WHERE failed_step IS NOT NULL
UNION ALL
SELECT s.sample_id, 'failed', min(s.aligner), min_by(s.reason, s.aligner), min_by(s.detail, s.aligner)
FROM scores s WHERE s.reason IS NOT NULL AND s.edge IS NULL GROUP BY s.sample_id
"""


def _fields(measures: Mapping[str, str]) -> str:
    return ", ".join(f"{identifier(name)} {kind}" for name, kind in measures.items())


def _found_type(parts: Mapping[str, Mapping[str, str]]) -> str:
    return f"STRUCT({', '.join(f'{identifier(part)} STRUCT({_fields(fields)})' for part, fields in parts.items())})"
