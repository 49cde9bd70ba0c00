"""Choose among the sizes in which a page offers a picture (HTML standard, "srcset attributes")."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_MOST_CHARACTERS: Final = 1 << 16
_DESCRIPTOR: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([wx])")
# What ingest cannot read.
_UNREAD: Final = frozenset({"avif", "jxl", "heic", "heif", "jp2", "jpf", "vnd.ms-photo", "avif-sequence"})


@dataclass(frozen=True)
class Offer:
    """One size of a picture.

    Attributes:
        url: as it is written.
        width_px: as `srcset` says, None where it does not.
        density: pixels of the picture to one of the screen.
        mime: as `<source>` says, None where nothing does.
    """

    url: str
    width_px: int | None = None
    density: float = 1.0
    mime: str | None = None


def offers(srcset: str, mime: str | None = None) -> Iterator[Offer]:
    """The candidates of a `srcset` attribute: a URL, descriptors, a comma; commas may stand within a URL."""
    words = deque(srcset[:_MOST_CHARACTERS].split())
    while words:
        url = words.popleft()
        described: list[str] = []
        ended = url.endswith(",")
        while words and not ended:
            descriptor, comma, rest = words.popleft().partition(",")
            described.append(descriptor)
            ended = bool(comma)
            if rest:
                words.appendleft(rest)
        if url.strip(","):
            yield _offer(url.strip(","), described, mime)


def _offer(url: str, descriptors: list[str], mime: str | None) -> Offer:
    for descriptor in descriptors:
        match = _DESCRIPTOR.fullmatch(descriptor)
        if match:
            value = float(match[1])
            return Offer(url, int(value), 1.0, mime) if match[2] == "w" else Offer(url, None, value, mime)
    return Offer(url, None, 1.0, mime)


def best(found: list[Offer], max_width_px: int) -> list[Offer]:
    """From best to worst: what can be read; the largest width up to the limit, the least beyond; the highest density.

    What is equally good keeps its order.
    """

    def rank(offer: Offer) -> tuple[bool, int, float]:
        width = offer.width_px
        if width is None:
            return is_read(offer), 0, offer.density
        return (is_read(offer), 2, width) if width <= max_width_px else (is_read(offer), 1, -width)

    return sorted(found, key=rank, reverse=True)


def is_read(offer: Offer) -> bool:
    """Whether ingest can read the format, as far as type and extension tell."""
    if offer.mime:
        return offer.mime.rpartition("/")[2].lower() not in _UNREAD
    try:
        path = urlsplit(offer.url).path
    except ValueError:
        return False
    return path.rpartition(".")[2].lower() not in _UNREAD
