"""Our own audio operators: where times must be exact, and where libraries need recordings or more packages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator

from mmdata.augment.base import Change, Operator, Sound, VetoError, View
from mmdata.augment.time_crop import TimeCrop
from mmdata.document import nearest
from mmdata.spec import Frozen

_CHANGES: Final = frozenset({"audio"})
# Ratios of whole numbers up to this: a factor of 1.1 is 11/10; the finest that resampling tells apart.
_FINEST: Final = 1000


class _Own(Frozen):
    """What all of them share."""

    changes: frozenset[str] = Field(_CHANGES, exclude=True)
    needs_boxes: bool = Field(False, exclude=True)


def in_order(low_high: tuple[float, float], least: float = -math.inf, most: float = math.inf) -> tuple[float, float]:
    """The range. Raises ValueError where it is none."""
    if not least < low_high[0] <= low_high[1] <= most:
        above = f" above {least}" if least > -math.inf else ", the least first"
        raise ValueError(f"{list(low_high)} is no range{above}{f' up to {most}' if most < math.inf else ''}")
    return low_high


class Speed(_Own):
    """Faster or slower by resampling, so that the pitch changes too, as `sox speed` does; word times follow."""

    name: str = Field("speed", exclude=True)
    factor: tuple[float, float] = Field((0.9, 1.1), description="least and most of how many times as fast")

    @field_validator("factor")
    @classmethod
    def _range(cls, factor: tuple[float, float]) -> tuple[float, float]:
        return in_order(factor, 0.1, 10.0)

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Resample every sound. Raises VetoError `too_short`."""
        from mmdata.augment.audio import check_length, faster

        drawn = round(float(rng.uniform(*self.factor)) * _FINEST) / _FINEST
        sounds, words = dict(view.sounds), dict(view.words)
        for name, sound in view.sounds.items():
            check_length(name, sound)
            sounds[name] = Sound(resampled(sound.audio_CT, drawn), sound.rate_hz)
            if name in words:
                words[name] = faster(words[name], drawn)
        changed = replace(view, sounds=sounds, words=words)
        return Change(changed, frozenset({"tempo", "pitch"}), {"factor": drawn}, retimed=True)


def resampled(audio_CT: np.ndarray[Any, Any], factor: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Played `factor` times as fast: fewer samples at the same rate; a polyphase filter against aliases."""
    from scipy.signal import resample_poly

    ratio = math.gcd(round(factor * _FINEST), _FINEST)
    up, down = _FINEST // ratio, round(factor * _FINEST) // ratio
    return np.asarray(np.clip(resample_poly(audio_CT, up, down, axis=1), -1.0, 1.0), np.float32)


class AddNoise(_Own):
    """Noise at a given ratio of the sound's power to the noise's, exactly."""

    name: str = Field("add_noise", exclude=True)
    snr_db: tuple[float, float] = Field((10.0, 30.0), description="least and most, decibels")
    colour: Literal["white", "pink"] = Field("white", description="equal power a hertz, or an octave")

    @field_validator("snr_db")
    @classmethod
    def _range(cls, snr_db: tuple[float, float]) -> tuple[float, float]:
        return in_order(snr_db)

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Add to every sound. Raises VetoError `silent`."""
        snr_db = float(rng.uniform(*self.snr_db))
        sounds = {name: self._noisy(name, sound, snr_db, rng) for name, sound in view.sounds.items()}
        return Change(replace(view, sounds=sounds), frozenset({"noise"}), {"snr_db": round(snr_db, 3)})

    def _noisy(self, name: str, sound: Sound, snr_db: float, rng: np.random.Generator) -> Sound:
        power = float(np.mean(np.square(sound.audio_CT, dtype=np.float64))) if sound.audio_CT.size else 0.0
        if power <= 0:
            raise VetoError("silent", f"'{name}' is silence: no noise is in any ratio to it")
        noise_T: np.ndarray[Any, Any] = rng.standard_normal((sound.audio_CT.shape[1],))
        if self.colour == "pink":
            noise_T = _pink(noise_T)
        noise_T *= math.sqrt(power / float(np.mean(np.square(noise_T))) / 10 ** (snr_db / 10))
        noisy_CT = sound.audio_CT + noise_T[None]
        # Quieter as a whole, rather than cut at the top: that would be another ratio.
        return Sound((noisy_CT / max(1.0, float(np.abs(noisy_CT).max()))).astype(np.float32), sound.rate_hz)


def _pink(noise_T: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Power falls by 3 dB an octave: the spectrum's amplitude by the root of the frequency."""
    spectrum_F = np.fft.rfft(noise_T)
    spectrum_F /= np.sqrt(np.maximum(1.0, np.arange(spectrum_F.size)))
    return np.fft.irfft(spectrum_F, noise_T.size)


class Reverb(_Own):
    """A room: noise that decays by 60 dB in `rt60_s` as impulse response (Moorer 1979), behind the direct sound."""

    name: str = Field("reverb", exclude=True)
    rt60_s: tuple[float, float] = Field((0.2, 0.8), description="least and most time of decay by 60 dB, seconds")
    wet_db: tuple[float, float] = Field((-20.0, -6.0), description="least and most of reflected over direct power")

    @field_validator("wet_db")
    @classmethod
    def _wet_range(cls, wet_db: tuple[float, float]) -> tuple[float, float]:
        return in_order(wet_db)

    @field_validator("rt60_s")
    @classmethod
    def _range(cls, rt60_s: tuple[float, float]) -> tuple[float, float]:
        return in_order(rt60_s, 0.0)

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Reverberate every sound; its length and loudness stay."""
        rt60_s, wet_db = float(rng.uniform(*self.rt60_s)), float(rng.uniform(*self.wet_db))
        sounds = {name: _reverberated(sound, rt60_s, wet_db, rng) for name, sound in view.sounds.items()}
        drawn = {"rt60_s": round(rt60_s, 4), "wet_db": round(wet_db, 3)}
        return Change(replace(view, sounds=sounds), frozenset({"echo", "noise"}), drawn)


def _reverberated(sound: Sound, rt60_s: float, wet_db: float, rng: np.random.Generator) -> Sound:
    from scipy.signal import fftconvolve

    at_T = np.arange(1, round(rt60_s * sound.rate_hz) + 1) / sound.rate_hz
    # 60 dB are a factor of 1,000 in amplitude.
    tail_T = rng.standard_normal(at_T.size) * 10 ** (-3.0 * at_T / rt60_s)
    tail_T *= math.sqrt(10 ** (wet_db / 10) / float(np.sum(np.square(tail_T))))
    samples = sound.audio_CT.shape[1]
    wet_CT = np.stack([fftconvolve(audio_T, tail_T)[: samples - 1] for audio_T in sound.audio_CT])
    mixed_CT = sound.audio_CT.astype(np.float64)
    mixed_CT[:, 1:] += wet_CT
    return Sound((mixed_CT / max(1.0, float(np.abs(mixed_CT).max()))).astype(np.float32), sound.rate_hz)


OWN: Final[dict[str, type[Frozen]]] = {"speed": Speed, "time_crop": TimeCrop, "add_noise": AddNoise, "reverb": Reverb}


def own_operator(name: str, params: Mapping[str, Any]) -> Operator:
    """Raises ValueError that names the parameter."""
    found: Operator = validated(name, OWN[name], params)
    return found


def validated(name: str, cls: type[Frozen], params: Mapping[str, Any]) -> Any:
    """An operator that is a model; pydantic's first complaint becomes a sentence."""
    known = [field for field, info in cls.model_fields.items() if not info.exclude]
    for key in params:
        if key not in known:
            raise ValueError(f"{name}: unknown parameter '{key}'{nearest(key, known)}")
    try:
        return cls.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
