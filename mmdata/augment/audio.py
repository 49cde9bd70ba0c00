"""Audio operators: audiomentations' and nlpaug's by their class names, and our own.

What each does to texts and times stands in `audio_effects.yaml`. The rate of samples never changes.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from mmdata.augment import audio_own, libraries
from mmdata.augment.base import Change, Operator, Sound, VetoError, View, WordTime

_SHORTEST_S: Final = 0.01


class _Kind(NamedTuple):
    """A line of the table."""

    library: str
    effects: frozenset[str]
    times: str
    folder: str | None
    shortens: bool


@functools.cache
def _table() -> dict[str, _Kind]:
    data = libraries.table("audio_effects.yaml")
    return {
        name: _Kind(
            library,
            frozenset(row.get("effects", ())),
            row.get("times", "keep"),
            row.get("folder"),
            row.get("shortens", False),
        )
        for library in ("audiomentations", "nlpaug")
        for name, row in data[library].items()
    }


def audio_operators() -> list[str]:
    """Names, without importing the libraries."""
    return [*audio_own.OWN, *_table()]


def audio_operator(name: str, params: Mapping[str, Any]) -> Operator:
    """An operator with its parameters checked. Raises ValueError that names the parameter."""
    if name in audio_own.OWN:
        return audio_own.own_operator(name, params)
    kind = _table()[name]
    if kind.folder and not (params.get(kind.folder) and Path(str(params[kind.folder])).is_dir()):
        raise ValueError(f"{name}: {kind.folder}: give a folder of recordings; '{params.get(kind.folder, '')}' is none")
    make = _audiomentation if kind.library == "audiomentations" else _nlpaug
    return AudioOperator(name, kind, make(name, params))


_Apply = Callable[[Sound], tuple[np.ndarray[Any, Any], Mapping[str, Any]]]


def _audiomentation(name: str, params: Mapping[str, Any]) -> _Apply:
    cls = getattr(libraries.without_torch("audiomentations"), name)
    libraries.checked(name, cls.__init__, params, frozenset({"p"}))
    # Its default pads or cuts to the old length: then the last words are gone.
    whole = {"leave_length_unchanged": False} if _table()[name].times == "stretch" else {}
    transform = _built(name, cls, {**whole, **params, "p": 1.0})

    def apply(sound: Sound) -> tuple[np.ndarray[Any, Any], Mapping[str, Any]]:
        # Some of them know one channel only, as an array of one dimension.
        audio = sound.audio_CT[0] if len(sound.audio_CT) == 1 else sound.audio_CT
        return transform(audio, sample_rate=sound.rate_hz), transform.serialize_parameters()

    return apply


def _nlpaug(name: str, params: Mapping[str, Any]) -> _Apply:
    cls = getattr(libraries.without_torch("nlpaug.augmenter.audio"), name)
    libraries.checked(
        name, cls.__init__, params, frozenset({"name", "verbose", "stateless", "sampling_rate", "noises"})
    )
    rated = "sampling_rate" in inspect.signature(cls.__init__).parameters
    _built(name, cls, {**params, **({"sampling_rate": 16_000} if rated else {})})

    def apply(sound: Sound) -> tuple[np.ndarray[Any, Any], Mapping[str, Any]]:
        made = cls(**libraries.tuples(dict(params)), **({"sampling_rate": sound.rate_hz} if rated else {}))
        # Its operators know one channel: the others get the same by the same state of the generators.
        state = np.random.get_state()
        channels = []
        for audio_T in sound.audio_CT:
            np.random.set_state(state)
            channels.append(np.asarray(made.augment(audio_T)[0], np.float32))
        return np.stack(channels), {}

    return apply


def _built(name: str, cls: Any, params: Mapping[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return cls(**{key: libraries.tuples(value) for key, value in params.items()})
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: {libraries.first_line(error)}") from None
        except Exception as error:  # noqa: BLE001 - an assertion without a word, or its own message fails
            known = ", ".join(key for key in inspect.signature(cls.__init__).parameters if key not in {"self", "p"})
            raise ValueError(f"{name}: refuses what it is given ({error!r}); its parameters: {known}") from None


@dataclass(frozen=True)
class AudioOperator:
    """An operator of a library."""

    name: str
    kind: _Kind = field(repr=False)
    apply: _Apply = field(repr=False, compare=False)
    changes: frozenset[str] = frozenset({"audio"})
    needs_boxes: bool = False

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Apply to every sound. Raises VetoError `too_short`, `cut_speech`, `silent`, `not_applicable`."""
        sounds, words = dict(view.sounds), dict(view.words)
        drawn: dict[str, Any] = {}
        for name, sound in view.sounds.items():
            check_length(name, sound)
            if self.kind.times == "cut" and view.spoken.get(name):
                raise VetoError("cut_speech", f"{self.name} leaves words of '{name}' out, or changes their order")
            audio_CT, drawn = self._applied(sound, rng)
            sounds[name], clipped = as_sound(audio_CT, sound.rate_hz)
            drawn = {**drawn, **clipped}
            if sound.audio_CT.any() and not sounds[name].audio_CT.any():
                raise VetoError("silent", f"{self.name} left nothing of '{name}'")
            if name in words:
                words[name] = self._timed(words[name], drawn, sounds[name])
            self._check_speech(view, name, drawn, sounds[name])
        changed = replace(view, sounds=sounds, words=words)
        shortened = frozenset(sounds if self.kind.shortens else ())
        return Change(changed, self.kind.effects, drawn, retimed=self.kind.times != "keep", shortened=shortened)

    def _applied(self, sound: Sound, rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        with libraries.seeded(rng), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                audio_CT, drawn = self.apply(sound)
            except Exception as error:  # noqa: BLE001 - it has classes of its own for what it does not take
                raise VetoError("not_applicable", f"{self.name}: {libraries.first_line(error)}") from None
        return audio_CT, {key: _plain(value) for key, value in drawn.items() if key != "should_apply"}

    def _timed(self, words: tuple[WordTime, ...], drawn: Mapping[str, Any], after: Sound) -> tuple[WordTime, ...]:
        if self.kind.times == "cut":
            return ()
        if self.kind.times == "keep":
            return words
        length_s = after.audio_CT.shape[1] / after.rate_hz
        inside = (word for word in words if (word.start_s + word.end_s) / 2 <= length_s * float(drawn["rate"]))
        return faster(inside, float(drawn["rate"]))

    def _check_speech(self, view: View, name: str, drawn: Mapping[str, Any], after: Sound) -> None:
        """Where the end of the sound was cut, the texts that it speaks hold no more."""
        if self.kind.times == "stretch" and view.spoken.get(name):
            before = view.sounds[name]
            if after.audio_CT.shape[1] * float(drawn["rate"]) < before.audio_CT.shape[1] - _SHORTEST_S * before.rate_hz:
                raise VetoError("cut_speech", f"{self.name} cuts the end of '{name}': leave_length_unchanged: false")


def faster(words: Iterable[WordTime], factor: float) -> tuple[WordTime, ...]:
    """Times in a sound that is `factor` times as fast."""
    return tuple(WordTime(word.word, word.start_s / factor, word.end_s / factor) for word in words)


def check_length(name: str, sound: Sound) -> None:
    """Raises VetoError `too_short`."""
    if sound.audio_CT.shape[1] < _SHORTEST_S * sound.rate_hz:
        raise VetoError("too_short", f"'{name}' has {sound.audio_CT.shape[1]} samples, less than {_SHORTEST_S} s")


def as_sound(audio_CT: np.ndarray[Any, Any], rate_hz: int) -> tuple[Sound, dict[str, Any]]:
    """Float32 between -1 and 1; what was cut off there is told."""
    audio_CT = np.atleast_2d(np.asarray(audio_CT, np.float32))
    peak = float(np.abs(audio_CT).max()) if audio_CT.size else 0.0
    clipped = {"clipped_peak": round(peak, 4)} if peak > 1.0 else {}
    return Sound(np.clip(audio_CT, -1.0, 1.0), rate_hz), clipped


def _plain(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        return round(float(value), 9)
    if isinstance(value, np.integer):
        return int(value)
    return value if isinstance(value, (bool, int, str, type(None))) else str(value)[:80]
