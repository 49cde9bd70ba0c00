"""Drawings with words: clip-art out of the Debian packages, and emoji drawn from the font."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

_EMOJI_LINE: Final = re.compile(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[\d.]+ (.+)")
_SKIN_TONES: Final = range(0x1F3FB, 0x1F400)
# The one size of NotoColorEmoji's bitmaps, and room for one glyph of it (136 x 128 px).
_STRIKE_PX: Final = 109
_CELL_PX: Final = 150


class _Metadata(HTMLParser):
    """Title and keywords in the RDF of an SVG file.

    An HTML parser on purpose: it knows no entity definitions and loads nothing, so a hostile file can neither expand
    nor reach out, and it reads the malformed files that an XML parser refuses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.title: str | None = None
        self.keywords: list[str] = []
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 (their signature)
        self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        text, self._text = " ".join(self._text.split()), ""
        # Only the first title is the picture's; publisher and creator carry titles of their own.
        if tag == "dc:title" and self.title is None:
            self.title = text
        elif tag == "rdf:li" and text and text not in self.keywords:
            self.keywords.append(text)


def read_metadata(svg: str) -> tuple[str, list[str]]:
    """Title (empty where there is none) and keywords of an SVG document of the Open Clip Art Library."""
    start, end = svg.find("<metadata"), svg.find("</metadata>")
    parser = _Metadata()
    parser.feed(svg[start:end] if 0 <= start < end else "")
    return parser.title or "", parser.keywords


def collect_clipart(root: Path, folder: Path) -> list[tuple[str, str, str]]:
    """Move the PNG files that have an SVG file beside them into `folder`.

    Links, which file one picture under several subjects, are left out.

    Returns:
        Path under `folder`, title, and keywords joined by `|`.
    """
    rows = []
    for svg in sorted((root / "svg").rglob("*.svg")):
        name = svg.relative_to(root / "svg").with_suffix(".png")
        png = root / "png" / name
        if svg.is_symlink() or png.is_symlink() or not png.is_file():
            continue
        title, keywords = read_metadata(svg.read_text(encoding="utf-8", errors="replace"))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        png.rename(folder / name)
        rows.append((name.as_posix(), title, "|".join(keywords)))
    return rows


def parse_emoji(listing: str) -> Iterator[tuple[str, str, str]]:
    """Characters, name and subgroup of each emoji in Unicode's `emoji-test.txt`, without variants of skin tone."""
    group = ""
    for line in listing.splitlines():
        if line.startswith("# subgroup:"):
            group = line.partition(":")[2].strip()
        if found := _EMOJI_LINE.match(line):
            points = [int(point, 16) for point in found[1].split()]
            if not any(point in _SKIN_TONES for point in points):
                yield "".join(map(chr, points)), found[2], group


def render_emoji(font_path: Path, listing: str, folder: Path) -> list[tuple[str, str, str]]:
    """Draw each emoji as a transparent PNG file.

    Sequences that come out as several glyphs, for lack of a shaping library or of the glyph, are left out.

    Returns:
        Path under `folder`, name and subgroup.
    """
    font = ImageFont.truetype(str(font_path), _STRIKE_PX)
    rows = []
    for characters, name, group in parse_emoji(listing):
        if font.getlength(characters) > _CELL_PX:
            continue
        cell = Image.new("RGBA", (_CELL_PX, _CELL_PX), (255, 255, 255, 0))
        ImageDraw.Draw(cell).text((0, 0), characters, font=font, embedded_color=True)
        if (box := cell.getbbox()) is None:
            continue
        path = "-".join(f"{ord(character):x}" for character in characters) + ".png"
        cell.crop(box).save(folder / path)
        rows.append((path, name, group))
    return rows
