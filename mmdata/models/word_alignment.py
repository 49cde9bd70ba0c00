"""Which words of two texts stand for each other."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from mmdata.models.word_list import differing_words, edit_distance

EDGE: Final = ".,;:!?…\"'()[]«»“”‘’-–—"  # noqa: RUF001 - typographic quotes and dashes are meant
"""What may stand around a word and is none of it."""

# In units of a whole word that differs: a pair of unlike words (1) is likelier than two gaps.
_MOST_CELLS: Final = 40_000  # two texts of 200 words: 0.4 s
_GAP_COST: Final = 0.7
_SPLIT_COST: Final = 0.3


def align_words(left: Sequence[str], right: Sequence[str]) -> list[tuple[slice, slice]]:
    """Slots: runs of words of either text that stand for each other, 1:1, 1:2, 2:1 or against a gap.

    By dynamic programming over the share of characters that differ; of long texts only what lies between equal words,
    and what is still long there is one slot. Its time and memory grow by the square: 1,600 words took 34 s and 0.8 GB.
    """
    if len(left) * len(right) <= _MOST_CELLS:
        return _aligned(left, right)
    slots, at = [], (0, 0)
    for one, other in [*differing_words(left, right), (slice(len(left), None), slice(len(right), None))]:
        slots += [(slice(at[0] + n, at[0] + n + 1), slice(at[1] + n, at[1] + n + 1)) for n in range(one.start - at[0])]
        mine, theirs = left[one], right[other]
        small = len(mine) * len(theirs) <= _MOST_CELLS
        within = _aligned(mine, theirs) if small else [(slice(0, len(mine)), slice(0, len(theirs)))]
        slots += [(_moved(a, one.start), _moved(b, other.start)) for a, b in within]
        at = (one.stop, other.stop)
    return slots


def _moved(place: slice, by: int) -> slice:
    return slice(place.start + by, place.stop + by)


def _aligned(left: Sequence[str], right: Sequence[str]) -> list[tuple[slice, slice]]:
    rows, columns = len(left), len(right)
    best = {(0, 0): (0.0, (0, 0))}
    for i in range(rows + 1):
        for j in range(columns + 1):
            ways = []
            for a, b in ((1, 1), (1, 2), (2, 1), (1, 0), (0, 1)):
                if i >= a and j >= b:
                    cost = _slot_cost(left[i - a : i], right[j - b : j])
                    ways.append((best[i - a, j - b][0] + cost, (i - a, j - b)))
            if ways:
                best[i, j] = min(ways, key=lambda way: way[0])
    slots, at = [], (rows, columns)
    while at != (0, 0):
        before = best[at][1]
        slots.append((slice(before[0], at[0]), slice(before[1], at[1])))
        at = before
    return slots[::-1]


def _slot_cost(left: Sequence[str], right: Sequence[str]) -> float:
    if not left or not right:
        return _GAP_COST
    one, other = plain_letters(left), plain_letters(right)
    unlike = edit_distance()(one, other) / max(len(one), len(other), 1)
    return unlike + _SPLIT_COST * (len(left) != len(right))


@lru_cache(maxsize=65536)
def plain_word(token: str) -> str:
    """Without case, and without what stands around it."""
    return unicodedata.normalize("NFKC", token).strip(EDGE).casefold()


def plain_letters(tokens: Sequence[str]) -> str:
    """Letters and digits only: whether words are joined by a blank or a hyphen is how one writes, not what one says."""
    return "".join(char for token in tokens for char in plain_word(token) if char.isalnum())
