"""What a web page shows: its media with the texts that belong to them, its links, its licence.

HTML by lexbor (selectolax), which mends what browsers mend. Everything is bounded: pages come from strangers.
"""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urljoin, urlsplit

from mmdata.errors import SampleError

Kind = Literal["image", "video", "audio"]
TEXT_KINDS: Final = ("figcaption", "alt", "aria_label", "title", "json_ld", "og", "heading", "transcript")

_MOST_MEDIA: Final = 2000
_MOST_LINKS: Final = 10_000
_MOST_TEXT: Final = 10_000
_MOST_JSON: Final = 1 << 20
_MOST_DEPTH: Final = 50
_MOST_URL: Final = 8192
_DEEPEST: Final = 10_000
_TAG: Final = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)")
# Elements without content, and those that the next of their kind ends.
_NEVER_DEEP: Final = frozenset(
    [
        "area",
        "base",
        "br",
        "col",
        "embed",
        "hr",
        "img",
        "input",
        "link",
        "meta",
        "param",
        "source",
        "track",
        "wbr",
        "p",
        "li",
        "dt",
        "dd",
        "tr",
        "td",
        "th",
        "option",
    ]
)
_SNIFF_BYTES: Final = 1024  # HTML standard, 13.2.3.2: where a page may say its encoding
_META_CHARSET: Final = re.compile(rb"""<meta[^>]{0,500}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE)
_BOMS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# A candidate of srcset: a URL, and perhaps how wide or how dense it is.
_CANDIDATE: Final = re.compile(r"\s*([^\s,]\S*[^\s,]|[^\s,])(?:\s+([0-9.]{1,10})([wx]))?\s*(?:,|$)")
_LAZY: Final = ("src", "data-src", "data-original", "data-lazy-src")
_LAZY_SETS: Final = ("srcset", "data-srcset")
# What no trainer reads, where a browser would have a choice.
_UNREAD_TYPES: Final = frozenset({"image/avif", "image/jxl", "image/heic", "image/svg+xml"})
_PIXEL_PX: Final = 2
_HEADINGS: Final = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_CC: Final = re.compile(r"^https?://creativecommons\.org/(?:licenses|publicdomain)/", re.IGNORECASE)
_LD_KINDS: Final[dict[str, Kind]] = {"ImageObject": "image", "VideoObject": "video", "AudioObject": "audio"}
_TRANSCRIPT: Final = re.compile(r"\.(?:vtt|srt|txt)$", re.IGNORECASE)


@dataclass(frozen=True)
class Track:
    """Subtitles of a recording: where they are, in which language, and of which kind (`captions`, ...)."""

    url: str
    lang: str | None
    kind: str


@dataclass
class Media:
    """One picture or recording of a page.

    Attributes:
        kind: what it is shown as.
        url: absolute.
        texts: by kind (see `TEXT_KINDS`), none of them empty.
        tracks: subtitles.
        licence: as the page says of it, else None.
    """

    kind: Kind
    url: str
    texts: dict[str, str] = field(default_factory=dict)
    tracks: list[Track] = field(default_factory=list)
    licence: str | None = None


@dataclass
class Page:
    """What was found.

    Attributes:
        title: of the page.
        lang: primary tag of its `lang`, None where it has none.
        licence: of the page, a URL.
        links: absolute URLs that it links to, without those marked `nofollow`, in order, each once.
        meta: name and content of `<meta>` elements that speak of robots or rights.
        media: in the order of the page, what metadata alone names last.
    """

    title: str
    lang: str | None
    licence: str | None
    links: list[str]
    meta: list[tuple[str, str]]
    media: list[Media]


def extract(html: bytes, url: str, charset: str | None = None) -> Page:
    """Read a page.

    Args:
        html: its bytes.
        url: where it was found: what relative URLs are relative to, unless it has a `<base>`.
        charset: of the HTTP header, if it had one.

    Raises SampleError `too_deep`: elements within elements so often that parsing would take minutes.
    """
    from selectolax.lexbor import LexborHTMLParser

    text = _decoded(html, charset)
    _check_depth(text)
    tree = LexborHTMLParser(text)
    return _Reader(tree, url).page()


def _check_depth(text: str) -> None:
    """The time that HTML's rules take grows with the square of the depth: two seconds at 40,000."""
    if text.count("<") <= _DEEPEST:
        return
    depth = 0
    for match in _TAG.finditer(text):
        if match[2].lower() not in _NEVER_DEEP:
            depth = max(0, depth - 1) if match[1] else depth + 1
        if depth > _DEEPEST:
            raise SampleError("too_deep", f"more than {_DEEPEST} elements within each other")


class _Reader:
    def __init__(self, tree: Any, url: str) -> None:
        self.tree = tree
        base = tree.css_first("base[href]")
        self.base = _joined(url, base.attributes.get("href")) or url if base is not None else url
        self.heading = ""
        self.media: dict[tuple[Kind, str], Media] = {}

    def page(self) -> Page:
        tree = self.tree
        html = tree.css_first("html")
        lang = (html.attributes.get("lang") or "").strip().split("-")[0].lower() if html is not None else ""
        title = tree.css_first("title")
        self._walk()
        self._open_graph()
        licences = list(self._linked_data())
        metas = ((n.attributes.get("name") or "", n.attributes.get("content") or "") for n in tree.css("meta[name]"))
        return Page(
            title=_clean(title.text()) if title is not None else "",
            lang=lang if re.fullmatch(r"[a-z]{2,3}", lang) else None,
            licence=self._licence() or next(iter(licences), None),
            links=self._links(),
            meta=[(name.strip(), content) for name, content in metas][:_MOST_LINKS],
            media=list(self.media.values()),
        )

    # --- the body ---------------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        """All elements in the order of the page: what a picture stands below is the heading before it."""
        for node in self.tree.css("h1, h2, h3, h4, h5, h6, img, video, audio"):
            if len(self.media) >= _MOST_MEDIA:
                break
            if node.tag in _HEADINGS:
                self.heading = _clean(node.text())
            elif node.tag == "img":
                self._image(node)
            else:
                self._recording(node)

    def _image(self, node: Any) -> None:
        attributes = node.attributes
        if any(_is_tiny(attributes.get(side)) for side in ("width", "height")):
            return
        url = self._picture_source(node) or self._best_of(attributes)
        if url:
            self._found("image", url, self._texts(node))

    def _picture_source(self, node: Any) -> str | None:
        """Of a `<picture>` the first source that trainers can read."""
        parent = node.parent
        if parent is None or parent.tag != "picture":
            return None
        for source in parent.css("source"):
            if (source.attributes.get("type") or "").strip().lower() not in _UNREAD_TYPES:
                url = self._best_of(source.attributes)
                if url:
                    return url
        return None

    def _best_of(self, attributes: dict[str, str | None]) -> str | None:
        """The widest or densest candidate, else the plain source."""
        candidates = [one for name in _LAZY_SETS for one in _candidates(attributes.get(name) or "")]
        for _, text in sorted(candidates, key=lambda one: -one[0]):
            if url := self._absolute(text):
                return url
        return next((url for name in reversed(_LAZY) if (url := self._absolute(attributes.get(name)))), None)

    def _recording(self, node: Any) -> None:
        kind: Kind = "video" if node.tag == "video" else "audio"
        sources = [node.attributes.get("src"), *(s.attributes.get("src") for s in node.css("source"))]
        url = next((found for source in sources if (found := self._absolute(source))), None)
        if not url:
            return
        media = self._found(kind, url, self._texts(node))
        for track in node.css("track[src]"):
            if where := self._absolute(track.attributes.get("src")):
                lang = (track.attributes.get("srclang") or "").strip().split("-")[0].lower() or None
                media.tracks.append(Track(where, lang, (track.attributes.get("kind") or "subtitles").strip().lower()))

    def _texts(self, node: Any) -> dict[str, str]:
        attributes = node.attributes
        figure = _closest(node, "figure")
        caption = figure.css_first("figcaption") if figure is not None else None
        return {
            "figcaption": _clean(caption.text(separator=" ")) if caption is not None else "",
            "alt": _clean(attributes.get("alt")),
            "aria_label": _clean(attributes.get("aria-label")) or self._labelled(attributes.get("aria-labelledby")),
            "title": _clean(attributes.get("title")),
            "heading": self.heading,
            "transcript": self._transcript(node, figure) if node.tag != "img" else "",
        }

    def _labelled(self, ids: str | None) -> str:
        names = [name for name in (ids or "").split()[:5] if re.fullmatch(r"[\w-]{1,100}", name)]
        nodes = [self.tree.css_first(f'[id="{name}"]') for name in names]
        return _clean(" ".join(node.text(separator=" ") for node in nodes if node is not None))

    def _transcript(self, node: Any, figure: Any) -> str:
        """Words beside a recording that call themselves its transcript."""
        around = figure if figure is not None else node.parent
        if around is None or around.tag in {"body", "html"}:
            return ""
        found = around.css_first('[class*="transcript"], [id*="transcript"]')
        return _clean(found.text(separator=" ")) if found is not None else ""

    # --- metadata ---------------------------------------------------------------------------------------------------

    def _open_graph(self) -> None:
        values: dict[str, str] = {}
        for node in self.tree.css('meta[property^="og:"]'):
            values.setdefault(node.attributes.get("property") or "", node.attributes.get("content") or "")
        about = values.get("og:title") or values.get("og:description") or ""
        kinds: tuple[Kind, ...] = ("image", "video", "audio")
        for kind in kinds:
            where = next(
                (values[n] for n in (f"og:{kind}:secure_url", f"og:{kind}:url", f"og:{kind}") if n in values), ""
            )
            if url := self._absolute(where):
                self._found(kind, url, {"og": _clean(values.get(f"og:{kind}:alt") or about)})

    def _linked_data(self) -> Iterator[str]:
        """Media of JSON-LD; yields the licences of what is none."""
        for node in self.tree.css('script[type="application/ld+json"]'):
            text = node.text() or ""
            if len(text) > _MOST_JSON:
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                continue
            yield from self._objects(value, _MOST_DEPTH)

    def _objects(self, value: Any, depth: int) -> Iterator[str]:
        if depth == 0:
            return
        if isinstance(value, list):
            for one in value[:_MOST_MEDIA]:
                yield from self._objects(one, depth - 1)
        elif isinstance(value, dict):
            licence = self._absolute(value.get("license"))
            kind = _LD_KINDS.get(str(value.get("@type")))
            url = self._absolute(value.get("contentUrl")) if kind else None
            if kind and url and len(self.media) < _MOST_MEDIA:
                self._found(kind, url, _linked_texts(value)).licence = licence
            elif licence:
                yield licence
            for one in list(value.values())[:_MOST_MEDIA]:
                if isinstance(one, dict | list):
                    yield from self._objects(one, depth - 1)

    def _licence(self) -> str | None:
        for node in self.tree.css('a[rel~="license"], link[rel~="license"], area[rel~="license"]'):
            if url := self._absolute(node.attributes.get("href")):
                return url
        links = (
            self._absolute(node.attributes.get("href")) for node in self.tree.css("a[href*='creativecommons.org']")
        )
        return next((url for url in links if url and _CC.match(url)), None)

    def _links(self) -> list[str]:
        found: dict[str, None] = {}
        for node in self.tree.css("a[href], area[href]"):
            if "nofollow" in (node.attributes.get("rel") or "").lower().split():
                continue
            url = self._absolute(node.attributes.get("href"))
            if url:
                found.setdefault(url)
            if len(found) >= _MOST_LINKS:
                break
        return list(found)

    def _found(self, kind: Kind, url: str, texts: dict[str, str]) -> Media:
        """One medium a URL: what is said of it in several places comes together, the first word counts."""
        media = self.media.setdefault((kind, url), Media(kind, url))
        for name, text in texts.items():
            if text:
                media.texts.setdefault(name, text)
        return media

    def _absolute(self, text: Any) -> str | None:
        return _joined(self.base, text) if isinstance(text, str) else None


def _linked_texts(value: dict[str, Any]) -> dict[str, str]:
    texts = (value.get(name) for name in ("caption", "description", "name"))
    about = next((text for text in texts if isinstance(text, str) and text.strip()), "")
    transcript = value.get("transcript")
    return {"json_ld": _clean(about), "transcript": _clean(transcript) if isinstance(transcript, str) else ""}


def _joined(base: str, text: str | None) -> str | None:
    """An absolute http(s) URL without its fragment; None for anything else."""
    if not text or len(text) > _MOST_URL:
        return None
    try:
        parts = urlsplit(urljoin(base, re.sub(r"[\t\r\n]", "", text.strip())))
        if parts.scheme not in {"http", "https"} or not parts.hostname or len(base) > _MOST_URL:
            return None
        return parts._replace(fragment="", scheme=parts.scheme.lower()).geturl().replace(" ", "%20")
    except ValueError:
        return None


def _candidates(srcset: str) -> Iterator[tuple[float, str]]:
    """Width or density, and URL, of each candidate of a `srcset`."""
    for match in _CANDIDATE.finditer(srcset[: 16 * _MOST_URL]):
        try:
            yield float(match[2] or 1), match[1]
        except ValueError:
            continue


def _is_tiny(length: str | None) -> bool:
    """Whether a side is so short that the picture only counts who looks at the page."""
    match = re.fullmatch(r"\s*([0-9]{1,6})(?:px)?\s*", length or "")
    return bool(match) and int(match[1]) <= _PIXEL_PX if match else False


def _closest(node: Any, tag: str) -> Any:
    for _ in range(_MOST_DEPTH):
        node = node.parent
        if node is None or node.tag == tag:
            return node
    return None


def _clean(text: str | None) -> str:
    """NFC, on one line, no blanks around it."""
    return unicodedata.normalize("NFC", " ".join((text or "")[: 4 * _MOST_TEXT].split())[:_MOST_TEXT])


def _decoded(html: bytes, charset: str | None) -> str:
    """By byte order mark, HTTP header or `<meta>`, in this order, as browsers do; else UTF-8."""
    for mark, encoding in _BOMS:
        if html.startswith(mark):
            return html[len(mark) :].decode(encoding, "replace")
    match = _META_CHARSET.search(html[:_SNIFF_BYTES])
    for name in (charset, match[1].decode() if match else None, "utf-8"):
        try:
            # Latin 1 means Windows' code page on the web (WHATWG Encoding standard).
            found = codecs.lookup(name or "").name
            text = html.decode({"iso8859-1": "cp1252", "ascii": "cp1252"}.get(found, found), "replace")
        except (LookupError, ValueError):
            continue
        if isinstance(text, str):
            return text
    return html.decode("utf-8", "replace")
