"""Media that a page describes in JSON-LD by schema.org's vocabulary: ImageObject, VideoObject, AudioObject."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

_KINDS: Final = {
    "ImageObject": "image",
    "Photograph": "image",
    "VideoObject": "video",
    "AudioObject": "audio",
}
# Marks of comments and of CDATA around a script, for browsers that knew no scripts, and for XHTML.
_MARKS: Final = re.compile(r"(?:[\s\ufeff]|<!--|-->|<!\[CDATA\[|//>?|/\*|\*/)*+")
_MOST_VALUES: Final = 20_000
_TEXTS: Final = ("caption", "description", "name", "headline")


@dataclass(frozen=True)
class Described:
    """One media object, as it is written.

    Attributes:
        kind: image, video or audio.
        url: of the media.
        text: its caption, description or name.
        transcript: of video and audio.
        licence: a URL or a name.
    """

    kind: str
    url: str
    text: str | None
    transcript: str | None
    licence: str | None


def described(text: str) -> tuple[list[Described], str | None]:
    """The media objects of a script, and the licence of the page; nothing where it is no JSON.

    Marks may stand around it; what follows the value is not looked at.
    """
    try:
        # Not strict: many write line breaks into texts as they are.
        value, _ = json.JSONDecoder(strict=False).raw_decode(_MARKS.sub("", text, count=1))
    except (ValueError, RecursionError):
        return [], None
    found: list[Described] = []
    licence = None
    for entry in _objects(value):
        kind = next((_KINDS[name] for name in _names(entry.get("@type")) if name in _KINDS), None)
        if kind is None:
            licence = licence or _licence(entry)
            continue
        # A video's `url` is its page; a picture's is the picture.
        url = _text(entry.get("contentUrl")) or (_text(entry.get("url")) if kind == "image" else None)
        if url:
            caption = next(filter(None, (_text(entry.get(name)) for name in _TEXTS)), None)
            found.append(Described(kind, url, caption, _text(entry.get("transcript")), _licence(entry)))
    return found, licence


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object, in the order of the text."""
    stack, left = [value], _MOST_VALUES
    while stack and left > 0:
        left -= 1
        at = stack.pop()
        if isinstance(at, dict):
            yield at
            stack += reversed(list(at.values()))
        elif isinstance(at, list):
            stack += reversed(at)


def _names(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    return [name.rpartition("/")[2] for name in names if isinstance(name, str)]


def _licence(entry: dict[str, Any]) -> str | None:
    value = entry.get("license")
    return _text(value) or (_text(value.get("url") or value.get("@id")) if isinstance(value, dict) else None)


def _text(value: Any) -> str | None:
    """A text, alone, with its language, or the first of several."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("@value")
    return html.unescape(value) if isinstance(value, str) and value.strip() else None
