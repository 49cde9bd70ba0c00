from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from mmdata.net import origins as origins_module
from mmdata.net import robots
from mmdata.net.address import checked_url
from mmdata.net.errors import FetchError, RobotsError
from mmdata.net.robots import Robots


class Server:
    """Gives a robots.txt, or an error, after a while."""

    def __init__(self, what: str | bytes | FetchError = "", delay_s: float = 0.0) -> None:
        self.what = what
        self.delay_s = delay_s
        self.asked: Counter[str] = Counter()

    async def __call__(self, url: str) -> bytes:
        self.asked[url] += 1
        await asyncio.sleep(0.05 if "slow" in url else self.delay_s)
        if isinstance(self.what, FetchError):
            raise self.what
        return self.what if isinstance(self.what, bytes) else self.what.encode()


def run(work: Callable[[Robots], Coroutine[Any, Any, Any]], server: Server, agent: str = "mmdata") -> Any:
    async def main() -> Any:
        rules = Robots(agent, server)
        try:
            return await work(rules)
        finally:
            await rules.close()

    return asyncio.run(main())


def allows(text: str | bytes, path: str = "/x", agent: str = "mmdata") -> bool:
    found = run(lambda rules: outcome(rules, f"http://h{path}"), Server(text), agent)
    assert found in {None, ("robots_denied", False)}
    return found is None


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", True),
        ("<!doctype html><p>not found", True),
        ("User-agent: *\nDisallow: /", False),
        ("User-agent: *\nDisallow:", True),
        ("User-agent: *\nDisallow: /y", True),
        ("User-agent: *\nDisallow: /\nAllow: /x", True),
        ("user-agent: MMData\ndisallow: /", False),
        ("User-agent: mmdata/1.0 # us\nDisallow: /", False),
        ("User-agent: mmdata-images\nDisallow: /", True),
        ("User-agent: mm\nDisallow: /", True),
        ("User-agent: other\nDisallow: /", True),
        ("User-agent: other\nUser-agent: mmdata\nDisallow: /", False),
        ("User-agent: mmdata\nAllow: /\n\nUser-agent: *\nDisallow: /", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: other\nAllow: /", False),
        ("User agent mmdata\nDisallow /", False),
        ("Useragent: *\nDisallow: /", False),
        ("\ufeffUser-agent: *\nDisallow: /", False),
        (b"User-agent: *\r\nDisallow: /\r\n# \xff\xfe", False),
        ("User-agent: *\rDisallow: /", False),
    ],
)
def test_rules_hold_for_us_and_for_all(text: str | bytes, allowed: bool):
    assert allows(text) is allowed


def test_a_name_of_another_kind_is_matched_whole():
    assert allows("User-agent: bot\nDisallow: /", agent="my-bot")
    assert not allows("User-agent: My-Bot\nDisallow: /", agent="my-bot")


def test_sitemaps_and_delays_are_read():
    text = "Sitemap: http://h/a.xml\nUser-agent: *\nCrawl-delay: 2.5\nSitemap: http://h/b.xml\n"

    async def work(rules: Robots) -> tuple[list[str], float]:
        url = checked_url("http://h/x")
        return await rules.sitemaps(url), await rules.check(url)

    assert run(work, Server(text)) == (["http://h/a.xml", "http://h/b.xml"], 2.5)


def test_one_request_an_origin_however_many_wait():
    server = Server(delay_s=0.02)

    async def work(rules: Robots) -> None:
        urls = [f"{origin}/{n}" for n in range(50) for origin in ("http://a", "https://a", "http://b:81")]
        await asyncio.gather(*(rules.check(checked_url(url)) for url in urls))
        await rules.check(checked_url("http://a/later"))

    run(work, server)
    assert server.asked == {f"{origin}/robots.txt": 1 for origin in ("http://a", "https://a", "http://b:81")}


def test_who_asked_first_may_be_cancelled():
    server = Server("User-agent: *\nCrawl-delay: 3", delay_s=0.05)

    async def work(rules: Robots) -> list[Any]:
        tasks = [asyncio.create_task(rules.check(checked_url(f"http://a/{n}"))) for n in range(3)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = run(work, server)
    assert isinstance(first, asyncio.CancelledError)
    assert others == [3.0, 3.0]
    assert server.asked.total() == 1


def test_nothing_is_left_under_way_when_closed():
    async def work(rules: Robots) -> None:
        task = asyncio.create_task(rules.check(checked_url("http://a/")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await rules.close()
        assert len(asyncio.all_tasks()) == 1

    run(work, Server(delay_s=60))


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, None), (403, None), (404, None), (410, None), (429, "robots_unreachable"), (500, "robots_unreachable"),
     (503, "robots_unreachable")],
)  # fmt: skip
def test_a_robots_txt_that_is_refused_allows_and_one_that_fails_forbids(status: int, reason: str | None):
    server = Server(FetchError(f"http_{status}", "no", status=status))
    found = run(outcome, server)
    assert found == (reason, True) if reason else found is None


async def outcome(rules: Robots, url: str = "http://h/x") -> tuple[str, bool] | None:
    try:
        await rules.check(checked_url(url))
    except RobotsError as error:
        return error.reason, error.passing
    return None


def test_a_host_that_is_not_to_be_had_says_so_and_is_not_asked_by_every_url():
    server = Server(FetchError("timeout", "nothing", passing=True))

    async def work(rules: Robots) -> set[Any]:
        return {await outcome(rules, f"http://h/{n}") for n in range(5)}

    assert run(work, server) == {("timeout", True)}
    assert server.asked.total() == 1


def test_a_failure_is_soon_asked_about_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(origins_module, "_FAILED_FOR_S", -1.0)
    server = Server(FetchError("http_500", "no", status=500))

    async def work(rules: Robots) -> list[Any]:
        first = await outcome(rules)
        server.what = ""
        return [first, await outcome(rules)]

    assert run(work, server) == [("robots_unreachable", True), None]


def test_rules_are_asked_for_again_when_they_are_old(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(origins_module, "_GOOD_FOR_S", -1.0)
    server = Server()

    async def work(rules: Robots) -> None:
        for _ in range(3):
            await outcome(rules)
        assert rules._characters == 0

    run(work, server)
    assert server.asked.total() == 3


def test_what_is_remembered_is_bounded_in_origins_and_in_characters(monkeypatch: pytest.MonkeyPatch):
    text = "User-agent: *\nDisallow: /y\n"
    for name, value in (("_ORIGINS", 10), ("_CHARACTERS", 10 * len(text))):
        monkeypatch.setattr(origins_module, name, value)
        server = Server(text)

        async def work(rules: Robots, server: Server = server) -> tuple[int, int]:
            for n in range(30):
                await outcome(rules, f"http://h{n}/")
                await outcome(rules, "http://used/")
            assert server.asked["http://used/robots.txt"] == 1
            return len(rules._known), rules._characters

        origins, characters = run(work, server)
        assert 9 <= origins <= 10
        assert characters <= 10 * len(text)
        monkeypatch.undo()


def test_an_origin_that_is_forgotten_while_it_is_asked_still_answers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(origins_module, "_ORIGINS", 3)
    server = Server("User-agent: *\nDisallow: /")

    async def work(rules: Robots) -> Any:
        slow = asyncio.create_task(outcome(rules, "http://slow/"))
        await asyncio.sleep(0)
        for n in range(10):
            await outcome(rules, f"http://h{n}/")
        found = await slow
        assert rules._characters == sum(known.characters for known in rules._known.values())
        return found

    assert run(work, server) == ("robots_denied", False)


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"User-agent: a{n}\n" for n in range(10_000)) + "Disallow: /y\n" * 10_000,
        "".join(f"User-agent: {'*' * n}mm*data\n" for n in range(600)) + "Disallow: /y\n" * 10_000,
        "User-agent: *\n" + "Disallow: /*a*a*a*a*a*a*a*a*a*a*a*b$\n" * 8_000,
        "User-agent: *\nDisallow: /" + "*a" * 200_000 + "*b",
    ],
)
def test_no_robots_txt_takes_long(text: str):
    began = time.process_time()
    assert allows(text[: robots.MOST_BYTES], "/" + "a" * 4000)
    assert time.process_time() - began < 1.5
