"""A mirror, of what is heard and felt: left and right change places there as they do in the picture.

After a quarter turn nothing is on a side any more: what is heard is in the middle.

Shapes: C channels, the first axis; T samples in time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmdata.augment.base import Sides, Sound, VetoError, View

Array = NDArray[Any]
_NONE: Final = Sides()
STEREO: Final = Sides(swap=((0, 1),))


def sides_of(sound: str, channels: int, known: Mapping[str, Sides]) -> Sides:
    """Those of a sound: as `known` has them; one channel has none, and of two the first is the left one.

    Raises VetoError `sides_unknown`, `no_such_channel`.
    """
    sides = known.get(sound) or {1: _NONE, 2: STEREO}.get(channels)
    if sides is None:
        raise _unknown(sound, f"has {channels} channels")
    _check_channels(sound, channels, sides)
    return sides


def channels_heard(name: str, audio_CT: Array, sides: Sides, *, turned: bool) -> Array:
    """Channels with their sides exchanged; where the picture was turned, both have the mean, and none points aside."""
    if not turned:
        return _mirrored(name, audio_CT, sides)
    made = audio_CT.copy()
    for left, right in sides.swap:
        made[[left, right]] = audio_CT[[left, right]].mean(axis=0)
    made[list(sides.negate)] = 0
    return made


def sound_heard(name: str, sound: Sound, sides: Sides, *, turned: bool) -> Sound:
    """The same of a sound; the same one where both sides sound alike."""
    audio_CT = channels_heard(name, sound.audio_CT, sides, turned=turned)
    return sound if np.array_equal(audio_CT, sound.audio_CT) else Sound(audio_CT, sound.rate_hz)


def mirrored(view: View, left_alone: View) -> View:
    """The view with those tensors mirrored that are as in `left_alone`. Raises VetoError `sides_unknown`."""
    there = [name for name in view.members.get("tensor", ()) if name not in view.gone]
    for name in there:
        if name not in view.sides:
            raise _unknown(name, "may have a left and a right")
    tensors = dict(view.tensors)
    for name in there:
        if tensors[name] is left_alone.tensors[name]:
            tensors[name] = replace(tensors[name], value=_mirrored(name, tensors[name].value, view.sides[name]))
    return replace(view, tensors=tensors)


def _unknown(name: str, what: str) -> VetoError:
    fix = f"say what a mirror does to its channels: sides: {{{name}: {{swap: [[0, 1]], negate: [2]}}}}, or {{}}"
    return VetoError("sides_unknown", f"'{name}' {what}; {fix}")


def _check_channels(name: str, channels: int, sides: Sides) -> None:
    most = max([*(one for pair in sides.swap for one in pair), *sides.negate], default=-1)
    if most >= channels:
        raise VetoError("no_such_channel", f"'{name}' has {channels} channels, and `sides:` speaks of channel {most}")


def _mirrored(name: str, value: Array, sides: Sides) -> Array:
    _check_channels(name, len(value), sides)
    if sides.negate and value.dtype.kind not in "if":
        raise VetoError("no_numbers", f"'{name}' is {value.dtype}: it has no sign to change")
    made = value.copy()
    for left, right in sides.swap:
        made[[left, right]] = made[[right, left]]
    made[list(sides.negate)] = -made[list(sides.negate)]
    return made
