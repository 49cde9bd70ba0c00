"""What owners say about the use of what they show: X-Robots-Tag, robots meta tags, TDM reservation.

`noai` and `noimageai` are DeviantArt's directives (2022), `noml` is Bing's and others'; `tdm-reservation: 1` is the W3C
community group's TDM Reservation Protocol, for article 4 of the EU's directive 2019/790.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_OPT_OUTS = frozenset({"noai", "noimageai", "noml"})
_ROBOTS = frozenset({"noindex", "nofollow", "none"})
RESERVED = "tdm-reservation"
# `otherbot: noindex` is for another; `unavailable_after: 25 Jun 2010 15:00:00 PST` is a directive with colons.
_AGENT = re.compile(r"\s*([a-z][a-z0-9_.-]*|\*)\s*:(.*)", re.IGNORECASE | re.DOTALL)
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


@dataclass(frozen=True)
class Rights:
    """What holds for us.

    Attributes:
        opt_out: of `noai`, `noimageai`, `noml`, `tdm-reservation`, sorted.
        robots: of `noindex`, `nofollow`, sorted.
    """

    opt_out: tuple[str, ...] = ()
    robots: tuple[str, ...] = ()

    def __or__(self, other: Rights) -> Rights:
        """What either says."""
        return _rights({*self.opt_out, *self.robots, *other.opt_out, *other.robots})


def header_rights(headers: Iterable[tuple[str, str]], agent: str) -> Rights:
    """Of the headers of an answer, by name and value; `agent` is our product token."""
    found: set[str] = set()
    for name, value in headers:
        if name.lower() == "x-robots-tag":
            found |= _header_directives(value, agent.lower())
        elif name.lower() == RESERVED and value.strip() == "1":
            found.add(RESERVED)
    return _rights(found)


def meta_rights(pairs: Iterable[tuple[str, str]], agent: str) -> Rights:
    """Of the `<meta>` elements of a page, by name and content."""
    found: set[str] = set()
    for name, content in pairs:
        key = name.strip().lower()
        if key in {"robots", agent.lower()}:
            found |= {part.strip().lower() for part in re.split(r"[,;]", content)}
        elif key == RESERVED and content.strip() == "1":
            found.add(RESERVED)
    return _rights(found)


def _header_directives(value: str, agent: str) -> set[str]:
    """An agent's name holds for all that follows it, up to the next: servers join several headers with commas."""
    found: set[str] = set()
    mine = True
    for part in re.split(r"[,;]", value.lower()):
        match = _AGENT.match(part)
        directive = part
        if match and match[1] not in _WITH_VALUE:
            mine, directive = match[1] in {"*", agent}, match[2]
        if mine:
            found.add(directive.strip())
    return found


def _rights(found: set[str]) -> Rights:
    robots = found & _ROBOTS
    if "none" in robots:
        robots = {"noindex", "nofollow"}
    return Rights(tuple(sorted(found & (_OPT_OUTS | {RESERVED}))), tuple(sorted(robots)))
