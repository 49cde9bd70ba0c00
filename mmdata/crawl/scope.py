"""Which pages belong to a crawl, and when it has seen enough."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Scope:
    """Limits of a crawl.

    Attributes:
        hosts: names, or patterns such as `*.example.org`; a pattern `*.x` does not mean `x` itself.
        include: patterns of paths, of which a page must have one; none: all.
        exclude: patterns of paths that a page must not have.
        max_depth: links from a seed, or from a sitemap.
        max_pages: visits, those that failed included.
        max_bytes: of all pages.
        max_page_bytes: of one.
    """

    hosts: Sequence[str]
    include: Sequence[str]
    exclude: Sequence[str]
    max_depth: int
    max_pages: int
    max_bytes: int
    max_page_bytes: int

    def has(self, url: str) -> bool:
        """Whether a page belongs to the crawl."""
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        return (
            _any(self._hosts, (parts.hostname or "").lower())
            and (not self.include or _any(self._include, path))
            and not _any(self._exclude, path)
        )

    @cached_property
    def _hosts(self) -> list[re.Pattern[str]]:
        return _patterns([host.lower() for host in self.hosts])

    @cached_property
    def _include(self) -> list[re.Pattern[str]]:
        return _patterns(self.include)

    @cached_property
    def _exclude(self) -> list[re.Pattern[str]]:
        return _patterns(self.exclude)


def _patterns(globs: Sequence[str]) -> list[re.Pattern[str]]:
    # fnmatch makes regular expressions that do not track back.
    return [re.compile(translate(glob)) for glob in globs]


def _any(patterns: Sequence[re.Pattern[str]], text: str) -> bool:
    return any(pattern.match(text) for pattern in patterns)
