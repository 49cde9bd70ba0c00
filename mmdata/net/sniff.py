"""What a body is, by its first bytes: what a server calls it is a claim.

Patterns of the WHATWG MIME Sniffing standard (sections 6 and 7), and of what training data comes in besides. Strangers
choose the bytes: each pattern takes time in proportion to them, or nearly.
"""

from __future__ import annotations

import re
from typing import Final

_LOOKED_AT_BYTES: Final = 4096  # the standard's 1445 (section 5.2) are less than the DOCTYPE of some SVG
_MAGIC: Final[list[tuple[re.Pattern[bytes], str]]] = [
    (re.compile(pattern, re.DOTALL), mime)
    for pattern, mime in [
        (rb"\xff\xd8\xff", "image/jpeg"),
        (rb"\x89PNG\r\n\x1a\n", "image/png"),
        (rb"GIF8[79]a", "image/gif"),
        (rb"RIFF....WEBPVP", "image/webp"),
        (rb"BM.{12}[\x0c-\x80]\x00\x00\x00", "image/bmp"),
        (rb"II\*\x00|MM\x00\*", "image/tiff"),
        (rb"\x00\x00\x01\x00", "image/x-icon"),
        (rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n", "image/jxl"),
        (rb"....ftypavi[fs]", "image/avif"),
        (rb"....ftyp(?:hei[cx]|mif1)", "image/heic"),
        (rb"RIFF....WAVE", "audio/wav"),
        (rb"RIFF....AVI ", "video/x-msvideo"),
        (rb"fLaC", "audio/flac"),
        (rb"OggS.{24,40}(?:\x80theora|\x01video)", "video/ogg"),
        (rb"OggS\x00", "audio/ogg"),
        (rb"ID3|\xff[\xfb\xfa\xf3\xf2]", "audio/mpeg"),
        (rb"\xff[\xf1\xf9]", "audio/aac"),
        (rb"FORM....AIF[FC]", "audio/aiff"),
        (rb"....ftypM4[AB]", "audio/mp4"),
        (rb"....ftyp", "video/mp4"),
        (rb"\x1a\x45\xdf\xa3.{0,60}?webm", "video/webm"),
        (rb"\x1a\x45\xdf\xa3", "video/x-matroska"),
        (rb"\x00\x00\x01\xba|\x00\x00\x01\xb3", "video/mpeg"),
        (rb"%PDF-", "application/pdf"),
        (rb"PK\x03\x04", "application/zip"),
        (rb"\x1f\x8b\x08", "application/gzip"),
        (rb"\x93NUMPY", "application/x-npy"),
        (rb"(?:\xef\xbb\xbf)?WEBVTT(?:\s|$)", "text/vtt"),
    ]
]
# What may stand before the first element of a document; HTML's own DOCTYPE tells what it is.
_BEFORE: Final = re.compile(
    rb"\s+|<\?.*?\?>|<!--.*?-->|(?i:<!DOCTYPE\s+(?!\s|html[\s>]))[^>\[]*(?:\[[^\]]*\]\s*)?>", re.DOTALL
)
_SVG: Final = re.compile(rb"<(?:\w{1,20}:)?svg[\s>/]")
_HTML: Final = re.compile(
    rb"<(?:!doctype\s+html|html|head|body|title|meta|script|iframe|h1|div|font|table|a|style|b|br|p)[\s>]",
    re.IGNORECASE,
)
_XML: Final = re.compile(rb"<\?xml\s")
_BYTE_ORDER: Final = b"\xef\xbb\xbf"
_UTF16: Final = (b"\xfe\xff", b"\xff\xfe")
# Section 7.2 of the standard: bytes that no text has.
_BINARY: Final = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


def sniff(data: bytes, declared: str | None) -> str:
    """Media type of a body; where its bytes are those of text, what a server declared of text is believed."""
    head = data[:_LOOKED_AT_BYTES]
    for pattern, mime in _MAGIC:
        if pattern.match(head):
            return mime
    if not head.startswith(_UTF16) and (not head or _BINARY.search(head)):
        return "application/octet-stream"
    text = declared if declared and declared.startswith(("text/", "application/json")) else "text/plain"
    return _markup(head) or text


def _markup(head: bytes) -> str | None:
    """By the first element, whatever stands before it."""
    head = head.removeprefix(_BYTE_ORDER)
    at = 0
    while before := _BEFORE.match(head, at):
        at = before.end()
    if _SVG.match(head, at):
        return "image/svg+xml"
    if _HTML.match(head, at):
        return "text/html"
    return "text/xml" if _XML.match(head.lstrip()) else None
