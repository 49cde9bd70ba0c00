from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.errors import SampleError
from mmdata.media.html import Media, Page, Track, extract

URL = "http://site.org/a/page.html"


def page(body: str, head: str = "") -> Page:
    return extract(f"<!DOCTYPE html><html lang='de-AT'><head>{head}</head><body>{body}</body></html>".encode(), URL)


def only(body: str, head: str = "") -> Media:
    (media,) = page(body, head).media
    return media


@pytest.mark.parametrize(
    ("image", "url"),
    [
        ('<img src="x.jpg">', "http://site.org/a/x.jpg"),
        ('<img src="/x.jpg#part">', "http://site.org/x.jpg"),
        ('<img src="//cdn.org/x y.jpg">', "http://cdn.org/x%20y.jpg"),
        ('<img src="s.jpg" srcset="m.jpg 500w, l.jpg 1000w, s.jpg 200w">', "http://site.org/a/l.jpg"),
        ('<img src="s.jpg" srcset="one.jpg, two.jpg 2x, half.jpg 1.5x">', "http://site.org/a/two.jpg"),
        ('<img src="s.jpg" srcset="w_1,h_2/a.jpg 2x">', "http://site.org/a/w_1,h_2/a.jpg"),
        ('<img src="data:image/gif;base64,R0lGOD" data-src="lazy.jpg">', "http://site.org/a/lazy.jpg"),
        ('<img src="thumb.jpg" data-srcset="a.jpg 1x, b.jpg 2x">', "http://site.org/a/b.jpg"),
        ('<noscript><img src="plain.jpg"></noscript>', "http://site.org/a/plain.jpg"),
        (
            '<picture><source type="image/avif" srcset="x.avif"><source srcset="x.webp 8w"><img src="x.jpg"></picture>',
            "http://site.org/a/x.webp",
        ),
        ('<picture><source type="image/avif" srcset="x.avif"><img src="x.jpg"></picture>', "http://site.org/a/x.jpg"),
    ],
)
def test_the_best_source_of_an_image(image: str, url: str):
    assert only(image) == Media("image", url)


@pytest.mark.parametrize("image", ["<img>", '<img src="">', '<img src="data:x">', '<img src="javascript:x">',
                                   '<img src="x.gif" width="1" height=1>', '<img src="http://[bad/">'])  # fmt: skip
def test_what_is_no_picture(image: str):
    assert page(image).media == []


def test_the_texts_of_an_image():
    body = """<h2>Birds of the <b>sea</b></h2><figure><div><img src=x.jpg alt=" A  gull &amp;
    a tern " title="Gull" aria-label="Two birds"></div><figcaption>Two <i>birds</i> at sea</figcaption></figure>"""
    assert only(body).texts == {
        "figcaption": "Two birds at sea",
        "alt": "A gull & a tern",
        "aria_label": "Two birds",
        "title": "Gull",
        "heading": "Birds of the sea",
    }


def test_a_label_may_stand_elsewhere_and_a_heading_holds_until_the_next():
    body = '<h1>One</h1><img src=1.jpg aria-labelledby="l"><h3>Two</h3><p id=l>Label</p><img src=2.jpg>'
    first, second = page(body).media
    assert first.texts == {"aria_label": "Label", "heading": "One"}
    assert second.texts == {"heading": "Two"}


def test_the_same_image_twice_is_one_with_what_is_said_of_both():
    assert only("<img src=x.jpg title=T><img src=x.jpg alt=A title=U>").texts == {"title": "T", "alt": "A"}


def test_recordings_with_tracks_and_transcripts():
    body = """<figure><video title="Talk"><source src="v.webm"><source src="v.mp4">
    <track kind=captions src="v.vtt" srclang="en-GB"><track src="v_fr.vtt" srclang=fr></video>
    <div class="the-transcript">Hello <b>there</b>.</div></figure><audio src="a.mp3"></audio>"""
    video, audio = page(body).media
    assert (video.kind, video.url) == ("video", "http://site.org/a/v.webm")
    assert video.texts == {"title": "Talk", "transcript": "Hello there ."}
    assert video.tracks == [
        Track("http://site.org/a/v.vtt", "en", "captions"),
        Track("http://site.org/a/v_fr.vtt", "fr", "subtitles"),
    ]
    assert (audio.kind, audio.url, audio.tracks) == ("audio", "http://site.org/a/a.mp3", [])


def test_open_graph():
    head = '<meta property="og:image" content="/og.jpg"><meta property="og:title" content="The title">'
    assert only("", head) == Media("image", "http://site.org/og.jpg", {"og": "The title"})
    head += '<meta property="og:image:alt" content="What it shows">'
    assert only("", head).texts == {"og": "What it shows"}


def test_json_ld():
    text = """{"@graph": [{"@type": "ImageObject", "contentUrl": "i.jpg", "caption": "A gull",
    "license": "https://creativecommons.org/licenses/by/4.0/"},
    {"@type": "AudioObject", "contentUrl": "a.ogg", "transcript": "Hello"}]}"""
    image, audio = page(f'<script type="application/ld+json">{text}</script>').media
    licence = "https://creativecommons.org/licenses/by/4.0/"
    assert image == Media("image", "http://site.org/a/i.jpg", {"json_ld": "A gull"}, [], licence)
    assert audio.texts == {"transcript": "Hello"}


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "null", '{"@type": ["ImageObject"], "contentUrl": 5}', '"x"'])
def test_json_ld_that_is_none(text: str):
    assert page(f'<script type="application/ld+json">{text}</script>').media == []


@pytest.mark.parametrize(
    "link",
    [
        '<a rel="license nofollow" href="https://x.org/terms">terms</a>',
        '<link rel=license href="https://x.org/terms">',
        '<script type=\'application/ld+json\'>{"@type": "Article", "license": "https://x.org/terms"}</script>',
    ],
)
def test_licences(link: str):
    assert page(link).licence == "https://x.org/terms"
    assert page('<a href="https://creativecommons.org/licenses/by/2.0/">CC</a>').licence
    assert page('<a href="https://creativecommons.org/about">CC</a>').licence is None


def test_links_are_absolute_and_each_once():
    body = """<a href="b.html#x">b</a><a href="b.html#y">b</a><a href="mailto:x@y">m</a><a rel="nofollow" href=c>c</a>
    <a href="https://other.org">o</a><a href="http://[bad">x</a><a>none</a>"""
    assert page(body).links == ["http://site.org/a/b.html", "https://other.org"]


def test_base_title_language_and_meta():
    head = '<base href="http://cdn.org/x/"><title> A\n title </title><meta name="ROBOTS" content="noai, noindex">'
    found = page("<img src=i.jpg><a href=p>p</a>", head)
    assert (found.title, found.lang, found.meta) == ("A title", "de", [("ROBOTS", "noai, noindex")])
    assert (found.media[0].url, found.links) == ("http://cdn.org/x/i.jpg", ["http://cdn.org/x/p"])


@pytest.mark.parametrize(
    ("html", "charset", "alt"),
    [
        ("<img src=x alt='größe'>".encode(), None, "größe"),
        ("<img src=x alt='größe'>".encode("latin-1"), "ISO-8859-1", "größe"),
        (b"<meta charset=windows-1251><img src=x alt='" + "мир".encode("cp1251") + b"'>", None, "мир"),
        ("\ufeff<img src=x alt='größe'>".encode("utf-16"), "utf-8", "größe"),
        ("<img src=x alt='größe'>".encode(), "no-such-charset", "größe"),
        ("<img src=x alt='größe'>".encode(), "base64", "größe"),
    ],
)
def test_encodings(html: bytes, charset: str | None, alt: str):
    assert extract(html, URL, charset).media[0].texts["alt"] == alt


def test_hostile_pages_end_soon():
    began = time.monotonic()
    with pytest.raises(SampleError) as caught:
        page("<img src=x>" + "<div>" * 100_000 + "<img src=y>")
    assert caught.value.reason == "too_deep"
    assert len(page("<div>" * 9000 + "<img src=x>").media) == 1
    assert len(page("<p><li><td><br>" * 9000 + "<div></div>" * 20_000 + "<img src=x>").media) == 1
    page("<b><a href=x><i>" * 3000)
    page("<table><tr><td>" * 3000)
    page("<svg><g>" * 4000)
    assert len(page("".join(f"<img src={n}>" for n in range(5000))).media) == 2000
    assert len(page("".join(f"<a href={n}>x</a>" for n in range(20_000))).links) == 10_000
    page(f'<img srcset="{"a " * 100_000}">')
    page(f'<img srcset="{"," * 100_000}">')
    page(f"<meta {'charset ' * 100_000}>")
    assert len(only(f'<img src=x alt="{"a" * 100_000}">').texts["alt"]) == 10_000
    assert time.monotonic() - began < 10


PIECES = st.sampled_from(
    [
        *("<img ", "src=", "srcset=", '"', "a.jpg 2x,", ">", "<figure>", "<figcaption>", "</", "<picture>", "é", "\0"),
        *("<video>", "<track src=x>", "<meta property=og:image content=", "<base href=", "http://[", "{", "[]"),
        "<script type='application/ld+json'>",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES | st.text(max_size=5), max_size=40).map("".join).map(str.encode) | st.binary(max_size=200))
def test_no_page_is_too_broken(html: bytes):
    found = extract(html, URL)
    assert all(media.url.startswith(("http://", "https://")) for media in found.media)
