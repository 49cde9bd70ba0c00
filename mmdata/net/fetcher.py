"""One client for everything that is fetched: limits, politeness and safety stand here and nowhere else."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from mmdata import __version__
from mmdata.net.address import check_literal, checked_url, host_of
from mmdata.net.answer import Answer, Validators, answer_of
from mmdata.net.body import CODINGS, read_body
from mmdata.net.errors import FetchError, RobotsError
from mmdata.net.failures import failure, refused
from mmdata.net.limits import KEPT_S, ByteBudget, Hold, Host, Hosts
from mmdata.net.reservations import Reservations
from mmdata.net.resolver import public_resolver
from mmdata.net.rights import RESERVED, Rights, header_rights
from mmdata.net.robots import MOST_BYTES, Robots
from mmdata.spec import FetchSpec

if TYPE_CHECKING:
    from yarl import URL

__all__ = ["Answer", "FetchError", "Fetcher", "Validators"]
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_ROBOTS_REDIRECTS: Final = 5  # RFC 9309, section 2.3.1.2
# Waits before the attempts after the first are up to so long, doubled each time ("full jitter", Brooker 2015).
_BACKOFF_S: Final = 1.0
_DNS_KEPT_S: Final = 300


@dataclass(frozen=True)
class _Ask:
    """What one request goes by."""

    max_bytes: int
    headers: dict[str, str]
    robots: bool
    redirects: int
    cut: bool = False
    conditional: bool = False
    attempts: int = 1
    obey_headers: bool = False
    reservations: Literal["obey", "note", "no"] = "no"


@dataclass(frozen=True)
class _Redirect:
    """Where an answer leads, and what its own headers say."""

    location: str
    rights: Rights


class Fetcher:
    """Fetches URLs within the limits of a FetchSpec; `async with` opens and closes its connections."""

    def __init__(self, settings: FetchSpec) -> None:
        """Nothing is opened before `async with`."""
        self.settings = settings
        self._hosts = Hosts(settings.connections, settings.connections_per_host, settings.max_wait_s)
        self._budget = ByteBudget(int(settings.bytes_in_flight))
        self._robots = Robots(settings.user_agent, self._robots_txt)
        self._reservations = Reservations(self._tdmrep_json)
        self._allowed = frozenset(host.lower() for host in settings.allow_private)

    async def __aenter__(self) -> Self:
        """Open: one session, one TLS context, one cache of names, no cookies, no proxies of the environment."""
        import aiohttp

        settings = self.settings
        connector = aiohttp.TCPConnector(
            resolver=public_resolver(self._allowed),
            ttl_dns_cache=_DNS_KEPT_S,
            keepalive_timeout=KEPT_S,
            # Own limits come first: who waits there has not begun, and no deadline runs.
            limit=0,
        )
        contact = f" (+{settings.contact})" if settings.contact else ""
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"{settings.user_agent}/{__version__}{contact}", "Accept-Encoding": CODINGS},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.idle_s, sock_read=settings.idle_s),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close."""
        await self._robots.close()
        await self._reservations.close()
        await self._session.close()

    @asynccontextmanager
    async def get(
        self,
        url: str,
        max_bytes: int,
        known: Validators | None = None,
        *,
        accept: str = "*/*",
        opt_out: bool | None = None,
    ) -> AsyncIterator[Answer]:
        """Fetch one URL; its bytes count as in flight until the block ends, which should not wait for another `get`.

        Args:
            url: http or https.
            max_bytes: of the body, decoded.
            known: what an earlier answer gave: the answer may then be 304, without a body.
            accept: media types that are wanted.
            opt_out: whether an opt-out of the host, or in the headers of the answer or of a redirect, is an error;
                default: as the settings say. One that is no error stands in the answer.

        Raises FetchError: `bad_url`, `private_address`, `dns_failed`, `connect_failed`, `tls_failed`, `timeout` (for
        `idle_s` no byte), `too_slow` (`timeout_s`), `too_large`, `truncated`, `bad_answer`, `http_404` and so on,
        `too_many_redirects`, `robots_denied`, `robots_unreachable`, `crawl_delay`, `opted_out`.
        """
        asked = known.headers if known else {}
        obey = self.settings.opt_out if opt_out is None else opt_out
        ask = _Ask(
            max_bytes,
            {"Accept": accept, **asked},
            self.settings.robots,
            self.settings.max_redirects,
            conditional=bool(asked),
            attempts=self.settings.attempts,
            obey_headers=obey,
            reservations=("obey" if obey else "note") if self.settings.opt_out and self.settings.tdmrep else "no",
        )
        began = time.monotonic()
        async with self._attempts(url, ask) as answer:
            yield replace(answer, wall_s=time.monotonic() - began)

    async def sitemaps(self, url: str) -> list[str]:
        """What the robots.txt of a URL's origin calls its sitemaps. Raises FetchError."""
        return await self._robots.sitemaps(checked_url(url))

    async def _robots_txt(self, url: str) -> bytes:
        ask = _Ask(MOST_BYTES, {}, False, _ROBOTS_REDIRECTS, cut=True, attempts=self.settings.attempts)
        async with self._attempts(url, ask) as answer:
            return answer.data

    async def _tdmrep_json(self, url: str) -> bytes:
        # Most hosts have none: it is asked for once, and not at all where robots.txt forbids it.
        async with self._attempts(url, _Ask(MOST_BYTES, {}, self.settings.robots, _ROBOTS_REDIRECTS)) as answer:
            return answer.data

    @asynccontextmanager
    async def _attempts(self, url: str, ask: _Ask) -> AsyncIterator[Answer]:
        attempt = 1
        with ExitStack() as kept:
            while True:
                try:
                    # A body that failed half-way must not stay in flight while another attempt waits.
                    with ExitStack() as tried:
                        hold = tried.enter_context(self._budget.hold())
                        answer = await self._follow(url, ask, hold)
                        kept.push(tried.pop_all())
                    break
                except FetchError as error:
                    await self._wait_or_give_up(error, attempt, ask.attempts)
                attempt += 1
            yield answer if attempt == 1 else replace(answer, attempts=attempt)

    async def _wait_or_give_up(self, error: FetchError, attempt: int, most: int) -> None:
        if not error.passing or isinstance(error, RobotsError) or attempt >= most:
            raise error
        wait_s = random.uniform(0, _BACKOFF_S * 2 ** (attempt - 1))
        if error.retry_after_s is not None:
            if error.retry_after_s > self.settings.max_wait_s:
                raise error
            wait_s = error.retry_after_s
        await asyncio.sleep(wait_s)

    async def _follow(self, text: str, ask: _Ask, hold: Hold) -> Answer:
        """One attempt, over redirects: each is checked like a URL of its own."""
        url = checked_url(text)
        says = Rights()
        for _ in range(ask.redirects + 1):
            check_literal(url, self._allowed)
            with self._hosts.host(host_of(url)) as host:
                if ask.robots:
                    await self._obey_robots(url, host)
                if ask.reservations != "no":
                    says |= await self._reserved(url, ask)
                found = await self._request(url, host, ask, hold)
            if isinstance(found, Answer):
                return replace(found, url=text, opt_out=(says | Rights(found.opt_out)).opt_out)
            says |= found.rights
            url = checked_url(found.location, str(url))
        raise FetchError("too_many_redirects", f"more than {ask.redirects} redirects, the last to {url}")

    async def _reserved(self, url: URL, ask: _Ask) -> Rights:
        reserved = await self._reservations.has(url)
        if reserved and ask.reservations == "obey":
            raise FetchError("opted_out", f"tdmrep.json of {url.raw_host} reserves its rights to {url.path}")
        return Rights((RESERVED,)) if reserved else Rights()

    async def _obey_robots(self, url: URL, host: Host) -> None:
        pause_s = await self._robots.check(url)
        if pause_s > self.settings.max_wait_s:
            wanted = f"robots.txt of {url.raw_host} wants {pause_s:g} s between requests"
            words = f"{wanted}, more than max_wait_s: {self.settings.max_wait_s:g}"
            raise RobotsError("crawl_delay", words, passing=True)
        host.pause_s = pause_s

    async def _request(self, url: URL, host: Host, ask: _Ask, hold: Hold) -> Answer | _Redirect:
        """One request: an answer, or where it redirects to."""
        import aiohttp

        async with self._hosts.turn(host):
            headers = ask.headers if self._hosts.keeps(host) else {**ask.headers, "Connection": "close"}
            try:
                async with (
                    asyncio.timeout(self.settings.timeout_s) as deadline,
                    self._session.get(url, headers=headers, allow_redirects=False) as response,
                ):
                    return await self._answer(url, response, ask, hold, deadline)
            except FetchError as error:
                if error.retry_after_s is not None:
                    host.rest(error)
                raise
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                raise failure(error, url, self.settings) from None

    async def _answer(
        self, url: URL, response: Any, ask: _Ask, hold: Hold, deadline: asyncio.Timeout
    ) -> Answer | _Redirect:
        location = response.headers.get("Location")
        if response.status in _REDIRECTS and location:
            return _Redirect(str(location), self._rights(url, response, ask))
        if response.status == HTTPStatus.NOT_MODIFIED and not ask.conditional:
            raise FetchError("bad_answer", f"{url.raw_host} answers 304 to what was not asked with a condition")
        if response.status not in {HTTPStatus.OK, HTTPStatus.NOT_MODIFIED}:
            raise refused(url, response)
        rights = self._rights(url, response, ask)
        if (response.content_length or 0) > ask.max_bytes and not ask.cut:
            raise FetchError("too_large", f"{response.content_length} bytes, more than max_bytes: {ask.max_bytes}")

        async def grow(more: int) -> None:
            # A wait for room is ours, not the server's: the clock stands still.
            clock = asyncio.get_running_loop().time
            left_s = (deadline.when() or clock()) - clock()
            deadline.reschedule(None)
            await hold.grow(more)
            deadline.reschedule(clock() + left_s)

        data = await read_body(response, ask.max_bytes, grow, cut=ask.cut)
        return answer_of(response, data, rights)

    def _rights(self, url: URL, response: Any, ask: _Ask) -> Rights:
        """What its headers say. Raises FetchError `opted_out` where that is obeyed: nothing more is read."""
        rights = header_rights(response.headers.items(), self.settings.user_agent)
        if rights.opt_out and ask.obey_headers:
            words = f"the headers of {url} say {', '.join(rights.opt_out)}"
            raise FetchError("opted_out", words, status=response.status)
        return rights
