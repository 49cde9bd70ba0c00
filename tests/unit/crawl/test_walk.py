from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from website import Reply, Site, redirect

from mmdata.crawl.records import Damage, Record, records
from mmdata.crawl.scope import Scope
from mmdata.crawl.sitemaps import read_sitemap
from mmdata.crawl.walk import Start, reopen, walk, what_failed
from mmdata.errors import SampleError
from mmdata.net.fetcher import Fetcher
from mmdata.spec import FetchSpec
from mmdata.steps.exchange import Place
from mmdata.steps.sources.warc import Warc

ALL: dict[str, Any] = {
    "hosts": ["127.0.0.1"],
    "include": [],
    "exclude": [],
    "max_depth": 9,
    "max_pages": 10_000,
    "max_bytes": 1 << 30,
    "max_page_bytes": 1 << 20,
}


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(pages=40) as found:
        yield found


def crawl(
    site: Site, folder: Path, *seeds: str, sitemaps: list[str] | None = None, find: bool = False, **more: Any
) -> dict[str, Any]:
    """Rows of pages.parquet by path; `find`: the sitemaps that robots.txt names."""
    folder.mkdir(exist_ok=True)
    fetch = {"allow_private": [site.host], "idle_s": 0.5, "timeout_s": 2, "attempts": 1, **more.pop("fetch", {})}

    async def run() -> None:
        async with Fetcher(FetchSpec.model_validate(fetch)) as fetcher:
            start = Start([site.url(seed) for seed in seeds or ("/p/0",)], None if find else sitemaps or [])
            await walk(fetcher, start, Scope(**{**ALL, **more}), folder, lambda *_: None)

    asyncio.run(run())
    rows = pq.read_table(folder / "pages.parquet").to_pylist()
    return {row["url"].removeprefix(site.url("")): row for row in rows}


def read(path: Path) -> list[Record | Damage]:
    """All records, those whose body cannot be read as damage."""
    found: list[Record | Damage] = []
    with path.open("rb") as file:
        for one in records(file):
            try:
                found.append(one)
                if isinstance(one, Record):
                    one.body(1 << 20)
            except SampleError as error:
                found[-1] = Damage(one.offset, str(error))
    return found


def recorded(folder: Path) -> list[str]:
    files = sorted(folder.glob("pages-*"))
    assert all(file.name.endswith(".warc.gz") for file in files)
    found = [record for file in files for record in read(file)]
    assert all(isinstance(record, Record) for record in found)
    return sorted(record.url.rpartition("/p/")[2] for record in found if isinstance(record, Record))


def test_every_page_in_scope_is_visited_once_and_recorded(site: Site, tmp_path: Path):
    rows = crawl(site, tmp_path)
    assert {row["state"] for row in rows.values()} == {"done"}
    assert len(rows) == 40
    assert recorded(tmp_path) == sorted(map(str, range(40)))
    assert {site.seen[path] for path in rows} == {1}
    assert json.loads((tmp_path / "done.json").read_text())["pages"] == 40


def test_depth_is_that_of_the_shortest_way(site: Site, tmp_path: Path):
    rows = crawl(site, tmp_path, max_depth=2)
    assert {path: row["depth"] for path, row in rows.items()} == {
        f"/p/{n}": 0 if n == 0 else 1 if n < 4 else 2 for n in range(13)
    }


def test_patterns_and_budgets_bound_a_crawl(site: Site, tmp_path: Path):
    assert set(crawl(site, tmp_path / "a", include=["/p/?"])) == {f"/p/{n}" for n in range(10)}
    assert "/p/2" not in crawl(site, tmp_path / "b", exclude=["/p/2*"])
    rows = crawl(site, tmp_path / "c", max_pages=7)
    assert sum(row["state"] == "done" for row in rows.values()) == 7
    rows = crawl(site, tmp_path / "d", max_bytes=1, fetch={"connections": 1})
    assert sum(row["state"] == "done" for row in rows.values()) == 1
    assert crawl(site, tmp_path / "e", hosts=["*.example.org"])["/p/0"]["state"] == "done"


def test_what_owners_say_of_links_is_obeyed(site: Site, tmp_path: Path):
    html = {"Content-Type": "text/html"}
    link = b'<html><a href="/p/39">x</a>'
    site.extra["/meta"] = lambda *_: Reply(body=b"<html><meta name=robots content=nofollow>" + link, headers=html)
    site.extra["/header"] = lambda *_: Reply(body=link, headers={**html, "X-Robots-Tag": "nofollow"})
    site.extra["/link"] = lambda *_: Reply(body=b'<html><a rel="nofollow" href="/p/39">x</a>', headers=html)
    assert set(crawl(site, tmp_path / "a", "/meta", "/header", "/link")) == {"/meta", "/header", "/link"}
    site.robots = "User-agent: *\nDisallow: /p/\n"
    (row,) = crawl(site, tmp_path / "b").values()
    assert (row["state"], row["reason"]) == ("failed", "robots_denied")


def test_what_a_page_says_to_us_alone_stands_in_the_recording(site: Site, tmp_path: Path):
    said = b"""<html><meta name="AcmeBot" content="noai, noindex"><meta name="otherbot" content="noml, nofollow">
        <meta name="tdm-reservation" content="1"><a href="/p/39">further</a></html>"""
    site.extra["/said"] = lambda *_: Reply(body=said, headers={"Content-Type": "text/html", "X-Robots-Tag": "noml"})
    found = crawl(site, tmp_path, "/said", max_depth=1, fetch={"user_agent": "acmebot"})
    assert set(found) == {"/said", "/p/39"}
    one = next(one for one in read(tmp_path / "pages-00000.warc.gz") if isinstance(one, Record) and "/said" in one.url)
    assert one.header("x-robots-tag") == "noai, noml, noindex"
    assert one.header("tdm-reservation") == "1"


def test_every_visit_has_its_outcome(site: Site, tmp_path: Path):
    site.extra |= {
        "/to-seen": redirect("/p/0"),
        "/to-new": redirect("/alone"),
        "/to-new-too": redirect("/alone"),
        "/alone": lambda *_: Reply(body=b"<html>alone", headers={"Content-Type": "text/html"}),
        "/to-other": redirect("http://127.0.0.2/x"),
        "/deep": lambda *_: Reply(body=b"<html>" + b"<div>" * 20_000, headers={"Content-Type": "text/html"}),
    }
    paths = ("/p/0", "/i/1.jpg", "/status/404", "/slow", "/to-seen", "/to-new", "/to-new-too", "/to-file", "/deep")
    rows = crawl(site, tmp_path, *paths, max_depth=0, max_page_bytes=1 << 18)
    assert {
        path: (row["state"], row["reason"]) for path, row in rows.items() if path not in {"/to-new", "/to-new-too"}
    } == {
        "/p/0": ("done", None),
        "/alone": ("skipped", "redirect_target"),
        "/i/1.jpg": ("skipped", "no_page"),
        "/status/404": ("failed", "http_404"),
        "/slow": ("failed", "timeout"),
        "/to-seen": ("skipped", "seen_already"),
        "/to-file": ("failed", "bad_url"),
        "/deep": ("done", None),
    }
    assert {rows[path]["reason"] for path in ("/to-new", "/to-new-too")} == {None, "seen_already"}


def test_sitemaps_are_followed_and_their_pages_are_no_links_away(site: Site, tmp_path: Path):
    names = ("/a.xml.gz", "/none.xml")
    index = "".join(f"<sitemap><loc>{site.url(name)}</loc></sitemap>" for name in names)
    index = f"<sitemapindex>{index}</sitemapindex>"
    urls = "".join(f"<url><loc>{{0}}/p/{n}</loc></url>" for n in (5, 39))
    space = "<urlset xmlns='http://www.sitemaps.org/schemas/sitemap/0.9'>"
    other = "<url><loc>http://other.example.org/</loc></url>"
    site.extra |= {
        "/map.xml": lambda *_: Reply(body=index.encode()),
        "/a.xml.gz": lambda *_: Reply(
            body=gzip.compress(f"{space}{urls}{other}</urlset>".format(site.url("")).encode())
        ),
    }
    rows = crawl(site, tmp_path, sitemaps=[site.url("/map.xml")], max_depth=0)
    assert {path: (row["kind"], row["depth"], row["state"]) for path, row in rows.items()} == {
        "/p/0": ("page", 0, "done"),
        "/p/5": ("page", 0, "done"),
        "/p/39": ("page", 0, "done"),
        "/map.xml": ("sitemap", 0, "done"),
        "/a.xml.gz": ("sitemap", 1, "done"),
        "/none.xml": ("sitemap", 1, "failed"),
    }


@pytest.mark.parametrize("broken_at", [1, 5, 17])
def test_a_crawl_that_breaks_off_goes_on_and_records_no_page_twice(
    site: Site, tmp_path: Path, broken_at: int, monkeypatch: pytest.MonkeyPatch
):
    from mmdata.crawl.frontier import Frontier

    settle, count = Frontier.settle, iter(range(100))

    def breaks(*arguments: Any, **more: Any) -> None:
        if next(count) == broken_at:
            raise KeyboardInterrupt
        settle(*arguments, **more)

    monkeypatch.setattr(Frontier, "settle", breaks)
    # As after kill -9: nothing is renamed.
    monkeypatch.setattr("mmdata.crawl.recording.Recorder.close", lambda self: self._file and self._file.close())
    with pytest.raises(KeyboardInterrupt):
        crawl(site, tmp_path)
    assert not (tmp_path / "done.json").exists()
    monkeypatch.undo()
    rows = crawl(site, tmp_path)
    assert {row["state"] for row in rows.values()} == {"done"}
    assert recorded(tmp_path) == sorted(map(str, range(40)))


def test_a_damaged_record_costs_itself(site: Site, tmp_path: Path):
    crawl(site, tmp_path)
    (file,) = tmp_path.glob("pages-*")
    whole = [record for record in read(file) if isinstance(record, Record)]
    data = bytearray(file.read_bytes())
    middle = (whole[10].offset + whole[11].offset) // 2
    data[middle : middle + 8] = bytes(8)
    file.write_bytes(bytes(data[: (whole[39].offset + len(data)) // 2]))
    found = read(file)
    assert [one.offset for one in found] == [one.offset for one in whole]
    assert [n for n, one in enumerate(found) if isinstance(one, Damage)] == [10, 39]
    file.write_bytes(b"no archive at all" * 1000)
    assert all(isinstance(one, Damage) for one in read(file))


def packed(*records_of: bytes) -> bytes:
    return b"".join(gzip.compress(one) for one in records_of)


def warc(url: str, body: bytes, **headers: str) -> bytes:
    http = b"HTTP/1.1 200 OK\r\n" + "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items()).encode()
    block = http + b"\r\n" + body
    kind = "Content-Type: application/http; msgtype=response"
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n{kind}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "urls"),
    [
        (packed(warc("http://x/1", b"a"), warc("http://x/2", b"b")), ["http://x/1", "http://x/2"]),
        (warc("http://x/1", b"a") + warc("http://x/2", b"b"), ["http://x/1", "http://x/2"]),
        (packed(warc("http://x/1", b"a") + warc("http://x/2", b"b")), ["http://x/1", "http://x/2"]),
        (packed(b"WARC/1.0\r\nX: " + b"a" * (8 << 20), warc("http://x/2", b"b")), [None, "http://x/2"]),
        (b"\x1f\x8b\x08" * 1000 + packed(warc("http://x/2", b"b")), [None, "http://x/2"]),
        (packed(warc("file:///etc/passwd", b"a"), warc("http://x/2", b"b")), ["http://x/2"]),
    ],
)
def test_archives_of_all_kinds(tmp_path: Path, data: bytes, urls: list[str | None]):
    (tmp_path / "x.warc.gz").write_bytes(data)
    assert [getattr(one, "url", None) for one in read(tmp_path / "x.warc.gz")] == urls


def of_kind(kind: str, url: str) -> bytes:
    return f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Length: 2\r\n\r\nhi\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("data", "instead"),
    [
        (packed(of_kind("warcinfo", "http://x/"), of_kind("conversion", "http://x/")), "texts .*, a WET file"),
        (packed(of_kind("warcinfo", "http://x/"), of_kind("metadata", "http://x/")), "facts about pages, a WAT file"),
        (packed(of_kind("request", "http://x/"), of_kind("metadata", "http://x/")), None),
        (packed(of_kind("warcinfo", "http://x/")), None),
        (b"", None),
    ],
    ids=["wet", "wat", "requests", "nothing", "empty"],
)
def test_what_was_made_of_a_recording_is_told_from_one(tmp_path: Path, data: bytes, instead: str | None):
    path = tmp_path / "x.warc.gz"
    path.write_bytes(data)
    place = Place(path.name, str(path), "1")
    found = Warc(files=[str(path)]).look(place, lambda _: ("", (0, 0)))
    if instead is None:
        assert list(found) == []
        return
    with pytest.raises(SampleError, match=f"it holds {instead}; give the WARC file it was made of") as told:
        list(found)
    assert told.value.reason == "no_answers"


def test_a_body_is_decoded_within_bounds(tmp_path: Path):
    bomb = gzip.compress(bytes(64 << 20), 9)
    (tmp_path / "x.warc.gz").write_bytes(
        packed(
            warc("http://x/1", gzip.compress(b"hello"), Content_Encoding="gzip"),
            warc("http://x/2", b"plain", Content_Encoding="gzip"),
            warc("http://x/3", b"5\r\nhello\r\n0\r\n\r\n", Transfer_Encoding="chunked"),
            warc("http://x/4", bomb, Content_Encoding="gzip"),
        )
    )
    with (tmp_path / "x.warc.gz").open("rb") as file:
        bodies = [one.body(1 << 20, cut=True) for one in records(file) if isinstance(one, Record)]
    assert [len(body) if len(body) > 9 else body for body in bodies] == [b"hello", b"plain", b"hello", 1 << 20]


def test_a_coding_that_is_not_read_is_no_page_without_pictures(tmp_path: Path):
    coded = bytes(range(256))
    (tmp_path / "x.warc.gz").write_bytes(
        packed(*(warc(f"http://x/{n}", body, Content_Encoding="br") for n, body in enumerate((coded, b"<p>plain"))))
    )
    found: list[bytes | str] = []
    with (tmp_path / "x.warc.gz").open("rb") as file:
        for one in records(file):
            assert isinstance(one, Record)
            try:
                found.append(one.body(1 << 20))
            except SampleError as error:
                found.append(f"{error.reason}: {error}")
    # Many record a body decoded and its header as it came.
    assert found == ["bad_record: content coding 'br', which is not read", b"<p>plain"]


def test_a_sitemap_is_bounded_and_may_be_broken():
    many = "<urlset>" + "<url><loc>http://x/1</loc></url>" * 60_000
    assert len(read_sitemap(many.encode()).pages) == 50_000
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "lol"}">' for n in range(12))
    for data in (b"", b"no xml", f"<!DOCTYPE x [{laughs}]><urlset><url><loc>&l11;</loc></url></urlset>".encode()):
        with pytest.raises(SampleError):
            read_sitemap(data)


@pytest.mark.parametrize("written", ["<urlset>{}</urlset>", "{}"], ids=["xml", "text"])
def test_what_a_sitemap_may_not_name_is_left_out_and_told(site: Site, tmp_path: Path, written: str):
    entry = "<url><loc>{}</loc></url>" if "<" in written else "{}\n"
    longest = site.url("/p/") + "0" * (2048 - len(site.url("/p/")))
    named = [longest, longest + "1", site.url("/p/39?") + "&amp;" * 3000, site.url("/p/39")]
    body = written.format("".join(entry.format(url) for url in named)).encode()
    assert read_sitemap(body).pages == [longest, site.url("/p/39")]
    site.robots = "Sitemap: /maps/1.xml\n"
    site.extra |= {"/maps/1.xml": lambda *_: Reply(body=body)}
    rows = crawl(site, tmp_path, "/p/38", find=True, max_depth=0)
    assert rows["/maps/1.xml"]["detail"] == "left out: 2 URLs of more than 2048 characters"
    assert {path for path in rows if path.startswith("/p/")} == {"/p/38", "/p/39", longest.removeprefix(site.url(""))}


def test_sitemaps_beyond_the_bounds_are_told(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmdata.crawl.walk._MOST_SITEMAPS", 1)
    monkeypatch.setattr("mmdata.crawl.sitemaps._MOST_URLS", 2)
    site.robots = "Sitemap: /1.xml\nSitemap: /2.xml\n"
    index = (
        b"<sitemapindex>" + b"".join(b"<sitemap><loc>/%d.xml</loc></sitemap>" % n for n in (3, 4)) + b"</sitemapindex>"
    )
    lines = "".join(site.url(f"/p/{n}\n") for n in (1, 2, 3)).encode()
    site.extra |= {"/1.xml": lambda *_: Reply(body=index), "/2.xml": lambda *_: Reply(body=lines)}
    rows = crawl(site, tmp_path, "/p/38", find=True, max_depth=0)
    assert rows["/1.xml"]["detail"] == "left out: 2 sitemaps, for 1 are known"
    assert rows["/2.xml"]["detail"] == "left out: 1 URLs after the first 2"
    assert set(rows) == {"/1.xml", "/2.xml", "/p/1", "/p/2", "/p/38"}


def test_links_beyond_the_bounds_are_told(site: Site, tmp_path: Path):
    links = "".join(f'<a href="/p/{n % 3}?{n}">n</a>' for n in range(2003))
    site.extra |= {"/all": lambda *_: Reply(body=f"<p>{links}".encode(), headers={"Content-Type": "text/html"})}
    rows = crawl(site, tmp_path, "/all", max_depth=1, max_pages=1)
    assert rows["/all"]["detail"] == "left out: 3 links after the first 2000"
    assert len(rows) == 2001
    assert crawl(site, tmp_path / "b", "/all", max_depth=0)["/all"]["detail"] is None


def test_sitemaps_may_be_relative(site: Site, tmp_path: Path):
    # The protocol wants whole URLs, of robots.txt too, and many write paths.
    site.robots = "Sitemap: /maps/1.xml\n"
    site.extra |= {
        "/maps/1.xml": lambda *_: Reply(body=b"<sitemapindex><sitemap><loc>2.xml</loc></sitemap></sitemapindex>"),
        "/maps/2.xml": lambda *_: Reply(body=b"<urlset><url><loc>/p/39</loc></url><url><loc> </loc></url></urlset>"),
    }
    rows = crawl(site, tmp_path, "/p/38", find=True, max_depth=0)
    assert {path: row["state"] for path, row in rows.items()} == dict.fromkeys(
        ["/p/38", "/maps/1.xml", "/maps/2.xml", "/p/39"], "done"
    )


def test_pictures_that_a_sitemap_names_are_no_pages():
    image = "<i:image><i:loc>http://x/1.jpg</i:loc></i:image>"
    url = f"<url><loc>http://x/1</loc>{image}</url>"
    found = read_sitemap(f"<urlset xmlns='http://s' xmlns:i='http://i'>{url}</urlset>".encode())
    assert (found.pages, found.sitemaps) == (["http://x/1"], [])


FEEDS = {
    "text": "\ufeffhttp://x/1\r\n\r\n  HTTPS://x/2  \n# no URL\nabout: http\n",
    "rss": "<rss><channel><link>http://x/</link><item><link>http://x/1</link><guid>no</guid></item>"
    "<item><a:link xmlns:a='http://a' href='http://x/'/><link> HTTPS://x/2 </link></item></channel></rss>",
    "rss 1.0": "<r:RDF xmlns:r='http://r' xmlns='http://s'><channel><link>http://x/</link></channel>"
    "<item><link>http://x/1</link></item><item><link>HTTPS://x/2</link></item></r:RDF>",
    "atom": "<feed xmlns='http://www.w3.org/2005/Atom'><link href='http://x/'/><entry><link href='http://x/1'/>"
    "<link rel='enclosure' href='http://x/f.mp3'/></entry><entry><link rel='alternate' href='HTTPS://x/2'/></entry></feed>",
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", FEEDS)
def test_a_sitemap_may_be_a_text_or_a_feed(name: str, pack: Any):
    found = read_sitemap(pack(FEEDS[name].encode()))
    assert (found.pages, found.sitemaps) == (["http://x/1", "HTTPS://x/2"], [])


@pytest.mark.parametrize(
    "data", [b"", b"a text\nof /paths", b"<html><url/></html>", b"\x1f\x8b\x08 no gzip", bytes(100)]
)
def test_what_is_no_sitemap_says_so(data: bytes):
    with pytest.raises(SampleError, match=r"no sitemap: .") as raised:
        read_sitemap(data)
    assert raised.value.reason == "bad_sitemap"
    assert read_sitemap(b"<urlset/>").pages == []


def test_a_text_that_robots_txt_names_is_a_sitemap_and_a_seed_that_is_one_says_where_it_belongs(
    site: Site, tmp_path: Path
):
    site.robots = "Sitemap: /map.txt\n"
    listed = "".join(f"{site.url(f'/p/{n}')}\n" for n in (37, 39)).encode()
    site.extra["/map.txt"] = lambda *_: Reply(body=listed, headers={"Content-Type": "text/plain"})
    site.extra["/too.xml"] = lambda *_: Reply(body=b'<?xml version="1.0"?><rss><item><link>/p/3</link></item></rss>')
    rows = crawl(site, tmp_path / "a", "/p/38", "/too.xml", find=True, max_depth=0)
    assert {path: row["state"] for path, row in rows.items() if row["state"] == "done"} == dict.fromkeys(
        ["/p/38", "/map.txt", "/p/37", "/p/39"], "done"
    )
    assert (rows["/too.xml"]["reason"], rows["/too.xml"]["detail"]) == (
        "no_page",
        "it is a sitemap; name it in `sitemaps:`, not in `seeds:`",
    )
    # What is a text and no list is as it was.
    site.extra["/map.txt"] = lambda *_: Reply(body=b"a text", headers={"Content-Type": "text/plain"})
    rows = crawl(site, tmp_path / "b", "/map.txt", max_depth=0)
    assert (rows["/map.txt"]["reason"], rows["/map.txt"]["detail"]) == ("no_page", "it is text/plain")


def test_a_sitemap_that_failed_reopens_a_crawl_and_one_that_nobody_named_does_not(site: Site, tmp_path: Path):
    site.extra["/map.xml"] = lambda *_: Reply(503)
    there = site.url("/map.xml")
    crawl(site, tmp_path / "c", "/p/38", sitemaps=[there])
    failed = what_failed(tmp_path / "c")
    assert failed.startswith(f"1 of 1 sitemaps failed, the first: {there}: http_503: ")
    body = f"<urlset><url><loc>{site.url('/p/39')}</loc></url></urlset>".encode()
    site.extra["/map.xml"] = lambda *_: Reply(body=body)
    reopen(tmp_path / "c")
    rows = crawl(site, tmp_path / "c", "/p/38", sitemaps=[there])
    assert {path: row["state"] for path, row in rows.items()} == dict.fromkeys(["/p/38", "/p/39", "/map.xml"], "done")
    assert (site.seen["/p/38"], what_failed(tmp_path / "c")) == (1, "")
    # Where robots.txt names none, one is asked for: that it is not there is no failure; that its server is down is.
    assert crawl(site, tmp_path / "d", find=True, max_depth=0)["/sitemap.xml"]["state"] == "skipped"
    assert what_failed(tmp_path / "d") == ""
    site.extra["/sitemap.xml"] = lambda *_: Reply(503)
    assert crawl(site, tmp_path / "e", find=True, max_depth=0)["/sitemap.xml"]["state"] == "failed"
    reopen(tmp_path / "e")
    assert not (tmp_path / "e" / "done.json").exists()


@pytest.mark.parametrize("encoding", ["gb2312", "shift_jis", "no-such-encoding"])
def test_a_sitemap_whose_encoding_cannot_be_read_costs_itself(site: Site, tmp_path: Path, encoding: str):
    text = f'<?xml version="1.0" encoding="{encoding}"?><urlset><url><loc>{site.url("/p/1")}</loc></url></urlset>'
    site.extra |= {"/map.xml": lambda *_: Reply(body=text.encode())}
    rows = crawl(site, tmp_path, "/p/39", sitemaps=[site.url("/map.xml")], max_depth=0)
    assert {path: row["reason"] for path, row in rows.items()} == {"/p/39": None, "/map.xml": "bad_sitemap"}


def test_many_pages_of_one_sitemap_do_not_keep_others_from_being_read(site: Site, tmp_path: Path):
    pages = "".join(f"<url><loc>{site.url(f'/x/{n}')}</loc></url>" for n in range(10_000))
    maps = {
        "/1.xml": f"<urlset>{pages}</urlset>",
        "/2.xml": f"<sitemapindex><sitemap><loc>{site.url('/3.xml')}</loc></sitemap></sitemapindex>",
        "/3.xml": f"<urlset><url><loc>{site.url('/p/39')}</loc></url></urlset>",
    }
    # The second comes when the first was read.
    late = {"/2.xml": 1.0}
    site.extra |= {
        path: lambda *_, body=body, path=path: Reply(body=body.encode(), delay_s=late.get(path, 0.0))
        for path, body in maps.items()
    }
    first = [site.url("/1.xml"), site.url("/2.xml")]
    rows = crawl(site, tmp_path, sitemaps=first, max_depth=0, max_pages=1, fetch={"idle_s": 9, "timeout_s": 20})
    assert rows["/3.xml"]["state"] == "done"
    assert "/p/39" in rows


def test_what_failed_is_visited_again_where_a_crawl_is_reopened(site: Site, tmp_path: Path):
    down = {"/p/1": 503, "/p/2": 404}
    site.extra |= {path: lambda *_, code=code: Reply(code) for path, code in down.items()}
    rows = crawl(site, tmp_path / "c", "/p/1", "/p/2", "/p/39")
    assert {path: row["state"] for path, row in rows.items()} == {"/p/1": "failed", "/p/2": "failed", "/p/39": "done"}
    assert what_failed(tmp_path / "c").startswith(f"2 of 3 pages failed, the first: {site.url('/p/1')}: ")
    del site.extra["/p/1"]
    seen = site.seen.copy()
    reopen(tmp_path / "c")
    assert not (tmp_path / "c" / "done.json").exists()
    rows = crawl(site, tmp_path / "c", "/p/1", "/p/2", "/p/39")
    assert (rows["/p/1"]["state"], rows["/p/2"]["state"]) == ("done", "failed")
    assert site.seen["/p/39"] == seen["/p/39"]
    assert rows["/p/1"]["reason"] is None


def test_a_crawl_in_which_nothing_failed_is_not_reopened(site: Site, tmp_path: Path):
    crawl(site, tmp_path / "c", max_pages=3)
    reopen(tmp_path / "c")
    assert (tmp_path / "c" / "done.json").exists()
    assert what_failed(tmp_path / "c") == ""
