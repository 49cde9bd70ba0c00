"""What went wrong with a request, in our words."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

from mmdata.net.address import PrivateAddressError, private_address
from mmdata.net.answer import retry_after_s
from mmdata.net.errors import FetchError

if TYPE_CHECKING:
    from yarl import URL

    from mmdata.spec import FetchSpec

# Another attempt may go better: request timeout, too early, too many requests, and what servers blame on themselves.
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
# The name service knows that there is no such name, or no address of it.
_NO_SUCH_NAME: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


def refused(url: URL, response: Any) -> FetchError:
    """Of an answer with any other status than was wanted."""
    status = int(response.status)
    passing = status in _PASSING
    after_s = retry_after_s(response.headers.get("Retry-After")) if passing else None
    wish = f", and wants {after_s:g} s of rest" if after_s is not None else ""
    words = f"{url.raw_host} answers {status} {str(response.reason or '')[:100]}".rstrip() + wish
    return FetchError(f"http_{status}", words, passing=passing, status=status, retry_after_s=after_s)


def failure(error: Exception, url: URL, settings: FetchSpec) -> FetchError:
    """Of what aiohttp, the system or a deadline raised."""
    import aiohttp

    host = str(url.raw_host)
    cause = " ".join(str(getattr(error, "message", error)).split())[:200] or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return _unnamed(error.os_error, host)
    # The first that fits: aiohttp's errors inherit from each other, and from the system's.
    known: tuple[tuple[Any, str, str, bool], ...] = (
        (aiohttp.ServerTimeoutError, "timeout", f"nothing for {settings.idle_s:g} s", True),
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


def _unnamed(error: OSError, host: str) -> FetchError:
    if isinstance(error, PrivateAddressError):
        return private_address(host)
    passing = error.errno not in _NO_SUCH_NAME
    return FetchError("dns_failed", f"{host}: {error.strerror or error}", passing=passing)
