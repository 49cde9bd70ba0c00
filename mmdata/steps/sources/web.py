"""`web`: crawl sites within a scope, and take the pairs of their pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import ByteSize, Field, model_validator

from mmdata.spec import Names
from mmdata.steps.base import Crawled
from mmdata.steps.exchange import Input, Keep, Place
from mmdata.steps.sources.pairs import Pages
from mmdata.steps.sources.places import file_place

if TYPE_CHECKING:
    from mmdata.net.fetcher import Fetcher


class Web(Pages, Crawled):
    """Media with their texts, of the pages of web sites; the pages are kept as WARC files in the build folder."""

    step: ClassVar[str] = "web"
    name: str | None = Field(None, description="names the source in every sample_id; default: web")
    seeds: Names = Field(min_length=1, description="pages to begin with")
    sitemaps: bool | list[str] = Field(
        True, description="also begin with what sitemaps name: those of robots.txt, or these"
    )
    hosts: list[str] = Field(default=[], description="names or patterns (*.example.org); default: those of the seeds")
    include: list[str] = Field(default=[], description="patterns of paths that are visited: /birds/*")
    exclude: list[str] = Field(default=[], description="patterns of paths that are not")
    max_depth: int = Field(3, ge=0, description="links away from a seed, or from what a sitemap names")
    max_pages: int = Field(10_000, ge=1, description="visits in all")
    max_bytes: ByteSize = Field(ByteSize(10 << 30), description="of all pages")

    @model_validator(mode="after")
    def _are_urls(self) -> Web:
        for url in [*self.seeds, *(self.sitemaps if isinstance(self.sitemaps, list) else [])]:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError(f"'{url}' is no http or https URL")
        return self

    def crawl_identity(self) -> dict[str, Any]:
        """What decides which pages are visited; how pairs are taken from them does not."""
        names = ("seeds", "sitemaps", "hosts", "include", "exclude", "max_depth", "max_pages", "max_bytes")
        mine = self.model_dump(mode="json")
        return {name: mine[name] for name in (*names, "max_page_bytes")}

    async def crawl(self, fetcher: Fetcher, folder: Path, told: Callable[[int, int], None]) -> None:
        """Visit the pages in scope."""
        from mmdata.crawl.scope import Scope
        from mmdata.crawl.walk import Start, walk

        scope = Scope(
            self.hosts or sorted({str(urlsplit(seed).hostname) for seed in self.seeds}),
            self.include,
            self.exclude,
            self.max_depth,
            self.max_pages,
            int(self.max_bytes),
            int(self.max_page_bytes),
        )
        sitemaps = self.sitemaps if isinstance(self.sitemaps, list) else None if self.sitemaps else []
        await walk(fetcher, Start(self.seeds, sitemaps), scope, folder, told)

    def places(self, crawled: Path) -> Iterator[Place]:
        """The recordings."""
        return map(file_place, sorted(map(str, crawled.glob("pages-*.warc.gz"))))

    def look(self, place: Place, keep: Keep) -> Iterator[Input]:
        """All pairs of one recording."""
        return self.pairs(place, keep, with_media=False)
