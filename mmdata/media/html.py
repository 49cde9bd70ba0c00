"""What a page shows and says: its links and rights, its pictures, videos and sounds, and the texts about them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from mmdata.media.html_around import Around
from mmdata.media.html_tree import MOST_URL_CHARACTERS, Limits, absolute, children, clean, parse, text_of
from mmdata.media.json_ld import described
from mmdata.media.srcset import Offer, best, offers

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode as Node

KINDS: Final = ("image", "video", "audio")
TEXTS: Final = ("alt", "title", "figcaption", "shared_figcaption", "aria_label", "heading", "og", "json_ld")
"""Where a text may stand that tells of a media."""
_SHOWN: Final = ("img", "video", "audio")
_HEADINGS: Final = ("h1", "h2", "h3", "h4", "h5", "h6")
_PIXEL_PX: Final = 2  # what is no larger counts visitors
# Where scripts find the picture that takes the place of what `src` shows until then.
_LAZY: Final = (
    *("data-src", "data-lazy-src", "data-original", "data-lazy", "data-lazyload", "data-echo", "data-hi-res-src"),
    *("data-img-src", "data-ll-src"),
)
_LAZY_SETS: Final = ("data-srcset", "data-lazy-srcset", "srcset")
_PIXELS: Final = re.compile(r"\s*(\d{1,9})\s*(?:px)?\s*")
# HTML standard, "shared declarative refresh steps".
_REFRESH: Final = re.compile(r"""\s*[\d.]{1,20}\s*[;,\s]\s*(?:url\s*=\s*)?(["']?)([^"'\s]+)""", re.IGNORECASE)
_COMMONS: Final = re.compile(r"^https?://(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/", re.IGNORECASE)
_LANG: Final = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8}){0,4}")


@dataclass(frozen=True)
class Link:
    """Where a page leads; `nofollow` as its `rel` says."""

    url: str
    nofollow: bool


@dataclass(frozen=True)
class Track:
    """A `<track>`: timed text of a video or sound; `kind` as the standard names it (subtitles, captions, ...)."""

    url: str
    lang: str | None
    kind: str


@dataclass
class Media:
    """A picture, video or sound.

    Attributes:
        kind: image, video or audio.
        url: absolute.
        texts: by where they stand, of `TEXTS`.
        tracks: timed texts, the default one first.
        transcript: what is said in it, where the page has it.
        transcript_url: of a file that says it.
        licence: of this media alone.
        other_texts: of the same places, where the page shows it more than once and says something else there.
    """

    kind: str
    url: str
    texts: dict[str, str] = field(default_factory=dict)
    tracks: list[Track] = field(default_factory=list)
    transcript: str | None = None
    transcript_url: str | None = None
    licence: str | None = None
    other_texts: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Page:
    """What stands in a page.

    Attributes:
        url: of the page.
        title: of its head.
        lang: as it says, None where it does not.
        meta: name and content of what may speak of rights: robots and the like.
        links: without repeats.
        canonical: the URL that it would rather have.
        licence: of all that it shows: a URL or a name.
        media: without repeats; empty where only the outline was asked for.
        media_beyond: of each kind, how many there are beyond `Limits.media`.
        links_beyond: how many elements with links there are beyond `Limits.links`.
        is_cut: whether its tags are more than are read.
    """

    url: str
    title: str | None
    lang: str | None
    meta: list[tuple[str, str]]
    links: list[Link]
    canonical: str | None
    licence: str | None
    media: list[Media] = field(default_factory=list)
    media_beyond: Counter[str] = field(default_factory=Counter)
    links_beyond: int = 0
    is_cut: bool = False


def outline(html: bytes, url: str, charset: str | None, limits: Limits) -> Page:
    """A page without its media: all that a crawler needs."""
    return _Reader(html, url, charset, limits).page()


def extract(html: bytes, url: str, charset: str | None, limits: Limits) -> Page:
    """A page and its media, in the order in which they stand; those of its head come last.

    Args:
        html: the page.
        url: where it was found.
        charset: of the Content-Type header, None where there is none.
        limits: of what is read.
    """
    reader = _Reader(html, url, charset, limits)
    page = reader.page()
    page.media = reader.media()
    page.media_beyond = Counter(kind for kind, _ in reader.beyond)
    return page


class _Reader:
    """One page."""

    def __init__(self, html: bytes, url: str, charset: str | None, limits: Limits) -> None:
        self.url = url
        self.limits = limits
        self.tree, self.is_cut = parse(html, charset, limits.page_bytes)
        base = self.tree.css_first("base[href]")
        self.base = (absolute(url, base.attributes["href"]) if base else None) or url
        self.found: dict[tuple[str, str], Media] = {}
        # Hashes of URLs: each may be as long as the page's own, which stands in the page once.
        self.beyond: set[tuple[str, int]] = set()
        self.links_beyond = 0

    def page(self) -> Page:
        title = self.tree.css_first("head > title")
        lang = self.tree.css_first("html[lang]")
        canonical = self.tree.css_first("link[rel='canonical' i][href]")
        return Page(
            self.url,
            (text_of(title, self.limits.text_characters) or None) if title else None,
            _lang(lang.attributes["lang"]) if lang else None,
            self._meta(),
            self._links(),
            absolute(self.base, canonical.attributes["href"]) if canonical else None,
            self._licence(),
            links_beyond=self.links_beyond,
            is_cut=self.is_cut,
        )

    def media(self) -> list[Media]:
        # Some stand in a page more than once.
        everything = self.tree.css(",".join((*_SHOWN, *_HEADINGS)))
        nodes, others = everything[: 3 * self.limits.media], everything[3 * self.limits.media :]
        urls = {node.mem_id: url for node in nodes if (url := self._url(node))}
        around = Around(self.tree, self.base, self.limits, nodes, urls)
        for node in nodes:
            if node.tag in _HEADINGS:
                around.pass_heading(node)
            elif node.mem_id in urls:
                self._add_shown(node, urls[node.mem_id], around)
        self._add_open_graph()
        self._add_json_ld()
        for node in others:
            if url := self._url(node):
                self._is_new(_kind(node), url)
        return list(self.found.values())

    def clean(self, text: str | None) -> str:
        return clean(text or "", self.limits.text_characters)

    def _meta(self) -> list[tuple[str, str]]:
        nodes = self.tree.css("meta[name][content]")[: self.limits.links]
        pairs = ((node.attributes["name"] or "", node.attributes["content"] or "") for node in nodes)
        return [(name[:100], content[:1000]) for name, content in pairs]

    def _links(self) -> list[Link]:
        follow: dict[str, bool] = {}
        nodes = self.tree.css("a[href], area[href]")
        for number, node in enumerate(nodes, 1):
            url = absolute(self.base, node.attributes["href"])
            if url:
                follow[url] = follow.get(url, False) or "nofollow" not in _words(node, "rel")
            if len(follow) >= self.limits.links:
                self.links_beyond = len(nodes) - number
                break
        for url in filter(None, (absolute(self.base, shown) for shown in self._shown_instead())):
            follow.setdefault(url, True)
        return [Link(url, not followed) for url, followed in follow.items()]

    def _shown_instead(self) -> Iterator[str | None]:
        """Pages that a browser shows in this one, or in its place."""
        for node in self.tree.css("frame[src], iframe[src]")[: self.limits.links]:
            yield node.attributes["src"]
        for node in self.tree.css("meta[http-equiv='refresh' i][content]")[:1]:
            # Blanks in a row would take quadratic time.
            told = _REFRESH.match(" ".join((node.attributes["content"] or "")[:MOST_URL_CHARACTERS].split()))
            if told:
                yield told[2]

    def _licence(self) -> str | None:
        told = self.tree.css_first("a[rel~='license' i][href], link[rel~='license' i][href]")
        if told:
            return absolute(self.base, told.attributes["href"])
        licence = next((licence for _, licence in self._scripts if licence), None)
        if licence:
            return self.clean(licence)
        commons = self.tree.css_first("a[href*='creativecommons.org/' i]")
        url = absolute(self.base, commons.attributes["href"]) if commons else None
        return url if url and _COMMONS.match(url) else None

    @cached_property
    def _scripts(self) -> list[tuple[list[Media], str | None]]:
        """What each JSON-LD script describes."""
        nodes = self.tree.css("script[type*='application/ld+json' i]")
        # Some say the charset too.
        texts = (node.text() for node in nodes if _media_type(node) == "application/ld+json")
        return [self._described(text) for text in texts if len(text) <= self.limits.json_ld_characters]

    def _described(self, text: str) -> tuple[list[Media], str | None]:
        objects, licence = described(text)
        media = []
        for one in objects:
            url = absolute(self.base, one.url)
            if url:
                transcript = clean(one.transcript or "", self.limits.transcript_characters) or None
                told = {"json_ld": self.clean(one.text)}
                licence_of_it = self.clean(one.licence) or None
                media.append(Media(one.kind, url, told, transcript=transcript, licence=licence_of_it))
        return media, licence

    def _add(self, more: Media) -> None:
        """Add what is found; of what stands twice in a page the texts of both count."""
        if len(self.found) >= self.limits.media and self._is_new(more.kind, more.url):
            return
        known = self.found.setdefault((more.kind, more.url), Media(more.kind, more.url))
        for name, text in more.texts.items():
            if text and known.texts.setdefault(name, text) != text:
                others = known.other_texts.setdefault(name, [])
                others += [text] if text not in others else []
        known.tracks = known.tracks or more.tracks
        known.transcript = known.transcript or more.transcript
        known.transcript_url = known.transcript_url or more.transcript_url
        known.licence = known.licence or more.licence

    def _is_new(self, kind: str, url: str) -> bool:
        """Whether a media for which there is no room is none of those found; then it is noted."""
        is_new = (kind, url) not in self.found
        if is_new:
            self.beyond.add((kind, hash(url)))
        return is_new

    def _url(self, node: Node) -> str | None:
        """What an element shows; None of a heading, and of what only counts visitors."""
        if node.tag in _HEADINGS or (node.tag == "img" and _is_pixel(node)):
            return None
        if node.tag == "img":
            places = (offer.url for offer in best(_image_offers(node), self.limits.max_width_px))
        else:
            sources = (node, *children(node, "source"))
            places = (one.attributes.get(name) or "" for one in sources for name in (*_LAZY, "src"))
        return next(filter(None, (absolute(self.base, place) for place in places)), None)

    def _add_shown(self, node: Node, url: str, around: Around) -> None:
        texts = {"alt": self.clean(node.attributes.get("alt")), **around.texts(node)}
        if node.tag == "img":
            self._add(Media(_kind(node), url, texts))
        else:
            text, linked = around.transcript(node)
            tracks = self._tracks(node)
            self._add(Media(_kind(node), url, texts, tracks=tracks, transcript=text, transcript_url=linked))

    def _tracks(self, node: Node) -> list[Track]:
        tracks = []
        # The default one first; else in the page's order.
        for track in sorted(children(node, "track"), key=lambda one: "default" not in one.attributes):
            url = absolute(self.base, track.attributes.get("src"))
            if url:
                kind = (track.attributes.get("kind") or "subtitles").strip().lower()[:20]
                tracks.append(Track(url, _lang(track.attributes.get("srclang")), kind))
        return tracks

    def _add_open_graph(self) -> None:
        """Media of the head (https://ogp.me): properties of one follow it."""
        pairs = [
            ((node.attributes.get("property") or node.attributes.get("name") or "").strip().lower(), node)
            for node in self.tree.css("meta[property^='og:' i][content], meta[name^='og:' i][content]")
        ]
        page = dict(reversed([(name, self.clean(node.attributes["content"])) for name, node in pairs]))
        # It is said of the page: at most of the first media of a kind, which stands for it.
        about = page.get("og:title") or page.get("og:description") or ""
        first: dict[str, str] = {}
        found: list[tuple[Media, dict[str, str]]] = []
        for name, node in pairs:
            _, kind, *more = name.split(":")
            content = node.attributes["content"] or ""
            if kind in KINDS and more in ([], ["url"]):
                url = absolute(self.base, content)
                found += [(Media(kind, url), {})] if url else []
            elif more and found and found[-1][0].kind == kind:
                found[-1][1].setdefault(more[0], content)
        for media, told in found:
            # A video may be a page with a player.
            if told.get("type", media.kind).startswith(media.kind):
                of_page = about if first.setdefault(media.kind, media.url) == media.url else ""
                media.texts["og"] = self.clean(told.get("alt")) or of_page
                self._add(media)

    def _add_json_ld(self) -> None:
        for media, _ in self._scripts:
            for one in media:
                self._add(one)


def _image_offers(node: Node) -> list[Offer]:
    """All sizes of an `<img>`; what it shows once scripts have run comes before what it shows until then."""
    found: list[Offer] = []
    picture = node.parent
    sources = children(picture, "source") if picture is not None and picture.tag == "picture" else []
    for source in (*sources, node):
        for name in _LAZY_SETS:
            found += offers(source.attributes.get(name) or "", source.attributes.get("type"))
    lazy = [Offer(url) for name in _LAZY if (url := node.attributes.get(name)) and _is_place(url)]
    shown = node.attributes.get("src")
    return [*found, *lazy, *([Offer(shown)] if shown else [])]


def _kind(node: Node) -> str:
    return "image" if node.tag == "img" else str(node.tag)


def _is_place(value: str) -> bool:
    """Whether it may lead to a picture: some write `true` or a number there."""
    return "." in value or "/" in value


def _is_pixel(node: Node) -> bool:
    sides = [_PIXELS.fullmatch(node.attributes.get(name) or "") for name in ("width", "height")]
    return any(side is not None and int(side[1]) <= _PIXEL_PX for side in sides)


def _media_type(node: Node) -> str:
    return (node.attributes.get("type") or "").partition(";")[0].strip().lower()


def _words(node: Node, name: str) -> list[str]:
    return (node.attributes.get(name) or "").lower().split()


def _lang(value: str | None) -> str | None:
    tag = (value or "").strip()
    return tag if _LANG.fullmatch(tag) else None
