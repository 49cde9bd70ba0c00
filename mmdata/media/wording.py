"""What can be told of a text by its characters and words: whether it repeats itself, and whether it says anything."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import yaml

# RFC 3986 in the forms that people write; a bare host counts with a path or with `www.`.
_URL: Final = re.compile(r"(?:https?|ftp)://[^\s<>\"]+|\bwww\.[^\s<>\"]{1,250}\.[a-z]{2,}[^\s<>\"]*", re.IGNORECASE)
# Tags, entities, and what is left of scripts, style sheets, BBCode, wiki and Markdown links.
_MARKUP: Final = re.compile(
    r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>|&(?:[a-z]{2,8}|#\d{1,7}|#x[0-9a-f]{1,6});|<!--|-->|\[/?(?:b|i|u|url|img|quote)\]"
    r"|\{\{[^{}]*\}\}|\[\[[^\[\]]*\]\]|!?\[[^\[\]]*\]\([^()\s]+\)|\bfunction\s*\([^()]*\)\s*\{|\{[^{}]{0,200}:[^{};]{0,200};[^{}]{0,400}\}",
    re.IGNORECASE,
)
_EXTENSIONS: Final = (
    "jpe?g|jfif|png|gif|webp|bmp|tiff?|svg|heic|avif|ico|cr2|nef|psd|eps|pdf|mp4|mov|avi|mkv|webm|mp3|wav|ogg|flac"
)
# A name with its extension; what cameras, phones and programs call their files; a digest; words joined for a server.
_FILE_NAME: Final = re.compile(
    rf"[^/\\]{{1,120}}\.(?:{_EXTENSIONS})"
    r"|(?:img|dsc[nf]?|dscf|pict?|p|mvimg|pxl|vid|mov|gopr|dji|scan|wp|imag|image|photo|foto|bild|screen ?shot"
    r"|whatsapp image|unnamed|download|thumb|file|slide|capture|bildschirmfoto)"
    r"[ _-]*[\d(](?:[\d\s_.,:()x-]|at)*(?:am|pm)?"
    r"|[0-9a-f]{16,64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|\d{5,}|\d+(?:[_-]+\d+)+(?:x\d{2,5})?|\d{2,5}x\d{2,5}|[a-z0-9]+(?:_[a-z0-9]+){2,}",
    re.IGNORECASE,
)
_MOST_NAME_CHARS: Final = 150
_DIGITS: Final = "0123456789"
_MARKS: Final = " .,;:!?#*-_–—()[]{}\"'«»“”„<>|/\\…。、，！？"  # noqa: RUF001 - marks of several languages
_GRAMS: Final = 2


@dataclass(frozen=True)
class Wording:
    """What `measure_wording` found.

    Attributes:
        letters: share of the characters that are letters or belong to them (marks), blanks aside.
        digits: share that are digits.
        upper: share of the letters with a case that are upper case; None without such letters.
        mean_word_chars: characters of a word.
        distinct_words: share of the words that are the first of their kind.
        repetition: share of the words' characters in stretches of some words that were there before.
        top_bigram: share of the words' characters in the most common pair of words, where it comes twice.
        urls: how many.
        markup: leftovers of HTML and its like, how many.
        junk: why it says nothing of what it goes with: `url`, `file_name`, `placeholder`, `boilerplate`; None: it may.
    """

    letters: float
    digits: float
    upper: float | None
    mean_word_chars: float
    distinct_words: float
    repetition: float
    top_bigram: float
    urls: int
    markup: int
    junk: str | None


def measure_wording(text: str, repeated_words: int) -> Wording:
    """Measure a text; `repeated_words`: of the stretches that `repetition` looks for."""
    solid = Counter("".join(text.split()))
    cased = sum(count for char, count in solid.items() if char.isupper() or char.islower())
    upper = sum(count for char, count in solid.items() if char.isupper())
    letters = sum(count for char, count in solid.items() if unicodedata.category(char)[0] in "LM")
    digits = sum(count for char, count in solid.items() if char.isdigit())
    words = split_words(text.casefold())
    return Wording(
        letters=_share(letters, solid.total()),
        digits=_share(digits, solid.total()),
        upper=upper / cased if cased else None,
        mean_word_chars=_share(sum(map(len, words)), len(words)),
        distinct_words=_share(len(set(words)), len(words)),
        repetition=repetition(words, repeated_words),
        top_bigram=top_gram(words, _GRAMS),
        urls=len(_URL.findall(text)),
        markup=len(_MARKUP.findall(text)),
        junk=junk(text),
    )


def split_words(text: str) -> list[str]:
    """Words without the marks around them; of scripts that write without blanks each character is one."""
    found: list[str] = []
    for word in re.findall(r"\w+(?:['’.-]\w+)*", text):  # noqa: RUF001 - the apostrophe of print
        wide = not word.isascii() and any(unicodedata.east_asian_width(char) == "W" for char in word)
        found += list(word) if wide else [word]
    return found


def repetition(words: Sequence[str], size: int) -> float:
    """Share of the words' characters in stretches of `size` words that were there before.

    Rae et al., "Scaling Language Models" (Gopher, 2021), table A1, "duplicate n-gram character fraction": each
    character counts once, also where such stretches overlap.
    """
    seen: set[tuple[str, ...]] = set()
    again = 0
    counted = 0  # the first word that is not counted yet
    for start in range(len(words) - size + 1):
        gram = tuple(words[start : start + size])
        if gram in seen:
            again += sum(map(len, words[max(start, counted) : start + size]))
            counted = start + size
        seen.add(gram)
    return _share(again, sum(map(len, words)))


def top_gram(words: Sequence[str], size: int) -> float:
    """Share of the words' characters in the most common stretch of `size` words; 0 where none comes twice.

    Rae et al. (2021), table A1, "top n-gram character fraction"; occurrences that overlap count once.
    """
    grams = Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))
    if not grams:
        return 0.0
    gram, count = max(grams.items(), key=lambda found: (found[1], sum(map(len, found[0]))))
    return _share(_covered(words, gram), sum(map(len, words))) if count > 1 else 0.0


def _covered(words: Sequence[str], gram: tuple[str, ...]) -> int:
    covered, counted = 0, 0
    for start in range(len(words) - len(gram) + 1):
        if tuple(words[start : start + len(gram)]) == gram:
            covered += sum(map(len, words[max(start, counted) : start + len(gram)]))
            counted = start + len(gram)
    return covered


def junk(text: str) -> str | None:
    """Why a caption says nothing of what it goes with, as `Wording.junk`."""
    bare = " ".join(text.split())
    if _URL.search(bare) and not _URL.sub("", bare).strip(_MARKS):
        return "url"
    if len(bare) <= _MOST_NAME_CHARS and _FILE_NAME.fullmatch(bare):
        return "file_name"
    if not bare.strip(_MARKS) or _phrases()["placeholder"].fullmatch(bare.strip(_MARKS + _DIGITS).strip()):
        return "placeholder"
    return "boilerplate" if _phrases()["boilerplate"].search(bare) else None


@cache
def _phrases() -> dict[str, re.Pattern[str]]:
    """The kinds of `phrases.yaml`, each as one expression."""
    lists = yaml.safe_load((Path(__file__).parent / "phrases.yaml").read_text(encoding="utf-8"))
    return {
        kind: re.compile("|".join(f"(?:{one})" for own in by_language.values() for one in own), re.IGNORECASE)
        for kind, by_language in lists.items()
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
