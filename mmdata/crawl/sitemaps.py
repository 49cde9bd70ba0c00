"""Sitemaps (sitemaps.org): URLs of pages, or of more sitemaps; plain or packed by gzip."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

from mmdata.errors import SampleError

# What the protocol allows of one file.
MOST_BYTES: Final = 50 << 20
_MOST_URLS: Final = 50_000
_GZIP: Final = b"\x1f\x8b"
_MOST_URL: Final = 2048
_ENTRIES: Final = frozenset({"url", "sitemap"})


@dataclass
class Sitemap:
    """What one file names."""

    pages: list[str] = field(default_factory=list)
    sitemaps: list[str] = field(default_factory=list)


def read_sitemap(data: bytes) -> Sitemap:
    """Read one file; what stands before a fault counts.

    Raises SampleError `bad_sitemap` where it names nothing because it is broken.
    """
    found = Sitemap()
    text: list[str] = []
    path: list[str] = []

    def start(name: str, _: dict[str, str]) -> None:
        path.append(name.rpartition(" ")[2])
        text.clear()

    def end(name: str) -> None:
        path.pop()
        # Pictures of a page have one too (sitemap-image), and are no pages.
        is_named = name.rpartition(" ")[2] == "loc" and path and path[-1] in _ENTRIES
        if is_named and len(found.pages) + len(found.sitemaps) < _MOST_URLS:
            url = "".join(text).strip()
            (found.sitemaps if path[-1] == "sitemap" else found.pages).append(url[:_MOST_URL])

    def characters(part: str) -> None:
        if len(text) < _MOST_URL:
            text.append(part)

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, characters
    try:
        parser.Parse(_unpacked(data), True)
    # The last two are of encodings that expat does not know, or cannot read.
    except (expat.ExpatError, zlib.error, LookupError, ValueError) as error:
        if not found.pages and not found.sitemaps:
            raise SampleError("bad_sitemap", f"no sitemap: {error}") from None
    return found


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(_GZIP):
        return data
    return zlib.decompressobj(31).decompress(data, MOST_BYTES)
