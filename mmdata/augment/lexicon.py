"""The words of each language, as patterns; the data stand in `words/`, one file a language."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

_FOLDER: Final = Path(__file__).with_name("words")
LANGUAGES: Final = frozenset(path.stem for path in _FOLDER.glob("*.yaml"))
# A number written with digits counts as a number word does, in every language.
_DIGITS: Final = r"\d+(?:[.,:]\d+)*"


@dataclass(frozen=True)
class Swap:
    """Words that change places.

    Attributes:
        pairs: each word's other half, in lower case.
        definite: phrases in which it is that word for sure; the group `word` is the word.
        suspect: every use of the words, and words that may mean the same and cannot be exchanged.
        capitals: whether one that begins with a capital within a sentence is another word, a noun.
    """

    pairs: Mapping[str, str]
    definite: tuple[re.Pattern[str], ...]
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
    words = {name: _any_of(listed, edge) for name, listed in data["words"].items()}
    words["count"] = re.compile(f"{words['count'].pattern}|{_DIGITS}", re.IGNORECASE)
    blanks = r"\s*" if data.get("spaceless") else r"\s+"
    return Language(
        {effect: _swap(entry, edge) for effect, entry in data["swap"].items()},
        words,
        # "isn't" ends in a negation without a blank before it.
        re.compile(f"{_any_of(data['negations'], edge).pattern}|n['\u2019]t\\b", re.IGNORECASE),
        _any_of(data["mutual"], edge),
        re.compile(rf"\s*(?:{'|'.join(map(re.escape, data['list_marks']))})\s*"),
        re.compile(rf"{blanks}(?:{'|'.join(map(re.escape, data['joins']))}){blanks}", re.IGNORECASE),
        bool(data.get("spaceless")),
    )


def _any_of(words: Iterable[str], edge: str) -> re.Pattern[str]:
    """Longest first; `*` stands for any beginning or ending."""
    return re.compile("|".join(_stem(word, edge) for word in sorted(words, key=len, reverse=True)), re.IGNORECASE)


def _stem(word: str, edge: str) -> str:
    # An apostrophe at the end ("n'") is no word character: there is no edge after it.
    after = "\\w*" if word.endswith("*") else edge if word[-1].isalnum() else ""
    before = r"\b\w*" if word.startswith("*") else edge
    return before + re.escape(word.strip("*")) + after


def _swap(entry: Mapping[str, Any], edge: str) -> Swap:
    pairs = {a: b for pair in entry["pairs"] for a, b in (pair, pair[::-1])}
    each = "|".join(map(re.escape, sorted(pairs, key=len, reverse=True)))
    plain = [_phrase(phrase, each, edge) for phrase in entry.get("in", [] if "before" in entry else ["{}"])]
    followed = [
        _phrases(group["in"], each, edge + _followed(group["words"], edge), edge) for group in entry.get("before", ())
    ]
    suspect = _any_of([*pairs, *entry.get("also", [])], edge)
    return Swap(pairs, (*plain, *followed), suspect, bool(entry.get("capitals")))


def _phrase(phrase: str, words: str, edge: str) -> re.Pattern[str]:
    before, after = map(re.escape, phrase.split("{}"))
    return re.compile(f"{edge}{before}(?P<word>{words}){after}{edge}", re.IGNORECASE)


def _phrases(phrases: Iterable[str], words: str, after: str, edge: str) -> re.Pattern[str]:
    """Several as one pattern: they hold the word once each, and so are never within each other."""
    each = (tuple(map(re.escape, phrase.split("{}"))) for phrase in phrases)
    # What precedes the word, and what then must come behind it.
    told = "|".join(f"{start}(?=(?:{words}){end}{after})" for start, end in each)
    return re.compile(f"{edge}(?:{told})(?P<word>{words})", re.IGNORECASE)


def _followed(words: Iterable[str], edge: str) -> str:
    """By one of some words, or by no word: a mark, a number, the end."""
    return rf"(?:(?!['\u2019-]|\s+[^\W\d_])|(?=\s+(?:{_any_of(words, edge).pattern})))"
