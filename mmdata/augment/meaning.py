"""What a text says that an operator may make untrue: rewritten where that is sure, else a veto.

In the languages that have a file in `words/`; in others nothing is guessed.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from mmdata.augment.base import EFFECTS, VetoError
from mmdata.augment.lexicon import LANGUAGES, NUMBER, Language, Swap, fold, language
from mmdata.models.part_of_speech import tagger

__all__ = ["LANGUAGES", "MINDS", "check_written", "protected", "rewrite", "told", "unclaim"]

# Which classes of words mind an effect, and the reason of the veto. What has become grey keeps its black and white.
MINDS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "mirror": ("mirrored_writing", ("writing",)),
    "upside_down": ("upside_down", ("posture", "writing")),
    "turn": ("turned", ("side", "height", "posture", "writing")),
    "move": ("moved", ("side", "height", "place", "whole", "count")),
    "colour": ("colour_named", ("colour", "neutral")),
    "grey": ("colour_named", ("colour",)),
    "light": ("light_named", ("light",)),
    "detail": ("detail_named", ("sharp", "writing")),
    "hide": ("may_be_hidden", ("whole", "count", "writing")),
    "weather": ("weather_named", ("weather", "light")),
    "shape": ("shape_named", ("shape",)),
    "style": ("style_named", ("style",)),
    "more": ("more_is_there", ("alone", "count")),
    "tempo": ("tempo_named", ("tempo",)),
    "pitch": ("voice_named", ("voice",)),
    "loudness": ("loudness_named", ("loudness",)),
    "noise": ("quiet_named", ("quiet",)),
    "echo": ("space_named", ("space",)),
    "reverse": ("order_named", ("order",)),
    "cut": ("may_be_cut", ("whole", "count", "order")),
    "strength": ("strength_named", ("strength",)),
    "gap": ("may_be_cut", ("whole", "count", "order")),
}
_AMBIGUOUS: Final = {"mirror": "ambiguous_side", "upside_down": "ambiguous_height"}
_TURNING: Final = frozenset({"mirror", "upside_down", "turn"})
# Arrows of Unicode, and hands that point; digits and what stands between them ("12:30", "1 + 1").
_ARROWS: Final = "\u2190-\u21ff\u27f0-\u27ff\u2900-\u297f\u2b00-\u2b11"
_ARROW: Final = re.compile(f"[{_ARROWS}\u261a-\u261f\U0001f446-\U0001f449\U0001f519-\U0001f51d]")
_DIGITS_ALONE: Final = re.compile(r"[\W_]*\d[\d\W_]*")
# "(L)", "L-R", "L to R" say who is on which side; what stands in quotes may be read in the picture, 24" is a length.
# (Looks back stand behind the first character: what begins with one of few is found by them.)
_SIDE_LETTER: Final = re.compile(r"\([lrLR]\.?\)|[lL](?<!\w[lL])\W{1,3}(?:[tT][oO]\W{1,2})?[rR]\b")
_QUOTES: Final = r"\"\u201c\u201d\u201e\u00ab\u00bb"
_QUOTED: Final = re.compile(rf"[{_QUOTES}](?<!\d[{_QUOTES}])[^\W\d_][^{_QUOTES}]*|[\u300c\u300e]")
_MARKS: Final = ".!?。！？…"  # noqa: RUF001 - full-width marks on purpose
_ADDRESS: Final = re.compile(r"\S+@\S+\.\w+|\w+://\S+|www\.\S+")
_WORD: Final = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_SENTENCE_START: Final = re.compile(r"(?:^|[.!?…]\s+)[\"'«“(\[]*$")
_BEFORE: Final = 32
# Nouns begin with a capital there, names or not.
_CAPITAL_NOUNS: Final = frozenset({"de"})


def rewrite(text: str, lang: str | None, effects: frozenset[str]) -> str:
    """The text after the effects, which are of `EFFECTS`.

    Raises VetoError where it would not be true and cannot be rewritten: `unknown_language`, or a reason of `MINDS`, or
    `ambiguous_side`, `ambiguous_height`.
    """
    assert effects <= EFFECTS
    if not effects:
        return text
    for effect in sorted(effects):
        _check_signs(text, effect)
    if not any(map(str.isalpha, text)):
        return text
    words = language(lang)
    if words is None:
        raise VetoError("unknown_language", f"nothing is known of what words of '{lang}' say: '{text[:80]}'")
    # A letter and its accent may be two characters: no list has them so.
    composed = changed = unicodedata.normalize("NFC", text)
    folded = fold(composed)
    for effect in sorted(effects):
        _check(composed, folded, words, effect)
    for effect in sorted(effects & words.swaps.keys()):
        changed = _swapped(changed, words.swaps[effect], _AMBIGUOUS[effect])
    return text if changed == composed else changed


def check_written(text: str, effects: frozenset[str]) -> None:
    """Of what is written in a picture, in any language. Raises VetoError where the effects leave it no longer so."""
    for effect in sorted(effects):
        reason, classes = MINDS[effect]
        if any(map(str.isalnum, text)) and ("writing" in classes or effect == "move"):
            raise VetoError(reason, f"'{text[:80]}' is written in the picture")


def _check_signs(text: str, effect: str) -> None:
    """What needs no language: arrows and letters name sides, digits alone and quotes stand in the picture."""
    reason, classes = MINDS[effect]
    found = (
        (effect in _TURNING and (_DIGITS_ALONE.fullmatch(text.strip()) or _ARROW.search(text)))
        or ((effect == "mirror" or "side" in classes) and _SIDE_LETTER.search(text))
        or ("writing" in classes and _QUOTED.search(text))
    )
    if found:
        raise VetoError(reason, f"'{found[0]}' may not be true any more: '{text[:80]}'")


def _check(text: str, folded: str, words: Language, effect: str) -> None:
    reason, classes = MINDS[effect]
    for name in classes:
        if found := words.words[name].search(folded):
            raise VetoError(reason, f"'{_as_written(text, found)}' may not be true any more: '{text[:80]}'")


def _as_written(text: str, match: re.Match[str]) -> str:
    """What was found in its fold."""
    return text[match.start() : match.end()]


def _swapped(text: str, swap: Swap, reason: str) -> str:
    folded = fold(text)
    pieces, done = [], 0
    for match in swap.suspect.finditer(folded):
        word, sure = _as_written(text, match), swap.definite.match(folded, match.start())
        # Equal but for case is more than `lower` undoes: a long s is found as s.
        known = sure and sure.end() == match.end() and word.lower() in swap.pairs
        if not known or (swap.capitals and _is_noun(text, match)):
            raise VetoError(reason, f"'{word}' in '{text[:80]}' may mean something else")
        pieces += [text[done : match.start()], _cased_like(word, swap.pairs[word.lower()])]
        done = match.end()
    return "".join(pieces) + text[done:]


def _is_noun(text: str, match: re.Match[str]) -> bool:
    """Where nouns alone begin with a capital within a sentence: "die Rechte der Kinder" are no side."""
    word = _as_written(text, match)
    return word[0].isupper() and not word.isupper() and not _starts_sentence(text, match.start())


def _starts_sentence(text: str, at: int) -> bool:
    # A mark, blanks and quotes before it: no more is looked at.
    return bool(_SENTENCE_START.search(text, max(0, at - _BEFORE), at))


def _cased_like(original: str, word: str) -> str:
    if original.isupper() and len(original) > 1:
        return word.upper()
    return word.capitalize() if original[0].isupper() else word


# --- claims ----------------------------------------------------------------------------------------------------------


def unclaim(text: str, lang: str | None, phrase: str) -> str:
    """The text without a phrase that is no longer in the picture, where it is an item of a list.

    Raises VetoError `claim_cannot_go` where it is not, or the only one.
    """
    words = language(lang)
    body, mark = _without_mark(text)
    # Of two that play together, or of a cat and its tail, one cannot go.
    items = _items(body, words) if words and not words.mutual.search(fold(body)) else []
    lists = [n for n, item in enumerate(items) if item.casefold() == phrase.strip().casefold()]
    if words is None or len(items) < 2 or len(lists) != 1:  # noqa: PLR2004 - one must stay
        raise VetoError("claim_cannot_go", f"'{phrase}' is not seen any more, and cannot be taken out of '{text[:80]}'")
    left = [item for n, item in enumerate(items) if n != lists[0]]
    return _cased_first(_as_list(left, body, words), body) + mark


def _without_mark(text: str) -> tuple[str, str]:
    body = text.rstrip()
    stripped = body.rstrip(_MARKS)
    return stripped, text[len(stripped) :]


def _items(body: str, words: Language) -> list[str]:
    """Items between list marks and the last join; none where something else than a list of names may be meant."""
    if any(mark in body for mark in _MARKS + ":;()"):
        return []
    parts = words.list_mark.split(body)
    # "a dog, and a cat" as much as "a dog and a cat".
    last = words.join.split(" " + parts[-1] if not words.spaceless else parts[-1])
    parts[-1:] = [part for part in last if part.strip()]
    return [part.strip() for part in parts]


def _as_list(items: Sequence[str], body: str, words: Language) -> str:
    if len(items) == 1:
        return items[0]
    join, mark = words.join.search(body), words.list_mark.search(body)
    before = (mark[0] if mark else ", ").join(items[:-1])
    between = join[0] if join else (mark[0] if mark else ", ")
    return f"{before}{between}{items[-1]}"


def _cased_first(text: str, like: str) -> str:
    return text[:1].upper() + text[1:] if like[:1].isupper() else text


# --- what a text operator must not touch -----------------------------------------------------------------------------


def protected(text: str, lang: str | None, phrases: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Spans that no text operator may touch, sorted and apart.

    Numbers, negations, names, addresses, all words that any effect minds, and the phrases given. All of a text in a
    language without a file.
    """
    words = language(lang)
    if words is None:
        return [(0, len(text))] if text else []
    folded = fold(text)
    spans = [match.span() for pattern in _minded(words) for match in pattern.finditer(folded)]
    spans += [match.span() for pattern in (NUMBER, _ADDRESS) for match in pattern.finditer(text)]
    spans += [
        match.span() for phrase in phrases if phrase for match in re.finditer(re.escape(phrase), text, re.IGNORECASE)
    ]
    spans += _names(text, (lang or "").lower()[:2])
    return _merged(_whole_words(text, spans) if not words.spaceless else spans)


def told(text: str, lang: str | None) -> list[str]:
    """What a text says that any effect minds, and its negations, sorted; numbers in digits aside."""
    words, folded = language(lang), fold(text)
    found = (match for pattern in _minded(words) for match in pattern.finditer(folded)) if words else ()
    return sorted(_as_written(text, one).lower() for one in found if not one[0][0].isdigit())


def _minded(words: Language) -> list[re.Pattern[str]]:
    return [*words.words.values(), words.negations, *(swap.suspect for swap in words.swaps.values())]


def _names(text: str, primary: str) -> Iterator[tuple[int, int]]:
    for match in _WORD.finditer(text):
        capital = match[0][0].isupper()
        inside = not _starts_sentence(text, match.start()) or (primary == "en" and _is_name(match[0]))
        # All capitals are a name wherever they stand (NASA), one letter is none (A, I).
        shouted = match[0].isupper() and len(match[0]) > 1
        if capital and (inside or shouted or primary in _CAPITAL_NOUNS):
            yield match.span()


def _is_name(word: str) -> bool:
    """By the tagger: "Anna" is one, "Children" is none."""
    return tagger()(word, tokenize=False)[0][1].startswith("NNP")


def _whole_words(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """A part of a word protects all of it: "left" in "left-handed"."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    starts, ends = [start for start, _ in words], [end for _, end in words]
    whole = []
    for start, end in spans:
        touched = words[bisect.bisect_right(ends, start) : bisect.bisect_left(starts, end)]
        whole += [(min(start, word[0]), max(end, word[1])) for word in touched]
    return whole


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
