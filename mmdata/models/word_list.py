"""A list of known words: which words are none, what they may be misspelt from, and how far texts are apart."""

from __future__ import annotations

import base64
import gzip
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mmdata.errors import FatalError, MissingExtraError

_UNLISTED_NATS: Final = 3.0  # a word of no list, and for what its letters surprise beyond those of listed words:
_MOST_SURPRISE_NATS: Final = 9.0
_NEIGHBOURS: Final = 3
_SHORT_WORD: Final = 4  # letters; of such only neighbours at distance 1 count, of longer ones at 1 or 2
_SHORTEST_TOKEN: Final = 3  # of a model's vocabulary: shorter ones are mostly pieces of words, ...
_SHORT_TOKEN_RANKS: Final = 2_000  # ... but among the most frequent tokens they are words
_LETTER_WORDS: Final = frozenset("ai")  # English words of a letter
# What scanners take for each other, casefolded, by shape (as tables of OCR correction have them: Kukich 1992, 3.1).
_LOOKALIKES: Final = ("0oqdu", "1li|!7t", "2z", "5s$", "6bg", "8bs&@", "9gq", "ceo", "ao", "uvn", "rk", "efb", "mn")
_CLIP_MERGES: Final = 48_895  # what open_clip's `SimpleTokenizer` takes of the file, after its first line
_SHIPPED: Final = {"whisper": "assets/gpt2.tiktoken", "open_clip": "bpe_simple_vocab_16e6.txt.gz"}


@dataclass(frozen=True)
class WordList:
    """Known words, most frequent first, casefolded."""

    ranked: tuple[str, ...]

    @cached_property
    def ranks(self) -> dict[str, int]:
        """Word: its place."""
        return {word: rank for rank, word in reversed(list(enumerate(self.ranked)))}

    @cached_property
    def _trigrams(self) -> tuple[Counter[str], Counter[str]]:
        triples = Counter(triple for word in self.ranked for triple in _triples(word))
        contexts: Counter[str] = Counter()
        for triple, count in triples.items():
            contexts[triple[:2]] += count
        return triples, contexts

    @cached_property
    def _usual_nats(self) -> float:
        """Mean surprise of a letter of a listed word."""
        letters = sum(len(word) + 1 for word in self.ranked)
        return sum(map(self._surprise_nats, self.ranked)) / max(letters, 1)

    def _surprise_nats(self, word: str) -> float:
        """Negative log-likelihood of the word's letters, by trigrams with one more count spread over 64 symbols."""
        triples, contexts = self._trigrams
        return -sum(math.log((triples[t] + 1 / 64) / (contexts[t[:2]] + 1)) for t in _triples(word))

    def cost_nats(self, word: str) -> float:
        """How little a casefolded word looks like one: 0 for listed words, letters and numbers."""
        if len(word) == 1 or not any(map(str.isalpha, word)) or self._listed(word):
            return 0.0
        # What is joined by a hyphen or an apostrophe is known by its parts.
        parts = [part for part in re.split(r"[-'’]", word) if part]  # noqa: RUF001 - the typographic apostrophe
        if len(parts) > 1 and all(len(part) == 1 or self._listed(part) for part in parts):
            return 0.0
        more = self._surprise_nats(word) - self._usual_nats * (len(word) + 1)
        return _UNLISTED_NATS + min(max(more, 0.0), _MOST_SURPRISE_NATS)

    def rank(self, word: str) -> int:
        """Place of a casefolded word, the list's length for words of no list and single letters that are none."""
        known = len(word) > 1 or word in _LETTER_WORDS
        return self.ranks.get(word, len(self.ranked)) if known else len(self.ranked)

    def _listed(self, word: str) -> bool:
        """Whether the list holds it, or its plural or singular."""
        return word in self.ranks or f"{word}s" in self.ranks or (word[-1] == "s" and word[:-1] in self.ranks)

    def neighbours(self, word: str) -> list[str]:
        """The likeliest listed words that a spelling mistake or a scanner may have turned into `word`."""
        from rapidfuzz import process

        limit = 1 if len(word) <= _SHORT_WORD else 2
        near = process.extract(word, self.ranked, scorer=edit_distance(), score_cutoff=limit, limit=None)
        found = [(edits - _confusions(word, known) / 2, rank, known) for known, edits, rank in near]
        return [known for _, _, known in sorted(found)[:_NEIGHBOURS]]


def shipped_list(library: str) -> Path | None:
    """The vocabulary file of `whisper` or `open_clip`, without importing it; None where it is not installed."""
    spec = find_spec(library)
    path = Path(spec.origin).parent / _SHIPPED[library] if spec and spec.origin else None
    return path if path and path.is_file() else None


@lru_cache(maxsize=8)
def read_words(path: Path) -> WordList:
    """The words of a file, most frequent first.

    Reads a plain list (UTF-8, a word a line, what follows a blank is left out), and the vocabularies that model
    libraries ship: `.tiktoken` (openai-whisper) and `bpe_*.txt.gz` (open_clip), whose order is that of merging, from
    the frequent to the rare. Raises FatalError where it cannot be read.
    """
    try:
        if path.suffix == ".tiktoken":
            tokens = [base64.b64decode(line.split()[0]) for line in path.read_bytes().splitlines()]
            return _from_tokens([t[1:].decode("utf-8", "replace") for t in tokens if t.startswith(b" ")])
        if path.suffix == ".gz":
            merges = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()[1:_CLIP_MERGES]
            joined = ("".join(line.split()) for line in merges)
            return _from_tokens([token[:-4] for token in joined if token.endswith("</w>")])
        lines = path.read_text("utf-8").splitlines()
        return WordList(tuple(dict.fromkeys(line.split()[0].casefold() for line in lines if line.strip())))
    except (OSError, ValueError, EOFError) as error:
        raise FatalError(f"word list {path}: {error}") from None


def _from_tokens(tokens: list[str]) -> WordList:
    words = [
        token.casefold()
        for rank, token in enumerate(tokens)
        if token.isalpha() and (len(token) >= _SHORTEST_TOKEN or rank < _SHORT_TOKEN_RANKS)
    ]
    return WordList(tuple(dict.fromkeys(words)))


def _triples(word: str) -> list[str]:
    padded = f"  {word} "
    return [padded[i : i + 3] for i in range(len(padded) - 2)]


def _confusions(one: str, other: str) -> int:
    if len(one) != len(other):
        return 0
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    return sum(any(a in alike and b in alike for alike in _LOOKALIKES) for a, b in pairs)


def differing_words(left: Sequence[str], right: Sequence[str]) -> list[tuple[slice, slice]]:
    """Runs of words that differ, of two lists of words aligned by Levenshtein's distance."""
    from rapidfuzz.distance import Levenshtein

    found: list[tuple[slice, slice]] = []
    for code in Levenshtein.opcodes(left, right):
        if code.tag == "equal":
            continue
        start, other_start = code.src_start, code.dest_start
        if found and (found[-1][0].stop, found[-1][1].stop) == (start, other_start):
            one, other = found.pop()
            start, other_start = one.start, other.start
        found.append((slice(start, code.src_end), slice(other_start, code.dest_end)))
    return found


@lru_cache(maxsize=1)
def edit_distance() -> Callable[..., int]:
    """Levenshtein's distance of two strings or lists, by rapidfuzz (which jiwer brings). Raises MissingExtraError."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise MissingExtraError("reconcile", "jiwer", "whisper") from None
    return Levenshtein.distance
