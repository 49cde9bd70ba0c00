"""Gather what parts hold into one wide row for each sample: what curation decides over, and what shards need of it.

`gathered/<fingerprint>/` holds, block by block of some hundred thousand samples, each sorted by `sample_id`:

* `candidates-{00000}.parquet`: see `mmdata.store.curation`. Deciding reads the columns that it needs.
* `everyone-{00000}.parquet`: a row for each input and child, with its fate where it failed, and what shards are cut by.
* `records-{00000}.bin`: what a shard says of each sample, and where its files lie; deciding never reads them.
* `calibrated-{00000}.parquet`: what scores mean.

Beside them lie `calibrations.parquet`, `links.parquet` (of all measures) and `gathered.json`, whose presence is the
commit. Each block is made of whole parts, parents with their children, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmdata.sample import MEASURES, Modality
from mmdata.store import sql
from mmdata.store.curation import FAILED_FATES, JUDGED, LINKED, NO_SCORES, Columns, Rows, base_rows, links_of
from mmdata.store.files import write_json
from mmdata.store.sql import identifier, parquet, quoted
from mmdata.store.tar import BLOCK_BYTES

if TYPE_CHECKING:
    import duckdb

CALIBRATED: Final = pa.schema(
    [
        ("sample_id", pa.string()),
        ("aligner", pa.string()),
        ("edge", pa.string()),
        ("percentile", pa.float32()),
        ("match", pa.float32()),
    ]
)
DONE: Final = "gathered.json"
# Of `everyone.digest`: half of a SHA-256.
DIGEST_BYTES: Final = 16
# A link is of both its ends, unless one is of a reference set.
_NEAREST: Final = """
SELECT sample_id, measure AS aligner, member AS edge, min(distance) FILTER (WHERE other_source IS NULL) AS nearest,
    min(distance) FILTER (WHERE other_source IS NOT NULL) AS in_reference
FROM (SELECT measure, member, sample_id, distance, other_source FROM links UNION ALL
    SELECT measure, member, other_id, distance, NULL FROM links WHERE other_source IS NULL)
GROUP BY sample_id, measure, member
"""


@dataclass(frozen=True)
class Wanted:
    """What shards will hold.

    Attributes:
        members: that go into them.
        output: the build folder, which parts are named relative to.
        seed: of their order.
    """

    members: Sequence[str]
    output: Path
    seed: int


class Gatherer:
    """Writes the blocks of a gathered folder, one after the other; commits when the block ends well."""

    def __init__(self, columns: Columns, wanted: Wanted, folder: Path, memory: str) -> None:
        """Into `folder`, which is there and empty; DuckDB takes no more than `memory` and spills into it."""
        self.columns = columns
        self._wanted = wanted
        self._folder = folder
        config = {"memory_limit": memory, "temp_directory": str(folder / "spill")}
        self.connection = sql.connect(**config)
        self._blocks = 0
        self._samples = 0

    def __enter__(self) -> Self:
        """Nothing else to do."""
        return self

    def __exit__(self, *error: object) -> None:
        """Commit."""
        self.connection.close()
        shutil.rmtree(self._folder / "spill", ignore_errors=True)
        if error[0] is None:
            write_json(self._folder / DONE, {"blocks": self._blocks, "samples": self._samples})

    def link(self, parts: Mapping[str, Path]) -> None:
        """Take over the links of all measures; before the first block."""
        run = self.connection.execute
        path = self._folder / "links.parquet"
        order = "measure, member, sample_id, other_id, other_source"
        sql.write_query(self.connection, f"FROM ({links_of(parts)}) ORDER BY {order}", path)
        run(f"CREATE VIEW links AS SELECT * FROM {parquet([path])}")
        run(f"CREATE TABLE nearest AS {_NEAREST}")

    def add(self, rows: Rows, judge: Callable[[duckdb.DuckDBPyConnection], pa.Table]) -> None:
        """Gather a block of parts.

        Args:
            rows: base parts, children with their parents, and their score parts.
            judge: gives `CALIBRATED` of the tables `base` and `scores`; rows with the aligner '' hold the match of
                whole samples.
        """
        run = self.connection.execute
        run(f"CREATE OR REPLACE TABLE base AS SELECT *, filename AS part FROM ({base_rows(rows.base, rows.retried)})")
        if rows.scores:
            # What is fitted to all samples stands in one part.
            run(
                f"CREATE OR REPLACE TABLE scores AS SELECT * FROM {parquet(rows.scores)} "
                "WHERE sample_id IN (SELECT sample_id FROM base)"
            )
        else:
            run(f"CREATE OR REPLACE TABLE scores AS {NO_SCORES}")
        path = self._path("calibrated")
        pq.write_table(judge(self.connection), path, compression="zstd")
        run(f"CREATE OR REPLACE TABLE failed AS {FAILED_FATES}")
        sql.write_query(self.connection, candidates_query(self.columns, path), self._path("candidates"))
        self._write_everyone()
        self._blocks += 1

    def _write_everyone(self) -> None:
        """Rows of all, and beside them the records: one after the other in one file."""
        table = sql.arrow(self.connection, everyone_query(self._wanted, self.columns))
        records = table.column("record").cast(pa.large_string()).combine_chunks()
        sizes = pc.fill_null(pc.binary_length(records), 0)
        with records_path(self._folder, self._blocks).open("wb") as file:
            file.write(records.buffers()[2] or b"")
        ends = pc.cumulative_sum(sizes)
        table = table.drop_columns(["record"])
        table = table.append_column("offset", pc.subtract(ends, sizes).cast(pa.int64()))
        table = table.append_column("bytes", sizes.cast(pa.int32()))
        table = table.append_column("block", pa.repeat(pa.scalar(self._blocks, pa.int32()), len(table)))
        pq.write_table(table, self._path("everyone"), compression="zstd", compression_level=1)
        self._samples += len(table)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}-{self._blocks:05d}.parquet"


def records_path(gathered: Path, block: int) -> Path:
    """Where the records of a block stand."""
    return gathered / f"records-{block:05d}.bin"


def candidates_query(columns: Columns, calibrated: Path) -> str:
    """One pass over the rows for the members, one grouping of the scores, one join of children to parents."""
    members = [_member_column(name, kind) for name, kind in columns.members.items()]
    findings = [_found_column(columns, label, parts) for label, parts in columns.findings.items()]
    named = [identifier(label) for label in columns.findings]
    own = "".join(f", p.{name}" for name in named)
    parent = "".join(f", {name} := q.{name}" for name in named).removeprefix(", ")
    parents = f", CASE WHEN b.parent_id IS NULL THEN NULL ELSE struct_pack({parent}) END AS parent" if named else ""
    pivot = f"SELECT sample_id{''.join(', ' + f for f in findings)} FROM judged GROUP BY sample_id"
    return f"""
WITH calibrated AS (SELECT * FROM {parquet([calibrated])}),
judged AS (
    SELECT s.sample_id, s.aligner, s.edge, s.score, s.measures, c.percentile, c.match
    FROM scores s LEFT JOIN calibrated c USING (sample_id, aligner, edge)
    UNION ALL BY NAME SELECT * FROM nearest WHERE sample_id IN (SELECT sample_id FROM base)),
pivoted AS ({pivot})
SELECT b.sample_id, b.source, b.key, b.parent_id, b.variant,
    CAST(json(b.attributes) AS MAP(VARCHAR, VARCHAR)) AS attributes,
    w.match{"".join(", " + m for m in members)}{own}{parents}
FROM base b LEFT JOIN pivoted p ON p.sample_id = b.sample_id LEFT JOIN pivoted q ON q.sample_id = b.parent_id
LEFT JOIN calibrated w ON w.sample_id = b.sample_id AND w.aligner = ''
WHERE NOT EXISTS (SELECT 1 FROM failed f WHERE f.sample_id = b.sample_id)
ORDER BY b.sample_id
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
    plain = JUDGED if label in columns.aligners else LINKED if label in columns.linked else {}
    fields = []
    for name, kind in columns.findings[label][part].items():
        # `->>` of a list or an object is its JSON.
        value = name if name in plain else f"TRY_CAST(measures ->> {quoted('$.' + name)} AS {kind})"
        fields.append(f"{identifier(name)} := max({value}) {where}")
    return f"struct_pack({', '.join(fields)})"


def everyone_query(wanted: Wanted, columns: Columns) -> str:
    """Everyone with their fate where they failed; of the others what a shard says of them, and how much room that is.

    `record` is the JSON that stands in the shard, then a line about files: `part`, and of each file where it lies.
    `digest` changes when what a shard holds of the sample does; `shape` sorts the samples with most members first.
    """
    measures = sorted({name for fields in MEASURES.values() for name in fields} - {"text", "bytes", "sha256", "mime"})
    kept = "', '".join(wanted.members)
    primary = "', '".join(_primary(columns, wanted.members))
    field = f"CASE WHEN m.name IN ('{primary}') THEN m.extension ELSE m.name || '.' || m.extension END"
    described = _picked("f", ["field", "modality", "mime", "bytes", "sha256", *measures])
    file = _picked("m", ["name", "modality", "mime", "bytes", "sha256", "offset", *measures])
    new = ", ".join(f"{n} := NULL" for n in measures if n not in ("lang", "chars"))
    tar_size = f"({BLOCK_BYTES} + {BLOCK_BYTES} * ceil({{}} / {BLOCK_BYTES}.0))"
    return f"""
WITH made AS (
    SELECT sample_id, list(struct_pack(name := new_name, modality := 'text', mime := 'text/plain', extension := 'txt',
        bytes := octet_length(encode(new_text)), sha256 := sha256(new_text), "offset" := NULL, lang := new_lang,
        chars := length(new_text), "text" := new_text, {new}) ORDER BY new_name) AS members
    FROM scores WHERE new_text IS NOT NULL GROUP BY sample_id),
edges AS (
    SELECT sample_id, aligner,
        map_from_entries(list(struct_pack(k := edge, v := round(score::DOUBLE, 4)) ORDER BY edge)) AS edges
    FROM scores WHERE score IS NOT NULL GROUP BY sample_id, aligner),
scored AS (
    SELECT sample_id, map_from_entries(list(struct_pack(k := aligner, v := edges) ORDER BY aligner)) AS scores
    FROM edges GROUP BY sample_id),
filed AS (
    SELECT b.*, s.scores,
        list_transform(
            list_filter(b.members, lambda m: m.error IS NULL AND m.name IN ('{kept}')),
            lambda m: struct_pack({file}, "text" := NULL::VARCHAR, extension := m.extension, field := {field}))
        || list_transform(
            list_filter(coalesce(t.members, []), lambda m: m.name IN ('{kept}')),
            lambda m: struct_pack({file}, "text" := m.text, extension := m.extension, field := {field})) AS files
    FROM base b LEFT JOIN made t USING (sample_id) LEFT JOIN scored s USING (sample_id)
    WHERE sample_id NOT IN (SELECT sample_id FROM failed)),
described AS (
    SELECT *, CAST(json_merge_patch('{{}}', to_json(struct_pack(
        sample_id := sample_id, "key" := "key", source := source, parent_id := parent_id, variant := variant,
        attributes := CASE WHEN attributes = '{{}}' THEN NULL ELSE json(attributes) END,
        augmentation := json(augmentation),
        members := map_from_entries(
            list_transform(files, lambda f: struct_pack(k := f.name, v := struct_pack({described})))),
        scores := scores))) AS VARCHAR) AS "json",
        CAST(to_json(struct_pack(part := replace(part, {quoted(str(wanted.output) + "/")}, ''),
            files := list_transform(files, lambda f: struct_pack(name := f.name, field := f.field,
                "offset" := f."offset", bytes := f.bytes, sha256 := f.sha256, "text" := f.text)))) AS VARCHAR) AS about
    FROM filed)
SELECT b.sample_id, b.parent_id, b.variant, b.augmentation ->> '$.partner_id' AS partner_id, f.fate, f.step, f.rule,
    f.detail,
    CAST({tar_size.format("octet_length(encode(d.json))")}
        + coalesce(list_sum(list_transform(d.files, lambda f: {tar_size.format("f.bytes")})), 0) AS BIGINT)
        AS tar_bytes,
    ('0x' || substr(md5('{wanted.seed}:' || b.sample_id), 1, 16))::UBIGINT AS shuffled,
    printf('%05d ', 99999 - len(d.files)) || array_to_string(list_transform(d.files, lambda f: f.field), ' ') AS shape,
    unhex(substr(sha256(d.json || array_to_string(
        list_transform(d.files, lambda f: f.field || ' ' || f.sha256), ' ')), 1, {2 * DIGEST_BYTES})) AS digest,
    d.json || chr(10) || d.about || chr(10) AS record
FROM base b LEFT JOIN failed f USING (sample_id) LEFT JOIN described d USING (sample_id) ORDER BY b.sample_id"""


def _picked(row: str, names: Sequence[str]) -> str:
    """Fields of a struct_pack that copies these of `row`."""
    return ", ".join(f"{identifier(name)} := {row}.{identifier(name)}" for name in names)


def _primary(columns: Columns, members: Sequence[str]) -> list[str]:
    """The first member of each modality: it goes by its bare extension."""
    first: dict[str, str] = {}
    for name in members:
        first.setdefault(columns.members[name], name)
    return list(first.values())
