"""Lines of a recording that follows several: where one stops, the next begins.

A line is searched for under all cues, or under halves of them where they have none together. Stretches of cues that are
not heard under it are searched for again, beginning with that line, in the speech that nothing was found in. In the end
each cue follows the line under which it is heard best, at a price for each change (Viterbi).

Shapes: K lines, Q cues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from mmdata.models.subtitles import MAX_OVERLAP_S, Cue
from mmdata.models.timing_fit import Clock, Floats
from mmdata.models.timing_search import MIN_CUES, Finder, Segment

# So many cues in a row that are not heard may have been moved. The first start of a window is seldom seen, so that of
# three no line is found.
_MIN_STRETCH = 4
_HALVINGS = 2
_MIN_HALF = 10
# Each takes as long as judging some hundred cues.
_MOST_SEARCHES = 12
# A line ends somewhere near what it was searched for with.
_REACH = 10
# Worth of a cue under a line, nats a token: what Whisper says of its words, within what it says of right ones.
_WORTH = (-1.0, 4.0)
_OUT_OF_REACH = -2.0
_PRICE = 4.0

Judge = Callable[[Clock, Sequence[Cue]], list[Segment]]


@dataclass(frozen=True)
class Piece:
    """Cues that follow one line.

    Attributes:
        clock: the line.
        residual_s: median distance of the observed starts of cues from it.
        first: index of the first cue that is heard under it.
        placed: how many are.
    """

    clock: Clock
    residual_s: float
    first: int = 0
    placed: int = 0


@dataclass(frozen=True)
class Line:
    """A line, and the cues from `first` on judged under it."""

    clock: Clock
    residual_s: float
    first: int
    segments: Sequence[Segment]


@dataclass(frozen=True)
class _Search:
    """Cues that a line is searched for with, beginning with that under which they were not heard, if there is one."""

    span: range
    base: Clock | None = None
    halvings: int = 0

    def halves(self) -> list[_Search]:
        if self.halvings == _HALVINGS or len(self.span) < 2 * _MIN_HALF:
            return []
        middle = len(self.span) // 2
        return [
            replace(self, span=half, halvings=self.halvings + 1) for half in (self.span[:middle], self.span[middle:])
        ]


def find_pieces(finder: Finder, cues: Sequence[Cue], judge: Judge, max_offset_s: float) -> list[Line]:
    """Lines in the order in which they were found; none where no line is. Longer stretches are searched for first.

    Args:
        finder: it searches with some of `cues`.
        cues: all that are to be placed.
        judge: places cues by a line, and judges them.
        max_offset_s: how far the cues' middle may be off, from the line that the search begins with.
    """
    at = _positions(finder.cues, cues)
    lines: list[Line] = []
    todo = [_Search(range(len(finder.cues)))]
    searches = 0
    while todo and searches < _MOST_SEARCHES:
        search, searches = max(todo, key=lambda search: len(search.span)), searches + 1
        todo.remove(search)
        span = search.span
        fit = finder.first_fit(span, search.base or Clock(0.0, 0.0), max_offset_s)
        if fit is None:
            todo += search.halves()
            continue
        first, stop = _around(span, at, len(cues)) if search.base else (0, len(cues))
        line = Line(fit.clock, fit.residual_s, first, judge(fit.clock, cues[first:stop]))
        lines.append(line)
        heard = [_settled(line.segments[at[i] - first]) for i in span]
        for i, settled in zip(span, heard, strict=True):
            if settled:
                finder.take(fit.clock.at(finder.cues[i].start_s), fit.clock.at(finder.cues[i].end_s))
        todo += [_Search(span[s.start : s.stop], fit.clock, search.halvings) for s in stretches_unheard(heard)]
    return lines


def joined(lines: Sequence[Line], cues: Sequence[Cue]) -> tuple[list[Piece], list[Segment]]:
    """The lines that some cues follow, in the order of the cues, and each cue under its line."""
    kept = list(lines)
    while True:
        path = best_path(np.stack([_worth(line, len(cues)) for line in kept]))
        segments = apart([_under(kept[k], i, cues[i]) for i, k in enumerate(path)], path)
        used = [[i for i, k in enumerate(path) if k == own and segments[i].reason is None] for own in range(len(kept))]
        fewest = min(used, key=len)
        if len(kept) == 1 or len(fewest) >= MIN_CUES:
            break
        del kept[used.index(fewest)]
    pieces = [
        Piece(line.clock, line.residual_s, min(own, default=0), len(own)) for line, own in zip(kept, used, strict=True)
    ]
    return sorted(pieces, key=lambda piece: piece.first), segments


def stretches_unheard(settled: Sequence[bool]) -> Iterator[range]:
    """Stretches in which no two neighbours are heard, and many are not: one may be heard by chance."""
    count = len(settled)
    pairs = [i for i in range(count - 1) if settled[i] and settled[i + 1]]
    firm = sorted({*pairs, *(i + 1 for i in pairs)})
    for before, after in pairwise([-1, *firm, count]):
        stretch = range(before + 1, after)
        if sum(not settled[i] for i in stretch) >= _MIN_STRETCH:
            yield stretch


def best_path(worth_KQ: Floats) -> list[int]:
    """The line of each cue: most worth in all, less a price for each change of line."""
    lines, count = worth_KQ.shape
    total_K, came_from = worth_KQ[:, 0], []
    for i in range(1, count):
        best = int(total_K.argmax())
        changes_K = total_K < total_K[best] - _PRICE
        came_from.append(np.where(changes_K, best, np.arange(lines)))
        total_K = np.maximum(total_K, total_K[best] - _PRICE) + worth_KQ[:, i]
    path = [int(total_K.argmax())]
    for from_K in reversed(came_from):
        path.append(int(from_K[path[-1]]))
    return path[::-1]


def apart(segments: Sequence[Segment], path: Sequence[int]) -> list[Segment]:
    """Of segments by different lines that overlap in the recording the likelier is used; margins that touch are cut."""
    out = list(segments)
    used = sorted((i for i, s in enumerate(out) if s.reason is None), key=lambda i: (out[i].start_s, i))
    held = used[0] if used else 0
    for i in used[1:]:
        one, other = out[held], out[i]
        over_s = min(one.end_s, other.end_s) - other.start_s
        if path[held] != path[i] and over_s > MAX_OVERLAP_S:
            weaker = held if (one.score or 0.0) < (other.score or 0.0) else i
            out[weaker] = replace(out[weaker], reason="overlaps")
            held = i if weaker == held else held
            continue
        if path[held] != path[i] and over_s > 0:
            out[held] = replace(one, end_s=other.start_s)
        held = i
    return out


def _positions(some: Sequence[Cue], cues: Sequence[Cue]) -> list[int]:
    """Index of each of some cues among all."""
    index = {id(cue): i for i, cue in enumerate(cues)}
    return [index[id(cue)] for cue in some]


def _around(span: range, at: Sequence[int], count: int) -> tuple[int, int]:
    """First and last index, plus one, of all cues that a line is tried with."""
    first, last = span.start - _REACH, span.stop - 1 + _REACH
    return at[first] if first > 0 else 0, at[last] + 1 if last < len(at) - 1 else count


def _settled(segment: Segment) -> bool:
    """Whether a cue need not be searched for elsewhere."""
    return segment.reason not in {"not_heard", "outside"}


def _worth(line: Line, count: int) -> Floats:
    worth_Q = np.full(count, _OUT_OF_REACH)
    said = [0.0 if segment.score is None else segment.score for segment in line.segments]
    worth_Q[line.first : line.first + len(said)] = np.clip(said, *_WORTH)
    return worth_Q


def _under(line: Line, index: int, cue: Cue) -> Segment:
    if 0 <= index - line.first < len(line.segments):
        return line.segments[index - line.first]
    return Segment(line.clock.at(cue.start_s), line.clock.at(cue.end_s), cue.text, reason="not_heard")
