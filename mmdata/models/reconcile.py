"""Several texts of one sample that should say the same: how far they agree, and the text that all evidence supports.

A noisy channel: the given text, and every other text that is a copy of it, saw the true text through a channel that
makes mistakes. A candidate's support, in nats, is what the other modalities say of it (Whisper's log-likelihood given
the speech, CLIP's similarity with the image) less a cost for each word and character in which a copy differs from it,
less how little its words look like words. Candidates differ from the given text in one or more slots: places where a
copy reads otherwise (aligned word by word, after ROVER, Fiscus 1997), or where a word of no list has listed
neighbours. Each change has to win `margin_nats`, so that what cannot be decided stays as it is.

Everything is a function of one sample's texts and evidence: no batch or corpus statistics.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from mmdata.models.word_alignment import EDGE, align_words, plain_letters, plain_word
from mmdata.models.word_list import WordList, differing_words, edit_distance

SPELLING: Final = "spelling"
"""The source of a word that no text holds."""

# The weights below were chosen on the prompts with even numbers; tests/e2e/test_reconcile_truth.py holds the odd ones.
_WORD_NATS: Final = 2.5  # a copy has another word ...
_CHAR_NATS: Final = 1.0  # ... and for each character of difference, ...
_MOST_CHAR_NATS: Final = 4.0  # ... but of a word no more: to miss a long one is as easy as to miss a short one
_MIXED_NATS: Final = 6.0  # a word of letters and digits, where there is no list
MARGIN_NATS: Final = 4.0
# Below this agreement two texts are no copies of each other, and neither corrects the other.
MIN_AGREEMENT: Final = 0.5
_ROUNDS: Final = 8  # of evidence; two suffice where no edit spoils another
_MOST_EDITS: Final = 32
_SENTENCE_END: Final = ".!?…"


@dataclass(frozen=True)
class Copy:
    """A text beside the given one.

    Attributes:
        source: where it comes from, for provenance.
        text: as written.
        votes: whether it is evidence by itself. What the model of the evidence heard is not: that would count twice.
    """

    source: str
    text: str
    votes: bool = True


@dataclass(frozen=True)
class Texts:
    """One problem: the given text, which wins unless another is better, and the others.

    Attributes:
        given: as written.
        copies: the others.
        words: list of known words in the text's language, if there is one.
        evidence: whether other modalities bear on the text; without them no word is made up.
    """

    given: str
    copies: Sequence[Copy] = ()
    words: WordList | None = None
    evidence: bool = False


@dataclass(frozen=True)
class Change:
    """One slot that was changed.

    Attributes:
        word: number of its first word in the given text, from 0.
        was: the given words, empty where words were put in.
        now: what stands there instead, empty where words were taken out.
        sources: the texts that read so, or `SPELLING`.
    """

    word: int
    was: str
    now: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Corrected:
    """The text with most support; equal to the given one where `changes` is empty. `gain_nats` is over the given."""

    text: str
    changes: tuple[Change, ...] = ()
    gain_nats: float = 0.0


Evidence = Callable[[Sequence[tuple[int, str]]], Sequence[float]]
"""Support of texts by the other modalities, in nats: each with the number of its problem."""


def agreement(one: str, other: str) -> float:
    """1 - CER of the normalised texts, the longer one as reference: 1 equal, 0 nothing in common; symmetric."""
    left, right = normalise(one), normalise(other)
    return 1.0 - edit_distance()(left, right) / max(len(left), len(right), 1)


def normalise(text: str) -> str:
    """NFKC, casefolded, without punctuation around words, one space between them."""
    return " ".join(filter(None, map(plain_word, text.split())))


def reconcile(problems: Sequence[Texts], evidence: Evidence, margin_nats: float = MARGIN_NATS) -> list[Corrected]:
    """Correct each given text by its copies and the evidence.

    Evidence is asked for all problems at once, a few times. Only differences between texts of one problem count.
    """
    searches = [_Search(problem, margin_nats) for problem in problems]
    for _ in range(_ROUNDS):
        asked = [(row, text) for row, search in enumerate(searches) for text in search.unknown()]
        for (row, text), nats in zip(asked, evidence(asked) if asked else (), strict=True):
            searches[row].evidence[text] = nats
        for search in searches:
            search.step()
        if all(search.done for search in searches):
            break
    return [search.result() for search in searches]


@dataclass(frozen=True)
class _Edit:
    """Words [start, stop) of the given text become `now`."""

    start: int
    stop: int
    now: tuple[str, ...]
    sources: tuple[str, ...] = field(compare=False)

    def clashes(self, other: _Edit) -> bool:
        same = (self.start, self.stop) == (other.start, other.stop)
        return same or (self.start < other.stop and other.start < self.stop)


class _Search:
    """Greedy search from the given text: the edits that win, then what they make of those that are left."""

    def __init__(self, problem: Texts, margin_nats: float) -> None:
        self.problem = problem
        self.margin_nats = margin_nats
        self.tokens = problem.given.split()
        self.copies = [copy for copy in problem.copies if agreement(problem.given, copy.text) >= MIN_AGREEMENT]
        self.edits = self._edits()
        self.chosen: tuple[_Edit, ...] = ()
        self.evidence: dict[str, float] = {}
        self.done = not self.edits

    def _edits(self) -> list[_Edit]:
        found: dict[_Edit, list[str]] = {}
        for copy in self.copies:
            for edit in _differences(self.tokens, copy):
                found.setdefault(edit, []).append(copy.source)
        if self.problem.evidence and self.problem.words:
            for edit in (
                *_respellings(self.tokens, self.problem.words),
                *_mendings(self.tokens, self.problem.words),
            ):
                found.setdefault(edit, []).append(SPELLING)
        merged = [_Edit(edit.start, edit.stop, edit.now, tuple(names)) for edit, names in found.items()]
        # Many differences: other words altogether, which is not for correction.
        return merged if len(merged) <= _MOST_EDITS else []

    def _trials(self) -> list[tuple[_Edit, ...]]:
        """The chosen edits, these and one more or one less, and all that one copy reads otherwise."""
        free = [edit for edit in self.edits if not any(edit.clashes(other) for other in self.chosen)]
        trials = [self.chosen, *(_sorted((*self.chosen, edit)) for edit in free), *_less_one(self.chosen)]
        if not self.chosen:
            trials += [_sorted(edit for edit in self.edits if copy.source in edit.sources) for copy in self.copies]
        return list(dict.fromkeys(trials))

    def unknown(self) -> list[str]:
        """Texts whose evidence the next step needs."""
        if self.done:
            return []
        texts = dict.fromkeys(self._text(trial) for trial in [(), *self._trials()])
        return [text for text in texts if text not in self.evidence]

    def step(self) -> None:
        """Give up the edit that is worth least, if that is less than the margin; else take those that win by it."""
        if self.done:
            return
        less = max(_less_one(self.chosen), key=self._support, default=())
        if self.chosen and self._support(less) > self._support(self.chosen) - self.margin_nats:
            # Never again, or the search would go in circles.
            self.edits = [edit for edit in self.edits if edit in less or edit not in self.chosen]
            self.chosen = less
            return
        winners = self._winners()
        self.done = not winners
        for trial in sorted(winners, key=self._support, reverse=True):
            self.chosen = _sorted((*self.chosen, *trial))

    def _winners(self) -> list[tuple[_Edit, ...]]:
        base, count = self._support(self.chosen), len(self.chosen)
        return [
            trial
            for trial in self._trials()
            if len(trial) > count
            and self._support(trial) - base >= self.margin_nats * (len(trial) - count)
            and (self._seen_somewhere(trial) or self._evidence(trial) > self._evidence(self.chosen))
        ]

    def _seen_somewhere(self, trial: tuple[_Edit, ...]) -> bool:
        """Whether some text holds what is new; a made-up word needs evidence of its own, however well it is spelt."""
        return all(edit in self.chosen or edit.sources != (SPELLING,) for edit in trial)

    def result(self) -> Corrected:
        """The chosen edits, if their worth is known."""
        edits = self.chosen
        if not edits or self._text(edits) not in self.evidence:
            return Corrected(self.problem.given)
        gain = self._support(edits) - self._support(())
        if gain < self.margin_nats:
            return Corrected(self.problem.given)
        changes = [Change(e.start, " ".join(self.tokens[e.start : e.stop]), " ".join(e.now), e.sources) for e in edits]
        return Corrected(self._text(edits), tuple(changes), gain)

    def _support(self, edits: Sequence[_Edit]) -> float:
        text = self._text(edits)
        seen = [self.problem.given, *(copy.text for copy in self.copies if copy.votes)]
        return self._evidence(edits) - sum(_channel_nats(one, text) for one in seen) - self._strangeness(text)

    def _evidence(self, edits: Sequence[_Edit]) -> float:
        return self.evidence[self._text(edits)]

    def _strangeness(self, text: str) -> float:
        words = self.problem.words
        return sum(words.cost_nats(word) if words else _mixed_nats(word) for word in normalise(text).split())

    def _text(self, edits: Sequence[_Edit]) -> str:
        if not edits:
            return self.problem.given
        tokens, at = [], 0
        for edit in edits:
            tokens += [*self.tokens[at : edit.start], *edit.now]
            if not edit.now and tokens and self.tokens[edit.start][-1] in _SENTENCE_END:
                tokens[-1] += self.tokens[edit.start][-1]
            at = edit.stop
        return " ".join([*tokens, *self.tokens[at:]])


def _less_one(edits: tuple[_Edit, ...]) -> list[tuple[_Edit, ...]]:
    return [tuple(other for other in edits if other != edit) for edit in edits]


def _sorted(edits: Iterable[_Edit]) -> tuple[_Edit, ...]:
    """Edits in the order of the text, of those that clash the first one."""
    kept: list[_Edit] = []
    for edit in edits:
        if not any(edit.clashes(other) for other in kept):
            kept.append(edit)
    return tuple(sorted(kept, key=lambda edit: (edit.start, edit.stop)))


def _differences(tokens: list[str], copy: Copy) -> list[_Edit]:
    """Where a copy reads other words than the given text does."""
    theirs = copy.text.split()
    return [
        _Edit(left.start, left.stop, _dressed(tokens[: left.start], tokens[left], theirs[right]), (copy.source,))
        for left, right in align_words(tokens, theirs)
        if plain_letters(tokens[left]) != plain_letters(theirs[right])
        and (copy.votes or not _other_notation(tokens[left], theirs[right]))
    ]


def _mendings(tokens: list[str], words: WordList) -> list[_Edit]:
    """Two words that are one, split: it is commoner than the rarer of them (`sav ed`, but not `log in`)."""
    found = []
    for place in range(len(tokens) - 1):
        parts = [plain_word(token) for token in tokens[place : place + 2]]
        whole = "".join(parts)
        if all(map(str.isalpha, parts)) and words.rank(whole) < max(map(words.rank, parts)):
            now = _dressed(tokens[:place], tokens[place : place + 2], [whole])
            found.append(_Edit(place, place + 2, now, (SPELLING,)))
    return found


def _other_notation(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one is written in figures or signs and the other in letters: speech does not tell `3` from `three`."""
    letters = [any(map(str.isalpha, plain_letters(side))) for side in (one, other)]
    return bool(one) and bool(other) and letters[0] != letters[1]


def _respellings(tokens: list[str], words: WordList) -> list[_Edit]:
    return [
        _Edit(place, place + 1, _dressed(tokens[:place], [token], [known]), (SPELLING,))
        for place, token in enumerate(tokens)
        if words.cost_nats(plain_word(token)) > 0 and not token.strip(EDGE).isupper()  # initials are in no list
        for known in words.neighbours(plain_word(token))
    ]


def _dressed(before: Sequence[str], was: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    """New words with the punctuation, and where it can be trusted the case, of those that they replace."""
    words = [core for word in now if (core := word.strip(EDGE))]
    if not was or not words:
        return tuple(words)
    old = was[0].lstrip(EDGE)
    head = was[0][: len(was[0]) - len(old)]
    tail = was[-1][len(was[-1].rstrip(EDGE)) :]
    starts = not before or before[-1][-1] in _SENTENCE_END
    first = words[0]
    if starts and not old[:1].islower():
        first = first[0].upper() + first[1:]
    elif old[:1].casefold() == first[0].casefold() or (first[1:].islower() and not starts):
        # A capital in the middle stays if the letter does; else it belongs to the mistake.
        same = old[:1].casefold() == first[0].casefold()
        first = (old[0] if same else first[0].lower()) + first[1:]
    words[0] = head + first
    words[-1] += tail
    return tuple(words)


def _channel_nats(seen: str, text: str) -> float:
    """Cost of a copy that reads `seen` where the truth is `text`."""
    return _cached_channel_nats(normalise(seen), normalise(text))


@lru_cache(maxsize=4096)
def _cached_channel_nats(seen: str, text: str) -> float:
    left, right = seen.split(), text.split()
    return sum(_block_nats(left[one], right[other]) for one, other in differing_words(left, right))


def _block_nats(seen: Sequence[str], text: Sequence[str]) -> float:
    if "".join(seen) == "".join(text):  # split or joined: one mistake
        return _WORD_NATS + _CHAR_NATS * abs(len(seen) - len(text))
    words = max(len(seen), len(text))
    letters = edit_distance()(" ".join(seen), " ".join(text))
    return _WORD_NATS * words + min(_CHAR_NATS * letters, _MOST_CHAR_NATS * words)


def _mixed_nats(word: str) -> float:
    return _MIXED_NATS if re.search(r"[^\W\d_]\d|\d[^\W\d_]", word) else 0.0
