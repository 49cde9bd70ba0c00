"""Fetch what a chunk has on the web: one part of answers, made in the one process that knows all hosts' limits."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mmdata.engine.ingest import Slice
from mmdata.engine.tasks import in_order
from mmdata.engine.work import Done
from mmdata.listing import on_the_web
from mmdata.net.fetcher import Answer, Fetcher, FetchError, Validators
from mmdata.net.sniff import sniff
from mmdata.pipeline import Pipeline
from mmdata.plan import Plan
from mmdata.store.fetches import Earlier, FetchPartWriter, body_of, read_rows

# Of one chunk; the fetcher's own limits are below it, and what waits there costs memory.
_AT_ONCE = 256
# What is written between two looks at the network; more would hold up all other answers.
_WRITTEN_AT_ONCE_BYTES = 1 << 20


@dataclass(frozen=True)
class Want:
    """URLs of a chunk with the most bytes that each may have, and what earlier parts know of them."""

    urls: Mapping[str, int]
    earlier: Mapping[str, tuple[Path, dict[str, Any]]]
    as_of: str | None


def wanted(pipeline: Pipeline, chunk: Slice, earlier: Earlier | None) -> Want:
    """What to ask servers for: in a retry, only what failed."""
    urls: dict[str, int] = {}
    for found in chunk.inputs():
        for ref in found.refs if not found.problem else ():
            how = pipeline.ingest.get(ref.modality)
            if on_the_web(ref) and how is not None:
                urls[str(ref.url)] = max(urls.get(str(ref.url), 0), how.max_bytes)
    if chunk.retried:
        rows = (row for part in chunk.fetches[1:] for row in read_rows(part, ["url", "reason"]))
        good = {row["url"] for row in rows if row["reason"] is None}
        urls = {url: size for url, size in urls.items() if url not in good}
    return Want(urls, earlier.rows(list(urls)) if earlier and not chunk.retried else {}, pipeline.as_of)


async def fetch_part(fetcher: Fetcher, want: Want, out: Path) -> Done:
    """Fetch all URLs of a chunk and write its fetch part."""
    began = time.process_time()
    done = Done(0)
    lock = asyncio.Lock()
    with FetchPartWriter(out) as writer:

        async def store(row: dict[str, Any], data: bytes | None) -> None:
            async with lock:
                if data is not None and len(data) > _WRITTEN_AT_ONCE_BYTES:
                    await asyncio.to_thread(writer.add, row, data)
                else:
                    writer.add(row, data)
            done.samples += 1
            done.failures.append((row["reason"], row["detail"]) if row.get("reason") else None)

        each = (_one(fetcher, want, url, max_bytes, store) for url, max_bytes in want.urls.items())
        await in_order(each, min(_AT_ONCE, len(want.urls)))
        await asyncio.to_thread(writer.flush)
    done.cpu_s = time.process_time() - began
    return done


async def _one(fetcher: Fetcher, want: Want, url: str, max_bytes: int, store: Any) -> None:
    part, before = want.earlier.get(url, (Path(), None))
    known = None
    if before is not None:
        if before["as_of"] == want.as_of:
            await store(before, None if before["reason"] else await asyncio.to_thread(body_of, part, before))
            return
        if before["reason"] is None:
            known = Validators(before["etag"], before["last_modified"])
    facts = {"url": url, "as_of": want.as_of, "fetched_at": datetime.now(UTC)}
    try:
        async with fetcher.get(url, max_bytes, known) as answer:
            if answer.status == HTTPStatus.NOT_MODIFIED and before is not None:
                await store(
                    {**before, **facts, "status": answer.status}, await asyncio.to_thread(body_of, part, before)
                )
            else:
                await store({**facts, **_row(answer)}, answer.data)
    except FetchError as error:
        await store({**facts, "status": error.status, "reason": error.reason, "detail": str(error)}, None)


def _row(answer: Answer) -> dict[str, Any]:
    return {
        "final_url": answer.final_url,
        "status": answer.status,
        "declared": answer.declared,
        "mime": sniff(answer.data, answer.declared),
        "bytes": len(answer.data),
        "sha256": hashlib.sha256(answer.data).hexdigest(),
        "etag": answer.validators.etag,
        "last_modified": answer.validators.last_modified,
        "opt_out": ",".join(answer.opt_out) or None,
        "attempts": answer.attempts,
        "wall_s": answer.wall_s,
    }


def unplanned_parts(plan: Plan) -> Sequence[Path]:
    """Fetch parts of the folder that are none of the plan's: of another list of URLs, or of another size of parts."""
    mine = {fingerprint for _, fingerprint in plan.fetch_parts()}
    folder = plan.output / "parts" / "fetch"
    return sorted(path for path in folder.glob("*.parquet") if path.stem not in mine)
