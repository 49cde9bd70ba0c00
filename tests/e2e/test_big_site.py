"""Some thousand pages of several hosts, with everything that servers do wrong among them, and an archive of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from warcio.capture_http import RecordingHTTPConnection, capture_http
from website import Handler, Reply, Site, jpeg, redirect

HOSTS, PAGES = 4, 520
PER_HOST = 4
HTML = {"Content-Type": "text/html; charset=utf-8"}
# What becomes of a page, and of an image, that a server sends like that.
CASES = {
    "/status/404": "http_404",
    "/status/500": "http_500",
    "/slow": "timeout",
    "/stall": "timeout",
    "/drip": "too_slow",
    "/endless": "too_large",
    "/huge": "too_large",
    "/bomb": "too_large",
    "/truncated": "truncated",
    "/half-packed": "truncated",
    "/garbage": "bad_answer",
    "/loop": "too_many_redirects",
    "/to-private": "private_address",
    "/to-metadata": "private_address",
    "/to-file": "bad_url",
    "/secret/x": "robots_denied",
    "http://10.1.2.3/x": "private_address",
}
# Media that come as they should, some after an effort; and those that come and are none, or are withheld.
GOOD = ["/late.jpg", "/hop/3", "/busy/1/x.jpg", "/noai-other"]
OTHER = {
    "/noai": ("fetch", "opted_out"),
    "/tdm": ("fetch", "opted_out"),
    "/reserved/x.jpg": ("fetch", "opted_out"),
    "/html.jpg": ("ingest", "not_an_image"),
    "/empty": ("ingest", "empty_file"),
}
# Pages of which the pictures are not to be taken, and why.
WITHHELD = {"/page/meta": "noai", "/page/header": "noimageai", "/page/tdm": "tdm-reservation",
            "/reserved/page": "tdmrep.json"}  # fmt: skip


def page(title: str, images: dict[str, str], links: list[str], head: str = "", **headers: str) -> Handler:
    shown = "".join(f'<img src="{src}" alt="{alt}">' for src, alt in images.items())
    body = f"<!DOCTYPE html><html><head><title>{title}</title>{head}</head><body>{shown}"
    body += "".join(f'<a href="{link}">x</a>' for link in links)
    return lambda *_: Reply(body=f"{body}</body></html>".encode(), headers={**HTML, **headers})


def numbered(site: Site, path: str, _: dict[str, str]) -> Reply:
    """A page with one picture; only hosts without a sitemap link their pages."""
    number = int(path.rpartition("/")[2])
    links = [] if site.address.endswith((".1", ".2")) else [f"/p/{n}" for n in (2 * number + 1, 2 * number + 2)]
    host = site.address.rpartition(".")[2]
    return page(
        f"Page {number}", {f"/i/{number}.jpg": f"picture {number} of {host}"}, [x for x in links if int(x[3:]) < PAGES]
    )(site, path, {})


def sitemap(kind: str, urls: list[str], *, packed: bool = False) -> Handler:
    body = "".join(f"<{kind}><loc>{url}</loc></{kind}>" for url in urls)
    whole = f'<?xml version="1.0"?><x xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{body}</x>'.encode()
    return lambda *_: Reply(body=gzip.compress(whole) if packed else whole)


def first_busy(site: Site, path: str, _: dict[str, str]) -> Reply:
    if site.seen[path] == 1:
        return Reply(503, headers={"Retry-After": "1"})
    return numbered(site, "/p/9001", {})


@pytest.fixture
def sites() -> Iterator[list[Site]]:
    """Four hosts: two tell their pages by sitemaps, two link them; the first has the cases. A fifth wants rest."""
    with ExitStack() as stack:
        found = [stack.enter_context(Site(address=f"127.0.0.{n + 1}")) for n in range(HOSTS + 1)]
        for site in found:
            site.extra["/p/"] = numbered
        first, second, *_, resting = found
        urls = [first.url(f"/p/{n}") for n in range(PAGES)]
        first.robots = "User-agent: *\nDisallow: /secret/\n"
        rules = [{"location": "/reserved/", "tdm-reservation": 1}]
        first.extra |= {
            "/.well-known/tdmrep.json": lambda *_: Reply(body=json.dumps(rules).encode()),
            "/reserved/page": page("No", {"/i/no-3.jpg": "no"}, []),
            "/sitemap.xml": sitemap("sitemap", [first.url("/map-0.xml"), first.url("/map-1.xml.gz"), first.url("/no")]),
            "/map-0.xml": sitemap("url", urls[: PAGES // 2]),
            "/map-1.xml.gz": sitemap("url", urls[PAGES // 2 :], packed=True),
            "/cases": page("Cases", {}, [*CASES, "/media", "/moved", "/late", "/busy-page", "/html.jpg", "/i/1.jpg",
                                         *WITHHELD, resting.url("/wait-long")]),
            "/media": page("Media", {path: f"case {n}" for n, path in enumerate([*CASES, *GOOD, *OTHER])}, []),
            "/moved": redirect("/p/9000"),
            "/late": lambda *_: Reply(body=numbered(first, "/p/9002", {}).body, headers=HTML, delay_s=0.5),
            "/late.jpg": lambda *_: Reply(body=jpeg("late"), delay_s=0.5),
            "/busy-page": first_busy,
            "/page/meta": page("No", {"/i/no-0.jpg": "no"}, [], '<meta name="robots" content="noai">'),
            "/page/header": page("No", {"/i/no-1.jpg": "no"}, [], **{"X-Robots-Tag": "noimageai"}),
            "/page/tdm": page("No", {"/i/no-2.jpg": "no"}, [], '<meta name="tdm-reservation" content="1">'),
        }  # fmt: skip
        second.robots = f"Sitemap: {second.url('/elsewhere/all.xml')}\n"
        second.extra["/elsewhere/all.xml"] = sitemap("url", [second.url(f"/p/{n}") for n in range(PAGES)])
        yield found


def spec(cli, sites: list[Site], source: dict[str, Any]) -> None:
    limits = {"idle_s": 2, "timeout_s": 4, "attempts": 2, "max_wait_s": 5, "connections_per_host": PER_HOST}
    cli.spec(
        sources=[source],
        ingest=[{"image": {"max_bytes": "1MB"}}],
        fetch={"contact": "mailto:test@example.org", "allow_private": [site.host for site in sites], **limits},
        engine={"workers": 2, "part_samples": 400},
    )


def pages_of(cli) -> dict[str, tuple[str, str | None]]:
    (path,) = (cli.folder / "out" / "crawl").glob("*/pages.parquet")
    return {row["url"]: (row["state"], row["reason"]) for row in pq.read_table(path).to_pylist()}


def pairs(cli, output: str) -> dict[str, tuple[Any, ...]]:
    query = """SELECT s.key, f.fate, f.step, f.rule, i.sha256, c.text, s.attributes['page'] AS page
        FROM samples s JOIN fates f USING (sample_id)
        LEFT JOIN (FROM members WHERE name = 'image') i USING (sample_id)
        LEFT JOIN (FROM members WHERE name = 'caption') c USING (sample_id)"""
    return {row.pop("key"): tuple(row.values()) for row in cli.query(query, output)}


def record(urls: list[str], path: Path) -> None:
    """Ask the sites for these, with warcio looking on."""
    with capture_http(str(path)):
        for url in urls:
            _, _, host, name = url.split("/", 3)
            with closing(RecordingHTTPConnection(host)) as connection:
                connection.request("GET", f"/{name}")
                connection.getresponse().read()


@pytest.mark.slow
def test_thousands_of_pages_have_their_outcome_and_an_archive_gives_the_same(cli, sites: list[Site]):
    first, resting = sites[0], sites[-1]
    seeds = [site.url("/p/0") for site in sites[:HOSTS]]
    web = {"seeds": [*seeds, first.url("/cases")], "hosts": ["127.0.0.*", "10.1.2.3"], "max_depth": 20,
           "max_page_bytes": "1MB", "name": "site"}  # fmt: skip
    spec(cli, sites, {"web": web})
    out = cli.build().stdout
    # Answers come at once, so a host that is never slow may never have met all that it may.
    assert max(site.most_at_once for site in sites[:HOSTS]) == PER_HOST
    assert resting.seen["/wait-long"] == 1

    # Every page has its outcome.
    numbers = {site.url(f"/p/{n}"): ("done", None) for site in sites[:HOSTS] for n in range(PAGES)}
    expected = {path if "://" in path else first.url(path): ("failed", reason) for path, reason in CASES.items()}
    done = [
        "/cases",
        "/media",
        "/moved",
        "/late",
        "/busy-page",
        *WITHHELD,
        "/sitemap.xml",
        "/map-0.xml",
        "/map-1.xml.gz",
    ]
    expected |= dict.fromkeys(map(first.url, done), ("done", None))
    expected |= {
        first.url("/p/9000"): ("skipped", "redirect_target"),
        first.url("/html.jpg"): ("done", None),
        first.url("/i/1.jpg"): ("skipped", "no_page"),
        first.url("/no"): ("failed", "http_404"),
        sites[1].url("/elsewhere/all.xml"): ("done", None),
        sites[2].url("/sitemap.xml"): ("skipped", "http_404"),
        sites[3].url("/sitemap.xml"): ("skipped", "http_404"),
        resting.url("/wait-long"): ("failed", "http_503"),
    }
    assert pages_of(cli) == numbers | expected
    assert len(numbers) >= 2000
    assert not first.seen["/secret/x"]
    assert first.seen["/.well-known/tdmrep.json"] <= 2

    # So has every picture.
    live = pairs(cli, "out")
    fates = {key.partition(" ")[0]: row[:3] for key, row in live.items()}
    of_numbers = {site.url(f"/i/{n}.jpg") for site in sites[:HOSTS] for n in range(PAGES)}
    kept = of_numbers | {first.url(path) for path in [*GOOD, *(f"/i/{n}.jpg" for n in (9000, 9001, 9002))]}
    failed = {path if "://" in path else first.url(path): ("failed", "fetch", why) for path, why in CASES.items()}
    failed |= {first.url(path): ("failed", *why) for path, why in OTHER.items()}
    failed |= {first.url(f"/i/no-{n}.jpg"): ("failed", "ingest", "opted_out") for n in range(4)}
    assert fates == dict.fromkeys(kept, ("kept", None, None)) | failed
    assert f"{len(kept) + len(failed)} inputs = {len(kept)} kept + {len(failed)} failed" in out
    assert {first.seen[f"/i/no-{n}.jpg"] for n in range(4)} == {0}
    assert {site.seen[f"/i/{n}.jpg"] for site in sites[:HOSTS] for n in range(2, PAGES)} == {1}

    # An archive that others made of the pages and of half of the pictures.
    recorded = [*numbers, *map(first.url, ["/media", "/p/9000", "/late", "/busy-page", *list(WITHHELD)[:-1]])]
    halves = sorted(of_numbers)[::2]
    record([*recorded, *halves], cli.folder / "site.warc.gz")
    before = {site.host: site.seen.copy() for site in sites}
    spec(cli, sites, {"warc": {"files": "site.warc.gz", "max_page_bytes": "1MB", "name": "site"}})
    cli.build(output="archive")
    # What a host reserves stands in no page: an archive of others does not tell.
    del live[next(key for key in live if "/i/no-3.jpg" in key)]
    assert pairs(cli, "archive") == live
    for url in halves:
        host, path = url.removeprefix("http://").split("/", 1)
        site = next(one for one in sites if one.host == host)
        assert site.seen[f"/{path}"] == before[host][f"/{path}"]
