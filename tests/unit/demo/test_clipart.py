from __future__ import annotations

from pathlib import Path

import pytest

from mmdata.demo.clipart import collect_clipart, parse_emoji, read_metadata

SVG = """<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY lol "lol">]>
<svg><title>not this</title><metadata id="m"><rdf:RDF><cc:Work rdf:about="">
<dc:title>A red
  bird</dc:title><dc:creator><cc:Agent><dc:title>Somebody</dc:title></cc:Agent></dc:creator>
<dc:subject><rdf:Bag><rdf:li>bird</rdf:li><rdf:li></rdf:li><rdf:li>&lol; red</rdf:li><rdf:li>bird</rdf:li></rdf:Bag>
</dc:subject></cc:Work></rdf:RDF></metadata></svg>"""
EMOJI = """# subgroup: face
1F600  ; fully-qualified     # \U0001f600 E1.0 grinning face
263A   ; unqualified         # \u263a E0.6 smiling face
# subgroup: hand
1F44B 1F3FB ; fully-qualified # x E1.0 waving hand: light skin tone
1F590 FE0F  ; fully-qualified # x E0.7 hand with fingers splayed
"""


def test_title_and_keywords_without_entities():
    assert read_metadata(SVG) == ("A red bird", ["bird", "&lol; red"])


@pytest.mark.parametrize("svg", ["", "<svg/>", "</metadata><metadata>", "<metadata><dc:title>open</metadata>"])
def test_no_metadata_is_no_words(svg: str):
    assert read_metadata(svg) == ("", [])


def test_only_pictures_with_a_drawing_and_no_links(tmp_path: Path):
    root, folder = tmp_path / "root", tmp_path / "out"
    for name in ("svg/a/one.svg", "svg/a/two.svg", "png/a/one.png", "png/a/three.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(SVG)
    (root / "svg/a/link.svg").symlink_to("one.svg")
    (root / "png/a/link.png").symlink_to("one.png")
    assert collect_clipart(root, folder) == [("a/one.png", "A red bird", "bird|&lol; red")]
    assert [path.name for path in folder.rglob("*.png")] == ["one.png"]


def test_emoji_without_skin_tones():
    assert list(parse_emoji(EMOJI)) == [
        ("\U0001f600", "grinning face", "face"),
        ("\U0001f590\ufe0f", "hand with fingers splayed", "hand"),
    ]
