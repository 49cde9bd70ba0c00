"""One client for everything that is fetched: limits, politeness and safety stand here and nowhere else."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self

from mmdata import __version__
from mmdata.net.address import (
    PrivateAddressError,
    check_literal,
    checked_url,
    host_of,
    private_address,
    public_resolver,
)
from mmdata.net.body import CODINGS, read_body
from mmdata.net.errors import FetchError
from mmdata.net.limits import ByteBudget, Hold, Hosts
from mmdata.net.rights import header_rights
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
# Another attempt may go better: request timeout, too early, too many requests, and what servers blame on themselves.
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})


@dataclass(frozen=True)
class Validators:
    """What an earlier answer gave to ask by whether it still holds (RFC 9110, section 13)."""

    etag: str | None = None
    last_modified: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Of the request that asks."""
        found = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class Answer:
    """What a server sent.

    Attributes:
        url: as asked for.
        final_url: after redirects.
        status: 200, or 304 where `Validators` hold.
        data: the body, decoded from its content coding; empty for 304.
        declared: media type of the Content-Type header, without parameters, in lower case; None where there is none.
        charset: of the Content-Type header, None where there is none.
        validators: to ask again by.
        opt_out: what the headers say against use for training: `noai`, `noimageai`, `noml`, `tdm-reservation`.
        robots: other directives of X-Robots-Tag that a crawler obeys: `noindex`, `nofollow`.
        attempts: requests made, redirects apart.
        wall_s: from the first request to the last byte.
    """

    url: str
    final_url: str
    status: int
    data: bytes
    declared: str | None
    charset: str | None
    validators: Validators
    opt_out: tuple[str, ...]
    robots: tuple[str, ...]
    attempts: int
    wall_s: float


@dataclass(frozen=True)
class _Ask:
    """What one request goes by."""

    max_bytes: int
    headers: dict[str, str]
    robots: bool
    redirects: int
    cut: bool = False


class Fetcher:
    """Fetches URLs within the limits of a FetchSpec; `async with` opens and closes its connections."""

    def __init__(self, settings: FetchSpec) -> None:
        """Nothing is opened before `async with`."""
        self.settings = settings
        self._hosts = Hosts(settings.connections, settings.connections_per_host)
        self._budget = ByteBudget(int(settings.bytes_in_flight))
        self._robots = Robots(settings.user_agent, self._robots_txt)
        self._allowed = frozenset(host.lower() for host in settings.allow_private)

    async def __aenter__(self) -> Self:
        """Open: one session, one TLS context, one cache of names, no cookies, no proxies of the environment."""
        import aiohttp

        settings = self.settings
        connector = aiohttp.TCPConnector(
            resolver=public_resolver(self._allowed),
            ttl_dns_cache=_DNS_KEPT_S,
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
        """Fetch one URL; its bytes count as in flight until the block ends.

        Args:
            url: http or https.
            max_bytes: of the body, decoded.
            known: what an earlier answer gave: the answer may then be 304, without a body.
            accept: media types that are wanted.
            opt_out: whether an opt-out in the headers is an error; default: as the settings say.

        Raises FetchError: `bad_url`, `private_address`, `dns_failed`, `connect_failed`, `tls_failed`, `timeout` (for
        `idle_s` no byte), `too_slow` (`timeout_s`), `too_large`, `truncated`, `bad_answer`, `http_404` and so on,
        `too_many_redirects`, `robots_denied`, `robots_unreachable`, `crawl_delay`, `opted_out`.
        """
        headers = {"Accept": accept, **(known.headers if known else {})}
        ask = _Ask(max_bytes, headers, self.settings.robots, self.settings.max_redirects)
        began = time.monotonic()
        attempt = 0
        async with AsyncExitStack() as stack:
            while True:
                attempt += 1
                try:
                    # A body that failed half-way must not stay in flight while another attempt waits.
                    async with AsyncExitStack() as tried:
                        hold = await tried.enter_async_context(self._budget.hold())
                        answer = await self._follow(url, ask, hold)
                        stack.push_async_exit(tried.pop_all())
                    break
                except FetchError as error:
                    await self._wait_or_give_up(error, attempt)
            if answer.opt_out and (self.settings.opt_out if opt_out is None else opt_out):
                raise FetchError("opted_out", f"its headers say {', '.join(answer.opt_out)}", status=answer.status)
            yield replace(answer, attempts=attempt, wall_s=time.monotonic() - began)

    async def sitemaps(self, url: str) -> list[str]:
        """What the robots.txt of a URL's origin calls its sitemaps. Raises FetchError."""
        return await self._robots.sitemaps(checked_url(url))

    async def _wait_or_give_up(self, error: FetchError, attempt: int) -> None:
        if not error.passing or attempt >= self.settings.attempts:
            raise error
        wait_s = random.uniform(0, _BACKOFF_S * 2 ** (attempt - 1))
        if error.retry_after_s is not None:
            if error.retry_after_s > self.settings.max_wait_s:
                raise error
            wait_s = error.retry_after_s
        await asyncio.sleep(wait_s)

    async def _robots_txt(self, url: str) -> bytes:
        ask = _Ask(MOST_BYTES, {}, False, _ROBOTS_REDIRECTS, cut=True)
        # Not of the budget: bodies wait for their robots.txt, and must not be what that waits for.
        return (await self._follow(url, ask, None)).data

    async def _follow(self, text: str, ask: _Ask, hold: Hold | None) -> Answer:
        """One attempt, over redirects: each is checked like a URL of its own."""
        url = checked_url(text)
        for _ in range(ask.redirects + 1):
            check_literal(url, self._allowed)
            if ask.robots:
                await self._obey_robots(url)
            found = await self._request(url, ask, hold)
            if isinstance(found, Answer):
                return replace(found, url=text)
            url = checked_url(found, str(url))
        raise FetchError("too_many_redirects", f"more than {ask.redirects} redirects, the last to {url}")

    async def _obey_robots(self, url: URL) -> None:
        pause_s = await self._robots.check(url)
        if pause_s > self.settings.max_wait_s:
            wanted = f"robots.txt of {url.raw_host} wants {pause_s:g} s between requests"
            raise FetchError("crawl_delay", f"{wanted}, more than max_wait_s: {self.settings.max_wait_s:g}")
        if pause_s:
            self._hosts.pace(host_of(url), pause_s)

    async def _request(self, url: URL, ask: _Ask, hold: Hold | None) -> Answer | str:
        """One request: an answer, or where it redirects to."""
        import aiohttp

        async with self._hosts.turn(host_of(url)):
            try:
                async with (
                    asyncio.timeout(self.settings.timeout_s) as deadline,
                    self._session.get(url, headers=ask.headers, allow_redirects=False) as response,
                ):
                    return await self._answer(url, response, ask, hold, deadline)
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                raise _told(error, url, self.settings) from None

    async def _answer(
        self, url: URL, response: Any, ask: _Ask, hold: Hold | None, deadline: asyncio.Timeout
    ) -> Answer | str:
        location = response.headers.get("Location")
        if response.status in _REDIRECTS and location:
            return str(location)
        if response.status not in {HTTPStatus.OK, HTTPStatus.NOT_MODIFIED}:
            raise self._refused(url, response)
        if (response.content_length or 0) > ask.max_bytes and not ask.cut:
            raise FetchError("too_large", f"{response.content_length} bytes, more than max_bytes: {ask.max_bytes}")

        async def grow(more: int) -> None:
            waited_s = await hold.grow(more) if hold else 0.0
            when = deadline.when()
            if waited_s and when is not None:
                deadline.reschedule(when + waited_s)  # the wait was ours, not the server's

        data = await read_body(response, ask.max_bytes, grow, cut=ask.cut)
        rights = header_rights(response.headers.items(), self.settings.user_agent)
        declared = response.headers.get("Content-Type", "").partition(";")[0].strip().lower() or None
        validators = Validators(response.headers.get("ETag"), response.headers.get("Last-Modified"))
        return Answer(
            str(url),
            str(url),
            response.status,
            data,
            declared,
            response.charset,
            validators,
            rights.opt_out,
            rights.robots,
            1,
            0.0,
        )

    def _refused(self, url: URL, response: Any) -> FetchError:
        status = int(response.status)
        passing = status in _PASSING
        after_s = _seconds(response.headers.get("Retry-After")) if passing else None
        if after_s is not None and after_s <= self.settings.max_wait_s:
            self._hosts.pause(host_of(url), after_s)
        wish = f", and wants {after_s:g} s of rest" if after_s is not None else ""
        return FetchError(
            f"http_{status}",
            f"{url.raw_host} answers {status} {response.reason or ''}".rstrip() + wish,
            passing=passing,
            status=status,
            retry_after_s=after_s,
        )


def _seconds(value: str | None) -> float | None:
    """Retry-After: a number of seconds or a date (RFC 9110, section 10.2.3); None where it is neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip())
    try:
        then = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def _told(error: Exception, url: URL, settings: FetchSpec) -> FetchError:
    """What went wrong, in our words."""
    import aiohttp

    host = str(url.raw_host)
    cause = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        if isinstance(error.os_error, PrivateAddressError):
            return private_address(host)
        cause = error.os_error.strerror or cause
    # The first that fits: aiohttp's errors inherit from each other, and from the system's.
    known: tuple[tuple[Any, str, str, bool], ...] = (
        (aiohttp.ServerTimeoutError, "timeout", f"nothing for {settings.idle_s:g} s", True),
        (aiohttp.ClientConnectorDNSError, "dns_failed", cause, True),
        (aiohttp.ClientSSLError, "tls_failed", cause, False),
        (aiohttp.ClientPayloadError, "truncated", "the body ended too soon", True),
        (TimeoutError, "too_slow", f"not all came within {settings.timeout_s:g} s", True),
        ((aiohttp.ClientConnectionError, OSError), "connect_failed", cause, True),
        (aiohttp.InvalidURL, "bad_url", cause, False),
    )
    for kinds, reason, message, passing in known:
        if isinstance(error, kinds):
            return FetchError(reason, f"{host}: {message}", passing=passing)
    return FetchError("bad_answer", f"{host}: {cause}")
