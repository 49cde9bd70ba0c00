"""A crawl through the command line, and the same pairs out of a recording of the site by others."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter
from website import Reply, Site, jpeg, page, redirect

HTML = {"Content-Type": "text/html"}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(pages=30) as found:
        found.extra |= {
            "/optout": lambda *_: Reply(
                body=b'<html><meta name="robots" content="noai"><img src="/i/o.jpg" alt="not for training">',
                headers=HTML,
            ),
            "/images": lambda *_: Reply(
                body=b'<html><img src="/i/n.jpg" alt="no image">', headers={**HTML, "X-Robots-Tag": "noimageai"}
            ),
            "/bare": lambda *_: Reply(body=b'<html><img src="/i/bare.jpg">', headers=HTML),
            "/gone": lambda *_: Reply(body=b'<html><img src="/status/404" alt="it is gone">', headers=HTML),
        }
        yield found


def spec(cli, site: Site, source: dict[str, Any], **more: Any) -> None:
    cli.spec(
        sources=[source],
        fetch={
            "contact": "mailto:test@example.org",
            "allow_private": [site.host],
            "idle_s": 10,
            "timeout_s": 20,
            "attempts": 1,
        },
        engine={"workers": 2, "part_samples": 16},
        **more,
    )


def web(site: Site, **more: Any) -> dict[str, Any]:
    seeds = [site.url(path) for path in ("/p/0", "/optout", "/images", "/bare", "/gone")]
    return {"web": {"seeds": seeds, "max_depth": 9, "sitemaps": False, "name": "pages", **more}}


def pairs(cli, output: str = "out") -> set[tuple[str, ...]]:
    query = """SELECT s.key, f.fate, f.rule, i.sha256 AS image, c.text, s.attributes['caption_kind'] AS kind,
        s.attributes['licence'] AS licence
        FROM samples s JOIN fates f USING (sample_id)
        LEFT JOIN (FROM members WHERE name = 'image') i USING (sample_id)
        LEFT JOIN (FROM members WHERE name = 'caption') c USING (sample_id)"""
    return {tuple(row.values()) for row in cli.query(query, output)}


def record(site: Site, path: Path) -> None:
    """All pages and half of the media, as an archive has them."""
    paths = [f"/p/{n}" for n in range(30)] + ["/optout", "/images", "/bare", "/gone"]
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for name in [*paths, *(f"/i/{n}.jpg" for n in range(0, 30, 2))]:
            handler = site.extra.get(name) or (page if name.startswith("/p/") else None)
            reply = (
                handler(site, name, {}) if handler else Reply(body=jpeg(name), headers={"Content-Type": "image/jpeg"})
            )
            headers = StatusAndHeaders("200 OK", list(reply.headers.items()), protocol="HTTP/1.1")
            body = io.BytesIO(reply.body)
            one = writer.create_warc_record(site.url(name), "response", payload=body, http_headers=headers)
            writer.write_record(one)
            one.raw_stream.close()


@pytest.mark.slow
def test_a_crawl_gives_pairs_and_every_page_its_outcome(cli, site: Site):
    spec(cli, site, web(site))
    assert "not known before it looks" in cli.run("plan", "pipeline.yaml", "--output", "out").stdout
    assert site.seen.total() == 0
    out = cli.build().stdout
    assert "64 inputs = 60 kept + 4 failed" in out
    found = {row[0].removeprefix(site.url("")).partition(" ")[0]: row[1:] for row in pairs(cli)}
    licence = "https://creativecommons.org/licenses/by/4.0/"
    assert found["/i/7.jpg"][:2] == ("kept", None)
    assert found["/i/7.jpg"][3:] == ("picture number 7", "alt", licence)
    assert found["/i/f7.jpg"][3:] == ("figure number 7", "figcaption", licence)
    assert {path: row[1] for path, row in found.items() if row[0] == "failed"} == {
        "/i/o.jpg": "opted_out",
        "/i/n.jpg": "opted_out",
        "/i/bare.jpg": "missing_member",
        "/status/404": "http_404",
    }
    assert site.seen["/i/o.jpg"] == site.seen["/i/n.jpg"] == 0
    assert site.most_at_once <= 4
    seen = site.seen.total()
    assert "nothing to do" in cli.build().stdout
    # Other texts of the same pages: nobody is asked for anything again.
    spec(cli, site, web(site, texts=["heading"]))
    assert "64 inputs = 60 kept + 4 failed" in cli.build().stdout
    assert site.seen.total() == seen


@pytest.mark.slow
def test_a_recording_by_others_gives_the_same_pairs(cli, site: Site):
    spec(cli, site, web(site))
    cli.build()
    record(site, cli.folder / "site.warc.gz")
    before = site.seen.copy()
    spec(cli, site, {"warc": {"files": "site.warc.gz", "name": "pages"}})
    cli.build(output="archive")
    assert pairs(cli, "archive") == pairs(cli)
    # What the archive holds is not asked for.
    assert site.seen["/i/2.jpg"] == before["/i/2.jpg"]
    assert site.seen["/i/1.jpg"] == before["/i/1.jpg"] + 1


@pytest.mark.slow
def test_a_crawl_that_was_killed_goes_on(cli, site: Site):
    site.hold_s = 0.02
    spec(cli, site, web(site))
    for killed_after in (8, 20, 60):
        process = cli.start("build", "pipeline.yaml", "--output", "out")
        while site.seen.total() < killed_after and process.poll() is None:
            pass
        process.kill()
        process.communicate()
    assert "64 inputs = 60 kept + 4 failed" in cli.build().stdout


def plain() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 200), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_crawl_says_who_asks(cli, site: Site):
    cli.spec(sources=[web(site)])
    error = cli.run("plan", "pipeline.yaml", code=2).stderr
    assert "a crawl says in each request who asks; add a mail address or a page" in error
    assert site.seen.total() == 0


SAID = {
    "/i/a.jpg": ("IMG_1234.JPG", "says_something"),
    "/i/b.jpg": ("buy it now buy it now buy it now", "says_it_once"),
    "/i/c.jpg": ("a card 4111 1111 1111 1111 on a table", "nobodys_numbers"),
    "/i/d.jpg": ("a wall in plain red", "no_plain_area"),
    "/i/e.jpg": ("photo by jane, jane@example.org", "says_something"),
    "/i/f.jpg": ("ask jane@example.org or +1 650 253 0000", None),
}


@pytest.mark.slow
def test_the_pipeline_of_web_sites_builds(cli):
    with Site(pages=4) as site:
        site.extra["/i/"] = lambda _, path, __: Reply(
            body=jpeg(path, 400) if path != "/i/d.jpg" else plain(), headers={"Content-Type": "image/jpeg"}
        )
        images = "".join(f'<img src="{path}" alt="{alt}">' for path, (alt, _) in SAID.items())
        site.extra["/p/3"] = lambda *_: Reply(body=f"<html>{images}".encode(), headers=HTML)
        cli.env.update(SITE=site.url("/p/0"), CONTACT="mailto:test@example.org")
        allowed = f"fetch.allow_private=['{site.host}']"
        out = cli.run("build", ROOT / "pipelines" / "web.yaml", "--output", "out", "--set", allowed).stdout
    assert "12 inputs = 7 kept + 5 dropped" in out
    rows = cli.query(
        "SELECT key, rule, text FROM fates JOIN samples USING (sample_id) JOIN members USING (sample_id) "
        "WHERE name = 'caption'"
    )
    said = {row["key"].removeprefix(site.url("")).partition(" ")[0]: row for row in rows}
    assert {path: said[path]["rule"] for path in SAID} == {path: rule for path, (_, rule) in SAID.items()}
    assert said["/i/f.jpg"]["text"] == "ask <EMAIL> or <PHONE>"
    assert {
        (row["width"], row["height"], row["mime"]) for row in cli.query("SELECT * FROM members WHERE name = 'image'")
    } == {(400, 200, "image/jpeg")}
    asked = [headers["user-agent"] for requests in site.asked.values() for headers in requests]
    assert all(agent.endswith("(+mailto:test@example.org)") for agent in asked)


@pytest.mark.slow
def test_a_site_that_could_not_be_reached_says_why_and_is_asked_again(cli, site: Site):
    spec(cli, site, web(site, seeds=[site.url("/p/29")]))
    refused = ("--set", "fetch.allow_private=[]")
    for _ in range(2):
        said = cli.build(*refused, code=2).stderr
        assert "the sources name no inputs; pages: 1 of 1 pages failed" in said
        assert "private_address" in said
        assert "--retry-failed" in said
    assert site.seen.total() == 0
    assert "kept" in cli.build("--retry-failed").stdout
    states = cli.query("SELECT state, count(*) AS n FROM pages WHERE kind = 'page' GROUP BY state")
    assert states == [{"state": "done", "n": 1}]


def test_a_seed_that_redirects_to_another_host_says_so(cli, site: Site):
    # As example.org does to www.example.org.
    there = site.url("/p/0").replace("127.0.0.1", "localhost")
    site.extra["/old"] = redirect(there)
    spec(cli, site, web(site, seeds=[site.url("/old")]))
    also = ("--set", f"fetch.allow_private=[{site.host}, localhost]")
    said = cli.build(*also, code=2).stderr
    assert f"1 of 1 pages were skipped, the first: {site.url('/old')}: out_of_scope: it redirects to {there}" in said
    assert "`hosts`, `include` and `exclude` say what is visited" in said


def test_a_page_that_shows_too_much_has_a_row_that_says_so(cli):
    bodies = {
        "/many": "".join(f'<img src="/i/{n % 3}.jpg#{n}" alt="a"><h2>b</h2>' for n in range(1490))
        + "".join(f'<img src="/i/{n}.jpg" alt="a"><audio src="/a/{n}"></audio>' for n in range(20)),
        "/tags": '<img src="/i/t.jpg" alt="t">' + "<i></i>" * 15_000 + '<img src="/i/u.jpg" alt="u">',
    }
    with Site() as site:
        site.extra |= {path: lambda *_, b=body: Reply(body=b.encode(), headers=HTML) for path, body in bodies.items()}
        spec(cli, site, web(site, seeds=[site.url(path) for path in bodies], max_depth=0))
        assert "13 inputs = 11 kept + 2 failed" in cli.build().stdout
    rows = cli.query(
        "SELECT key, rule, f.detail FROM fates f JOIN samples s USING (sample_id) WHERE f.fate = 'failed' ORDER BY key"
    )
    beyond = "left out, for it shows too much:"
    assert [(row["key"], row["rule"], row["detail"]) for row in rows] == [
        (f"{site.url('/many')} beyond", "page_cut", f"{site.url('/many')}: {beyond} 10 images"),
        (
            f"{site.url('/tags')} beyond",
            "page_cut",
            f"{site.url('/tags')}: {beyond} what follows more tags than are read",
        ),
    ]


@pytest.mark.slow
def test_what_pages_say_of_pictures_together_or_in_several_ways(cli):
    """A figure of two, a picture with two texts, a page that is not to be indexed: each has its row."""
    hidden = '<meta name="robots" content="noindex"><img src="/i/x.jpg" alt="hidden"><img src="/i/a.jpg" alt="a fox">'
    together = '<img src="/i/l.jpg" alt="left"><img src="/i/r.jpg"><figcaption>left and right</figcaption>'
    bodies = {
        "/a": f"<figure>{together}</figure>",
        "/b": '<img src="/i/a.jpg" alt="a fox"><img src="/i/a.jpg" alt="in snow"><img src="/i/o.jpg" alt="o">',
        "/0": hidden,
        "/no": '<meta name="robots" content="noai"><img src="/i/o.jpg" alt="o">',
    }
    with Site() as site:
        site.extra |= {path: lambda *_, b=body: Reply(body=b.encode(), headers=HTML) for path, body in bodies.items()}
        spec(cli, site, web(site, seeds=[site.url(path) for path in bodies], max_depth=0))
        assert "6 inputs = 4 kept + 2 failed" in cli.build().stdout
        rows = cli.query(
            "SELECT split_part(key, ' ', 1) AS url, f.fate, f.rule, text, attributes['caption_kind'] AS kind, "
            "attributes['captions_on_page'] AS n FROM samples s JOIN fates f USING (sample_id) "
            "LEFT JOIN (FROM members WHERE name = 'caption') m USING (sample_id) ORDER BY ALL"
        )
        asked = {path for path in site.seen if path.startswith("/i/")}
        assert {(row.pop("url").removeprefix(site.url("/i/")), *row.values()) for row in rows} == {
            ("l.jpg", "kept", None, "left", "alt", None),
            ("r.jpg", "kept", None, "left and right", "shared_figcaption", None),
            ("a.jpg", "kept", None, "a fox", "alt", "2"),
            ("a.jpg", "kept", None, "in snow", "alt", "2"),
            ("x.jpg", "failed", "noindex", None, "alt", None),
            ("o.jpg", "failed", "opted_out", None, "alt", None),
        }
    assert asked == {"/i/l.jpg", "/i/r.jpg", "/i/a.jpg"}
