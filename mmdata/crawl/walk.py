"""Visit the pages of a site, level by level, and record them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmdata.crawl.frontier import Frontier, Outcome, Visit
from mmdata.crawl.recording import Recorder
from mmdata.crawl.scope import Scope
from mmdata.crawl.sitemaps import MOST_BYTES, read_sitemap
from mmdata.errors import SampleError
from mmdata.media.html import outline
from mmdata.media.html_tree import Limits
from mmdata.net.address import checked_url
from mmdata.net.errors import FetchError
from mmdata.net.fetcher import Answer, Fetcher
from mmdata.net.rights import meta_rights
from mmdata.net.sniff import sniff

_ACCEPT: Final = "text/html,application/xhtml+xml;q=0.9,*/*;q=0.1"
_PAGES: Final = frozenset({"text/html", "application/xhtml+xml", "text/xml"})
_LISTS: Final = frozenset({"text/plain", "text/xml", "application/gzip"})
_MOST_SITEMAPS: Final = 10_000
_TELL_EVERY: Final = 20


@dataclass(frozen=True)
class Start:
    """Where a crawl begins: pages, and sitemaps (None: those that robots.txt names, else a /sitemap.xml)."""

    seeds: Sequence[str]
    sitemaps: Sequence[str] | None


async def walk(fetcher: Fetcher, start: Start, scope: Scope, folder: Path, told: Callable[[int, int], None]) -> None:
    """Visit all that is in scope, and write `pages.parquet` and `done.json` into `folder`.

    Goes on where it stopped; in a crawl that was done and was reopened, what failed is visited again.
    """
    with closing(Frontier(folder / "frontier.sqlite")) as frontier:
        if (folder / "pages.parquet").exists():
            frontier.try_failed_again()
            (folder / "pages.parquet").unlink()
        recorder = Recorder(folder, frontier.recorded())
        seeds = _normal(start.seeds)
        walker = _Walker(fetcher, scope, frontier, recorder, told, frozenset(seeds))
        try:
            frontier.add(seeds, "page", 0)
            frontier.add(await walker.sitemaps(start), "sitemap", 0)
            await walker.all_of("sitemap")
            await walker.all_of("page")
        finally:
            # A file that a crash leaves open is cut to what is committed; this one is whole.
            recorder.close()
        _write_pages(folder / "pages.parquet", frontier.rows())
        pages, size = frontier.spent()
        (folder / "done.json").write_text(json.dumps({"pages": pages, "bytes": size}), encoding="utf-8")
        told(pages, pages)


def reopen(folder: Path) -> None:
    """Have the next walk visit again what failed in this one, if it is done and anything did."""
    if (folder / "done.json").exists() and what_failed(folder):
        (folder / "done.json").unlink()


def what_failed(folder: Path) -> str:
    """Of a crawl that is done, in a sentence: how many pages failed, and the first of them with its reason; else ''.

    Where none did, the same of sitemaps: the pages that such a one names are not known.
    """
    return _first_of(folder, "page", "failed", "failed") or _first_of(folder, "sitemap", "failed", "failed")


def what_was_skipped(folder: Path) -> str:
    """The same of pages that were seen and are none of the crawl's: no HTML, or a redirect that leaves its scope."""
    return _first_of(folder, "page", "skipped", "were skipped")


def _first_of(folder: Path, kind: str, state: str, said: str) -> str:
    import pyarrow.parquet as pq

    path, of_kind, there = folder / "pages.parquet", ("kind", "=", kind), ("state", "=", state)
    # A crawl may be of millions: as rows of Python there is one.
    bad = pq.read_table(path, columns=["url", "reason", "detail"], filters=[of_kind, there])
    if not len(bad):
        return ""
    (first,) = bad.slice(0, 1).to_pylist()
    total = len(pq.read_table(path, columns=["depth"], filters=[of_kind]))
    return f"{len(bad)} of {total} {kind}s {said}, the first: {first['url']}: {first['reason']}: {first['detail']}"


class _Walker:
    def __init__(
        self,
        fetcher: Fetcher,
        scope: Scope,
        frontier: Frontier,
        recorder: Recorder,
        told: Callable[[int, int], None],
        seeds: Collection[str],
    ) -> None:
        self.fetcher = fetcher
        self.scope = scope
        self.frontier = frontier
        self.recorder = recorder
        self.told = told
        self.seeds = seeds
        self.pages, self.bytes = frontier.spent()
        self.guessed: set[str] = set()

    async def sitemaps(self, start: Start) -> list[str]:
        if start.sitemaps is not None:
            return _normal(start.sitemaps)
        found: list[str] = []
        for origin in dict.fromkeys(str(checked_url(seed).origin()) for seed in start.seeds):
            try:
                named = _normal(await self.fetcher.sitemaps(origin), f"{origin}/robots.txt")
            except FetchError:
                continue  # its pages will say so
            found += named
            if not named:
                self.guessed.add(str(checked_url("/sitemap.xml", origin)))
        return list(dict.fromkeys([*found, *sorted(self.guessed)]))

    async def all_of(self, kind: str) -> None:
        """Visit all URLs of a kind; so many at once as the fetcher takes."""
        changed = asyncio.Event()
        under_way: set[asyncio.Task[None]] = set()
        try:
            while True:
                while len(under_way) < self.fetcher.settings.connections and (visit := self._next(kind, under_way)):
                    task = asyncio.create_task(self._visit(visit))
                    under_way.add(task)
                    task.add_done_callback(lambda _: changed.set())
                if not under_way:
                    return
                await changed.wait()
                changed.clear()
                for task in [task for task in under_way if task.done()]:
                    under_way.discard(task)
                    task.result()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _next(self, kind: str, under_way: set[asyncio.Task[None]]) -> Visit | None:
        if kind == "page" and (
            self.pages + len(under_way) >= self.scope.max_pages or self.bytes >= self.scope.max_bytes
        ):
            return None
        return self.frontier.take(kind)

    async def _visit(self, visit: Visit) -> None:
        most, accept = (MOST_BYTES, "*/*") if visit.kind == "sitemap" else (self.scope.max_page_bytes, _ACCEPT)
        try:
            # What an owner wants kept out of training is recorded as that: it is the pairs that it costs.
            async with self.fetcher.get(visit.url, most, accept=accept, opt_out=False) as answer:
                if visit.kind == "sitemap":
                    await self._sitemap(visit, answer)
                else:
                    await self._page(visit, answer)
        except SampleError as error:
            status = getattr(error, "status", None)
            # Nobody said that there is one: that it is not there is no failure.
            is_missed = visit.url not in self.guessed or getattr(error, "passing", False)
            state = "failed" if is_missed else "skipped"
            self.frontier.settle(visit, Outcome(state, error.reason, str(error), status=status))
        if visit.kind == "page":
            self.pages += 1
        if self.pages % _TELL_EVERY == 0:
            self.told(self.pages, self.frontier.known())

    async def _sitemap(self, visit: Visit, answer: Answer) -> None:
        found = await asyncio.to_thread(read_sitemap, answer.data)
        # Pages of a sitemap are no links away from anything.
        self.frontier.add(self._inside(found.pages, answer.final_url), "page", 0)
        deeper, left_out = _normal(found.sitemaps, answer.final_url), found.left_out()
        if deeper and self.frontier.known("sitemap") >= _MOST_SITEMAPS:
            deeper, left_out = [], f"left out: {len(deeper)} sitemaps, for {_MOST_SITEMAPS} are known"
        self.frontier.settle(visit, _outcome("done", answer, detail=left_out), deeper, kind="sitemap")

    async def _page(self, visit: Visit, answer: Answer) -> None:
        self.bytes += len(answer.data)
        reason = self._no_page(visit, answer)
        if reason:
            self.frontier.settle(visit, _outcome("skipped", answer, *reason))
            return
        limits = Limits(page_bytes=self.scope.max_page_bytes)
        page = await asyncio.to_thread(outline, answer.data, answer.final_url, answer.charset, limits)
        says = meta_rights(page.meta, self.fetcher.settings.user_agent)
        follow = "nofollow" not in {*says.robots, *answer.robots} and visit.depth < self.scope.max_depth
        recorded = self.recorder.write(answer, says)
        links = self._inside(link.url for link in page.links if not link.nofollow) if follow else []
        left_out = f"left out: {page.links_beyond} links after the first {limits.links}" if page.links_beyond else None
        outcome = _outcome("done", answer, detail=left_out if follow else None)
        self.frontier.settle(visit, outcome, links, recorded)

    def _no_page(self, visit: Visit, answer: Answer) -> tuple[str, str] | None:
        kind = sniff(answer.data, answer.declared)
        if visit.url in self.seeds and kind in _LISTS and _is_sitemap(answer.data):
            return "no_page", "it is a sitemap; name it in `sitemaps:`, not in `seeds:`"
        if kind not in _PAGES:
            return "no_page", f"it is {kind}"
        final = str(checked_url(answer.final_url))
        if final != visit.url:
            if not self.scope.has(final):
                return "out_of_scope", f"it redirects to {final}"
            if not self.frontier.claim(final):
                return "seen_already", f"it redirects to {final}"
        return None

    def _inside(self, links: Iterable[str], base: str | None = None) -> list[str]:
        return [url for url in _normal(links, base) if self.scope.has(url)]


def _is_sitemap(data: bytes) -> bool:
    try:
        found = read_sitemap(data)
    except SampleError:
        return False
    return bool(found.pages or found.sitemaps)


def _outcome(state: str, answer: Answer, reason: str | None = None, detail: str | None = None) -> Outcome:
    final = str(checked_url(answer.final_url))
    return Outcome(state, reason, detail, final, answer.status, len(answer.data), answer.attempts)


def _normal(urls: Iterable[str], base: str | None = None) -> list[str]:
    """URLs that can be asked for, each once, as the fetcher writes them; from `base` where they are relative."""
    found: dict[str, None] = {}
    for url in filter(None, urls):
        try:
            found.setdefault(str(checked_url(url, base)))
        except FetchError:
            continue
    return list(found)


def _write_pages(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = {"depth": pa.int32(), "turn": pa.int64(), "status": pa.int32(), "bytes": pa.int64(), "attempts": pa.int32()}
    texts = ("url", "kind", "state", "reason", "detail", "final_url")
    schema = pa.schema([*((name, pa.string()) for name in texts), *((n, t) for n, t in names.items() if n != "turn")])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH_ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch.clear()
        writer.write_table(pa.Table.from_pylist(batch, schema))


_BATCH_ROWS: Final = 10_000
