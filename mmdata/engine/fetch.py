"""Fetch what a chunk has on the web: one part of answers, made in the one process that knows all hosts' limits."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mmdata.engine.ingest import Slice
from mmdata.engine.tasks import in_order
from mmdata.engine.work import Done
from mmdata.errors import FatalError
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
    """URLs of a chunk with the most bytes that each may have; whether they are asked for whatever is known of them."""

    urls: Mapping[str, int]
    as_of: str | None
    anew: bool


class Asked:
    """What servers were asked for: by parts of the folder, and by chunks of this run that are under way.

    A URL that several chunks name is asked for by the first; the others wait until its part is there. Each waits only
    for chunks that began before it, so that none waits for itself.
    """

    def __init__(self, parts: Iterable[Path]) -> None:
        """Read what `parts` hold."""
        self._earlier = Earlier(parts)
        self._under_way: dict[str, asyncio.Event] = {}
        self._parts: dict[Path, asyncio.Event] = {}

    def close(self) -> None:
        """Remove the index."""
        self._earlier.close()

    async def known(self, urls: Sequence[str]) -> dict[str, tuple[Path, dict[str, Any]]]:
        """What parts hold of `urls`: the part and the row."""
        return await asyncio.to_thread(self._earlier.rows, urls)

    async def is_written(self, out: Path) -> bool:
        """Wait for the chunk of this run that writes a part, if one does or did: chunks of the same URLs have one part.

        Written once more it would be put in the place of what a worker reads.
        """
        if out not in self._parts:
            return False
        await self._parts[out].wait()
        return True

    @asynccontextmanager
    async def claimed(self, urls: Iterable[str], out: Path) -> AsyncIterator[Mapping[str, asyncio.Event]]:
        """While a chunk asks for `urls`; gives those that others ask for, and when their part is there."""
        others = {url: self._under_way[url] for url in urls if url in self._under_way}
        ready = asyncio.Event()
        mine = dict.fromkeys((url for url in urls if url not in others), ready)
        self._under_way |= mine
        self._parts[out] = ready
        try:
            yield others
            await asyncio.to_thread(self._earlier.add, out)
        finally:
            for url in mine:
                del self._under_way[url]
            ready.set()


def wanted(pipeline: Pipeline, chunk: Slice) -> Want:
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
    return Want(urls, pipeline.as_of, bool(chunk.retried))


async def fetch_part(fetcher: Fetcher, want: Want, asked: Asked, out: Path) -> Done:
    """Fetch all URLs of a chunk and write its fetch part: first its own, then those that other chunks ask for."""
    began = time.process_time()
    done = Done(0)
    if await asked.is_written(out):
        return done
    lock = asyncio.Lock()
    async with asked.claimed([] if want.anew else want.urls, out) as others:
        with FetchPartWriter(out) as writer:

            async def store(row: dict[str, Any], data: bytes | None) -> None:
                async with lock:
                    if data is not None and len(data) > _WRITTEN_AT_ONCE_BYTES:
                        await asyncio.to_thread(writer.add, row, data)
                    else:
                        writer.add(row, data)
                done.samples += 1
                done.failures.append((row["reason"], row["detail"]) if row.get("reason") else None)

            async def get(urls: Sequence[str]) -> None:
                known = {} if want.anew else await asked.known(urls)
                each = (_one(fetcher, want, url, known.get(url), store) for url in urls)
                await in_order(each, min(_AT_ONCE, len(urls)))

            await get([url for url in want.urls if url not in others])
            for ready in set(others.values()):
                await ready.wait()
            await get(list(others))
            await asyncio.to_thread(writer.flush)
    done.cpu_s = time.process_time() - began
    return done


async def _one(fetcher: Fetcher, want: Want, url: str, earlier: tuple[Path, dict[str, Any]] | None, store: Any) -> None:
    part, before = earlier or (Path(), None)
    known = None
    if before is not None and before["as_of"] == want.as_of:
        # What is too large for one member may not be for another.
        if before["reason"] != "too_large" and await _take_over(part, before, store):
            return
    elif before is not None and before["reason"] is None:
        known = Validators(before["etag"], before["last_modified"])
    facts = {"url": url, "as_of": want.as_of, "fetched_at": datetime.now(UTC)}
    try:
        async with fetcher.get(url, want.urls[url], known) as answer:
            if answer.status == HTTPStatus.NOT_MODIFIED and before is not None:
                await store(
                    {**before, **facts, "status": answer.status}, await asyncio.to_thread(body_of, part, before)
                )
            else:
                await store({**facts, **_row(answer)}, answer.data)
    except FetchError as error:
        await store({**facts, "status": error.status, "reason": error.reason, "detail": str(error)}, None)


async def _take_over(part: Path, row: dict[str, Any], store: Any) -> bool:
    """Store what another part holds; not where its bodies were thrown away meanwhile."""
    try:
        body = None if row["reason"] else await asyncio.to_thread(body_of, part, row)
    except FatalError:
        return False
    await store(row, body)
    return True


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


def fetched_parts(plan: Plan) -> Sequence[Path]:
    """Fetch parts of the folder: of the plan, of another list of URLs, of another size of parts."""
    return sorted((plan.output / "parts" / "fetch").glob("*.parquet"))
