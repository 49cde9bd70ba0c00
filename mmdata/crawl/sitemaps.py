"""Sitemaps (sitemaps.org): URLs of pages, or of more sitemaps; plain or packed by gzip.

The protocol knows XML, texts of one URL a line, and the feeds RSS and Atom, whose entries name pages.
"""

from __future__ import annotations

import codecs
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
# By the element around it, the one whose text is a URL: RSS is the last.
_NAMED: Final = {"url": "loc", "sitemap": "loc", "item": "link"}
_ROOTS: Final = frozenset({"urlset", "sitemapindex", "rss", "RDF", "feed"})
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass
class Sitemap:
    """What one file names; `too_long` and `too_many` count the URLs that the protocol does not allow it."""

    pages: list[str] = field(default_factory=list)
    sitemaps: list[str] = field(default_factory=list)
    too_long: int = 0
    too_many: int = 0

    def add(self, url: str, around: str) -> None:
        """What stands in an element that is called `around`."""
        if len(url) > _MOST_URL:
            self.too_long += 1
        elif url and len(self.pages) + len(self.sitemaps) >= _MOST_URLS:
            self.too_many += 1
        elif url:
            (self.sitemaps if around == "sitemap" else self.pages).append(url)

    def left_out(self) -> str | None:
        """What it names and is not visited, in a sentence."""
        said = [
            *([f"{self.too_long} URLs of more than {_MOST_URL} characters"] if self.too_long else []),
            *([f"{self.too_many} URLs after the first {_MOST_URLS}"] if self.too_many else []),
        ]
        return f"left out: {', '.join(said)}" if said else None


def read_sitemap(data: bytes) -> Sitemap:
    """Read one file; what stands before a fault counts.

    Raises SampleError `bad_sitemap` where it is none, or names nothing because it is broken.
    """
    try:
        data = _unpacked(data).removeprefix(codecs.BOM_UTF8)
    except zlib.error as error:
        raise SampleError("bad_sitemap", f"no sitemap: {error}") from None
    return _of_xml(data) if data.startswith(_UTF16) or data.lstrip().startswith(b"<") else _of_lines(data)


def _of_lines(data: bytes) -> Sitemap:
    found = Sitemap()
    for line in data.splitlines():
        url = line.decode("utf-8", "replace").strip()
        # The protocol wants whole URLs: anything else may be the line of any text.
        if url[:8].lower().startswith(("http://", "https://")):
            found.add(url, "url")
    if not found.pages:
        raise SampleError("bad_sitemap", "no sitemap: neither XML nor a text of one URL a line")
    return found


def _of_xml(data: bytes) -> Sitemap:
    found = Sitemap()
    text: list[str] = []
    path: list[str] = []
    root = ""

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal root
        name = tag.rpartition(" ")[2]
        root = root or name
        # Atom; its other links are of the feed, the author, a file.
        if name == "link" and path and path[-1] == "entry" and attributes.get("rel", "alternate") == "alternate":
            found.add(attributes.get("href", "").strip(), "entry")
        path.append(name)
        text.clear()

    def end(_: str) -> None:
        name = path.pop()
        # Pictures of a page have one too (sitemap-image), and are no pages.
        if path and name == _NAMED.get(path[-1]):
            found.add("".join(text).strip(), path[-1])

    def characters(part: str) -> None:
        # One more than the longest URL may have parts, for it to be told.
        if len(text) <= _MOST_URL:
            text.append(part)

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, characters
    problem = None
    try:
        parser.Parse(data, True)
        problem = None if root in _ROOTS else f"it is <{root[:40]}>"
    # The last two are of encodings that expat does not know, or cannot read.
    except (expat.ExpatError, LookupError, ValueError) as error:
        problem = str(error)
    if problem and not found.pages and not found.sitemaps:
        raise SampleError("bad_sitemap", f"no sitemap: {problem}")
    return found


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(_GZIP):
        return data
    return zlib.decompressobj(31).decompress(data, MOST_BYTES)
