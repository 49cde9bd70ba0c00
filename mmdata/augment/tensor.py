"""Operators on tensors: what sensors felt, as channels over time.

Shapes: C channels, the first axis; T points in time, the last one. An array of one dimension is one channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from mmdata.augment.base import Change, Tensor, VetoError, View
from mmdata.spec import Frozen

Array = NDArray[Any]
_CHANGES: Final = frozenset({"tensor"})


class _Own(Frozen):
    """What all of them share."""

    members: list[str] = Field(default=[], description="tensors it changes; default: all")

    changes: frozenset[str] = Field(_CHANGES, exclude=True)
    needs_boxes: bool = Field(False, exclude=True)

    def _changed(self, view: View, one: Callable[[str, Array], Array]) -> View:
        return _changed(view, self.members, one)


def _changed(view: View, members: Iterable[str], one: Callable[[str, Array], Array]) -> View:
    """Each of the tensors through a function. Raises VetoError `no_tensor`."""
    wanted = list(members) or list(view.tensors)
    there = [name for name in wanted if name in view.tensors]
    if not there:
        raise VetoError("no_tensor", f"it has none of {', '.join(wanted)}" if wanted else "it has no tensor")
    tensors = {name: replace(view.tensors[name], value=one(name, view.tensors[name].value)) for name in there}
    return replace(view, tensors={**view.tensors, **tensors})


def _in_order(low_high: tuple[float, float], least: float, most: float = math.inf) -> tuple[float, float]:
    if not least < low_high[0] <= low_high[1] <= most:
        raise ValueError(f"{list(low_high)} is no range above {least}" + (f" up to {most}" if most < math.inf else ""))
    return low_high


class Jitter(_Own):
    """Noise of sensors (Um et al. 2017): Gaussian, at a given ratio of each channel's variance to the noise's power.

    A channel that never changes has none, and gets none. Whole numbers stay whole.
    """

    name: str = Field("jitter", exclude=True)
    snr_db: tuple[float, float] = Field((15.0, 30.0), description="least and most, decibels")

    @field_validator("snr_db")
    @classmethod
    def _range(cls, snr_db: tuple[float, float]) -> tuple[float, float]:
        return _in_order(snr_db, -math.inf)

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Add it. Raises VetoError `no_tensor`, `no_numbers`, `constant`."""
        snr_db = float(rng.uniform(*self.snr_db))

        def noisy(name: str, value: Array) -> Array:
            power_C1 = _variance(name, value)
            noise = rng.standard_normal(value.shape)
            noise *= np.sqrt(power_C1 / 10 ** (snr_db / 10) / np.mean(np.square(noise), axis=-1, keepdims=True))
            return _as(value.astype(np.float64) + noise, value.dtype)

        return Change(self._changed(view, noisy), frozenset({"strength"}), {"snr_db": round(snr_db, 3)})


def _variance(name: str, value: Array) -> Array:
    """Of each channel over time, of what is finite. Raises VetoError."""
    _check_numbers(name, value)
    known = np.where(np.isfinite(value), value.astype(np.float64), np.nan)
    filled = np.where(np.isnan(known), 0.0, known)
    count = np.maximum(1, np.count_nonzero(~np.isnan(known), axis=-1, keepdims=True))
    mean = filled.sum(axis=-1, keepdims=True) / count
    power = np.where(np.isnan(known), 0.0, np.square(filled - mean)).sum(axis=-1, keepdims=True) / count
    if not power.any():
        raise VetoError("constant", f"'{name}' never changes: no noise is in any ratio to it")
    return np.asarray(power)


class Scale(_Own):
    """Stronger or weaker, all channels of all tensors by one factor: what they are to each other stays."""

    name: str = Field("scale", exclude=True)
    factor: tuple[float, float] = Field((0.8, 1.25), description="least and most")

    @field_validator("factor")
    @classmethod
    def _range(cls, factor: tuple[float, float]) -> tuple[float, float]:
        return _in_order(factor, 0.0)

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Multiply. Raises VetoError `no_tensor`, `no_numbers`."""
        factor = float(rng.uniform(*self.factor))

        def scaled(name: str, value: Array) -> Array:
            _check_numbers(name, value)
            return _as(value.astype(np.float64) * factor, value.dtype)

        return Change(self._changed(view, scaled), frozenset({"strength"}), {"factor": round(factor, 6)})


class MaskTime(_Own):
    """A stretch of time in which all channels rest at their mean: a sensor that fell out."""

    name: str = Field("mask_time", exclude=True)
    share: tuple[float, float] = Field((0.05, 0.2), description="least and most of the time that is covered")

    @field_validator("share")
    @classmethod
    def _range(cls, share: tuple[float, float]) -> tuple[float, float]:
        return _in_order(share, 0.0, 1.0)

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Cover the same share of each. Raises VetoError `no_tensor`, `too_short`."""
        share = float(rng.uniform(*self.share))
        at = float(rng.uniform(0.0, 1.0 - share))

        def masked(name: str, value: Array) -> Array:
            first, last = (round(value.shape[-1] * bound) for bound in (at, at + share))
            if first >= last:
                raise VetoError(
                    "too_short", f"'{name}' has {value.shape[-1]} points in time: {share:.3f} of it is none"
                )
            made = value.copy()
            made[..., first:last] = _resting(value)
            return made

        changed = self._changed(view, masked)
        covered = frozenset(name for name, one in changed.tensors.items() if one is not view.tensors[name])
        drawn = {"from": round(at, 4), "to": round(at + share, 4)}
        return Change(changed, frozenset({"gap"}), drawn, shortened=covered)


def _resting(value: Array) -> Array:
    """The mean of each channel over time, in its own type; 0 where nothing is finite."""
    finite = np.isfinite(value)
    total = np.where(finite, value, 0).sum(axis=-1, keepdims=True, dtype=np.float64)
    mean = total / np.maximum(1, np.count_nonzero(finite, axis=-1, keepdims=True))
    return _as(mean, value.dtype)


class DropChannels(_Own):
    """Channels that are silent all the time: sensors that are not there. At least one stays."""

    name: str = Field("drop_channels", exclude=True)
    channels: tuple[int, int] = Field((1, 1), description="how many at least and at most")

    @field_validator("channels")
    @classmethod
    def _range(cls, channels: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= channels[0] <= channels[1]:
            raise ValueError(f"{list(channels)} is no range above 0")
        return channels

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Set them to zero. Raises VetoError `no_tensor`, `too_few_channels`."""
        drawn: dict[str, Any] = {}

        def dropped(name: str, value: Array) -> Array:
            there = value.shape[0] if value.ndim > 1 else 1
            if there <= self.channels[0]:
                raise VetoError("too_few_channels", f"'{name}' has {there} channels: nothing can go")
            count = int(rng.integers(self.channels[0], min(self.channels[1], there - 1) + 1))
            drawn[name] = sorted(int(one) for one in rng.choice(there, count, replace=False))
            made = value.copy()
            made[drawn[name]] = 0
            return made

        return Change(self._changed(view, dropped), drawn=drawn)


class MirrorChannels(_Own):
    """Left and right change places, as `sides:` of the policy says; texts follow.

    Only for what has no picture: `HorizontalFlip` mirrors tensors along with the picture.
    """

    name: str = Field("mirror_channels", exclude=True)

    def __call__(self, view: View, rng: np.random.Generator) -> Change:  # noqa: ARG002 - nothing is drawn
        """Mirror. Raises VetoError `pictures_stay`, `no_tensor`."""
        seen = [name for kind in ("image", "video") for name in view.members.get(kind, ()) if name not in view.gone]
        if seen:
            raise VetoError("pictures_stay", f"'{seen[0]}' would not be mirrored; HorizontalFlip does both")
        if not view.tensors:
            raise VetoError("no_tensor", "it has no tensor")
        # The policy mirrors every tensor of what is mirrored.
        return Change(replace(view), frozenset({"mirror"}), {"mirrored": sorted(view.tensors)})


OWN: Final[dict[str, type[Frozen]]] = {
    "jitter": Jitter,
    "scale": Scale,
    "mask_time": MaskTime,
    "drop_channels": DropChannels,
    "mirror_channels": MirrorChannels,
}


@dataclass(frozen=True)
class TensorOperator:
    """A function as an operator, for packages that offer their own by an entry point of the group `mmdata.operators`.

    Attributes:
        name: as the pipeline file has it.
        function: gives another tensor; all it draws comes from the generator. It may raise VetoError.
        effects: of `EFFECTS`: what it may do to what texts say.
        members: tensors it changes; none: all.
        retimed: whether it changes what is at which time.
    """

    name: str
    function: Callable[[Tensor, np.random.Generator], Tensor]
    effects: frozenset[str] = frozenset()
    members: tuple[str, ...] = ()
    retimed: bool = False
    changes: frozenset[str] = _CHANGES
    needs_boxes: bool = False

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Apply. Raises VetoError `no_tensor`, TypeError where the function gives no array."""
        wanted = [name for name in self.members or view.tensors if name in view.tensors]
        if not wanted:
            raise VetoError("no_tensor", f"it has none of {', '.join(self.members) or 'them'}")
        made = {name: self.function(view.tensors[name], rng) for name in wanted}
        for name, tensor in made.items():
            if not _is_tensor(tensor):
                raise TypeError(f"{self.name} made no tensor of numbers of '{name}'")
        changed = replace(view, tensors={**view.tensors, **made})
        return Change(changed, self.effects, {"members": wanted}, retimed=self.retimed)


def _is_tensor(made: object) -> bool:
    return isinstance(made, Tensor) and made.value.dtype.kind in "biuf" and made.value.size > 0


def _check_numbers(name: str, value: Array) -> None:
    if value.dtype.kind == "b":
        raise VetoError("no_numbers", f"'{name}' is {value.dtype}: there is no more and no less of it")


def _as(value: Array, dtype: np.dtype[Any]) -> Array:
    """In a type: whole numbers are rounded and kept within what it holds."""
    if dtype.kind in "iu":
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        # The greatest of 64 bits lies between two numbers that a float has.
        highest = float(most) if int(float(most)) <= most else float(np.nextafter(float(most), 0.0))
        return np.clip(np.rint(value), float(least), highest).astype(dtype)
    if dtype.kind == "b":
        return value >= 0.5  # noqa: PLR2004 - what most of it is
    with np.errstate(over="ignore"):
        return value.astype(dtype)
