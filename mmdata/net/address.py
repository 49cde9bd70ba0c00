"""Where a request may go: http and https, and no address that only this machine or its network knows."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from mmdata.net.errors import FetchError

if TYPE_CHECKING:
    from yarl import URL

_MOST_CHARACTERS = 8192
_PORTS = {"http": 80, "https": 443}
# RFC 6052 and RFC 8215: IPv4 addresses behind a translator, and prefixes of somebody's own.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_CONTROLS = re.compile(r"[\x00-\x20\x7f]")


class PrivateAddressError(OSError):
    """A name that leads to no public address."""


def checked_url(text: str, base: str | None = None) -> URL:
    """A URL that may be asked for, without fragment and credentials.

    Raises FetchError `bad_url`.
    """
    from yarl import URL

    try:
        url = URL(urljoin(base, text) if base else text)
        if len(text) > _MOST_CHARACTERS or _CONTROLS.search(text):
            raise ValueError(f"longer than {_MOST_CHARACTERS} characters, or with blanks")
        if url.scheme not in _PORTS or not url.host:
            raise ValueError("no http or https URL")
        if url.port is None:
            raise ValueError("no such port")
        # yarl encodes the host by IDNA when it is asked for.
        _ = url.raw_host
        return url.with_fragment(None).with_user(None)
    except (ValueError, TypeError) as error:
        raise FetchError("bad_url", f"'{text[:200]}': {error}") from None


def host_of(url: URL) -> str:
    """`host:port`, what limits hold for."""
    return f"{str(url.raw_host).rstrip('.').lower()}:{url.port}"


def is_allowed(host: str, port: int | None, allowed: Collection[str]) -> bool:
    """Whether a host is named among those that may have private addresses."""
    name = host.strip("[]").rstrip(".").lower()
    return name in allowed or f"{name}:{port}" in allowed


def check_literal(url: URL, allowed: Collection[str]) -> None:
    """Addresses written as such pass no name service. Raises FetchError `private_address`."""
    host = str(url.raw_host)
    try:
        address = ipaddress.ip_address(_plain(host.strip("[]").partition("%")[0]))
    except ValueError:
        return
    if not is_public(address) and not is_allowed(host, url.port, allowed):
        raise private_address(host)


def _plain(host: str) -> str:
    """An IPv4 address as C's `inet_aton` reads it too: 127.1, 0x7f.1 and 2130706433 are 127.0.0.1."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, ValueError):
        return host


def private_address(host: str) -> FetchError:
    """Of a host that leads to no public address."""
    fix = f"if it is yours, add it to fetch.allow_private: [{host}]"
    return FetchError("private_address", f"{host} has no public address; {fix}")


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether everybody reaches the same machine there; an address that holds another is judged by both."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(inner)
        if address in _LOCAL_NAT64 or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


def public_resolver(allowed: Collection[str]) -> Any:
    """A resolver for aiohttp that gives public addresses alone: what it gives is what is connected to."""
    from aiohttp.resolver import ThreadedResolver

    class Resolver(ThreadedResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
            found = await super().resolve(host, port, family)
            if is_allowed(host, port, allowed):
                return found
            public = [one for one in found if is_public(ipaddress.ip_address(one["host"].partition("%")[0]))]
            if not public:
                raise PrivateAddressError(f"{host} has no public address")
            return public

    return Resolver()
