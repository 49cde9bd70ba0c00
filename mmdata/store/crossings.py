"""What lies on both sides of a split, and who changed sides since the build before.

`crossings.parquet`: of the `of_samples` kept samples of `split`, `samples` have a twin in `other_split`: one with a
member of the same bytes, or one that a measure links (`twins_by`). Splits keep apart what they are told to; this says
of everything else how much of it is in two splits. What has no twins has a row too: zero is what one wants to read.

`moved.parquet`: samples that were kept in another split before.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from mmdata.store import sql
from mmdata.store.curation import Curation
from mmdata.store.sql import identifier, parquet, quoted

CROSSINGS: Final = {
    "twins_by": "VARCHAR",
    "split": "VARCHAR",
    "other_split": "VARCHAR",
    "samples": "BIGINT",
    "of_samples": "BIGINT",
}
MOVED: Final = {"sample_id": "VARCHAR", "split_before": "VARCHAR", "split": "VARCHAR"}


def write_crossings(curation: Curation, folder: Path) -> None:
    """Look at the kept samples of a build whose fates are decided; writes `crossings.parquet`."""
    members = [_by_bytes(curation, name, n) for n, name in enumerate(curation.columns.members)]
    names = ", ".join(f"({quoted(f'{name}.sha256')})" for name in curation.columns.members)
    query = f"""
WITH splits AS (SELECT split, count(*) AS total FROM placed GROUP BY split),
counted AS ({" UNION ALL ".join([*members, _BY_LINKS])}),
named AS (SELECT * FROM (VALUES {names}) AS n(twins) UNION
    SELECT DISTINCT measure || '.' || member FROM links WHERE other_source IS NULL)
SELECT n.twins AS twins_by, s.split, o.split AS other_split, coalesce(c.samples, 0)::BIGINT AS samples,
    s.total AS of_samples
FROM named n CROSS JOIN splits s JOIN splits o ON o.split <> s.split
LEFT JOIN counted c ON c.twins = n.twins AND c.split = s.split AND c.other_split = o.split
ORDER BY ALL"""
    sql.write_query(curation.connection, query, folder / "crossings.parquet")


def write_moved(curation: Curation, folder: Path, before: Path | None) -> None:
    """Hold the places against those of other decisions, if there are any; writes `moved.parquet`.

    Args:
        curation: decided.
        folder: to write to; a folder below the curation's scratch, for its SQL reads from nowhere else.
        before: folder of the other decisions.
    """
    query = f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in MOVED.items())} WHERE false"
    copies = [folder / f"{name}-before.parquet" for name in ("fates", "places")]
    if before is not None:
        for copy in copies:
            shutil.copyfile(before / copy.name.replace("-before", ""), copy)
        fates, places = (parquet([copy]) for copy in copies)
        kept = f"SELECT sample_id, split FROM {fates} f JOIN {places} p USING (sample_id) WHERE fate = 'kept'"
        query = f"""SELECT sample_id, b.split AS split_before, p.split FROM ({kept}) b JOIN places p USING (sample_id)
            WHERE p.split <> b.split ORDER BY sample_id"""
    sql.write_query(curation.connection, query, folder / "moved.parquet")
    for copy in copies:
        copy.unlink(missing_ok=True)


def _by_bytes(curation: Curation, member: str, number: int) -> str:
    """A query of what has the bytes of a member in common with other splits; makes a table of those that may."""
    digest, twins = f"{identifier(member)}.sha256", f"twins_{number}"
    # Most have no twin at all, and need not be joined to their split. 64 bits of a digest confuse two of ten million
    # with a probability of 3e-6, and are an eighth of it.
    twice = f"SELECT hash({digest}) FROM candidates WHERE {digest} IS NOT NULL GROUP BY 1 HAVING count(*) > 1"
    curation.connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE {twins} AS
        WITH hashed AS (SELECT sample_id, hash({digest}) AS digest FROM candidates
            WHERE {digest} IS NOT NULL AND hash({digest}) IN ({twice}))
        SELECT digest, split, count(*) AS samples FROM hashed JOIN placed USING (sample_id) GROUP BY ALL"""
    )
    # By digest and split first: a caption of a million samples must not become a million times a million pairs.
    return f"""SELECT {quoted(f"{member}.sha256")} AS twins, a.split, b.split AS other_split, sum(a.samples) AS samples
        FROM {twins} a JOIN {twins} b ON a.digest = b.digest AND a.split <> b.split GROUP BY ALL"""


_BY_LINKS: Final = """SELECT measure || '.' || member AS twins, a.split, b.split AS other_split,
    count(DISTINCT l.sample_id) AS samples
FROM (SELECT measure, member, sample_id, other_id FROM links WHERE other_source IS NULL
    UNION ALL SELECT measure, member, other_id, sample_id FROM links WHERE other_source IS NULL) l
JOIN placed a ON a.sample_id = l.sample_id JOIN placed b ON b.sample_id = l.other_id AND a.split <> b.split
GROUP BY ALL"""
