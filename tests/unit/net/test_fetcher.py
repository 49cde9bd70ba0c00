from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from website import Reply, Site, jpeg

from mmdata.net.fetcher import Answer, Fetcher, FetchError, Validators
from mmdata.spec import FetchSpec

KIND = {"idle_s": 0.4, "timeout_s": 1.0, "attempts": 1, "max_wait_s": 2}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as found:
        yield found


def settings(site: Site, **more: Any) -> FetchSpec:
    return FetchSpec.model_validate({**KIND, "allow_private": [site.host], **more})


def fetch(site: Site, *paths: str, max_bytes: int = 1 << 20, **more: Any) -> list[Answer | FetchError]:
    async def one(fetcher: Fetcher, path: str) -> Answer | FetchError:
        try:
            async with fetcher.get(path if "://" in path else site.url(path), max_bytes) as answer:
                return answer
        except FetchError as error:
            return error

    async def run() -> list[Answer | FetchError]:
        async with Fetcher(settings(site, **more)) as fetcher:
            return await asyncio.gather(*(one(fetcher, path) for path in paths))

    return asyncio.run(run())


def only(found: list[Answer | FetchError]) -> Answer:
    assert isinstance(found[0], Answer), found[0]
    return found[0]


def test_an_answer_has_what_the_server_sent(site: Site):
    answer = only(fetch(site, "/i/1.jpg"))
    assert (answer.status, answer.data, answer.declared) == (200, jpeg("/i/1.jpg"), "image/jpeg")
    assert answer.final_url == answer.url == site.url("/i/1.jpg")
    assert answer.validators.etag
    assert answer.validators.last_modified == "Mon, 02 Nov 2026 10:00:00 GMT"
    assert (answer.opt_out, answer.robots, answer.attempts) == ((), (), 1)


@pytest.mark.parametrize(
    ("path", "reason", "passing"),
    [
        ("/status/404", "http_404", False),
        ("/status/410", "http_410", False),
        ("/status/403", "http_403", False),
        ("/status/500", "http_500", True),
        ("/status/429", "http_429", True),
        ("/wait-long", "http_503", True),
        ("/slow", "timeout", True),
        ("/stall", "timeout", True),
        ("/drip", "too_slow", True),
        ("/endless", "too_large", False),
        ("/huge", "too_large", False),
        ("/bomb", "too_large", False),
        ("/truncated", "truncated", True),
        ("/half-packed", "truncated", True),
        ("/bad-chunks", "bad_answer", False),
        ("/garbage", "bad_answer", False),
        ("/loop", "too_many_redirects", False),
        ("/hop/6", "too_many_redirects", False),
        ("/to-private", "private_address", False),
        ("/to-metadata", "private_address", False),
        ("/to-file", "bad_url", False),
        ("/noai", "opted_out", False),
        ("/tdm", "opted_out", False),
        ("http://127.0.0.1:1/x", "private_address", False),
        ("http://localhost/x", "private_address", False),
        ("http://[::1]/x", "private_address", False),
        ("http://2130706433/x", "private_address", False),
        ("http://0x7f.1/x", "private_address", False),
        ("http://no-such-host.invalid/x", "dns_failed", False),
        ("ftp://127.0.0.1/x", "bad_url", False),
        ("file:///etc/passwd", "bad_url", False),
        ("http:///x", "bad_url", False),
        ("http://a b/", "bad_url", False),
        ("http://h/" + "x" * 9000, "bad_url", False),
    ],
)
def test_what_is_not_fetched_says_why(site: Site, path: str, reason: str, passing: bool):
    began = time.monotonic()
    (error,) = fetch(site, path)
    assert isinstance(error, FetchError), error
    assert (error.reason, error.passing) == (reason, passing), str(error)
    assert str(error)
    assert time.monotonic() - began < 3


def test_redirects_within_the_limit_are_followed(site: Site):
    answer = only(fetch(site, "/hop/5"))
    assert (answer.url, answer.final_url) == (site.url("/hop/5"), site.url("/i/hop.jpg"))


def test_what_is_packed_is_unpacked(site: Site):
    assert only(fetch(site, "/packed")).data == b"hello " * 100


def test_an_opt_out_is_recorded_where_it_is_not_obeyed(site: Site):
    assert only(fetch(site, "/noai", opt_out=False)).opt_out == ("noai", "noimageai")
    assert only(fetch(site, "/noai-other")).opt_out == ()


def test_what_has_not_changed_is_not_sent_again(site: Site):
    known = only(fetch(site, "/i/2.jpg")).validators

    async def again() -> Answer:
        async with Fetcher(settings(site)) as fetcher, fetcher.get(site.url("/i/2.jpg"), 999, known) as answer:
            return answer

    assert (asyncio.run(again()).status, asyncio.run(again()).data) == (304, b"")
    assert site.asked["/i/2.jpg"][-1]["if-none-match"] == known.etag
    assert Validators().headers == {}


def test_the_user_agent_says_who_asks(site: Site):
    fetch(site, "/i/3.jpg", contact="mailto:data@example.org")
    assert site.asked["/i/3.jpg"][-1]["user-agent"].startswith("mmdata/0")
    assert site.asked["/i/3.jpg"][-1]["user-agent"].endswith(" (+mailto:data@example.org)")
    assert "cookie" not in site.asked["/i/3.jpg"][-1]


def test_a_busy_server_is_left_alone_and_asked_again(site: Site):
    began = time.monotonic()
    answer = only(fetch(site, "/busy/1/a", attempts=3))
    assert (answer.data, answer.attempts) == (jpeg("/busy/1/a"), 2)
    assert time.monotonic() - began >= 1
    assert site.seen["/wait-long"] <= site.seen["/wait-long"] + 1


def test_a_passing_failure_is_tried_as_often_as_was_said(site: Site):
    before = site.seen["/status/502"]
    assert isinstance(fetch(site, "/status/502", attempts=3)[0], FetchError)
    assert site.seen["/status/502"] - before == 3
    before = site.seen["/status/404"]
    fetch(site, "/status/404", attempts=3)
    assert site.seen["/status/404"] - before == 1


def test_a_host_sees_no_more_at_once_than_its_limit():
    with Site(hold_s=0.02) as site:
        found = fetch(site, *(f"/i/{n}.jpg" for n in range(60)), connections_per_host=3)
        assert all(isinstance(one, Answer) for one in found)
        assert site.most_at_once == 3
        assert site.seen["/robots.txt"] == 1


def test_hosts_do_not_wait_for_each_other():
    with Site(hold_s=0.3) as slow, Site() as quick:
        urls = [slow.url(f"/i/{n}.jpg") for n in range(6)] + [quick.url(f"/i/{n}.jpg") for n in range(6)]

        async def run() -> list[str]:
            done: list[str] = []

            async def one(fetcher: Fetcher, url: str) -> None:
                async with fetcher.get(url, 1 << 20):
                    done.append(url)

            spec = settings(slow, allow_private=["127.0.0.1"], connections=4, connections_per_host=2)
            async with Fetcher(spec) as fetcher:
                await asyncio.gather(*(one(fetcher, url) for url in urls))
            return done

        assert {url.rpartition("/i/")[0] for url in asyncio.run(run())[:6]} == {quick.url("")}


def test_robots_txt_is_obeyed(monkeypatch: pytest.MonkeyPatch):
    rules = "User-agent: *\nDisallow: /i/\nAllow: /i/1\n\nUser-agent: other\nAllow: /\nSitemap: http://x/map.xml\n"
    with Site(robots=rules) as site:
        denied, allowed = fetch(site, "/i/2.jpg", "/i/1.jpg")
        assert isinstance(denied, FetchError)
        assert denied.reason == "robots_denied"
        assert isinstance(allowed, Answer)
        assert site.seen["/i/2.jpg"] == 0
        assert isinstance(fetch(site, "/i/2.jpg", robots=False)[0], Answer)

        async def maps() -> list[str]:
            async with Fetcher(settings(site)) as fetcher:
                return await fetcher.sitemaps(site.url("/p/1"))

        assert asyncio.run(maps()) == ["http://x/map.xml"]


def test_a_server_that_fails_over_robots_txt_allows_nothing():
    with Site() as site:
        site.extra["/robots.txt"] = lambda *_: Reply(500)
        (error,) = fetch(site, "/i/2.jpg")
        assert isinstance(error, FetchError)
        assert (error.reason, error.passing) == ("robots_unreachable", True)
        assert site.seen["/i/2.jpg"] == 0


def test_crawl_delay_spaces_requests():
    with Site(robots="User-agent: *\nCrawl-delay: 0.2\n") as site:
        began = time.monotonic()
        assert all(isinstance(one, Answer) for one in fetch(site, *(f"/i/{n}.jpg" for n in range(5))))
        assert time.monotonic() - began >= 0.8
        site.robots = "User-agent: *\nCrawl-delay: 3600\n"
        (error,) = fetch(site, "/i/1.jpg")
        assert isinstance(error, FetchError)
        assert error.reason == "crawl_delay"


def test_bodies_larger_than_the_budget_in_all_still_come():
    body = bytes(300_000)
    with Site() as site:
        site.extra["/large/"] = lambda *_: Reply(body=body)
        found = fetch(site, *(f"/large/{n}" for n in range(20)), bytes_in_flight=400_000, connections_per_host=20)
        assert [isinstance(one, Answer) and len(one.data) for one in found] == [300_000] * 20
