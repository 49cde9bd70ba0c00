"""What stands around a picture, a video or a sound in a page, and tells of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from mmdata.media.html_tree import MOST_URL_CHARACTERS, Limits, absolute, ancestors, clean, text_of

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser
    from selectolax.lexbor import LexborNode as Node

_SECTIONS: Final = frozenset({"article", "section", "aside", "main", "nav", "body"})
# What is near: inside the same of so many elements around, less those that are around everything.
_NEAR_LEVELS: Final = 4
_MEDIA: Final = frozenset({"img", "video", "audio"})
_RECORDINGS: Final = frozenset({"video", "audio"})
_AROUND_ALL: Final = frozenset({"main", "body", "html"})
_MOST_LEVELS: Final = 256
_TRANSCRIPTS: Final = ", ".join(
    ["[class*='transcript' i]", "[id*='transcript' i]", *(f"a[href*='.{end}' i]" for end in ("vtt", "srt", "txt"))]
)
# What holds a transcript; a button or a heading only speaks of it.
_HOLDERS: Final = frozenset(
    {"div", "section", "article", "aside", "details", "p", "pre", "blockquote", "figcaption", "ol", "ul"}
)
_TRANSCRIPT_FILE: Final = re.compile(r"\.(?:vtt|srt|(txt))(?:[?#]|$)", re.IGNORECASE)


class Around:
    """What stands around a media: its figure, its heading, its transcript."""

    def __init__(
        self, tree: LexborHTMLParser, base: str, limits: Limits, nodes: Sequence[Node], urls: Mapping[int, str]
    ) -> None:
        """Of a page whose relative URLs are meant from `base`.

        `nodes` are its media and headings, `urls` what the media show, by `mem_id`.
        """
        self._tree = tree
        self._base = base
        self._limits = limits
        self._nodes = nodes
        self._urls = urls
        self._headings: dict[int, Node] = {}
        self._cache: dict[int, str] = {}

    def pass_heading(self, node: Node) -> None:
        """From here on it is the nearest of its section."""
        self._headings[next(_sections(node), 0)] = node

    def texts(self, node: Node) -> dict[str, str]:
        """By where they stand."""
        heading = self._of_card(node)
        if heading is None:
            heading = next((self._headings[s] for s in (*_sections(node), 0) if s in self._headings), None)
        return {
            "title": self._clean(node.attributes.get("title")),
            "aria_label": self._aria(node),
            **self._figcaption(node),
            "heading": self._text(heading) if heading is not None else "",
        }

    def _figcaption(self, node: Node) -> dict[str, str]:
        """The caption of a figure tells of the one thing in it, or of several together, unless each has its own."""
        figure = self._figure(node)
        if figure is None:
            return {}
        captions, shown = self._captions[figure[0]], self._shown[figure]
        if len(shown) == 1 or len(shown) == len(captions):
            return {"figcaption": self._text(captions[shown[self._urls[node.mem_id]]])}
        return {"shared_figcaption": self._clean(" ".join(map(self._text, captions)))}

    def _figure(self, node: Node) -> tuple[int, str, bool] | None:
        """The nearest one with a caption, the kind of the element, and whether it is for browsers without scripts.

        Those show it in the place of another.
        """
        unscripted = False
        for above in ancestors(node, _MOST_LEVELS):
            unscripted = unscripted or above.tag == "noscript"
            if above.mem_id in self._captions:
                return above.mem_id, str(node.tag), unscripted
        return None

    @cached_property
    def _shown(self) -> dict[tuple[int, str, bool], dict[str, int]]:
        """What a figure shows of each kind: URLs with their places in the order of the page."""
        found: dict[tuple[int, str, bool], dict[str, int]] = {}
        for node in self._nodes:
            figure = self._figure(node) if node.mem_id in self._urls else None
            if figure is not None:
                shown = found.setdefault(figure, {})
                shown.setdefault(self._urls[node.mem_id], len(shown))
        return found

    def _of_card(self, node: Node) -> Node | None:
        """The heading that a media shares the nearest element with, where that holds nothing else of the kind.

        In a list of cards it may stand below its picture: what was passed last is the heading of the card before.
        """
        for above in _near(node):
            media, headings = self._held.get(above.mem_id, (0, []))
            if headings:
                return headings[0] if media == len(headings) == 1 else None
        return None

    @cached_property
    def _held(self) -> dict[int, tuple[int, list[Node]]]:
        """By element: how many media are near in it, and the headings."""
        found: dict[int, tuple[int, list[Node]]] = {}
        for node in self._nodes:
            for above in _near(node):
                media, headings = found.setdefault(above.mem_id, (0, []))
                if node.tag in _MEDIA:
                    found[above.mem_id] = (media + 1, headings)
                else:
                    headings.append(node)
        return found

    def transcript(self, node: Node) -> tuple[str | None, str | None]:
        """The text of a transcript nearby, or the URL of its file."""
        around = list(_near(node))
        near = (self._spoken[above.mem_id] for above in around if above.mem_id in self._spoken)
        found = next((_beside(node, some) for some in near if any(one.tag not in _RECORDINGS for one in some)), None)
        if found is None or found in around:
            return None, None
        if found.tag == "a":
            return None, absolute(self._base, found.attributes.get("href"))
        return text_of(found, self._limits.transcript_characters) or None, None

    def _text(self, node: Node) -> str:
        if node.mem_id not in self._cache:
            self._cache[node.mem_id] = text_of(node, self._limits.text_characters)
        return self._cache[node.mem_id]

    def _clean(self, text: str | None) -> str:
        return clean(text or "", self._limits.text_characters)

    def _aria(self, node: Node) -> str:
        ids = (node.attributes.get("aria-labelledby") or "").split()[:10]
        labels = [self._text(self._by_id[one]) for one in ids if one in self._by_id]
        return self._clean(" ".join(labels)) or self._clean(node.attributes.get("aria-label"))

    @cached_property
    def _by_id(self) -> dict[str, Node]:
        return _first_ones((node.attributes["id"] or "", node) for node in self._tree.css("[id]"))

    @cached_property
    def _captions(self) -> dict[int, list[Node]]:
        """By the figure around them."""
        found: dict[int, list[Node]] = {}
        for caption in self._tree.css("figcaption")[: self._limits.media]:
            figure = next((above for above in ancestors(caption, 8) if above.tag == "figure"), None)
            if figure is not None:
                found.setdefault(figure.mem_id, []).append(caption)
        return found

    @cached_property
    def _spoken(self) -> dict[int, list[Node]]:
        """By each of the elements around them: recordings and transcripts, in the order of the page."""
        found: dict[int, list[Node]] = {}
        for node in self._tree.css(f"video, audio, {_TRANSCRIPTS}")[: 2 * self._limits.media]:
            if node.tag in _RECORDINGS or _transcribes(node):
                for above in _near(node):
                    found.setdefault(above.mem_id, []).append(node)
        return found


def _beside(node: Node, spoken: Sequence[Node]) -> Node | None:
    """The transcript of a recording among others: the one that follows it, or comes before it where one is first."""
    if sum(one.tag in _RECORDINGS for one in spoken) == 1:
        return next(one for one in spoken if one.tag not in _RECORDINGS)
    at = next((n for n, one in enumerate(spoken) if one.mem_id == node.mem_id), -2)
    at += 1 if spoken[0].tag in _RECORDINGS else -1
    return spoken[at] if 0 <= at < len(spoken) and spoken[at].tag not in _RECORDINGS else None


def _first_ones(pairs: Iterable[tuple[Any, Node]]) -> dict[Any, Node]:
    found: dict[Any, Node] = {}
    for key, node in pairs:
        found.setdefault(key, node)
    return found


def _near(node: Node) -> Iterator[Node]:
    """The elements around a node within which others are near to it."""
    return takewhile(lambda above: above.tag not in _AROUND_ALL, ancestors(node, _NEAR_LEVELS))


def _sections(node: Node) -> Iterator[int]:
    """The sections that a node stands in, the innermost first."""
    return (above.mem_id for above in ancestors(node, _MOST_LEVELS) if above.tag in _SECTIONS)


def _transcribes(node: Node) -> bool:
    """Whether what is called a transcript is one, or the file of one, and no button that shows it."""
    if node.tag != "a":
        return node.tag in _HOLDERS
    file = _TRANSCRIPT_FILE.search((node.attributes.get("href") or "")[:MOST_URL_CHARACTERS])
    # Of texts there are many.
    return file is not None and (not file[1] or "transcript" in (file.string + text_of(node, 100)).lower())
