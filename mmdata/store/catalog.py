"""`catalog.duckdb`: views over the Parquet of a build, made anew from it at any time.

The file is written aside and renamed, and never held open: anybody can query it while a build runs, and sees the parts
that were committed when it was last refreshed.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mmdata.errors import MmdataError
from mmdata.store import sql
from mmdata.store.crossings import CROSSINGS, MOVED
from mmdata.store.curation import base_rows, links_of
from mmdata.store.explained import EXPLAINED
from mmdata.store.files import SCRATCH_MARK, is_alive, write_json
from mmdata.store.sql import parquet, quoted

_MEMBER: Final = (
    "STRUCT(modality VARCHAR, name VARCHAR, mime VARCHAR, bytes BIGINT, sha256 VARCHAR, width INTEGER, height INTEGER, "
    "faces INTEGER, duration_s DOUBLE, start_s DOUBLE, sample_rate INTEGER, channels INTEGER, lang VARCHAR, "
    "lang_guessed BOOLEAN, text VARCHAR, chars INTEGER, words INTEGER, masked INTEGER, shape INTEGER[], dtype VARCHAR, "
    "ndim INTEGER, elements BIGINT, finite_share DOUBLE, "
    '"min" DOUBLE, "max" DOUBLE, "mean" DOUBLE, rate_hz DOUBLE, error VARCHAR)[]'
)
_TEXT: Final = "VARCHAR"
# What each source of the views looks like before a build has written any of it.
_COLUMNS: Final[dict[str, dict[str, str]]] = {
    "base": {
        **dict.fromkeys(["sample_id", "source", "key", "parent_id", "variant", "attributes", "augmentation"], _TEXT),
        **dict.fromkeys(["failed_step", "reason", "detail"], _TEXT),
        "members": _MEMBER,
        "filename": _TEXT,
    },
    "fetches": {
        **dict.fromkeys(["url", "final_url", "declared", "mime", "sha256", "etag", "last_modified"], _TEXT),
        **dict.fromkeys(["opt_out", "as_of", "reason", "detail"], _TEXT),
        **dict.fromkeys(["status", "attempts"], "INTEGER"),
        "bytes": "BIGINT",
        "wall_s": "DOUBLE",
        "fetched_at": "TIMESTAMPTZ",
    },
    "pages": {
        **dict.fromkeys(["url", "kind", "state", "reason", "detail", "final_url"], _TEXT),
        **dict.fromkeys(["depth", "status"], "INTEGER"),
        "bytes": "BIGINT",
        "attempts": "INTEGER",
    },
    "scored": {
        **dict.fromkeys(["sample_id", "aligner", "edge"], _TEXT),
        **dict.fromkeys(["score", "strength"], "FLOAT"),
        **dict.fromkeys(['"null"', "null_strength"], "FLOAT[]"),
        **dict.fromkeys(["measures", "new_name", "new_text", "new_lang", "reason", "detail"], _TEXT),
    },
    "fates": {
        **dict.fromkeys(["sample_id", "fate", "step", "rule"], _TEXT),
        "value": "DOUBLE",
        "threshold": "DOUBLE",
        "detail": _TEXT,
    },
    "calibrated": {
        **dict.fromkeys(["sample_id", "aligner", "edge"], _TEXT),
        **dict.fromkeys(["percentile", "match"], "FLOAT"),
    },
    "calibrations": {
        **dict.fromkeys(["aligner", "edge"], _TEXT),
        **dict.fromkeys(["pairs", "null_pairs"], "BIGINT"),
        **dict.fromkeys(["noise", "noise_low", "noise_high"], "DOUBLE"),
        "problem": _TEXT,
    },
    "embeddings": {**dict.fromkeys(["sample_id", "aligner", "member"], _TEXT), "vector": "FLOAT[]"},
    "places": dict.fromkeys(["sample_id", "group_id", "split"], _TEXT),
    "crossings": CROSSINGS,
    "moved": MOVED,
    "selection": dict.fromkeys(["sample_id", "shard"], _TEXT),
}
_VIEWS: Final = {
    "samples": """
SELECT b.sample_id, b.source, b.key, p.group_id, b.parent_id, b.variant, p.split, f.fate, s.shard, c.match,
    CAST(json(b.attributes) AS MAP(VARCHAR, VARCHAR)) AS attributes, b.augmentation
FROM base b LEFT JOIN places p USING (sample_id) LEFT JOIN fates f USING (sample_id)
LEFT JOIN selection s USING (sample_id)
LEFT JOIN (SELECT sample_id, match FROM calibrated WHERE aligner = '') c USING (sample_id)
""",
    "members": """
SELECT sample_id, m.modality, m.name, m.mime, m.bytes, m.sha256, m.width, m.height, m.faces, m.duration_s,
    m.start_s, m.sample_rate, m.channels, m.lang, m.lang_guessed, m.text, m.chars, m.words, m.masked, m.shape, m.dtype,
    m.ndim, m.elements, m.finite_share, m.min, m.max, m.mean, m.rate_hz, m.error, NULL AS made_by
FROM (SELECT sample_id, unnest(members) AS m FROM base)
UNION ALL BY NAME
SELECT sample_id, 'text' AS modality, new_name AS name, 'text/plain' AS mime,
    octet_length(encode(new_text)) AS bytes, sha256(new_text) AS sha256, new_lang AS lang, new_text AS text,
    length(new_text) AS chars, aligner AS made_by
FROM scored WHERE new_text IS NOT NULL
""",
    # An operator counts where it was drawn: applied to a child, or left out of it with its reason.
    "operators": """
WITH children AS (
    SELECT b.augmentation, f.fate, c.match - p.match AS change
    FROM base b LEFT JOIN fates f USING (sample_id)
    LEFT JOIN calibrated c ON c.sample_id = b.sample_id AND c.aligner = ''
    LEFT JOIN calibrated p ON p.sample_id = b.parent_id AND p.aligner = ''
    WHERE b.augmentation IS NOT NULL),
drawn AS (
    SELECT augmentation ->> '$.policy' AS policy, unnest(augmentation ->> '$.applied[*].op') AS operator,
        NULL AS reason, fate, change FROM children
    UNION ALL
    SELECT augmentation ->> '$.policy', unnest(augmentation ->> '$.skipped[*].op'),
        unnest(augmentation ->> '$.skipped[*].reason'), NULL, NULL FROM children)
SELECT policy, operator, count(*) FILTER (WHERE reason IS NULL) AS made, count(reason) AS vetoed,
    count(*) FILTER (WHERE fate = 'kept') AS kept, count(*) FILTER (WHERE fate = 'dropped') AS dropped,
    avg(change) AS mean_match_change, histogram(reason) AS vetoes
FROM drawn GROUP BY policy, operator
""",
    "explained": EXPLAINED,
    "scores": """
SELECT s.sample_id, s.aligner, s.edge, s.score, c.percentile, c.match, s.measures, s.reason, s.detail
FROM scored s LEFT JOIN calibrated c USING (sample_id, aligner, edge) WHERE s.edge IS NOT NULL
""",
}
# The curve is for other builds (`reference`): a thousand numbers that nobody reads in a table.
_SHOWN: Final = {"calibrations": "* EXCLUDE curve", "fetches": '* EXCLUDE "offset"'}
# What a catalog is made of: one that another version wrote may lack views that are there now.
_LAYOUT: Final = hashlib.sha256(json.dumps([_COLUMNS, _VIEWS, _SHOWN]).encode()).hexdigest()[:16]
_DECIDED: Final = ("fates", "places", "selection", "crossings", "moved")
_GATHERED: Final = {"calibrated": "calibrated-*", "calibrations": "calibrations"}
_RUN: Final = {
    "run_id": "VARCHAR",
    "status": "VARCHAR",
    "started": "TIMESTAMP",
    "ended": "TIMESTAMP",
    "inputs": "BIGINT",
    "selection": "VARCHAR",
    "mmdata": "VARCHAR",
    "command": "VARCHAR",
}
_STEP: Final = {
    "step": "VARCHAR",
    "unit": "VARCHAR",
    "total": "BIGINT",
    "done": "BIGINT",
    "before": "BIGINT",
    "samples": "BIGINT",
    "failed": "BIGINT",
    "wall_s": "DOUBLE",
    "cpu_s": "DOUBLE",
    "peak_rss_bytes": "BIGINT",
}
_SHARD: Final = {"path": "VARCHAR", "split": "VARCHAR", "samples": "BIGINT", "bytes": "BIGINT", "sha256": "VARCHAR"}


def path_of(output: Path) -> Path:
    """The catalog of a build folder."""
    return output / "catalog.duckdb"


@dataclass(frozen=True)
class Build:
    """Which parts and decisions make up a build, as (label, fingerprint).

    Attributes:
        name: of the pipeline.
        selection: fingerprint of the decisions.
        gathering: fingerprint of what they were made over.
        base: base parts.
        scores: score parts.
        fetches: fetch parts.
        retried: base parts whose failed fetches are spoken of by others.
        links: parts of links between samples.
        looked: parts of what was found in files.
        crawls: names of the folders of crawls.
    """

    name: str
    selection: str
    gathering: str
    base: Sequence[tuple[str, str]]
    scores: Sequence[tuple[str, str]]
    fetches: Sequence[tuple[str, str]]
    retried: Sequence[tuple[str, str]]
    links: Sequence[tuple[str, str]] = ()
    looked: Sequence[tuple[str, str]] = ()
    crawls: Sequence[str] = ()


def describe_build(output: Path, build: Build) -> None:
    """Note what the catalog shows from now on."""
    write_json(output / "build.json", asdict(build))


def refresh(output: Path) -> None:
    """Make the catalog anew from what is committed now. Raises MmdataError where `output` holds no build."""
    build = _read_build(output)
    path = path_of(output)
    scratch = path.with_name(f"{path.name}{SCRATCH_MARK}{os.getpid()}")
    scratch.unlink(missing_ok=True)
    connection = sql.connect(str(scratch))
    try:
        _make(connection, output, build)
    finally:
        connection.close()
    scratch.replace(path)


def _make(connection: Any, output: Path, build: dict[str, Any]) -> None:
    for name, query in _queries(output.resolve(), build).items():
        connection.execute(f"CREATE VIEW {name} AS {query}")
    whose = {"name": "VARCHAR", "selection": "VARCHAR", "folder": "VARCHAR", "layout": "VARCHAR"}
    _fill(connection, "build", whose, [_whose(output, build)])
    _fill(connection, "shards", _SHARD, _shards(output))
    runs = [_read_run(file) for file in sorted((output / "log").glob("*.json"))]
    _fill(connection, "runs", _RUN, [_timed(run["run"]) for run in runs])
    steps = [{"run_id": run["run"]["run_id"], **step} for run in runs for step in run["steps"]]
    _fill(connection, "steps", {"run_id": "VARCHAR", **_STEP}, steps)


def is_fresh(output: Path, selection: str) -> bool:
    """Whether the catalog shows this build, finished, where it now lies, as this version of mmdata has it."""
    try:
        connection = sql.connect(str(path_of(output)), access_mode="READ_ONLY")
        rows = connection.execute(
            "SELECT selection, folder, layout, (SELECT count(*) FROM fates) FROM build"
        ).fetchall()
        connection.close()
    except sql.Error:
        return False
    return bool(rows and rows[0][:3] == (selection, str(output.resolve()), _LAYOUT) and rows[0][3])


def open_catalog(output: Path) -> Any:
    """A read-only connection; the catalog is made anew first where it is missing or not fresh.

    Where nothing can be written (a build that others share) that is done in memory. Raises MmdataError where `output`
    holds no build, or one whose files this version of mmdata cannot show.
    """
    build = _read_build(output)
    if is_fresh(output, build["selection"]):
        connection = sql.connect(str(path_of(output)), access_mode="READ_ONLY")
        running = connection.execute("SELECT run_id FROM runs WHERE status = 'running'").fetchall()
        if all(_status(_read_run(output / "log" / f"{name}.json")) == "running" for (name,) in running):
            return connection
        connection.close()
    try:
        refresh(output)
        return sql.connect(str(path_of(output)), access_mode="READ_ONLY")
    except (sql.Error, OSError, KeyError):
        connection = sql.connect()
    try:
        _make(connection, output, build)
    except (sql.Error, KeyError) as error:
        fix = "build it anew: mmdata build, with its pipeline file"
        why = f"no catalog can be made of the files here, which another version may have written: {error}"
        raise MmdataError(f"{output}: {why}; {fix}") from None
    return connection


def counts(output: Path) -> dict[str, dict[str, int]]:
    """How many originals of each fate, children of each fate, and samples of each split were kept."""
    connection = open_catalog(output)
    query = "SELECT {0}, count(*) FROM samples WHERE {1} GROUP BY 1 ORDER BY 2 DESC, 1"
    found = {
        "fates": query.format("fate", "parent_id IS NULL"),
        "children": query.format("fate", "parent_id IS NOT NULL"),
        "splits": query.format("split", "fate = 'kept'"),
    }
    return {name: dict(connection.execute(sql_text).fetchall()) for name, sql_text in found.items()}


def failures(output: Path) -> dict[str, int]:
    """How many originals failed of each reason, the commonest first."""
    query = """SELECT rule, count(*) FROM fates JOIN samples USING (sample_id)
        WHERE fates.fate = 'failed' AND parent_id IS NULL GROUP BY rule ORDER BY 2 DESC, 1"""
    return dict(open_catalog(output).execute(query).fetchall())


def calibrations(output: Path) -> list[dict[str, Any]]:
    """What is known of each edge: aligner, edge, pairs, noise with its interval, and the problem if there is one."""
    columns = ("aligner", "edge", "pairs", "noise", "noise_low", "noise_high", "problem")
    rows = open_catalog(output).execute(f"SELECT {', '.join(columns)} FROM calibrations ORDER BY 1, 2").fetchall()
    return [dict(zip(columns, row, strict=True)) for row in rows]


def operators(output: Path) -> list[dict[str, Any]]:
    """What became of each operator of the policies: the view `operators`, without its reasons."""
    columns = ("policy", "operator", "made", "vetoed", "kept", "dropped", "mean_match_change")
    rows = open_catalog(output).execute(f"SELECT {', '.join(columns)} FROM operators ORDER BY 1, 2").fetchall()
    return [dict(zip(columns, row, strict=True)) for row in rows]


def crossings(output: Path) -> list[dict[str, Any]]:
    """Of each two splits and each way to be alike, how many samples of the one have a twin in the other."""
    rows = open_catalog(output).execute(f"SELECT {', '.join(CROSSINGS)} FROM crossings ORDER BY ALL").fetchall()
    return [dict(zip(CROSSINGS, row, strict=True)) for row in rows]


def moved(output: Path) -> int:
    """How many samples are in another split than they were when the build before was decided."""
    row = open_catalog(output).execute("SELECT count(*) FROM moved").fetchone()
    return int(row[0]) if row else 0


def gave_way_to_dropped(output: Path) -> int:
    """How many samples are duplicates of one that a rule dropped, so that none of them is in."""
    query = """SELECT count(*) FROM fates f JOIN fates best ON best.sample_id = f.detail
        WHERE f.fate = 'duplicate' AND best.fate = 'dropped' AND best.step = 'rules'"""
    row = open_catalog(output).execute(query).fetchone()
    return int(row[0]) if row else 0


def _read_build(output: Path) -> dict[str, Any]:
    try:
        build: dict[str, Any] = json.loads((output / "build.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MmdataError(
            f"{output}: no build here (build.json is missing); give the folder that a build wrote"
        ) from None
    return build


def _queries(folder: Path, build: dict[str, Any]) -> dict[str, str]:
    parts = {
        name: [path for label, part in build[key] if (path := folder / "parts" / label / f"{part}.parquet").exists()]
        for name, key in (("base", "base"), ("scored", "scores"), ("fetches", "fetches"))
    }
    crawls = (folder / "crawl" / name / "pages.parquet" for name in build.get("crawls", ()))
    parts["pages"] = [path for path in crawls if path.exists()]
    decided = folder / "decided" / build["selection"]
    if (decided / "shards.json").exists():
        parts |= {name: [path] for name in _DECIDED if (path := decided / f"{name}.parquet").exists()}
    gathered = folder / "gathered" / build.get("gathering", "")
    if (gathered / "gathered.json").exists():
        parts |= {name: sorted(gathered.glob(f"{pattern}.parquet")) for name, pattern in _GATHERED.items()}
    found = {name: _no_rows(columns) for name, columns in _COLUMNS.items()}
    for name, paths in parts.items():
        if paths:
            found[name] = f"SELECT {_SHOWN.get(name, '*')} FROM {parquet(paths)}"
    if parts["base"]:
        retried = [folder / "parts" / label / f"{part}.parquet" for label, part in build["retried"]]
        found["base"] = base_rows(parts["base"], retried)
    links = {label: folder / "parts" / label / f"{part}.parquet" for label, part in build.get("links", ())}
    found["links"] = links_of({label: path for label, path in links.items() if path.exists()})
    found["embeddings"] = _embeddings(folder, build) or found["embeddings"]
    return found | _VIEWS


def _embeddings(folder: Path, build: dict[str, Any]) -> str:
    """One row for each member that an aligner embedded; '' where none did."""
    files: dict[tuple[str, str], list[Path]] = {}
    for label, part in build["scores"]:
        for path in sorted((folder / "parts" / label).glob(f"{part}.*.vectors.parquet")):
            files.setdefault((label, path.name.split(".")[1]), []).append(path)
    return " UNION ALL ".join(
        f"SELECT sample_id, {quoted(label)} AS aligner, {quoted(member)} AS member, vector FROM {parquet(paths)}"
        for (label, member), paths in files.items()
    )


def _no_rows(columns: dict[str, str]) -> str:
    return f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in columns.items())} WHERE false"


def _whose(output: Path, build: dict[str, Any]) -> dict[str, Any]:
    folder = str(output.resolve())
    return {"name": build["name"], "selection": build["selection"], "folder": folder, "layout": _LAYOUT}


def _shards(output: Path) -> list[dict[str, Any]]:
    try:
        manifest = json.loads((output / "shards" / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [{"split": name, **shard} for name, split in manifest["splits"].items() for shard in split["shards"]]


def _read_run(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found["run"]["status"] = _status(found)
    return found


def _status(record: dict[str, Any]) -> str:
    """As the run noted it; one whose process is gone without a word was killed."""
    run = record["run"]
    here = run.get("host") in {None, socket.gethostname()}
    if run["status"] == "running" and here and not is_alive(run["run_id"].rpartition("-")[2], run["started"]):
        return "killed"
    return str(run["status"])


def _timed(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, **{key: run[key] and f"epoch:{run[key]}" for key in ("started", "ended")}}


def _fill(connection: Any, name: str, columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> None:
    connection.execute(f"CREATE TABLE {name} ({', '.join(f'{c} {kind}' for c, kind in columns.items())})")
    for row in rows:
        values = ", ".join(_literal(row.get(column)) for column in columns)
        connection.execute(f"INSERT INTO {name} VALUES ({values})")


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str) and value.startswith("epoch:"):
        return f"make_timestamp({int(float(value[6:]) * 1e6)})"
    return quoted(value) if isinstance(value, str) else repr(value)
