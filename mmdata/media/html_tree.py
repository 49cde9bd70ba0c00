"""From the bytes of a page to a tree that costs no more than the page: encoding, bounds, text, URLs.

Parsers that keep to the HTML standard are superlinear where pages want it: 20 KB of `<p><b a=1><p><b a=2>...` make two
million elements, for `b` and its like are opened again in each paragraph; attributes are compared with each other.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit, urlunsplit

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

    Node = LexborNode

MOST_URL_CHARACTERS: Final = 8192
# Opening and closing tags of a page. 15,000 elements inside each other take the parser about a second.
_MOST_TAGS: Final = 30_000
_MOST_ATTRIBUTES: Final = 300
_MOST_TEXT_NODES: Final = 2000
_MOST_CHILDREN: Final = 200

# Labels of the Encoding standard by the names that Python has for them, and what the standard reads instead.
_ENCODINGS: Final[dict[str, str]] = {
    **{
        name: name
        for name in (
            *("utf-8", "cp866", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "gb18030", "big5", "euc_jp"),
            *("iso2022_jp", *(f"iso8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16))),
            *(f"cp125{n}" for n in range(9)),
        )
    },
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "cp932": "cp932",
    "euc_kr": "cp949",
    "cp949": "cp949",
    "tis-620": "cp874",
}
# Labels of the standard that Python does not know, and old pages have.
_LABELS: Final = {
    **dict.fromkeys(("unicode-1-1-utf-8", "unicode11utf8", "unicode20utf8", "x-unicode20utf8"), "utf-8"),
    **{f"iso8859{n}": f"iso8859-{n}" for n in (1, 2, 5)},
    **dict.fromkeys(("iso-8859-6-e", "iso-8859-6-i", "csiso88596e"), "iso8859-6"),
    "sun_eu_greek": "iso8859-7",
    **dict.fromkeys(("iso-8859-8-e", "iso-8859-8-i", "logical", "visual", "csiso88598i"), "iso8859-8"),
    "csisolatin9": "iso8859-15",
    **dict.fromkeys(("koi", "koi8"), "koi8-r"),
    "koi8-ru": "koi8-u",
    **dict.fromkeys(("csmacintosh", "mac", "x-mac-roman"), "mac-roman"),
    **dict.fromkeys(("x-mac-cyrillic", "x-mac-ukrainian"), "mac-cyrillic"),
    **dict.fromkeys(("dos-874", "windows-874", "iso-8859-11", "iso8859-11", "iso885911"), "tis-620"),
    **{f"x-cp125{n}": f"cp125{n}" for n in range(9)},
    **dict.fromkeys(("csgb2312", "gb_2312", "gb_2312-80", "x-gbk"), "gbk"),
    **dict.fromkeys(("big5-hkscs", "cn-big5", "x-x-big5"), "big5"),
    **dict.fromkeys(("cseucpkdfmtjapanese", "x-euc-jp"), "euc_jp"),
    **dict.fromkeys(("windows-31j", "x-sjis"), "shift_jis"),
    **dict.fromkeys(("cseuckr", "csksc56011987", "iso-ir-149", "ks_c_5601-1989", "ksc_5601", "windows-949"), "euc_kr"),
}
_MARKS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_DECLARED: Final = re.compile(
    rb"""<meta[^>]{0,200}?charset\s{0,9}=\s{0,9}["']?\s{0,9}([A-Za-z0-9_.:-]{1,40})""", re.IGNORECASE
)
_DECLARED_WITHIN_BYTES: Final = 1024  # the standard's "prescan a byte stream"
# What stands later makes a browser read the page again ("changing the encoding while parsing").
_DECLARED_LATE_WITHIN_BYTES: Final = 1 << 16

# Elements that the parser opens again after what closed them (the standard's formatting elements, less `a`).
_FORMATTING: Final = re.compile(
    r"<(/?)(?:b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u)(?:[ \t\n\f\r/][^>]*)?>", re.IGNORECASE
)
# What may be a tag with too many attributes, as the standard's tokenizer reads them. A tag always begins at the first
# `<` with a letter after a `>`, for that ends whatever is no text.
_CROWDED: Final = re.compile(
    r"(?:\A|>)(?>[^<>]++|<(?!/?[a-zA-Z]))*+</?[a-zA-Z][^ \t\n\f\r/>]*+"
    r"(?>[ \t\n\f\r/]*+[^ \t\n\f\r/>][^ \t\n\f\r/>=]*+"
    r"(?>[ \t\n\f\r]*+=[ \t\n\f\r]*+"
    rf"""(?>"[^"]*+"|'[^']*+'|[^ \t\n\f\r>]*+))?+){{{_MOST_ATTRIBUTES}}}"""
)
_INLINE: Final = frozenset(
    {
        "a",
        "abbr",
        "bdi",
        "bdo",
        "cite",
        "code",
        "data",
        "del",
        "dfn",
        "ins",
        "kbd",
        "label",
        "mark",
        "q",
        "ruby",
        "samp",
    }
    | {"span", "sub", "sup", "time", "var", "wbr"}
)
_SILENT: Final = frozenset({"script", "style", "template", "noscript", "iframe", "svg", "math", "textarea", "select"})
# HTML's blanks, which URLs lose at both ends, and those that they lose everywhere (URL standard, section 4.4).
_BLANKS: Final = "".join(map(chr, range(0x21)))
_NO_BREAKS: Final = str.maketrans({"\t": None, "\n": None, "\r": None, " ": "%20", "\\": "/"})
_NO_CONTROLS: Final = {n: None for n in range(0x20) if n not in {9, 10, 12, 13}} | dict.fromkeys(range(0x7F, 0xA0))


@dataclass(frozen=True)
class Limits:
    """How much of a page is read; the rest is left out.

    Attributes:
        page_bytes: from its beginning.
        media: so many of them.
        links: so many of them.
        text_characters: of a text, a transcript apart.
        transcript_characters: of a transcript that stands in the page.
        json_ld_characters: of one script.
        max_width_px: of a picture that is offered in several sizes; a larger one is only taken where there is no other.
    """

    page_bytes: int = 4 << 20
    media: int = 1000
    links: int = 2000
    text_characters: int = 2000
    transcript_characters: int = 200_000
    json_ld_characters: int = 1 << 18
    max_width_px: int = 2048


def parse(html: bytes, charset: str | None, max_bytes: int) -> tuple[LexborHTMLParser, bool]:
    """The tree of a page, and whether more tags or attributes stood there than are in it.

    Args:
        html: the page.
        charset: of the Content-Type header, None where there is none.
        max_bytes: of the page that are read.
    """
    from selectolax.lexbor import LexborHTMLParser

    text = _decoded(html[:max_bytes], charset)
    most = _bound(text)
    # Not beyond the last tag: what searches for the end of one then always finds it.
    end = text.rfind(">", 0, most) + 1
    return LexborHTMLParser(_FORMATTING.sub(r"<\1span>", text[:end])), most < len(text)


def _decoded(html: bytes, charset: str | None) -> str:
    """By byte order mark, header, meta element, or whether it is UTF-8; as the Encoding standard has it."""
    for mark, encoding in _MARKS:
        if html.startswith(mark):
            return html[len(mark) :].decode(encoding, "replace")
    known = _encoding(charset) or _declared(html[:_DECLARED_WITHIN_BYTES])
    if known:
        return html.decode(known, "replace")
    try:
        return html.decode("utf-8")
    except UnicodeDecodeError as error:
        # A page that was cut within a character is UTF-8 all the same.
        cut = error.start >= len(html) - 3
        late = _declared(html[:_DECLARED_LATE_WITHIN_BYTES])
        return html.decode("utf-8" if cut else late or "cp1252", "replace")


def _declared(html: bytes) -> str | None:
    """What a meta element says."""
    found = _DECLARED.search(html)
    return _encoding(found[1].decode("ascii")) if found else None


def _encoding(label: str | None) -> str | None:
    if not label:
        return None
    # Python knows more codecs than pages may name: some are no encodings, some take quadratic time.
    try:
        label = label.strip().lower()
        return _ENCODINGS.get(codecs.lookup(_LABELS.get(label, label)).name)
    except (LookupError, ValueError):
        return None


def _bound(html: str) -> int:
    """Where the parser would begin to take more than linear time; the end where it does not."""
    most = len(html)
    if html.count("<") > _MOST_TAGS:
        most = next(islice(re.finditer("<", html), _MOST_TAGS, None)).start()
    crowded = _CROWDED.search(html, 0, most)
    return crowded.start() + 1 if crowded else most


def ancestors(node: Node, most: int) -> Iterator[Node]:
    """The elements around a node, the nearest first."""
    above = node.parent
    while above is not None and most > 0:
        yield above
        above = above.parent
        most -= 1


def children(node: Node, tag: str) -> Iterator[Node]:
    """The elements of a name right below a node."""
    below = islice(_siblings(node.first_child), _MOST_CHILDREN)
    return (child for child in below if child.tag == tag)


def _siblings(node: Node | None) -> Iterator[Node]:
    while node is not None:
        yield node
        node = node.next


def text_of(node: Node, most_characters: int) -> str:
    """What a reader sees of an element, cleaned; of a large one the beginning."""
    parts: list[str] = []
    stack: list[Any] = [node.first_child]
    left, room = _MOST_TEXT_NODES, most_characters * 2
    while stack and left > 0 and room > 0:
        at = stack.pop()
        if at is None or isinstance(at, str):
            parts.append(at or "")
            continue
        left -= 1
        stack.append(at.next)
        if at.is_text_node:
            parts.append(at.text(deep=False)[:room])
            room -= len(parts[-1])
        elif at.is_element_node and at.tag not in _SILENT and not _is_permalink(at):
            edge = "" if at.tag in _INLINE else " "
            parts.append(edge)
            stack += [edge, at.first_child]
    return clean("".join(parts), most_characters)


def _is_permalink(node: Node) -> bool:
    """The sign by which a heading or a caption links to itself: ¶ of Sphinx, # of MkDocs."""
    if node.tag != "a" or not (node.attributes.get("href") or "").startswith("#"):
        return False
    return not any(map(str.isalnum, node.text()))


def clean(text: str, most_characters: int) -> str:
    """One line: blanks collapsed, without control characters, canonical composition (NFC)."""
    text = text[: most_characters * 2].translate(_NO_CONTROLS)
    # Half a surrogate pair, as JSON can have, is no character.
    text = " ".join(text.encode("utf-8", "ignore").decode().split())
    return unicodedata.normalize("NFC", text)[:most_characters].strip()


def absolute(base: str, value: str | None) -> str | None:
    """An http or https URL without fragment; None where the value leads to none."""
    value = (value or "")[: MOST_URL_CHARACTERS + 1].strip(_BLANKS).translate(_NO_BREAKS)
    if not value or len(value) > MOST_URL_CHARACTERS:
        return None
    try:
        parts = urlsplit(urljoin(base, value))
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            return None
        return urlunsplit(parts._replace(fragment="")).encode("utf-8", "ignore").decode()
    except ValueError:
        return None
