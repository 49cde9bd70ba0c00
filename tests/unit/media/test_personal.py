"""Personal data in text: a table of what is, and a longer one of what only looks like it."""

from __future__ import annotations

import time

import pytest

from mmdata.media.personal import KINDS, find_personal, mask_personal

_REGIONS = ("US", "GB", "DE", "FR")


def found(text: str) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in find_personal(text, KINDS, _REGIONS)]


@pytest.mark.parametrize(
    ("text", "kind", "piece"),
    [
        ("write to jane.doe+news@mail.example.org.", "email", "jane.doe+news@mail.example.org"),
        ("MAILTO:JANE@EXAMPLE.COM", "email", "JANE@EXAMPLE.COM"),
        ("jane (at) example (dot) org", "email", "jane (at) example (dot) org"),
        ("müller@bücher.example", "email", "müller@bücher.example"),
        ("call +1 650 253 0000 now", "phone", "+1 650 253 0000"),
        ("call (650) 253-0000", "phone", "(650) 253-0000"),
        ("650-253-0000", "phone", "650-253-0000"),
        ("tel: 6502530000", "phone", "6502530000"),
        ("London 020 7946 0958", "phone", "020 7946 0958"),
        ("à Paris 01 42 68 53 00", "phone", "01 42 68 53 00"),
        ("Berlin: +49 30 901820", "phone", "+49 30 901820"),
        ("+81 3-1234-5678", "phone", "+81 3-1234-5678"),
        ("pay with 4111 1111 1111 1111 today", "card", "4111 1111 1111 1111"),
        ("5500-0055-5555-5559", "card", "5500-0055-5555-5559"),
        ("378282246310005", "card", "378282246310005"),
        ("carte 4111\u00a01111\u202f1111\u20071111.", "card", "4111\u00a01111\u202f1111\u20071111"),
        ("5500\u20110055\u20115555\u20105559", "card", "5500\u20110055\u20115555\u20105559"),
        (
            "GB82\u00a0WEST\u00a01234\u00a05698\u00a07654\u00a032",
            "iban",
            "GB82\u00a0WEST\u00a01234\u00a05698\u00a07654\u00a032",
        ),
        ("3782 822463 10005", "card", "3782 822463 10005"),
        ("IBAN DE89 3704 0044 0532 0130 00 at a bank", "iban", "DE89 3704 0044 0532 0130 00"),
        ("GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
        ("FR14 2004 1010 0505 0001 3M02 606 THEN more", "iban", "FR14 2004 1010 0505 0001 3M02 606"),
        ("SSN 536-90-4399", "id", "536-90-4399"),
        ("NI number AB 12 34 56 C", "id", "AB 12 34 56 C"),
        ("CF: RCCMNL83S18D969H", "id", "RCCMNL83S18D969H"),
        ("DNI 54362315-K", "id", "54362315-K"),
        ("NIE X-2482300W", "id", "X-2482300W"),
        ("CPF 390.533.447-05", "id", "390.533.447-05"),
        ("NIR 2 95 10 99 126 111 93", "id", "2 95 10 99 126 111 93"),
        ("880320-0016", "id", "880320-0016"),
        ("131052-308T", "id", "131052-308T"),
        ("360426199101010071", "id", "360426199101010071"),
        ("PESEL: 44051401359", "id", "44051401359"),
        ("BSN 111222333", "id", "111222333"),
        ("Steuer-ID 36 574 261 809", "id", "36 574 261 809"),
        ("SIN 123-456-782", "id", "123-456-782"),
        ("from 8.8.44.17 at night", "ip", "8.8.44.17"),
        ("from 2001:4860:4860:0:0:0:0:8888", "ip", "2001:4860:4860:0:0:0:0:8888"),
    ],
)
def test_it_is_found(text: str, kind: str, piece: str) -> None:
    assert found(text) == [(kind, piece)]


@pytest.mark.parametrize(
    "text",
    [
        "a cat on a mat",
        "follow @jane on the web",
        "icon@2x.png and icon@3x.jpg",
        "git@localhost",
        "a @ b . com",
        "3 for $5 @ 2.50 each",
        "born 1989-05-12, died 12/05/2001",
        "30.12.2020 12:30",
        "on 2024-01-15 at 10:11:12",
        "2019-2020-2021",
        "1999 2000 2001 2002",
        "price 1,234,567.89",
        "12 345 678 901 people",
        "$6502530000",
        "6502530000",
        "pi is 3.14159265358",
        "population 1 400 000 000",
        "version 10.2.30.4567",
        "version 10.22.3.4",
        "v8.8.44.17",
        "section 1.2.3.4",
        "netmask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "numpy>=4.9.0.80 and cuda==13.4.1.39 and Version: 1.17.1.22",
        "score 0.997848391532898",
        "1.2.3.4 Introduction",
        "at home 192.168.1.10 and 127.0.0.1 and 10.0.0.12",
        "300.400.500.600",
        "std::vector<int> a::b 12:34:56",
        "00:1A:2B:3C:4D:5E",
        "ISBN 978-3-16-148410-0",
        "ISBN 0-306-40615-2",
        "EAN 4006381333931",
        "part 123-45-678",
        "order 4111111111111112",
        "tracking 1Z999AA10123456784",
        "0000 0000 0000 0000",
        "1234 5678 9012 3456",
        "000-12-3456 and 666-12-3456",
        "SKU 12345678-A",
        "DE12 3456 7890 1234 5678 90",
        "Boeing 737-800 and 747-400",
        "1920x1080 at 60 Hz",
        "51.5074, -0.1278",
        "40.712776 -74.005974",
        "GPS 48 51 24 N 2 21 03 E",
        "44051401359",
        "111222333",
        "2+2=4, 10-20-30",
        "sha256 9f86d081884c7d659a2feaa0c55ad015",
        "IMG_20190423_101112.jpg",
        "call 911",
        "Model 3782-822463",
        "ZZ 12 34 56 C",
        "10 000 000 - 20 000 000",
        "20 30 40 50 60",
        "score 21-15 21-18 21-19",
    ],
)
def test_it_is_left_alone(text: str) -> None:
    assert found(text) == []


def test_each_piece_is_masked_by_its_kind_and_the_rest_stays() -> None:
    text = "Jane <jane@example.org>, +1 650 253 0000 or 650-253-0001, card 4111 1111 1111 1111; v1.2."
    expected = "Jane <<EMAIL>>, <PHONE> or <PHONE>, card <CARD>; v1.2."
    assert mask_personal(text, KINDS, _REGIONS) == (expected, 4)
    assert mask_personal(text, ["email"], _REGIONS) == (text.replace("jane@example.org", "<EMAIL>"), 1)
    assert mask_personal(expected, KINDS, _REGIONS) == (expected, 0)


def test_what_stands_beside_another_is_found_too() -> None:
    assert mask_personal("tel 1 500 200 0000 11.0.0.12", KINDS, _REGIONS) == ("tel <PHONE> <IP>", 2)
    assert found("call 650-253-0000 6502530001") == [("phone", "650-253-0000")]


def test_a_national_number_is_one_of_its_region_only() -> None:
    assert find_personal("01 42 68 53 00", ["phone"], ["US"]) == []
    assert len(find_personal("01 42 68 53 00", ["phone"], ["FR"])) == 1
    assert len(find_personal("+33 1 42 68 53 00", ["phone"], [])) == 1


@pytest.mark.parametrize("piece", ["1", "1 ", "12-", "a@", "a.", "4111 ", "DE89 ", "1:", "1.", "+1 650 253 0000 "])
def test_a_hostile_text_takes_time_by_its_length(piece: str) -> None:
    began = time.process_time()
    find_personal(piece * (10_000 // len(piece)), KINDS, _REGIONS)
    assert time.process_time() - began < 10
