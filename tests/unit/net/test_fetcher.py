from __future__ import annotations

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from website import Reply, Site, jpeg, packed, redirect

from mmdata.net import fetcher as fetcher_module
from mmdata.net import limits
from mmdata.net.answer import retry_after_s
from mmdata.net.fetcher import Answer, Fetcher, FetchError, Validators
from mmdata.spec import FetchSpec

KIND = {"idle_s": 0.4, "timeout_s": 1.0, "attempts": 1, "max_wait_s": 2}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as found:
        found.extra |= {
            "/to-loop-bytes": redirect("/to-loop-bytes?\xe4\xff"),
            "/noai-elsewhere": lambda *_: Reply(
                302, headers={"Location": "/i/elsewhere.jpg", "X-Robots-Tag": "noai, noindex"}
            ),
            "/odd-304": lambda *_: Reply(304, length=None),
            "/odd-coding": lambda *_: Reply(body=b"x", headers={"Content-Encoding": "br"}),
        }
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
        ("/to-loop-bytes", "too_many_redirects", False),
        ("/odd-304", "bad_answer", False),
        ("/odd-coding", "bad_answer", False),
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


def test_a_signed_query_reaches_the_server_as_it_was_signed(site: Site):
    signed = "/i/7.jpg?Credential=AK%2F2026%2Fs3&Sig=a%3D%7e+b"
    assert only(fetch(site, signed)).status == 200
    assert site.seen[signed] == 1


def test_what_is_packed_is_unpacked(site: Site):
    assert only(fetch(site, "/packed")).data == b"hello " * 100


def test_an_opt_out_is_recorded_where_it_is_not_obeyed(site: Site):
    assert only(fetch(site, "/noai", opt_out=False)).opt_out == ("noai", "noimageai")
    assert only(fetch(site, "/noai-other")).opt_out == ()


def test_an_opt_out_of_a_redirect_counts_and_what_it_leads_to_is_not_asked_for(site: Site):
    (refused,) = fetch(site, "/noai-elsewhere")
    assert isinstance(refused, FetchError)
    assert (refused.reason, refused.status) == ("opted_out", 302)
    assert str(refused) == f"the headers of {site.url('/noai-elsewhere')} say noai"
    assert site.seen["/i/elsewhere.jpg"] == 0
    # What a redirect says of indexing is about its own URL.
    noted = only(fetch(site, "/noai-elsewhere", opt_out=False))
    assert (noted.opt_out, noted.robots, noted.data) == (("noai",), (), jpeg("/i/elsewhere.jpg"))


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


def test_bodies_in_flight_may_wait_for_room_longer_than_a_server_may_take():
    with Site() as site:
        site.extra["/large/"] = lambda *_: Reply(body=bytes(300_000))

        async def run() -> list[int]:
            async def one(fetcher: Fetcher, n: int) -> int:
                async with fetcher.get(site.url(f"/large/{n}"), 1 << 20) as answer:
                    await asyncio.sleep(0.3)
                    return len(answer.data)

            async with Fetcher(settings(site, bytes_in_flight=100_000, timeout_s=0.5)) as fetcher:
                found = await asyncio.gather(*(one(fetcher, n) for n in range(4)))
                assert fetcher._budget.used == 0
                return found

        assert asyncio.run(run()) == [300_000] * 4


def test_who_is_cancelled_leaves_nothing_behind():
    async def run(site: Site) -> None:
        spec = settings(site, connections=2, connections_per_host=2, bytes_in_flight=1000, timeout_s=30, idle_s=30)
        async with Fetcher(spec) as fetcher:

            async def one(path: str) -> bytes:
                async with fetcher.get(site.url(path), 1 << 20) as answer:
                    await asyncio.sleep(0.02 if path.startswith("/i/") else 30)
                    return answer.data

            # While waiting for an answer, for a body, for a turn, and with the answer in hand.
            tasks = [asyncio.create_task(one(path)) for path in ("/slow", "/stall", "/i/0.jpg", "/drip")]
            tasks.append(asyncio.create_task(one("/packed")))
            await asyncio.sleep(0.3)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            async with asyncio.timeout(5):
                found = await asyncio.gather(*(one(f"/i/{n}.jpg") for n in range(10)))
            assert found == [jpeg(f"/i/{n}.jpg") for n in range(10)]
            assert fetcher._budget.used == 0
            assert not fetcher._hosts._hosts

    with Site() as site:
        asyncio.run(run(site))


def test_a_hiccup_over_robots_txt_costs_nothing():
    with Site() as site:
        site.extra["/robots.txt"] = lambda site, *_: Reply(503 if site.seen["/robots.txt"] < 3 else 404)
        found = fetch(site, *(f"/i/{n}.jpg" for n in range(5)), attempts=3)
        assert all(isinstance(one, Answer) for one in found)
        assert site.seen["/robots.txt"] == 3


def test_failures_over_robots_txt_are_not_tried_by_every_url_again(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(fetcher_module.random, "uniform", lambda low, high: waits.append(high) or low)
    with Site() as site:
        site.extra["/robots.txt"] = lambda *_: Reply(500)
        found = fetch(site, *(f"/i/{n}.jpg" for n in range(20)), attempts=2)
        assert {getattr(one, "reason", None) for one in found} == {"robots_unreachable"}
        assert site.seen == {"/robots.txt": 2}
        assert len(waits) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_host_that_wants_a_long_rest_is_left_alone(status: int):
    with Site() as site, Site() as other:
        site.extra["/x/"] = lambda *_: Reply(status, headers={"Retry-After": "3600"})
        urls = [f"/x/{n}" for n in range(40)] + [other.url(f"/i/{n}.jpg") for n in range(5)]
        found = fetch(site, *urls, attempts=3, connections_per_host=2, allow_private=["127.0.0.1"])
        reasons = [(one.reason, one.passing) for one in found if isinstance(one, FetchError)]
        assert reasons == [(f"http_{status}", True)] * 40
        assert sum(site.seen[f"/x/{n}"] for n in range(40)) <= 2


def test_all_of_a_host_waits_where_it_wants_a_short_rest():
    with Site() as site:
        times: list[float] = []

        def busy(site: Site, path: str, _: dict[str, str]) -> Reply:
            times.append(time.monotonic())
            return Reply(503, headers={"Retry-After": "1"}) if len(times) == 1 else Reply(body=b"x")

        site.extra["/x/"] = busy
        found = fetch(site, *(f"/x/{n}" for n in range(6)), attempts=2, connections_per_host=1)
        assert [isinstance(one, Answer) for one in found] == [True] * 6
        assert times[1] - times[0] >= 0.95


def test_redirects_and_robots_count_for_the_host_they_lead_to():
    with Site(hold_s=0.02) as busy, Site() as door:
        door.extra["/go/"] = lambda _, path, __: Reply(302, headers={"Location": busy.url(f"/i/{path[4:]}.jpg")})
        found = fetch(door, *(door.url(f"/go/{n}") for n in range(30)), connections_per_host=2,
                      allow_private=["127.0.0.1"])  # fmt: skip
        assert all(isinstance(one, Answer) for one in found)
        assert busy.most_at_once == 2
        assert busy.seen["/robots.txt"] == door.seen["/robots.txt"] == 1


def test_a_redirect_to_a_private_address_is_not_followed():
    with Site() as site, Site() as other:
        site.extra["/go"] = redirect(other.url("/i/1.jpg"))
        (error,) = fetch(site, "/go", robots=False)
        assert isinstance(error, FetchError)
        assert (error.reason, error.passing) == ("private_address", False)
        assert not other.seen
        assert only(fetch(site, "/go", robots=False, allow_private=["127.0.0.1"])).final_url == other.url("/i/1.jpg")


def test_a_redirect_to_what_robots_txt_forbids_is_not_followed():
    with Site(robots="User-agent: *\nDisallow: /i/\n") as site:
        (error,) = fetch(site, "/hop/2")
        assert isinstance(error, FetchError)
        assert error.reason == "robots_denied"
        assert site.seen["/i/hop.jpg"] == 0


def test_a_gzip_tail_without_end_is_not_read(site: Site):
    async def stream() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    head = gzip.compress(b"hello")
    site.extra["/tail"] = lambda *_: Reply(body=head, headers={"Content-Encoding": "gzip"}, stream=stream, length=None)
    site.extra["/no-body"] = packed(b"")
    assert [only([one]).data for one in fetch(site, "/tail", "/no-body", "/i/1.jpg")] == [
        b"hello",
        b"",
        jpeg("/i/1.jpg"),
    ]


def test_headers_that_are_no_text_reach_nobody(site: Site):
    headers = {
        "ETag": '"\xff"',
        "Last-Modified": "\xfe",
        "Content-Type": "text/\xff; charset=\xff",
        "X-Robots-Tag": "\xff",
    }
    site.extra["/bytes"] = lambda *_: Reply(body=b"x", headers=headers)
    answer = only(fetch(site, "/bytes"))
    assert (answer.validators, answer.declared, answer.charset) == (Validators(), None, None)
    assert "\x1b" not in str(FetchError("x", "\x1b[2J\udcff"))
    str(FetchError("x", "\x1b[2J\udcff")).encode()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("x", None), ("-1", None), ("0", 0), (" 7 ", 7), ("9" * 400, float("inf")),
     ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("Fri, 31 Dec 9999 23:59:59 -9999", None),
     ("Mon, 01 Jan " + "9" * 30 + " 00:00:00 GMT", None)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None):
    assert retry_after_s(value) == seconds


@given(st.text())
def test_any_retry_after_is_seconds_or_nothing(value: str):
    assert (retry_after_s(value) or 0) >= 0


def test_a_date_to_come_is_waited_for():
    then = datetime.now(UTC) + timedelta(seconds=100)
    assert retry_after_s(format_datetime(then, usegmt=True)) == pytest.approx(100, abs=3)
    assert retry_after_s(then.strftime("%a, %d %b %Y %H:%M:%S")) == pytest.approx(100, abs=3)


@pytest.mark.parametrize(("errno", "passing"), [(socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)])
def test_a_name_that_is_not_there_stays_so(monkeypatch: pytest.MonkeyPatch, errno: int, passing: bool):
    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(errno, "no")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with Site() as site:
        (error,) = fetch(site, "http://no-such-host.invalid/x", attempts=2)
    assert isinstance(error, FetchError)
    assert (error.reason, error.passing) == ("dns_failed", passing)


def test_a_name_is_resolved_once_and_refused_where_it_is_private(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def local(host: str, port: int, *_: Any, **__: Any) -> Any:
        asked.append(host)
        # A second answer, had it been asked for, would lead elsewhere.
        address = "127.0.0.1" if asked.count(host) == 1 else "127.0.0.9"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", local)
    with Site() as site:
        port = site.host.partition(":")[2]
        (error,) = fetch(site, f"http://rebound.example:{port}/i/1.jpg")
        assert isinstance(error, FetchError)
        assert error.reason == "private_address"
        assert not site.seen
        urls = [f"http://mine.example:{port}/i/{n}.jpg" for n in range(5)]
        found = fetch(site, *urls, allow_private=[f"Mine.example:{port}"])
        assert all(isinstance(one, Answer) for one in found)
    assert asked.count("mine.example") == 1


def test_a_server_without_tls_is_no_https_server():
    async def run() -> FetchError:
        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 X\r\n\r\n")
            await reader.read(100)
            writer.close()

        async with await asyncio.start_server(client, "127.0.0.1", 0) as server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            async with Fetcher(FetchSpec(attempts=1, allow_private=["127.0.0.1"])) as fetcher:
                with pytest.raises(FetchError) as caught:
                    async with fetcher.get(url, 99):
                        pass
                return caught.value

    error = asyncio.run(run())
    assert (error.reason, error.passing) == ("tls_failed", False)


@asynccontextmanager
async def counted(address: str) -> AsyncIterator[tuple[int, list[int]]]:
    """A server's port; connections that are open, that were open at most, and that were made."""
    count = [0, 0, 0]

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count[0] += 1
        count[2] += 1
        count[1] = max(count[:2])
        last = False
        try:
            while not last:
                last = b"Connection: close" in await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        count[0] -= 1
        writer.close()

    async with await asyncio.start_server(client, address, 0, backlog=500) as server:
        yield server.sockets[0].getsockname()[1], count


def test_connections_are_used_again_and_do_not_pile_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "_KEPT_WANTED", 100)

    async def run() -> None:
        async with counted("0.0.0.0") as (port, count):
            hosts = [f"127.0.{a}.{b}" for a in (1, 2) for b in range(1, 151)]
            async with Fetcher(FetchSpec(attempts=1, connections=8, allow_private=hosts)) as fetcher:

                async def one(host: str) -> None:
                    with pytest.raises(FetchError, match="404"):
                        async with fetcher.get(f"http://{host}:{port}/", 99):
                            pass

                for _ in range(5):
                    await one(hosts[0])
                assert count[2] == 1
                await asyncio.gather(*map(one, hosts))
                # Those that are kept, those under way, and those that are about to close.
                assert 100 <= count[1] <= 100 + 2 * 8

    asyncio.run(run())


def test_a_contact_fits_into_a_header():
    for contact in ("me@x.org\r\nX-Evil: 1", "Jörg"):
        with pytest.raises(ValidationError, match="a contact stands in a header"):
            FetchSpec(contact=contact)


def test_attempts_wait_longer_and_longer(monkeypatch: pytest.MonkeyPatch):
    bounds: list[float] = []
    monkeypatch.setattr(fetcher_module.random, "uniform", lambda low, high: bounds.append(high) or low)
    with Site() as site:
        fetch(site, "/status/502", attempts=4)
    assert bounds == [1, 2, 4]
