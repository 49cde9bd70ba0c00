from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.media.html import Limits, Link, Media, Page, Track, extract, outline
from mmdata.media.html_tree import absolute
from mmdata.media.srcset import Offer, best, offers

URL = "https://example.org/a/page.html?q=1#top"


def read(html: str | bytes, charset: str | None = None, **limits: int) -> Page:
    return extract(html.encode() if isinstance(html, str) else html, URL, charset, Limits(**limits))


def urls(html: str, **limits: int) -> list[str]:
    return [media.url for media in read(html, **limits).media]


def only(html: str) -> Media:
    (media,) = read(html).media
    return media


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ('The swirl<a class="headerlink" href="#id1" title="Permalink to this image">¶</a>', "The swirl"),
        ('The swirl <a href="#swirl">#</a>', "The swirl"),
        ('The swirl<a href="#note-1">[1]</a>', "The swirl[1]"),
        ('The <a href="#swirl">swirl</a> of 1 <a href="https://example.org/">→</a>', "The swirl of 1 →"),
        ('<a href="#ru">Вихрь</a> <a href="#zh">漩涡</a>', "Вихрь 漩涡"),
    ],
)
def test_the_sign_by_which_a_caption_links_to_itself_is_no_word_of_it(caption: str, said: str) -> None:
    page = f"<h2>{caption}</h2><figure><img src=i.jpg><figcaption>{caption}</figcaption></figure>"
    assert only(page).texts == {"figcaption": said, "heading": said}


def test_a_page_with_everything() -> None:
    page = read("""<!DOCTYPE html><html lang="en-GB"><head><base href="/b/"><title> Birds &amp; \n bees </title>
<meta name="robots" content="noai, nofollow"><link rel="canonical" href="canon"></head><body>
<h1>Top</h1><figure><img src="i.jpg" alt=" An\n owl " title="t" aria-label="l">
<figcaption>The <b>big</b> owl<br>sleeps<script>x()</script></figcaption></figure>
<a href="x#f">x</a><a rel="nofollow ugc" href="y">y</a><a href="mailto:z@z">z</a><a href="//other.org/">o</a></body>""")
    owl = {
        "alt": "An owl",
        "title": "t",
        "figcaption": "The big owl sleeps",
        "aria_label": "l",
        "heading": "Top",
    }
    assert page == Page(
        url=URL,
        title="Birds & bees",
        lang="en-GB",
        meta=[("robots", "noai, nofollow")],
        links=[
            Link("https://example.org/b/x", False),
            Link("https://example.org/b/y", True),
            Link("https://other.org/", False),
        ],
        canonical="https://example.org/b/canon",
        licence=None,
        media=[Media("image", "https://example.org/b/i.jpg", owl)],
    )
    assert outline(page_bytes := b"<a href=x><img src=y>", URL, None, Limits()).media == []
    assert extract(page_bytes, URL, None, Limits()).links == [Link("https://example.org/a/x", False)]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<img srcset='s.jpg 480w, m.jpg 2000w, l.jpg 3000w' src=f.jpg>", "m.jpg"),
        ("<img srcset='s.jpg 4800w,m.jpg 3000w' src=f.jpg>", "m.jpg"),
        ("<img srcset='a,b.jpg 1.5x,c.jpg 2x, d.jpg' src=f.jpg>", "c.jpg"),
        ("<img srcset=', ,' src=f.jpg>", "f.jpg"),
        ("<img srcset='big.avif 2000w, small.jpg 300w' src=f.jpg>", "small.jpg"),
        (
            "<picture><source type=image/avif srcset='a 900w'><source srcset='b.webp 800w'><img src=f.jpg></picture>",
            "b.webp",
        ),
        ("<picture><source type=image/avif srcset=a.avif><img src=f.jpg></picture>", "f.jpg"),
        ("<img src=only.avif>", "only.avif"),
        ("<img src='data:image/gif;base64,R0' data-src='lazy one.jpg'>", "lazy%20one.jpg"),
        ("<img src=grey.gif data-original=true.jpg>", "true.jpg"),
        ("<img src=grey.gif data-srcset='x.jpg 100w, y.jpg 200w'>", "y.jpg"),
        ("<img src='data:image/png;base64,AA'><noscript><img src=n.jpg></noscript>", "n.jpg"),
        ("<img src=p.gif width=1 height=1><img src=q.gif width='2px'><img src=r.jpg width=300>", "r.jpg"),
        ("<img src='http://[bad'><img src='ftp://x/y.jpg'><img src=' /ok\n.jpg '>", "../ok.jpg"),
    ],
)
def test_the_best_of_what_is_offered(html: str, expected: str) -> None:
    assert urls(html) == [absolute("https://example.org/a/", expected)]


def test_candidates_of_srcset_as_the_standard_splits_them() -> None:
    found = list(offers("a.jpg 1x,b.jpg  2x , c,d.jpg 300w 200h, e.jpg,f.jpg", "image/webp"))
    assert found == [
        Offer("a.jpg", None, 1.0, "image/webp"),
        Offer("b.jpg", None, 2.0, "image/webp"),
        Offer("c,d.jpg", 300, 1.0, "image/webp"),
        Offer("e.jpg,f.jpg", None, 1.0, "image/webp"),
    ]
    assert best(found, 200)[0].url == "c,d.jpg"


def test_a_heading_counts_for_its_own_section_and_what_follows() -> None:
    page = read("""<img src=0><h1>Top</h1><article><header><h2>Inner</h2></header><img src=1>
        <section><h3>Deep</h3><img src=2></section><img src=3></article><img src=4><article><img src=5></article>""")
    assert [m.texts.get("heading") for m in page.media] == [None, "Inner", "Deep", "Inner", "Top", "Top"]


@pytest.mark.parametrize(
    "card", ["<img src={0}><div><h3>{0}</h3></div>", "<div><h3>{0}</h3></div><p><img src={0}></p>"]
)
@pytest.mark.parametrize("around", ["div", "li", "article"])
def test_in_a_list_of_cards_each_has_its_own_heading(card: str, around: str) -> None:
    cards = "".join(f"<{around}>{card.format(name)}</{around}>" for name in "abc")
    page = read(f"<h1>All</h1><div>{cards}</div>")
    assert [(m.url[-1], m.texts["heading"]) for m in page.media] == [("a", "a"), ("b", "b"), ("c", "c")]


def test_a_picture_above_the_first_section_is_none_of_it() -> None:
    page = read("<h1>Top</h1><div><img src=1><h2>A</h2><img src=2><h2>B</h2><img src=3></div>")
    assert [m.texts.get("heading") for m in page.media] == ["Top", "A", "B"]


@pytest.mark.parametrize(
    ("html", "transcripts"),
    [
        (
            "<audio src=1></audio><a href=1.vtt>T</a><audio src=2></audio><a href=2.vtt>T</a><audio src=3></audio>",
            "12-",
        ),
        ("<a href=1.vtt>T</a><audio src=1></audio><a href=2.vtt>T</a><audio src=2></audio>", "12"),
        ("<p><audio src=1></audio></p><p><a href=1.vtt>T</a></p><p><audio src=2></audio></p>", "1-"),
        ("<ul><li><audio src=1></audio></li><li><audio src=2></audio><a href=2.srt>T</a></li></ul>", "-2"),
    ],
)
def test_recordings_side_by_side_have_transcripts_of_their_own(html: str, transcripts: str) -> None:
    found = [media.transcript_url for media in read(f"<section>{html}</section>").media]
    assert "".join(url[-5] if url else "-" for url in found) == transcripts


@pytest.mark.parametrize(
    "name", ["data-src", "data-lazy", "data-lazyload", "data-echo", "data-hi-res-src", "data-ll-src"]
)
def test_what_scripts_show_later_is_the_picture(name: str) -> None:
    assert urls(f"<img src=blank.gif {name}=1.jpg alt=fox>") == ["https://example.org/a/1.jpg"]
    assert urls(f"<img src=1.jpg {name}=true alt=fox>") == ["https://example.org/a/1.jpg"]


def test_aria_labelledby_names_other_elements_and_wins() -> None:
    html = "<img src=1 aria-label=x aria-labelledby='b none a'><p id=a>one</p><p id=b>two</p>"
    assert only(html).texts == {"aria_label": "two one"}


def test_a_picture_that_stands_twice_is_one_with_the_texts_of_both() -> None:
    found = only("<img src=1 alt=x><img src=1 alt=y title=z><img src=1 alt=x><img src=1 alt=y><img src=1 alt=w>")
    assert (found.texts, found.other_texts) == ({"alt": "x", "title": "z"}, {"alt": ["y", "w"]})


def told_by_figures(html: str) -> list[tuple[str, str | None, str | None]]:
    """Of each media: the end of its URL, its own figcaption, the one that it shares."""
    media = read(html).media
    return [(one.url[-1], one.texts.get("figcaption"), one.texts.get("shared_figcaption")) for one in media]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<img src=1><img src=2><figcaption>both</figcaption>", [("1", None, "both"), ("2", None, "both")]),
        # One picture, whatever shows it, and what else there is.
        (
            "<img src=b data-src=/1><noscript><img src=1></noscript><audio src=2></audio><figcaption>c</figcaption>",
            [("1", "c", None), ("1", "c", None), ("2", "c", None)],
        ),
        ("<img src=1 width=800><img src=2 width=1><figcaption>c</figcaption>", [("1", "c", None)]),
        (
            "<img src=1><figcaption>a</figcaption><img src=2><figcaption>b</figcaption>",
            [("1", "a", None), ("2", "b", None)],
        ),
        (
            "<img src=1><img src=2><img src=3><figcaption>a</figcaption><figcaption>b</figcaption>",
            [(n, None, "a b") for n in "123"],
        ),
        (
            "<figure><img src=1><figcaption>x</figcaption></figure><img src=2><img src=3><figcaption>all</figcaption>",
            [("1", "x", None), ("2", None, "all"), ("3", None, "all")],
        ),
    ],
)
def test_the_caption_of_a_figure_of_several_is_of_none_alone(
    html: str, expected: list[tuple[str, str | None, str | None]]
) -> None:
    assert told_by_figures(f"<figure>{html}</figure>") == expected


def test_video_and_audio() -> None:
    page = read("""<div><video poster=p.jpg aria-label=film><source src=v.webm type=video/webm>
        <track src=de.vtt srclang=de><track default kind=captions src=en.vtt srclang=en></video>
        <div class="the-transcript">Hello <p>there</div></div>
        <div><audio src=a.mp3></audio><a href="a.txt">Transcript</a></div>
        <div><audio src=b.mp3></audio><a href="b.txt">Notes</a><button class=transcript>Show</button></div>
        <section><div><div><audio src=c.mp3></audio></div></div><div><a href="/c.srt?x">words</a></div></section>""")
    base = "https://example.org/a/"
    tracks = [Track(f"{base}en.vtt", "en", "captions"), Track(f"{base}de.vtt", "de", "subtitles")]
    assert page.media == [
        Media("video", f"{base}v.webm", {"aria_label": "film"}, tracks, "Hello there"),
        Media("audio", f"{base}a.mp3", transcript_url=f"{base}a.txt"),
        Media("audio", f"{base}b.mp3"),
        Media("audio", f"{base}c.mp3", transcript_url="https://example.org/c.srt?x"),
    ]


@pytest.mark.parametrize(
    ("html", "path"),
    [
        ("<meta http-equiv=Refresh content='0;url=/home'>", "/home"),
        ("<meta http-equiv=refresh content='5; URL=\"b.html?x=1\"'>", "/a/b.html?x=1"),
        ("<meta http-equiv=refresh content='0 c'>", "/a/c"),
        ("<frameset><frame src=menu.html></frameset>", "/a/menu.html"),
        ("<iframe src=/inner></iframe>", "/inner"),
        ("<meta http-equiv=refresh content=30>", None),
        ("<meta http-equiv=refresh content='0;url=javascript:x()'>", None),
    ],
)
def test_what_is_shown_in_a_page_or_in_its_place_is_a_link(html: str, path: str | None) -> None:
    assert read(html).links == ([Link(f"https://example.org{path}", nofollow=False)] if path else [])


def test_open_graph() -> None:
    page = read("""<meta property="og:image" content="/1.jpg"><meta property="og:image:alt" content="one">
        <meta property="og:image" content="/2.jpg"><meta property="og:title" content="The title">
        <meta property="og:video" content="/player.html"><meta property="og:video:type" content="text/html">
        <meta property="og:video" content="/v.mp4"><meta property="og:video:type" content="video/mp4">
        <img src="/2.jpg" alt="two">""")
    assert page.media == [
        Media("image", "https://example.org/2.jpg", {"alt": "two"}),
        Media("image", "https://example.org/1.jpg", {"og": "one"}),
        Media("video", "https://example.org/v.mp4", {"og": "The title"}),
    ]


def test_the_title_of_a_page_is_said_of_the_media_that_stands_for_it_alone() -> None:
    page = read("""<meta property="og:title" content="The title">
        <meta property="og:image" content="/1.jpg"><meta property="og:image:url" content="/1.jpg">
        <meta property="og:image" content="/2.jpg"><meta property="og:image" content="/3.jpg">
        <meta property="og:image:alt" content="three"><meta property="og:video" content="/v.mp4">""")
    assert [(one.url.rpartition("/")[2], one.texts.get("og")) for one in page.media] == [
        ("1.jpg", "The title"),
        ("2.jpg", None),
        ("3.jpg", "three"),
        ("v.mp4", "The title"),
    ]


def ld(json: str) -> str:
    return f'<script type="application/ld+json">{json}</script>'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<!--", "-->"),
        ("\n<!-- \n", "\n//-->\n"),
        ("//<![CDATA[\n", "\n//]]>"),
        ("// <![CDATA[\n", "\n// ]]>"),
        ("/*<![CDATA[*/", "/*]]>*/"),
        ("<![CDATA[", "]]>"),
        ("<!--//--><![CDATA[//><!--\n", "\n//--><!]]>"),
        ("\ufeff", ";"),
    ],
)
def test_marks_around_json_ld_are_none_of_it(before: str, after: str) -> None:
    script = f'{before}{{"@type": "ImageObject", "url": "j.jpg", "name": "<!-- n -->"}}{after}'
    assert only(ld(script)).texts == {"json_ld": "<!-- n -->"}


@pytest.mark.parametrize(
    ("kind", "read_too"),
    [
        ("application/ld+json; charset=utf-8", True),
        (" Application/LD+JSON;charset=UTF-8", True),
        ("application/ld+json-seq", False),
        ("text/application/ld+json", False),
    ],
)
def test_a_type_of_json_ld_may_have_parameters(kind: str, read_too: bool) -> None:
    found = urls(f'<script type="{kind}">{{"@type": "ImageObject", "url": "j.jpg"}}</script>')
    assert found == (["https://example.org/a/j.jpg"] if read_too else [])


def test_json_ld() -> None:
    page = read(
        ld("{broken")
        + ld('"' + "[" * 100_000)
        + ld("[" * 100_000)
        + ld("[" + "9" * 5000 + "]")
        + ld("""{"@graph": [{"@type": "Article", "license": "https://l.org/x", "image": {"@type": ["ImageObject"],
            "url": "j.jpg", "caption": {"@value": "a &amp; \\ud800 b"}, "license": {"@id": "https://l.org/own"}}},
            {"@type": "VideoObject", "url": "watch.html"},
            {"@type": "http://schema.org/VideoObject", "contentUrl": "v.mp4", "description": 3, "name": ["n", "m"],
             "transcript": "spoken"}]}""")
    )
    assert page.licence == "https://l.org/x"
    assert page.media == [
        Media("image", "https://example.org/a/j.jpg", {"json_ld": "a & b"}, licence="https://l.org/own"),
        Media("video", "https://example.org/a/v.mp4", {"json_ld": "n"}, transcript="spoken"),
    ]
    broken_line = '{"@type": "ImageObject", "contentUrl": "1.jpg", "caption": "two\nlines"}'
    assert only(ld(broken_line)).texts == {"json_ld": "two lines"}


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<a href='https://creativecommons.org/licenses/by/4.0/'>CC</a>", "https://creativecommons.org/licenses/by/4.0/"),
        ("<a href='https://x.org/?creativecommons.org/licenses/by'>CC</a>", None),
        ("<link rel=license href=/terms><a href='https://creativecommons.org/licenses/by/4.0/'>", "https://example.org/terms"),
        ("<a rel='nofollow license' href=/terms>", "https://example.org/terms"),
    ],
)  # fmt: skip
def test_licence_of_a_page(html: str, expected: str | None) -> None:
    assert read(html).licence == expected


@pytest.mark.parametrize(
    ("data", "charset"),
    [
        ("<title>Möwe 海鷗</title>".encode(), None),
        ("<title>Möwe 海鷗</title>".encode("utf-8-sig"), "iso-8859-1"),
        ("<title>Möwe 海鷗</title>".encode("utf-16"), None),
        ("<title>Möwe 海鷗</title>".encode("gb18030"), "GB2312"),
        ('<meta charset="gbk"><title>Möwe 海鷗</title>'.encode("gb18030"), None),
        ("<title>Möwe 海鷗</title>".encode(), "punycode"),
        ("<title>Möwe 海鷗</title>".encode(), "no such thing"),
    ],
)
def test_encodings(data: bytes, charset: str | None) -> None:
    assert read(data, charset).title == "Möwe 海鷗"


@pytest.mark.parametrize(
    ("label", "encoding", "text"),
    [
        ("x-sjis", "cp932", "日本"),
        ("Windows-31J", "cp932", "日本"),
        ("gb_2312-80", "gbk", "海鸥"),
        ("x-euc-jp", "euc_jp", "海鷗"),
        ("windows-949", "cp949", "갈매기"),
        ("windows-874", "cp874", "นกนางนวล"),
        ("x-mac-cyrillic", "mac-cyrillic", "чайка"),
        ("x-cp1251", "cp1251", "чайка"),
        ("koi8", "koi8-r", "чайка"),
    ],
)
def test_every_label_of_the_standard_is_known(label: str, encoding: str, text: str) -> None:
    assert read(f"<meta charset={label}><title>{text}</title>".encode(encoding)).title == text
    assert read(f"<title>{text}</title>".encode(encoding), label).title == text


def test_a_page_may_say_late_what_it_is_written_in() -> None:
    late = f"<script>{'x' * 5000}</script><meta charset=windows-1251><title>чайка</title>"
    assert read(late.encode("cp1251")).title == "чайка"
    assert read(late.encode()).title == "чайка"


def test_bytes_that_are_not_utf8_and_say_nothing_are_windows_1252() -> None:
    assert read(b"<title>M\xf6we \x96</title>").title == "Möwe \u2013"


def test_text_is_composed_and_without_controls() -> None:
    assert only("<img src=1 alt='e\u0301\x07&#x200b;\u00a0 \u2028 x'>").texts == {"alt": "é\u200b x"}


def test_everything_is_bounded() -> None:
    many = "".join(f"<a href=l{n}></a><img src=i{n} alt='{'x' * 50}'>" for n in range(50))
    page = read(many, media=7, links=5, text_characters=10)
    assert [len(page.media), len(page.links), page.media[0].texts["alt"]] == [7, 5, "x" * 10]
    assert page.links_beyond == 45
    assert read(many, links=50).links_beyond == 0
    assert len(urls(many, page_bytes=200)) == 2
    assert read(ld('{"@type":"ImageObject","url":"x"}'), json_ld_characters=10).media == []


def test_what_is_beyond_the_bounds_is_counted() -> None:
    shown = "".join(f"<img src=i{n % 50}>" for n in range(60)) + "<video src=v></video><img src=i0>"
    page = read(shown + ld('{"@type":"ImageObject","url":"i1"}') + ld('{"@type":"ImageObject","url":"x"}'), media=7)
    assert (len(page.media), dict(page.media_beyond), page.is_cut) == (7, {"image": 44, "video": 1}, False)
    assert dict(read(shown, media=51).media_beyond) == {}
    assert read("<i>" * 29_999 + "<p>").is_cut is False
    assert read("<i>" * 30_000 + "<p>").is_cut is True
    assert read("<p " + " ".join(f"a{n}" for n in range(301)) + ">").is_cut is True
    assert read("<p>broken <").is_cut is False


HOSTILE = {
    "deep": "<div>" * 100_000,
    "lists": "<ul><li>" * 100_000,
    "reopened": "".join(f"<p><b a={n}>" for n in range(100_000)),
    "reopened, hidden": "".join(f"<p><<b>b a={n}>" for n in range(100_000)),
    "attributes": "<div " + " ".join(f"a{n}" for n in range(200_000)) + ">",
    "attributes of an end": "</div " + " ".join(f"a{n}" for n in range(200_000)) + ">",
    "attributes, hidden": "<div " + " ".join(f'a{n}="<>"' for n in range(100_000)) + ">",
    "unclosed tags": "<b " * 300_000,
    "unclosed quotes": "<a b='" * 200_000 + '<a b="' * 100_000,
    "names": "<a" * 300_000,
    "values": "<a b=<a/b=" * 10_000 + "x" * 4_000_000,
    "quotes": ("<a " + "b='>' " * 250 + ">") * 2000 + "<a " + "b='>' " * 250 + "b='" + "x" * 1_000_000,
    "adoption": "<b><i><u><s>" * 3 + "<div>" * 5000 + "</b></i></u></s>" * 5000,
    "closing": "<span>" * 5000 + "</p>" * 300_000,
    "captions": "<figure><figcaption>x" * 20_000 + "<img src=x>" * 5000,
    "transcripts": "<div class=transcript>" * 10_000 + "<audio src=x></audio>" * 5000,
    "videos": "<video src=x><source>" * 10_000,
    "srcset": "<img srcset='" + "a 1x," * 200_000 + "'>",
    "meta": "<meta " * 300_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_page_takes_long(name: str) -> None:
    began = time.process_time()
    page = read("<img src=first.jpg alt=first>" + HOSTILE[name])
    assert page.media[0].texts["alt"] == "first"
    assert time.process_time() - began < 5


TAGS = """<img |<a href=|<picture>|<source srcset='|<video>|<track src=x |<figure>|<figcaption>|<h2>|<base href=
<meta property=og:image content=|<html lang=|<script type="application/ld+json">{"@type":|</script>|src=|alt=|'|"|>|/>
//[|<base>|http://|&#xd800;|&amp|srcset=| 1e999x, 5w|class=transcript |aria-labelledby=|id=|<noscript>|\0
<meta charset=utf-7>"""


@given(
    st.lists(st.sampled_from(re.split(r"[|\n]", TAGS)) | st.text(max_size=8), max_size=60).map("".join),
    st.none() | st.text(max_size=12),
)
@settings(max_examples=300)
def test_no_markup_raises(html: str, charset: str | None) -> None:
    check(extract(html.encode("utf-8", "replace"), URL, charset, Limits()))


@given(st.binary(max_size=300), st.sampled_from([None, "utf-16", "gb18030", "iso2022_jp", "cp1257", "\0"]))
@settings(max_examples=200)
def test_no_bytes_raise(html: bytes, charset: str | None) -> None:
    check(extract(b"<img src='" + html, URL, charset, Limits()))


def check(page: Page) -> None:
    def texts(value: Any) -> None:
        value.encode("utf-8")

    for media in page.media:
        assert media.url.startswith(("http://", "https://"))
        for text in (media.url, *media.texts.values()):
            texts(text)
    texts("".join([page.title or "", page.licence or "", *(link.url for link in page.links)]))
