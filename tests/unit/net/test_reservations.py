from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from website import Reply, Site, jpeg

from mmdata.net.address import checked_url
from mmdata.net.errors import FetchError
from mmdata.net.fetcher import Answer, Fetcher
from mmdata.net.reservations import Reservations
from mmdata.spec import FetchSpec


def rule(location: Any, reservation: Any = 1) -> dict[str, Any]:
    return {"location": location, "tdm-reservation": reservation}


def reserves(what: Any, path: str = "/a/x.jpg") -> bool:
    async def fetch(url: str) -> bytes:
        assert url == "http://h/.well-known/tdmrep.json"
        if isinstance(what, Exception):
            raise what
        return what if isinstance(what, bytes) else json.dumps(what).encode()

    async def run() -> bool:
        found = Reservations(fetch)
        try:
            return await found.has(checked_url(f"http://h{path}"))
        finally:
            await found.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("rules", "reserved"),
    [
        ([rule("/")], True),
        ([rule("/", "1")], True),
        ([rule("/", 0)], False),
        ([rule("/b/")], False),
        ([rule("/a/")], True),
        ([rule("/A/")], False),
        ([rule("/a/*.jpg")], True),
        ([rule("/a/*.jpg$")], True),
        ([rule("/a/x$")], False),
        ([rule("/*/x*g$")], True),
        ([rule("*.png")], False),
        ([rule("*g$")], True),
        ([rule("/a/x.jpg*x.jpg$")], False),
        ([rule("/%61/x%2Ejpg")], True),
        # The first that matches counts.
        ([rule("/a/", 0), rule("/")], False),
        ([rule("/a/"), rule("/", 0)], True),
        # What is no rule is left out.
        ([7, {"location": 3}, rule(None), rule("/a")], True),
        ([{"location": "/"}], False),
        (rule("/"), False),
        (b"not json", False),
        (b"\xff\xfe", False),
        (b"[" * 200_000, False),
        (FetchError("http_404", "no", status=404), False),
        (FetchError("timeout", "no", passing=True), False),
    ],
)
def test_an_origin_reserves_what_the_first_rule_that_matches_says(rules: Any, reserved: bool):
    assert reserves(rules) is reserved


def test_no_pattern_takes_long():
    began = time.process_time()
    assert not reserves([rule("/" + "*a" * 20_000 + "b")], "/" + "a" * 8000)
    assert time.process_time() - began < 1


@pytest.fixture
def site():
    with Site() as found:
        found.extra["/.well-known/tdmrep.json"] = lambda *_: Reply(body=json.dumps([rule("/i/no")]).encode())
        found.extra["/to-reserved"] = lambda *_: Reply(302, headers={"Location": "/i/no.jpg"})
        yield found


def fetch(site: Site, *paths: str, get: Any = None, **settings: Any) -> list[Answer | FetchError]:
    async def one(fetcher: Fetcher, path: str) -> Answer | FetchError:
        try:
            async with fetcher.get(site.url(path), 1 << 20, **(get or {})) as answer:
                return answer
        except FetchError as error:
            return error

    async def run() -> list[Answer | FetchError]:
        async with Fetcher(FetchSpec.model_validate({"allow_private": [site.host], **settings})) as fetcher:
            return await asyncio.gather(*(one(fetcher, path) for path in paths))

    return asyncio.run(run())


def test_what_a_host_reserves_is_not_asked_for_and_the_host_is_asked_once(site: Site):
    found = fetch(site, *(f"/i/{n}.jpg" for n in range(20)), "/i/no.jpg", "/to-reserved")
    assert all(isinstance(one, Answer) and one.opt_out == () for one in found[:-2])
    assert [one.reason for one in found[-2:] if isinstance(one, FetchError)] == ["opted_out"] * 2
    assert "tdmrep.json of 127.0.0.1 reserves its rights to /i/no.jpg" in str(found[-1])
    assert site.seen["/i/no.jpg"] == 0
    assert site.seen["/.well-known/tdmrep.json"] == 1


def test_a_crawl_is_told_instead(site: Site):
    (answer,) = fetch(site, "/i/no.jpg", get={"opt_out": False})
    assert isinstance(answer, Answer)
    assert answer.opt_out == ("tdm-reservation",)


@pytest.mark.parametrize("settings", [{"tdmrep": False}, {"opt_out": False}])
def test_it_can_be_switched_off(site: Site, settings: dict[str, bool]):
    (answer,) = fetch(site, "/i/no.jpg", **settings)
    assert isinstance(answer, Answer)
    assert (answer.opt_out, answer.data) == ((), jpeg("/i/no.jpg"))
    assert site.seen["/.well-known/tdmrep.json"] == 0


def test_where_robots_txt_forbids_it_it_is_not_asked_for(site: Site):
    site.robots = "User-agent: *\nDisallow: /.well-known/\n"
    (answer,) = fetch(site, "/i/no.jpg")
    assert isinstance(answer, Answer)
    assert site.seen["/.well-known/tdmrep.json"] == 0
