"""From decided fates to what is written: who goes into which shard, in which order.

`decided/<fingerprint>/` holds `fates.parquet`, `places.parquet`, `selection.parquet`, whose rows are in the order of
the shards, and `shards.json`, whose presence is the commit. What a shard says of a sample stands in the gathered
folder.

Shapes: K samples that are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmdata.errors import LedgerError
from mmdata.store import sql
from mmdata.store.curation import Curation
from mmdata.store.files import write_json
from mmdata.store.gather import DIGEST_BYTES
from mmdata.store.sql import quoted
from mmdata.store.tar import END_BYTES

# Readers that infer a schema look at the first samples (HF datasets at five): these have the most members.
_LEADERS: Final = 5
# A shard's rows are read by themselves: groups are small beside all of them, and large beside a shard.
_GROUP_ROWS: Final = 32_768
_FATE_COLUMNS: Final = "sample_id, fate, step, rule, value, threshold, detail"


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: `first` is its first row in the selection, `fingerprint` decides its bytes."""

    path: str
    split: str
    samples: int
    first: int
    fingerprint: str


def decide_fates(curation: Curation, inputs: int, replacing: Sequence[str] = ()) -> None:
    """Give everyone who is left a fate and check the ledger; the table `placed` has the split of those that are kept.

    A child goes with its parent, but for the children of operators in `replacing`: those stand for a parent that may be
    dropped (a recording that is too long, whose segments are not), and drop it themselves where no rule did.

    Raises LedgerError where not every row has exactly one fate, or there are not as many originals as inputs.
    """
    run = curation.connection.execute
    if curation.one("SELECT count(*) FROM places") < curation.one("SELECT count(*) FROM candidates"):
        run(
            """INSERT INTO places SELECT sample_id, md5(coalesce(parent_id, sample_id)), 'train' FROM candidates
            WHERE sample_id NOT IN (SELECT sample_id FROM places)"""
        )
    if curation.one("SELECT count(parent_id) FROM base"):
        _fate_children(curation, replacing)
    if curation.one("SELECT count(partner_id) FROM base"):
        _fate_mixed(curation)
    run(
        """CREATE OR REPLACE TEMP TABLE placed AS
        SELECT sample_id, split FROM places p WHERE NOT EXISTS (FROM fates f WHERE f.sample_id = p.sample_id)"""
    )
    run("INSERT INTO fates SELECT sample_id, 'kept', NULL, NULL, NULL, NULL, NULL FROM placed")
    _check_ledger(curation, inputs)


def _fate_children(curation: Curation, replacing: Sequence[str]) -> None:
    run = curation.connection.execute
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


def _fate_mixed(curation: Curation) -> None:
    # What is mixed of two samples belongs to both: where one may not go, the mixture may not.
    curation.connection.execute(
        """INSERT INTO fates
        WITH mixed AS (SELECT sample_id, partner_id FROM base WHERE partner_id IS NOT NULL)
        SELECT u.sample_id, 'dropped', 'augment', if(f.fate IS NULL, 'mixes_splits', 'partner_not_kept'), NULL, NULL,
            coalesce(f.fate, own.split || ' and ' || other.split)
        FROM undecided u JOIN mixed m USING (sample_id) JOIN places own USING (sample_id)
        LEFT JOIN places other ON other.sample_id = m.partner_id
        LEFT JOIN fates f ON f.sample_id = m.partner_id
        WHERE f.fate IS NOT NULL OR other.split IS DISTINCT FROM own.split"""
    )


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
    rows, fates = curation.one("SELECT count(*) FROM base"), curation.one("SELECT count(*) FROM fates")
    fated = curation.one("SELECT count(DISTINCT sample_id) FROM fates")
    if originals != inputs or not rows == fates == fated:
        raise LedgerError(
            f"the ledger does not add up: {inputs} inputs, {originals} of them taken in; {rows} samples with children, "
            f"{fates} fates for {fated} samples"
        )


def write_decisions(curation: Curation, folder: Path, shard_samples: int, shard_bytes: int) -> list[ShardPlan]:
    """Write the decisions into a folder, and let go of them; returns the shards to be."""
    shards = _write_selection(curation, folder, shard_samples, shard_bytes)
    # What is no longer needed goes: sorting spills where memory is short.
    curation.connection.execute("DROP TABLE placed")
    for name, columns in (("places", "sample_id, group_id, split"), ("fates", _FATE_COLUMNS)):
        query = f"SELECT {columns} FROM {name} ORDER BY sample_id"
        sql.write_query(curation.connection, query, folder / f"{name}.parquet", "V2")
        curation.connection.execute(f"DROP TABLE {name}")
    write_json(folder / "shards.json", [asdict(shard) for shard in shards])
    return shards


def read_shard_plans(folder: Path) -> list[ShardPlan]:
    """The shards to be, as decided. Raises FileNotFoundError where nothing was."""
    return [ShardPlan(**shard) for shard in json.loads((folder / "shards.json").read_text(encoding="utf-8"))]


# Codes for what is few texts: splits, and which files a sample has.
_CODES: Final = (
    "CREATE OR REPLACE TEMP TABLE {0}_codes AS "
    "SELECT {0}, CAST(row_number() OVER (ORDER BY {0}) - 1 AS INTEGER) AS code "
    "FROM (SELECT DISTINCT {0} FROM {1} WHERE {0} IS NOT NULL)"
)
_KEPT: Final = """
SELECT b.sample_id, s.code AS split, h.code AS shape, b.shuffled, b.tar_bytes, b.digest, b.block, b."offset", b.bytes
FROM base b JOIN placed p ON p.sample_id = b.sample_id
JOIN split_codes s ON s.split = p.split JOIN shape_codes h ON h.shape = b.shape
"""


def _write_selection(curation: Curation, folder: Path, shard_samples: int, shard_bytes: int) -> list[ShardPlan]:
    run = curation.connection.execute
    run(_CODES.format("shape", "base"))
    run(_CODES.format("split", "places"))
    splits = [name for (name,) in run("SELECT split FROM split_codes ORDER BY code").fetchall()]
    kept = sql.arrow(curation.connection, _KEPT)
    order_K = _in_order(kept)
    split_K, sizes_K = (kept.column(name).to_numpy()[order_K] for name in ("split", "tar_bytes"))
    cuts = list(_cut(split_K, sizes_K, shard_samples, shard_bytes - END_BYTES))
    plans = _plans(cuts, [splits[split_K[first]] for first, _ in cuts], _taken(kept, "digest", order_K))
    columns = {name: _taken(kept, name, order_K) for name in ("sample_id", "block", "offset", "bytes")}
    shard_K = np.repeat(np.arange(len(cuts), dtype=np.int32), [last - first for first, last in cuts])
    paths = pa.array([plan.path for plan in plans], pa.string())
    columns["shard"] = pa.DictionaryArray.from_arrays(pa.array(shard_K), paths)
    path = folder / "selection.parquet"
    pq.write_table(
        pa.table(columns),
        path,
        compression="zstd",
        compression_level=1,
        row_group_size=_GROUP_ROWS,
        # All else differs from row to row, which a dictionary finds out late.
        use_dictionary=["shard"],
    )
    return plans


def _taken(table: pa.Table, name: str, order_K: NDArray[np.int64]) -> pa.Array:
    """A column in that order, as one array."""
    column = table.column(name)
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(column.type, column.type)
    return column.cast(wide).combine_chunks().take(pa.array(order_K))


def _in_order(kept: pa.Table) -> NDArray[np.int64]:
    """Rows by split, the leaders of each first, the others as their hash says."""
    split_K, shape_K, shuffled_K = (kept.column(name).to_numpy() for name in ("split", "shape", "shuffled"))
    order_K = np.lexsort((shuffled_K, split_K))
    sorted_K = shuffled_K[order_K]
    if (sorted_K[1:] == sorted_K[:-1]).any():
        # Two in some million times a million; rows come in any order, so something else has to decide.
        offset_K, block_K = (kept.column(name).to_numpy() for name in ("offset", "block"))
        order_K = np.lexsort((offset_K, block_K, shuffled_K, split_K))
    bounds = np.searchsorted(split_K[order_K], np.arange(split_K.max(initial=-1) + 2))
    for first, last in pairwise(bounds.tolist()):
        run_K = order_K[first:last]
        leads = _leaders(shape_K[run_K])
        order_K[first:last] = np.concatenate([run_K[leads], np.delete(run_K, leads)])
    return order_K


def _leaders(shape_K: NDArray[np.int32]) -> list[int]:
    """The first rows of the lowest shapes, in their order."""
    found: list[int] = []
    for shape in np.flatnonzero(np.bincount(shape_K)):
        found += np.flatnonzero(shape_K == shape)[: _LEADERS - len(found)].tolist()
        if len(found) == _LEADERS:
            break
    return sorted(found)


def _cut(
    split_K: NDArray[np.int32], sizes_K: NDArray[np.int64], shard_samples: int, shard_bytes: int
) -> Iterator[tuple[int, int]]:
    """First row and the one after the last of runs of one split within both limits; a sample too large is alone."""
    ends_K = np.cumsum(sizes_K)
    first = 0
    while first < len(split_K):
        room = ends_K[first] - sizes_K[first] + shard_bytes
        fits = int(np.searchsorted(ends_K, room, "right"))
        same = int(np.searchsorted(split_K, split_K[first], "right"))
        last = max(first + 1, min(first + shard_samples, fits, same))
        yield first, last
        first = last


def _plans(cuts: Sequence[tuple[int, int]], splits: Sequence[str], digests: pa.Array) -> list[ShardPlan]:
    content = memoryview(digests.buffers()[2] or b"")
    numbers: Counter[str] = Counter()
    plans = []
    for (first, last), split in zip(cuts, splits, strict=True):
        digest = hashlib.sha256(content[first * DIGEST_BYTES : last * DIGEST_BYTES]).hexdigest()
        plans.append(ShardPlan(f"{split}-{numbers[split]:06d}.tar", split, last - first, first, digest))
        numbers[split] += 1
    return plans
