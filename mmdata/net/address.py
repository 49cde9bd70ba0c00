"""Where a request may go: http and https, and no address that only this machine or its network knows."""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Collection
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urljoin, urlsplit

from mmdata.net.errors import FetchError

if TYPE_CHECKING:
    from yarl import URL

_MOST_CHARACTERS: Final = 8192
_PORTS: Final = {"http": 80, "https": 443}
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")
# RFC 3986, 3.4: what may stand in a query; a percent sign only before two digits.
_IN_QUERIES: Final = "%:/?@!$&'()*+,;=-._~[]"
_NO_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BLANKS: Final = " \t\r\n\f"
# Bytes of a header that are no UTF-8, as aiohttp hands them over (PEP 383).
_RAW_BYTES: Final = re.compile(r"[\udc80-\udcff]")
# What is left of a host once it is encoded by IDNA: a name, IPv4 or IPv6.
_HOST: Final = re.compile(r"[a-z0-9_.-]+|[0-9a-f.]*:[0-9a-f:.]+")
# RFC 6052: IPv4 addresses behind a translator.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# What `ipaddress` takes for global, in part or in some releases: protocol assignments (RFC 6890), NAT64 of one's own
# (RFC 8215), documentation (RFC 9637), the anycast of 6to4 (RFC 7526), and where Azure's machines find their host.
_LOCAL: Final = [
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "64:ff9b:1::/48", "3fff::/20", "192.88.99.0/24", "168.63.129.16/32")
]


class PrivateAddressError(OSError):
    """A name that leads to no public address."""


def checked_url(text: str, base: str | None = None) -> URL:
    """A URL that may be asked for, normalised, without fragment and credentials.

    Args:
        text: as a table, a page or a server has it; what is missing in it comes from `base`.
        base: the URL that it stands in.

    Raises FetchError `bad_url`.
    """
    from yarl import URL

    try:
        clean = _clean(text)
        whole = urljoin(base, clean) if base else clean
        url = URL(whole)
        if "#" in whole:
            url = url.with_fragment(None)
        if "?" in whole:
            url = _with_query(url, urlsplit(whole).query)
        if url.scheme not in _PORTS or not url.host:
            raise ValueError("no http or https URL")
        if not url.port:
            raise ValueError("no such port")
        _check_host(str(url.raw_host))
        if len(str(url)) > _MOST_CHARACTERS:
            raise ValueError(f"longer than {_MOST_CHARACTERS} characters")
        return url if url.raw_user is None and url.raw_password is None else url.with_user(None)
    except (ValueError, TypeError) as error:
        raise FetchError("bad_url", f"'{text[:200]}': {error}") from None


def _with_query(url: URL, query: str) -> URL:
    """The URL with its query as it came: whoever signed it signed these escapes, which yarl would write anew."""
    from yarl import URL

    if not query:
        return url
    raw = quote(_NO_ESCAPE.sub("%25", query), safe=_IN_QUERIES)
    return URL.build(scheme=url.scheme, authority=url.raw_authority, path=url.raw_path, query_string=raw, encoded=True)


def _clean(text: str) -> str:
    text = text.strip(_BLANKS)
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"longer than {_MOST_CHARACTERS} characters")
    if _CONTROLS.search(text):
        raise ValueError("control characters")
    text = _RAW_BYTES.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", text)
    text.encode()  # half of a surrogate pair is no character
    return text


@functools.lru_cache(4096)
def _check_host(host: str) -> None:
    if not _HOST.fullmatch(host):
        raise ValueError("no such host can be")
    # A name's labels have 1 to 63 characters (RFC 1035), which the name service's codec checks.
    host.encode("idna")


def host_of(url: URL) -> str:
    """`host:port`, what limits hold for."""
    return f"{str(url.raw_host).rstrip('.').lower()}:{url.port}"


def is_allowed(host: str, port: int | None, allowed: Collection[str]) -> bool:
    """Whether a host is named among those that may have private addresses."""
    name = host.strip("[]").rstrip(".").lower()
    return not {name, f"[{name}]", f"{name}:{port}", f"[{name}]:{port}"}.isdisjoint(allowed)


def check_literal(url: URL, allowed: Collection[str]) -> None:
    """Addresses written as such pass no name service. Raises FetchError `private_address`."""
    host = str(url.raw_host).rstrip(".")
    if _is_private(host) and not is_allowed(host, url.port, allowed):
        raise private_address(host)


@functools.lru_cache(4096)
def _is_private(host: str) -> bool:
    """Whether a host is an address, and no public one."""
    try:
        return not is_public(ipaddress.ip_address(_plain(host)))
    except ValueError:
        return False


def _plain(host: str) -> str:
    """An IPv4 address as C's `inet_aton` reads it too: 127.1, 0x7f.1 and 2130706433 are 127.0.0.1."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return host


def private_address(host: str) -> FetchError:
    """Of a host that leads to no public address."""
    fix = f"if it is yours, add it to fetch.allow_private: [{host}]"
    return FetchError("private_address", f"{host} has no public address; {fix}")


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether everybody reaches the same machine there; an address that holds another is that other one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    if any(address in network for network in _LOCAL):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour
