"""Where requests may go: every spelling of an address that is not everybody's is refused."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdata.net.address import PrivateAddressError, check_literal, checked_url, host_of, is_public
from mmdata.net.errors import FetchError
from mmdata.net.resolver import public_resolver

# IANA's registries of special-purpose addresses, and multicast; written down here apart from what the code goes by.
PRIVATE_4 = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4",
]  # fmt: skip
PRIVATE_6 = [
    "::1/128", "::/128", "::ffff:0:0:0/96", "64:ff9b:1::/48", "100::/64", "2001:db8::/32", "3fff::/20", "fc00::/7",
    "fe80::/10", "fec0::/10", "ff00::/8",
]  # fmt: skip


def addresses(networks: list[str]) -> st.SearchStrategy[Any]:
    return st.sampled_from(networks).flatmap(lambda network: st.ip_addresses(network=network))


def spellings(address: ipaddress.IPv4Address) -> list[str]:
    """What a browser, `inet_aton` or an IPv6 stack takes for this address."""
    a, b, c, d = address.packed
    number = int(address)
    last_2, last_3 = number & 0xFFFF, number & 0xFFFFFF
    plain = f"{a}.{b}.{c}.{d}"
    return [
        plain, f"{plain}.", str(number), f"{number}.", hex(number), f"0{number:o}",
        f"{a}.{last_3}", f"{a}.{b}.{last_2}", f"{a:#x}.{last_3:#x}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a:#x}.{b}.0{c:o}.{d}", plain.translate({n + 48: n + 0xFF10 for n in range(10)}), plain.replace(".", "。"),
        f"[::ffff:{plain}]", f"[::{plain}]", f"[64:ff9b::{plain}]", f"[2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1]",
        f"[::ffff:0:{plain}]", f"[0:0:0:0:0:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}]",
    ]  # fmt: skip


def refusal(text: str, allowed: tuple[str, ...] = ()) -> str | None:
    try:
        check_literal(checked_url(text), allowed)
    except FetchError as error:
        return error.reason
    return None


@given(addresses(PRIVATE_4), st.sampled_from(["http://{}/", "https://{}:8080/x", "http://user:pass@{}/", "HTTP://{}"]))
def test_no_spelling_of_a_private_address_passes(address: ipaddress.IPv4Address, form: str):
    for spelling in spellings(address):
        # What is no URL at all is as good; nothing must reach the name service, which reads some of them.
        assert refusal(form.format(spelling)) in {"private_address", "bad_url"}, spelling
    assert refusal(form.format(address)) == "private_address"


@given(addresses(PRIVATE_6))
def test_no_private_ipv6_address_passes(address: ipaddress.IPv6Address):
    assert not is_public(address)
    assert refusal(f"http://[{address}]/") == refusal(f"http://[{address.exploded}]:81/") == "private_address"


@given(st.ip_addresses(v=4))
def test_a_public_address_passes_and_so_does_what_it_is_embedded_in(address: ipaddress.IPv4Address):
    special = any(address in ipaddress.ip_network(network) for network in PRIVATE_4)
    special |= str(address) == "168.63.129.16"
    assert is_public(address) is not special
    assert (refusal(f"http://[64:ff9b::{address}]/") is None) is not special
    assert (refusal(f"http://[::ffff:{address}]/") is None) is not special


@pytest.mark.parametrize("allowed", ["127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000", "::1"])
def test_named_hosts_may_be_private_and_no_others(allowed: str):
    urls = ["http://127.0.0.1:8000/", "http://[::1]:8000/"]
    mine = urls["::1" in allowed]
    assert [refusal(url, (allowed,)) for url in urls] == [None if url == mine else "private_address" for url in urls]
    assert refusal(mine.replace("8000", "8001"), (allowed,)) == ("private_address" if "8000" in allowed else None)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" http://h/x \n", "http://h/x"),
        ("HTTP://EXAMPLE.com:80/../a/./b#part", "http://example.com/a/b"),
        ("http://me:secret@h/x", "http://h/x"),
        ("http://bücher.example/ä b?q=ö ü", "http://xn--bcher-kva.example/%C3%A4%20b?q=%C3%B6%20%C3%BC"),
        ("http://h/a%2Fb?x=%2B", "http://h/a%2Fb?x=%2B"),
        ("http://h/\udce4.jpg", "http://h/%E4.jpg"),
        # Who signed a query signed its escapes.
        ("http://h/x?Credential=AK%2F2026%2fs3&Sig=a%3D%7e+b", "http://h/x?Credential=AK%2F2026%2fs3&Sig=a%3D%7e+b"),
        ('http://h/x?u=http%3A%2F%2Fy&z=%zz"<', "http://h/x?u=http%3A%2F%2Fy&z=%25zz%22%3C"),
        ("https://under_score.example/", "https://under_score.example/"),
    ],
)
def test_a_url_is_written_in_one_way(text: str, normal: str):
    assert str(checked_url(text)) == normal
    assert str(checked_url(normal)) == normal


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "//h/x", "http:h/x", "http:///x", "ftp://h/x", "file:///etc/passwd", "javascript:alert(1)",
        "http://a b/", "http://a..b/", "http://.../", "http://h:99999/", "http://h:0/", "http://h:x/", "http://[::1/",
        "http://[fe80::1%25eth0]/", "http://%31%32%37.0.0.1/", "http://h\\@127.0.0.1/", "http://" + "a" * 64 + ".org/",
        "http://h/\r\nX-Evil: 1", "http://h/\x00", "http://h/\ud800", "http://\udcff/", "http://h/" + "x" * 8200,
        "http://h/" + "ä" * 3000,
    ],
)  # fmt: skip
def test_what_is_no_url_to_ask_for(text: str):
    with pytest.raises(FetchError) as caught:
        checked_url(text)
    assert (caught.value.reason, caught.value.passing) == ("bad_url", False)
    str(caught.value).encode()


@given(st.text() | st.text(st.sampled_from("htps:/[]@%.\\0127#?\udcffä ")).map(lambda tail: "http://" + tail))
def test_any_text_is_a_url_or_a_bad_one(text: str):
    with suppress(FetchError):
        url = checked_url(text, base="http://base/x/")
        assert url.scheme in {"http", "https"}
        assert (url.user, url.password, url.fragment) == (None, None, "")
        assert str(checked_url(str(url))) == str(url)


def test_a_relative_url_stands_on_its_page():
    assert str(checked_url("../i/a b.jpg", "http://h/p/q/r")) == "http://h/p/i/a%20b.jpg"
    assert str(checked_url("//other/x", "https://h/")) == "https://other/x"


def test_limits_hold_for_a_host_however_it_is_written():
    names = ["http://Example.ORG/", "http://example.org.:80/", "http://EXAMPLE.org/x"]
    assert {host_of(checked_url(url)) for url in names} == {"example.org:80"}
    assert host_of(checked_url("https://example.org/")) == "example.org:443"


def resolved(monkeypatch: pytest.MonkeyPatch, *answers: str, allowed: tuple[str, ...] = ()) -> list[str]:
    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        kinds = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in answers]
        return [(k, socket.SOCK_STREAM, 6, "", (address, port)) for k, address in zip(kinds, answers, strict=True)]

    async def ask() -> list[str]:
        resolver = public_resolver(frozenset(allowed))
        found = await resolver.resolve("Name.example", 80)
        await resolver.close()
        return [one["host"] for one in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asyncio.run(ask())


def test_of_a_names_addresses_only_the_public_are_connected_to(monkeypatch: pytest.MonkeyPatch):
    mixed = ["10.0.0.1", "8.8.8.8", "::1", "2606:4700::1111", "fe80::1%eth0", "::ffff:127.0.0.1"]
    assert resolved(monkeypatch, *mixed) == ["8.8.8.8", "2606:4700::1111"]
    with pytest.raises(PrivateAddressError):
        resolved(monkeypatch, "169.254.169.254", "::1")
    assert resolved(monkeypatch, "10.0.0.1", allowed=("name.example:80",)) == ["10.0.0.1"]
