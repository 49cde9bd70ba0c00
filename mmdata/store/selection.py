"""From decided fates to what is written: one Parquet row for each sample that goes out, cut into shards.

`decided/<fingerprint>/` holds `calibrated.parquet` and `calibrations.parquet` (see `mmdata.engine.calibrate`),
`fates.parquet`, `places.parquet`, `selection.parquet` with one row group for each shard, and `shards.json`, whose
presence is the commit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.errors import LedgerError
from mmdata.sample import MEASURES
from mmdata.store.curation import Curation
from mmdata.store.files import write_json
from mmdata.store.sql import identifier, quoted
from mmdata.store.tar import BLOCK_BYTES

# Readers that infer a schema look at the first samples (HF datasets at five): these have the most members.
_LEADERS: Final = 5
_BATCH_ROWS: Final = 1000
_SELECTION_SCHEMA: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("sample_id", "source", "key", "parent_id", "group_id", "split", "json")),
        ("tar_bytes", pa.int64()),
        ("part", pa.string()),
        (
            "files",
            pa.list_(
                pa.struct(
                    [
                        ("name", pa.string()),
                        ("field", pa.string()),
                        ("offset", pa.int64()),
                        ("bytes", pa.int64()),
                        ("sha256", pa.string()),
                        ("text", pa.string()),
                    ]
                )
            ),
        ),
        ("shard", pa.string()),
    ]
)
_FATE_COLUMNS: Final = "sample_id, fate, step, rule, value, threshold, detail"


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: `fingerprint` decides its bytes."""

    path: str
    split: str
    samples: int
    row_group: int
    fingerprint: str


def decide_fates(curation: Curation, inputs: int, replacing: Sequence[str] = ()) -> None:
    """Give everyone who is left a fate and check the ledger.

    A child goes with its parent, but for the children of operators in `replacing`: those stand for a parent that may be
    dropped (a recording that is too long, whose segments are not), and drop it themselves where no rule did.

    Raises LedgerError where not every row has exactly one fate, or there are not as many originals as inputs.
    """
    run = curation.connection.execute
    run(
        """INSERT INTO places SELECT sample_id, md5(coalesce(parent_id, sample_id)), 'train' FROM candidates
        WHERE sample_id NOT IN (SELECT sample_id FROM places)"""
    )
    stands = " OR ".join(_made_by("u", step) for step in replacing) or "false"
    run(
        f"""INSERT INTO fates SELECT u.sample_id, 'dropped', 'augment', 'parent_not_kept', NULL, NULL, f.fate
        FROM undecided u JOIN fates f ON f.sample_id = u.parent_id WHERE NOT (f.fate = 'dropped' AND ({stands}))"""
    )
    run(
        f"""INSERT INTO fates SELECT u.parent_id, 'dropped', 'augment', 'replaced_by_children', NULL, NULL,
        count(*) || ' children' FROM undecided u JOIN undecided p ON p.sample_id = u.parent_id WHERE {stands}
        GROUP BY u.parent_id"""
    )
    # What is mixed of two samples belongs to both: where one may not go, the mixture may not.
    run(
        """INSERT INTO fates
        WITH mixed AS (SELECT sample_id, augmentation ->> '$.partner_id' AS partner_id FROM base
            WHERE augmentation ->> '$.partner_id' IS NOT NULL)
        SELECT u.sample_id, 'dropped', 'augment', if(f.fate IS NULL, 'mixes_splits', 'partner_not_kept'), NULL, NULL,
            coalesce(f.fate, own.split || ' and ' || other.split)
        FROM undecided u JOIN mixed m USING (sample_id) JOIN places own USING (sample_id)
        LEFT JOIN places other ON other.sample_id = m.partner_id
        LEFT JOIN fates f ON f.sample_id = m.partner_id
        WHERE f.fate IS NOT NULL OR other.split IS DISTINCT FROM own.split"""
    )
    run("INSERT INTO fates SELECT sample_id, 'kept', NULL, NULL, NULL, NULL, NULL FROM undecided")
    _check_ledger(curation, inputs)


def drop_losses(curation: Curation, label: str, most: float | None) -> None:
    """Drop children of an operator that are less consistent than their parent allows; None: none is."""
    if most is None:
        return
    curation.connection.execute(
        f"""INSERT INTO fates
        SELECT c.sample_id, 'dropped', {quoted(label)}, 'max_match_loss', p.match - c.match, {float(most)!r}, NULL
        FROM undecided c JOIN candidates p ON p.sample_id = c.parent_id
        WHERE {_made_by("c", label)} AND p.match - c.match > {float(most)!r}"""
    )


def _made_by(row: str, label: str) -> str:
    """SQL: whether a child is of an operator; variants are its label and a number."""
    return f"regexp_replace({row}.variant, '_[0-9]+$', '') = {quoted(label)}"


def _check_ledger(curation: Curation, inputs: int) -> None:
    originals = curation.one("SELECT count(*) FROM base WHERE parent_id IS NULL")
    fated = curation.one("SELECT count(DISTINCT sample_id) FROM fates")
    rows, fates = curation.one("SELECT count(*) FROM base"), curation.one("SELECT count(*) FROM fates")
    if originals != inputs or not rows == fates == fated:
        raise LedgerError(
            f"the ledger does not add up: {inputs} inputs, {originals} of them taken in; {rows} samples with children, "
            f"{fates} fates for {fated} samples"
        )


def write_decisions(
    curation: Curation, folder: Path, output: Path, members: Sequence[str], shard_samples: int, shard_bytes: int
) -> list[ShardPlan]:
    """Write the decisions into a folder; returns the shards to be."""
    for name, query in (
        ("fates", f"SELECT {_FATE_COLUMNS} FROM fates ORDER BY sample_id"),
        ("places", "SELECT sample_id, group_id, split FROM places ORDER BY sample_id"),
    ):
        _write_query(curation, query, folder / f"{name}.parquet")
    shards = _write_selection(curation, folder, output, members, shard_samples, shard_bytes)
    write_json(folder / "shards.json", [asdict(shard) for shard in shards])
    return shards


def read_shard_plans(folder: Path) -> list[ShardPlan]:
    """The shards to be, as decided. Raises FileNotFoundError where nothing was."""
    return [ShardPlan(**shard) for shard in json.loads((folder / "shards.json").read_text(encoding="utf-8"))]


def _write_query(curation: Curation, query: str, path: Path) -> None:
    curation.connection.execute(f"COPY ({query}) TO {quoted(str(path))} (FORMAT parquet, COMPRESSION zstd)")


def _write_selection(
    curation: Curation, folder: Path, output: Path, members: Sequence[str], shard_samples: int, shard_bytes: int
) -> list[ShardPlan]:
    rows = _rows(curation, _selection_query(curation, output, members))
    plans: list[ShardPlan] = []
    with pq.ParquetWriter(folder / "selection.parquet", _SELECTION_SCHEMA, compression="zstd") as writer:
        for split, run in _cut(rows, shard_samples, shard_bytes):
            number = sum(plan.split == split for plan in plans)
            path = f"{split}-{number:06d}.tar"
            table = pa.Table.from_pylist([{**row, "shard": path} for row in run], _SELECTION_SCHEMA)
            writer.write_table(table, row_group_size=len(run))
            plans.append(ShardPlan(path, split, len(run), len(plans), _fingerprint(run)))
    return plans


def _rows(curation: Curation, query: str) -> Iterator[dict[str, Any]]:
    """Rows of a query as dictionaries, streamed."""
    result = curation.connection.execute(query)
    names = [column[0] for column in result.description or []]
    while block := result.fetchmany(_BATCH_ROWS):
        yield from (dict(zip(names, row, strict=True)) for row in block)


def _cut(
    rows: Iterator[dict[str, Any]], shard_samples: int, shard_bytes: int
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Runs of rows of one split, each within both limits; a sample larger than a shard gets one alone."""
    run: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        full = len(run) >= shard_samples or size + row["tar_bytes"] > shard_bytes
        if run and (full or row["split"] != run[0]["split"]):
            yield run[0]["split"], run
            run, size = [], 0
        run.append(row)
        size += row["tar_bytes"]
    if run:
        yield run[0]["split"], run


def _fingerprint(rows: Sequence[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row['sample_id']}\0{row['json']}\0".encode())
        for file in row["files"]:
            digest.update(f"{file['field']}\0{file['sha256']}\0".encode())
    return digest.hexdigest()


def _selection_query(curation: Curation, output: Path, members: Sequence[str]) -> str:
    """Kept samples in shuffled order, with their files and the JSON that goes with them."""
    measures = sorted({name for fields in MEASURES.values() for name in fields} - {"text", "bytes", "sha256", "mime"})
    kept = "', '".join(members)
    primary = "', '".join(_primary(curation, members))
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
chosen AS (
    SELECT b.*, p.split, p.group_id, s.scores,
        list_transform(
            list_filter(b.members, lambda m: m.error IS NULL AND m.name IN ('{kept}')),
            lambda m: struct_pack({file}, "text" := NULL::VARCHAR, extension := m.extension, field := {field}))
        || list_transform(
            list_filter(coalesce(t.members, []), lambda m: m.name IN ('{kept}')),
            lambda m: struct_pack({file}, "text" := m.text, extension := m.extension, field := {field})) AS files
    FROM base b JOIN fates f ON f.sample_id = b.sample_id AND f.fate = 'kept'
    JOIN places p ON p.sample_id = b.sample_id
    LEFT JOIN made t ON t.sample_id = b.sample_id LEFT JOIN scored s ON s.sample_id = b.sample_id),
described AS (
    SELECT *, CAST(json_merge_patch('{{}}', to_json(struct_pack(
        sample_id := sample_id, "key" := "key", source := source, parent_id := parent_id, variant := variant,
        attributes := CASE WHEN attributes = '{{}}' THEN NULL ELSE json(attributes) END,
        augmentation := json(augmentation),
        members := map_from_entries(
            list_transform(files, lambda f: struct_pack(k := f.name, v := struct_pack({described})))),
        scores := scores))) AS VARCHAR) AS "json",
        md5('{curation.seed}:' || sample_id) AS shuffled FROM chosen),
ranked AS (
    SELECT *, row_number() OVER (PARTITION BY split ORDER BY len(files) DESC,
        list_aggregate(list_transform(files, lambda f: f.field), 'string_agg', ' '), shuffled) <= {_LEADERS} AS leads
    FROM described)
SELECT sample_id, source, "key", parent_id, group_id, split, "json",
    CAST({tar_size.format("octet_length(encode(json))")}
        + list_sum(list_transform(files, lambda f: {tar_size.format("f.bytes")})) AS BIGINT) AS tar_bytes,
    replace(part, {quoted(str(output) + "/")}, '') AS part,
    list_transform(files, lambda f: struct_pack(name := f.name, field := f.field, "offset" := f."offset",
        bytes := f.bytes, sha256 := f.sha256, "text" := f.text)) AS files
FROM ranked ORDER BY split, leads DESC, shuffled, sample_id"""


def _picked(row: str, names: Sequence[str]) -> str:
    """Fields of a struct_pack that copies these of `row`."""
    return ", ".join(f"{identifier(name)} := {row}.{identifier(name)}" for name in names)


def _primary(curation: Curation, members: Sequence[str]) -> list[str]:
    """The first member of each modality: it goes by its bare extension."""
    first: dict[str, str] = {}
    for name in members:
        first.setdefault(curation.columns.members[name], name)
    return list(first.values())
