"""Personal data in text: mail addresses, telephone, card, account and identity numbers, addresses of machines.

What is taken for one has the form in which people write it, and passes its own check digits. A number that only might
be one (a date, a price, a version, a product's code) is left alone: `tests/unit/media/test_personal.py` has the table.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Final, Literal, get_args

from mmdata.errors import MissingExtraError

Kind = Literal["email", "iban", "card", "id", "phone", "ip"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""In the order in which they are looked for: what one kind has found is no other."""

_MOST_ROUNDS: Final = 8
# Where a number without its country's code is looked for, by the language of the text: where most write that language.
REGIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "en": ("US", "GB"),
    "de": ("DE", "AT", "CH"),
    "fr": ("FR",),
    "es": ("ES", "MX"),
    "it": ("IT",),
    "pt": ("BR", "PT"),
    "nl": ("NL",),
    "pl": ("PL",),
    "ru": ("RU",),
    "ja": ("JP",),
    "zh": ("CN", "TW"),
    "ko": ("KR",),
    "tr": ("TR",),
    "sv": ("SE",),
    "da": ("DK",),
    "fi": ("FI",),
    "nb": ("NO",),
}


# What a typesetter puts between groups of digits, letter for letter: blanks and hyphens at which no line breaks.
_BLANKS, _HYPHENS = "\u00a0\u2007\u2009\u202f", "\u2010\u2011\u2012\u2013"
_AS_TYPED: Final = str.maketrans(dict.fromkeys(_BLANKS, " ") | dict.fromkeys(_HYPHENS, "-"))


@dataclass(frozen=True, order=True)
class Find:
    """One piece of personal data: where it begins and ends in the text, and what it is."""

    start: int
    end: int
    kind: Kind


def find_personal(text: str, kinds: Collection[Kind], regions: Sequence[str]) -> list[Find]:
    """All pieces of these kinds, in order; none overlaps another.

    Args:
        text: where to look.
        kinds: what to look for.
        regions: countries (ISO 3166, two letters) whose telephone numbers are found without their code.

    Raises:
        MissingExtraError: phonenumbers or python-stdnum is not installed.
    """
    found: list[Find] = []
    text = text.translate(_AS_TYPED)
    # Two that stand together may hide each other: what is left is looked through again without those that were found.
    for _ in range(_MOST_ROUNDS):
        new = _found_once(text, kinds, regions)
        if not new:
            break
        found += new
        text = _with(text, [(one, f"<{'_' * (one.end - one.start - 2)}>") for one in sorted(new)])
    return sorted(found)


def _with(text: str, instead: Sequence[tuple[Find, str]]) -> str:
    """The text with something else in place of each piece; they come in order."""
    parts, end = [], 0
    for one, word in instead:
        parts += [text[end : one.start], word]
        end = one.end
    return "".join([*parts, text[end:]])


def _found_once(text: str, kinds: Collection[Kind], regions: Sequence[str]) -> list[Find]:
    found: list[Find] = []
    taken = bytearray(len(text))
    for kind in KINDS:
        if kind in kinds:
            for start, end in _FINDERS[kind](text, regions):
                if not any(taken[start:end]):
                    taken[start:end] = b"\1" * (end - start)
                    found.append(Find(start, end, kind))
    return found


def mask_personal(text: str, kinds: Collection[Kind], regions: Sequence[str]) -> tuple[str, int]:
    """The text with `<EMAIL>`, `<PHONE>`, ... in place of what `find_personal` finds, and how many there are."""
    found = find_personal(text, kinds, regions)
    return _with(text, [(one, f"<{one.kind.upper()}>") for one in found]), len(found)


def regions_of(regions: Sequence[str] | None, lang: str | None) -> Sequence[str]:
    """The regions that are asked for, else those of a language."""
    return REGIONS.get(lang or "", ()) if regions is None else regions


# --- mail and machines -----------------------------------------------------------------------------------------------

# RFC 5321's limits; the letters of RFC 6531. "(at)" and "(dot)" are what people write against machines that read.
_EMAIL: Final = re.compile(
    r"(?<![\w.%+@-])[\w%+'-][\w.%+'-]{0,63}(?:@|\s?[\[(]at[\])]\s?)"
    r"(?:(?!-)[\w-]{1,63}(?:\.|\s?[\[(]dot[\])]\s?)){1,8}([^\W\d_]{2,24})(?![\w@-])",
    re.IGNORECASE,
)
# icon@2x.png
_FILE_ENDINGS: Final = frozenset(
    {"png", "jpg", "jpeg", "gif", "webp", "svg", "bmp", "tif", "tiff", "avif", "pdf", "css"}
)


def _emails(text: str, _: Sequence[str]) -> Iterator[tuple[int, int]]:
    if "@" not in text and "at)" not in text.lower() and "at]" not in text.lower():
        return
    for match in _EMAIL.finditer(text):
        if match[1].lower() not in _FILE_ENDINGS:
            yield match.span()


_IPV4: Final = re.compile(r"(?<![\w.:/-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6: Final = re.compile(r"(?<![\w.:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w.:])", re.IGNORECASE)
_BEFORE_A_VERSION: Final = re.compile(
    r"(?:\bv|\bver(?:sion|\.)?|\brelease|\bbuild|\brev(?:ision|\.)?|\bfirmware|\bsection|\bchapter|§|№|#|[=<>~!]=|[~^])"
    r":?\s*$",
    re.IGNORECASE,
)
_LOOK_BACK_CHARS: Final = 24
_TWO_DIGITS: Final = 2
_IPV6_GROUPS: Final = 4


def _addresses(text: str, _: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Public ones: those of a house or an office say nothing outside of it."""
    for match in _IPV4.finditer(text):
        # Numbers of sections and versions have one digit each, or say what they are.
        long_enough = any(len(part) >= _TWO_DIGITS for part in match[0].split("."))
        if long_enough and not _BEFORE_A_VERSION.search(_before(text, match.start())) and _is_public(match[0]):
            yield match.span()
    for match in _IPV6.finditer(text):
        if sum(map(bool, match[0].split(":"))) >= _IPV6_GROUPS and _is_public(match[0]):
            yield match.span()


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
        return found.is_global and not found.is_multicast
    except ValueError:
        return False


def _before(text: str, start: int) -> str:
    return text[max(0, start - _LOOK_BACK_CHARS) : start]


# --- numbers with check digits ---------------------------------------------------------------------------------------

# ISO/IEC 7812: first digits and lengths of Visa, Mastercard, American Express, Discover, JCB, Diners Club, UnionPay.
_CARD_BRANDS: Final = re.compile(
    r"4\d{15}(?:\d{3})?|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d{2}|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[689]\d)\d{11}|62\d{14,17}"
)
_CARD: Final = re.compile(
    r"(?<![\w.,/-])(?:\d{13,19}|\d{4}(?:[ -]\d{4}){3}(?:[ -]\d{1,3})?|\d{4}[ -]\d{6}[ -]\d{4,5})(?![\w/-]|[.,]\d)"
)
_IBAN: Final = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")


def _cards(text: str, _: Sequence[str]) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        number = re.sub(r"\D", "", match[0])
        if len(set(number)) > 1 and _CARD_BRANDS.fullmatch(number) and _stdnum("luhn").is_valid(number):
            yield match.span()


def _ibans(text: str, _: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The longest of what might be one: the word after it may look like its last group."""
    for match in _IBAN.finditer(text):
        ends = [match.end(), *(match.start() + at.start() for at in reversed(list(re.finditer(" ", match[0]))))]
        end = next((end for end in ends if _stdnum("iban").is_valid(text[match.start() : end])), None)
        if end is not None:
            yield match.start(), end


@dataclass(frozen=True)
class _Identity:
    """Identity numbers of a country: a module of python-stdnum, and the form in which people write them.

    Where check digits alone would take too many numbers for one, the form begins with the word that goes before it.
    """

    module: str
    form: re.Pattern[str]


def _identity(module: str, form: str, word: str | None = None) -> _Identity:
    before = rf"(?i:\b(?:{word})\b)\D{{0,16}}" if word else r"(?<![\w.,/-])"
    return _Identity(module, re.compile(rf"{before}(?P<number>{form})(?![\w/-]|[.,]\d)"))


_IDENTITIES: Final = (
    _identity("us.ssn", r"\d{3}-\d{2}-\d{4}"),
    _identity("fr.nir", r"[1-478] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}"),
    _identity("it.codicefiscale", r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]"),
    _identity("es.dni", r"\d{8}-?[A-Z]"),
    _identity("es.nie", r"[XYZ]-?\d{7}-?[A-Z]"),
    _identity("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    _identity("in_.aadhaar", r"\d{4}[ -]\d{4}[ -]\d{4}"),
    _identity("se.personnummer", r"(?:\d{2})?\d{6}[-+]\d{4}"),
    _identity("fi.hetu", r"\d{6}[-+A]\d{3}[0-9A-Y]"),
    _identity("cn.ric", r"\d{17}[\dX]"),
    _identity("kr.rrn", r"\d{6}-\d{7}"),
    _identity("mx.curp", r"[A-Z]{4}\d{6}[HM][A-Z]{5}[0-9A-Z]\d"),
    _identity("be.nn", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}"),
    _identity("de.idnr", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "steuer-?(?:id|identifikationsnummer)(?:nr)?|idnr|tin"),
    _identity("pl.pesel", r"\d{11}", "pesel"),
    _identity("nl.bsn", r"\d{9}|\d{4}[. ]\d{2}[. ]\d{3}", "bsn|burgerservicenummer"),
    _identity("ca.sin", r"\d{3}[ -]\d{3}[ -]\d{3}", "sin|social insurance(?: number)?|nas"),
    _identity("dk.cpr", r"\d{6}-?\d{4}", "cpr(?:-?n(?:umme)?r)?"),
    _identity("tr.tckimlik", r"\d{11}", "t\\.?c\\.?(?: kimlik(?: no)?)?|kimlik no"),
)
# GOV.UK, National Insurance Manual NIM39110; python-stdnum has none. Two letters, six digits, a letter.
_NINO: Final = re.compile(
    r"(?<!\w)(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)"
)
_LEAST_DIGITS: Final = re.compile(r"(?:\d\D{0,16}){6}")


def _identities(text: str, _: Sequence[str]) -> Iterator[tuple[int, int]]:
    if not _LEAST_DIGITS.search(text):
        return
    for one in _IDENTITIES:
        for match in one.form.finditer(text):
            if _stdnum(one.module).is_valid(match["number"]):
                yield match.span("number")
    yield from (match.span() for match in _NINO.finditer(text))


# --- telephone -------------------------------------------------------------------------------------------------------

_PHONE_LIKE: Final = re.compile(r"\d(?:[\s().\-/\u2010-\u2015\u00a0]{0,3}\d){6}")
# Digits without a gap are a telephone number where somebody says so; `<PHONE>` says it of another.
_BEFORE_A_PHONE: Final = re.compile(
    r"(?<!<)(?:\btel|\btél|\bphone|\bmobile?|\bcell|\bcall|\bfax|\bwhats ?app|\bsms|\bcontact|\bhandy|\btelefono?n?"
    r"|\bтел\w*|电话|電話|[☎📞📱])[\s.:)]*\w{0,6}[\s.:]*$",  # noqa: RUF001 - in Russian
    re.IGNORECASE,
)
_DECIMAL: Final = re.compile(r"\d{1,3}[.,]\d{5,}")
_PART_OF_MORE: Final = re.compile(r"(?:[\d.,/$€£¥#=:_-]|\bno\.?\s|\bnr\.?\s|isbn\S*\s)$", re.IGNORECASE)


def _phones(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    if not _PHONE_LIKE.search(text):
        return
    library = _phonenumbers()
    for region in regions or (None,):
        for match in library.PhoneNumberMatcher(text, region, leniency=library.Leniency.STRICT_GROUPING):
            if _is_said(text, match):
                yield match.start, match.end


def _is_said(text: str, match: Any) -> bool:
    """Whether a number of digits is written as a telephone number."""
    if match.raw_string.startswith("+"):
        return True
    before = _before(text, match.start)
    if _DECIMAL.fullmatch(match.raw_string):
        return False
    if text[match.end : match.end + 1] in {"%", "°", "€", "$"} or _PART_OF_MORE.search(before):
        return False
    return not match.raw_string.isdigit() or bool(_BEFORE_A_PHONE.search(before))


# --- libraries -------------------------------------------------------------------------------------------------------


def _phonenumbers() -> Any:
    try:
        return import_module("phonenumbers")
    except ImportError:
        raise _missing_phonenumbers() from None


@cache
def _stdnum(module: str) -> Any:
    try:
        return import_module(f"stdnum.{module}")
    except ImportError:
        raise _missing_stdnum() from None


def _missing_phonenumbers() -> MissingExtraError:
    return MissingExtraError("finding telephone numbers", "phonenumbers", "personal")


def _missing_stdnum() -> MissingExtraError:
    return MissingExtraError("finding card, account and identity numbers", "python-stdnum", "personal")


_FINDERS: Final[Mapping[Kind, Callable[[str, Sequence[str]], Iterator[tuple[int, int]]]]] = {
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "id": _identities,
    "phone": _phones,
    "ip": _addresses,
}
