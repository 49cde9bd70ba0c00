from __future__ import annotations

import pytest

from mmdata.net.rights import Rights, header_rights, meta_rights


@pytest.mark.parametrize(
    ("values", "opt_out", "robots"),
    [
        (["noai"], ("noai",), ()),
        (["NoAI, NOIMAGEAI", "noml"], ("noai", "noimageai", "noml"), ()),
        (["noindex, nofollow"], (), ("nofollow", "noindex")),
        (["none"], (), ("nofollow", "noindex")),
        (["all"], (), ()),
        (["mmdata: noai"], ("noai",), ()),
        (["MMData : noindex"], (), ("noindex",)),
        (["*: noai"], ("noai",), ()),
        (["otherbot: noai, noindex"], (), ()),
        (["noindex, otherbot: noai, mmdata: noml"], ("noml",), ("noindex",)),
        (["otherbot: noindex", "noai"], ("noai",), ()),
        (["unavailable_after: Friday, 25-Jun-10 15:00:00 PST, noai"], ("noai",), ()),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST; noai"], ("noai",), ()),
        (["max-snippet:20, noai, max-image-preview:large"], ("noai",), ()),
        (["noai-ish, xnoai, no ai"], (), ()),
        ([""], (), ()),
    ],
)
def test_x_robots_tag(values: list[str], opt_out: tuple[str, ...], robots: tuple[str, ...]):
    headers = [("X-Robots-Tag", value) for value in values]
    assert header_rights(headers, "mmdata") == Rights(opt_out, robots)
    assert header_rights([(name.lower(), value) for name, value in headers], "mmdata") == Rights(opt_out, robots)


@pytest.mark.parametrize(("value", "reserved"), [("1", True), (" 1 ", True), ("0", False), ("", False), ("11", False)])
def test_rights_are_reserved_by_header_and_by_meta(value: str, reserved: bool):
    expected = Rights(("tdm-reservation",) if reserved else ())
    assert header_rights([("TDM-Reservation", value)], "mmdata") == expected
    assert meta_rights([("TDM-Reservation", value)], "mmdata") == expected


def test_meta_elements_speak_to_all_robots_or_to_ours():
    pairs = [("ROBOTS", "noindex,noimageai"), ("mmData", "noai"), ("googlebot", "noml"), ("description", "nofollow")]
    assert meta_rights(pairs, "mmdata") == Rights(("noai", "noimageai"), ("noindex",))
    assert meta_rights([(" robots ", " NoAI ; none ")], "mmdata") == Rights(("noai",), ("nofollow", "noindex"))


def test_what_header_or_page_says_holds():
    assert Rights(("noai",), ("noindex",)) | Rights(("noml",)) == Rights(("noai", "noml"), ("noindex",))
