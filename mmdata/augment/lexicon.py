"""The words of each language, as patterns; the data stand in `words/`, one file a language.

All patterns are for `fold(text)`, not for the text: to look for lower case alone is what makes them fast, as the engine
then goes by the first letter. A fold is as long as its text, so what is found there has the same place in both.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

_FOLDER: Final = Path(__file__).with_name("words")
LANGUAGES: Final = frozenset(path.stem for path in _FOLDER.glob("*.yaml"))
# A number written with digits counts as a number word does, in every language, unless it is a measure: "5 cm".
NUMBER: Final = re.compile(r"\d++(?:[.,:]\d++)*+")
_UNITS: Final = "cm|mm|km|m|kg|mg|g|ml|cl|l|°|%|inch|inches|ft|lbs?|oz|km/h|mph|uhr|p\\.?m|a\\.?m|px|hz|mah|gb|tb|d|k"
_COUNT: Final = rf"{NUMBER.pattern}(?![.,:]?\d|[\s-]?(?:{_UNITS})(?!\w))"
# What `lower` leaves, or makes two letters of, and is equal to another letter but for case; and marks and blanks as
# typesetters have them, for those of a keyboard.
_ODD_ONES: Final = str.maketrans(
    "\u0130\u0131\u017f\u1c80\u1c81\u1c82\u1c83\u1c84\u1c85\u2019\u02bc\u2010\u2011\u00a0\u202f\t\r\n",
    "iis\u0432\u0434\u043e\u0441\u0442\u0442''--     ",
)
_ODD: Final = re.compile(f"[{''.join(map(chr, _ODD_ONES))}]")


# What a mirror exchanges are words of these classes too.
_SIDES: Final = {"side": "mirror", "height": "upside_down"}


def fold(text: str) -> str:
    """A text in lower case and with plain marks, of equal length: one character for each."""
    return (text.translate(_ODD_ONES) if _ODD.search(text) else text).lower()


@dataclass(frozen=True)
class Swap:
    """Words that change places.

    Attributes:
        pairs: each word's other half, in lower case.
        definite: matches from a word's first letter on, in phrases in which it is that word for sure.
        suspect: every use of the words, and words that may mean the same and cannot be exchanged.
        capitals: whether one that begins with a capital within a sentence is another word, a noun.
    """

    pairs: Mapping[str, str]
    definite: re.Pattern[str]
    suspect: re.Pattern[str]
    capitals: bool = False


@dataclass(frozen=True)
class Language:
    """One language.

    Attributes:
        swaps: by effect.
        words: a pattern for each class of words.
        negations: words that turn a sentence round.
        mutual: words by which items of a list are about each other.
        list_mark: what stands between items of a list.
        join: what stands before its last item.
        spaceless: whether words are written without blanks.
    """

    swaps: Mapping[str, Swap]
    words: Mapping[str, re.Pattern[str]]
    negations: re.Pattern[str]
    mutual: re.Pattern[str]
    list_mark: re.Pattern[str]
    join: re.Pattern[str]
    spaceless: bool


@functools.lru_cache(maxsize=256)
def language(tag: str | None) -> Language | None:
    """By the primary subtag of a BCP 47 tag; None where there is no file."""
    return _load(primary(tag)) if primary(tag) in LANGUAGES else None


def primary(tag: str | None) -> str:
    """Of `zh_CN`, `EN-us`: zh, en; nothing where no language is told."""
    return re.split(r"[-_]", (tag or "").lower())[0]


@functools.cache
def _load(tag: str) -> Language:
    data = yaml.safe_load((_FOLDER / f"{tag}.yaml").read_text(encoding="utf-8"))
    edge = "" if data.get("spaceless") else r"\b"
    listed = dict(data["words"])
    for name, effect in _SIDES.items():
        listed[name] = [*listed[name], *_suspects(data["swap"][effect])]
    words = {name: _any_of(each, edge) for name, each in listed.items()}
    words["count"] = re.compile(f"{words['count'].pattern}|{_COUNT}")
    blanks = r"\s*" if data.get("spaceless") else r"\s+"
    return Language(
        {effect: _swap(entry, edge) for effect, entry in data["swap"].items()},
        words,
        # "isn't" ends in a negation without a blank before it.
        re.compile(f"{_any_of(data['negations'], edge).pattern}|n't\\b"),
        _any_of(data["mutual"], edge),
        re.compile(rf"\s*(?:{'|'.join(map(re.escape, data['list_marks']))})\s*"),
        re.compile(rf"{blanks}(?:{'|'.join(map(re.escape, data['joins']))}){blanks}", re.IGNORECASE),
        bool(data.get("spaceless")),
    )


def _any_of(words: Iterable[str], edge: str) -> re.Pattern[str]:
    """Longest first; `*` stands for any beginning or ending."""
    listed = sorted(words, key=len, reverse=True)
    plain = sorted((word for word in listed if word[0] != "*"), key=_first)
    # By the first letter: a word of a text is held against some of them, not against all.
    each = [
        f"{re.escape(letter)}(?:{'|'.join(_rest(word, edge) for word in group)})"
        for letter, group in itertools.groupby(plain, key=_first)
    ]
    if endings := [word[1:] for word in listed if word[0] == "*" != word[-1]]:
        # To the end of the word at once, and a look back from there.
        each.append(rf"\w++(?:{'|'.join(f'(?<={re.escape(ending)})' for ending in endings)})")
    each += [rf"\w*{re.escape(word.strip('*'))}\w*" for word in listed if word[0] == "*" == word[-1]]
    return re.compile(f"{edge}(?:{'|'.join(each)})")


def _first(word: str) -> str:
    return word[0]


def _rest(word: str, edge: str) -> str:
    """Of a word, what comes behind its first letter."""
    # An apostrophe at the end ("n'") is no word character: there is no edge after it.
    after = "\\w*" if word.endswith("*") else edge if word[-1].isalnum() else ""
    return re.escape(word.rstrip("*")[1:]) + after


def _swap(entry: Mapping[str, Any], edge: str) -> Swap:
    pairs = {a: b for pair in entry["pairs"] for a, b in (pair, pair[::-1])}
    each = "|".join(map(re.escape, sorted(pairs, key=len, reverse=True)))
    groups = [(entry.get("in", [] if "before" in entry else ["{}"]), edge)]
    groups += [(group["in"], edge + _followed(group["words"], edge)) for group in entry.get("before", ())]
    # A pair of phrases is sure of itself.
    sure = [re.escape(word) for word in pairs if " " in word]
    definite = "|".join(
        [*sure, *(_phrase(phrase, each, after, edge) for phrases, after in groups for phrase in phrases)]
    )
    return Swap(pairs, re.compile(definite), _any_of(_suspects(entry), edge), bool(entry.get("capitals")))


def _suspects(entry: Mapping[str, Any]) -> list[str]:
    return [*(word for pair in entry["pairs"] for word in pair), *entry.get("also", [])]


def _phrase(phrase: str, words: str, after: str, edge: str) -> str:
    """The word, where the phrase is around it: what precedes it is looked back at."""
    start, end = phrase.split("{}")
    # A mark has no edge of a word.
    before = edge if (start or "a")[0].isalnum() else ""
    behind = after if (end or "a")[-1].isalnum() else ""
    return f"(?<={before}{re.escape(start)})(?:{words}){edge}(?={re.escape(end)}{behind})"


def _followed(words: Iterable[str], edge: str) -> str:
    """By one of some words, or by no word: a mark, a number, the end."""
    return rf"(?:(?!['-]|\s+[^\W\d_])|(?=\s+(?:{_any_of(words, edge).pattern})))"
