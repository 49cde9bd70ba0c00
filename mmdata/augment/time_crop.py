"""`time_crop`: a stretch of a recording, of all that runs by one clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from pydantic import Field, field_validator

from mmdata.augment.base import Change, Sound, Tensor, Text, VetoError, View, WordTime
from mmdata.spec import Frozen

# What runs by one clock was not always stopped at once; more than this share of the time is another recording.
_MOST_APART: Final = 0.1


class TimeCrop(Frozen):
    """A stretch of the recording, cut between words where their times are known; the words inside only.

    So are the phrases of a description, where the times of what it tells are known; else it may tell what is gone.
    Each sound is cut for itself, unless `clock` says what runs together: the same seconds of all of it are kept.
    """

    min_s: float = Field(1.0, gt=0, description="length at least, seconds")
    max_s: float = Field(10.0, gt=0, description="length at most, seconds")
    clock: list[str] = Field(default=[], description="sounds and tensors that run by one clock; default: each alone")

    name: str = Field("time_crop", exclude=True)
    needs_boxes: bool = Field(False, exclude=True)

    @field_validator("max_s")
    @classmethod
    def _longer(cls, max_s: float, info: Any) -> float:
        if max_s < info.data.get("min_s", 0.0):
            raise ValueError("less than min_s")
        return max_s

    @property
    def changes(self) -> frozenset[str]:
        """Sounds; tensors too where a clock is given."""
        return frozenset({"audio", "tensor"} if self.clock else {"audio"})

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Cut. Raises VetoError `too_short`, `words_unknown`, `clocks_differ`, `no_clock`, `nothing_to_cut`."""
        together = [name for name in self.clock if name in view.sounds or name in view.tensors]
        groups = [together] if self.clock else [[name] for name in view.sounds]
        if not groups or not groups[0]:
            raise VetoError("nothing_to_cut", f"it has none of {', '.join(self.clock)}")
        cut = _Cut(view)
        for names in groups:
            span = self._span(names, cut, rng)
            if span != (0.0, cut.length_s(names)):
                cut.out(names, span)
        return cut.change() if cut.drawn else Change(view)

    def _span(self, names: Sequence[str], cut: _Cut, rng: np.random.Generator) -> tuple[float, float]:
        """Bounds in pauses between words."""
        total_s, words = cut.length_s(names), cut.words_of(names)
        if total_s <= self.min_s:
            raise VetoError("too_short", f"'{names[0]}' has {total_s:.2f} s, and {self.min_s} s would be left")
        wanted_s = float(rng.uniform(self.min_s, min(self.max_s, total_s)))
        start_s = float(rng.uniform(0.0, total_s - wanted_s))
        if not words:
            return start_s, start_s + wanted_s
        bounds = np.array([0.0, *_pauses(words), total_s])
        fits = [
            (abs(a - start_s) + abs(b - start_s - wanted_s), float(a), float(b))
            for n, a in enumerate(bounds)
            for b in bounds[n + 1 :]
            if self.min_s <= b - a <= self.max_s
        ]
        if not fits:
            raise VetoError("too_short", f"no words of '{names[0]}' take {self.min_s} to {self.max_s} s")
        _, first, last = min(fits)
        return first, last


def _pauses(words: Sequence[WordTime]) -> Iterator[float]:
    """The middle of each gap between words."""
    heard_s = words[0].end_s
    for word in words[1:]:
        if word.start_s >= heard_s:
            yield (heard_s + word.start_s) / 2
        heard_s = max(heard_s, word.end_s)


class _Cut:
    """A view that is being cut."""

    def __init__(self, view: View) -> None:
        self.before = view
        self.sounds, self.tensors = dict(view.sounds), dict(view.tensors)
        self.words, self.texts = dict(view.words), dict(view.texts)
        self.drawn: dict[str, Any] = {}
        self.anew: set[str] = set()

    def length_s(self, names: Sequence[str]) -> float:
        """Of the shortest. Raises VetoError where the others are of another length, or one has no time."""
        lengths = [self._length_s(name) for name in names]
        if max(lengths) - min(lengths) > _MOST_APART * max(lengths):
            told = ", ".join(f"'{name}' {length:.2f} s" for name, length in zip(names, lengths, strict=True))
            raise VetoError("clocks_differ", f"{told}: that is not one recording")
        return min(lengths)

    def _length_s(self, name: str) -> float:
        if name in self.sounds:
            return float(self.sounds[name].audio_CT.shape[1] / self.sounds[name].rate_hz)
        rate_hz = self.tensors[name].rate_hz
        if rate_hz is None:
            fix = f"say it where it is taken in: ingest: - tensor: {{clocks: {{{name}: {{rate_hz: ...}}}}}}"
            raise VetoError("no_clock", f"how many points of '{name}' are a second is not known; {fix}")
        return float(self.tensors[name].value.shape[-1] / rate_hz)

    def words_of(self, names: Sequence[str]) -> list[WordTime]:
        """All words that are said, in order."""
        words = [word for name in names for word in self.before.words.get(name, ())]
        return sorted(words, key=lambda word: (word.start_s, word.end_s))

    def out(self, names: Sequence[str], span: tuple[float, float]) -> None:
        """Keep a span of some members. Raises VetoError."""
        for name in names:
            if name in self.sounds:
                self._sound(name, *span)
            else:
                self._tensor(name, *span)
            self.drawn[name] = [round(second, 4) for second in span]

    def _sound(self, name: str, start_s: float, end_s: float) -> None:
        sound, words = self.sounds[name], self.before.words.get(name, ())
        first, last = round(start_s * sound.rate_hz), round(end_s * sound.rate_hz)
        self.sounds[name] = Sound(np.ascontiguousarray(sound.audio_CT[:, first:last]), sound.rate_hz)
        inside = [word for word in words if start_s <= word.start_s and word.end_s <= end_s]
        if name in self.words:
            self.words[name] = tuple(WordTime(w.word, w.start_s - start_s, w.end_s - start_s) for w in inside)
        for text in self.before.spoken.get(name, ()):
            self.texts[text] = _said(self.texts[text], words, inside, text)
            self.anew.add(text)

    def _tensor(self, name: str, start_s: float, end_s: float) -> None:
        tensor = self.tensors[name]
        assert tensor.rate_hz is not None
        first, last = round(start_s * tensor.rate_hz), round(end_s * tensor.rate_hz)
        if first >= last:
            raise VetoError("too_short", f"no point of '{name}' is left")
        self.tensors[name] = Tensor(np.ascontiguousarray(tensor.value[..., first:last]), tensor.rate_hz)

    def change(self) -> Change:
        """What became of the view."""
        view = replace(self.before, sounds=self.sounds, tensors=self.tensors, words=self.words, texts=self.texts)
        felt = any(name in self.tensors for name in self.drawn)
        effects = frozenset({"cut", "gap"} if felt else {"cut"})
        shortened = frozenset(self.drawn)
        anew = frozenset(self.anew)
        return Change(view, effects, self.drawn, spoken_anew=anew, retimed=True, shortened=shortened)


def _said(text: Text, words: tuple[WordTime, ...], inside: list[WordTime], name: str) -> Text:
    """The words inside, as the text writes them. Raises VetoError where the text is not the words."""
    whole = text.text.split()
    if not words or [_bare(w.word) for w in words] != [_bare(w) for w in whole]:
        raise VetoError("words_unknown", f"when each word of '{name}' is said is not known: give `times:`")
    if not inside:
        raise VetoError("words_unknown", f"no word of '{name}' is said there")
    first = words.index(inside[0])
    return Text(" ".join(whole[first : first + len(inside)]), text.lang)


def _bare(word: str) -> str:
    return "".join(filter(str.isalnum, word.casefold()))
