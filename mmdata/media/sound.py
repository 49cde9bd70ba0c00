"""What can be told of a sound by its samples: loudness, noise, silence, clipping, bandwidth; in one pass, by blocks.

Shapes: C channels, T samples of a block, W windows of 20 ms, B frequency bins; audio_CT is float32, full scale is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mmdata.errors import SampleError
from mmdata.media.audio import frames_of, open_audio, resampled
from mmdata.media.loudness import Loudness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_BLOCK_S: Final = 1.0
_WINDOW_S: Final = 0.02
_FULL_SCALE: Final = 0.999
# So many samples in a row at full scale are cut off: the default of Audacity's "Find Clipping".
_CLIPPED_RUN: Final = 3
_FFT_SAMPLES: Final = 2048
# A band is there where its mean power is at most so far below the strongest: what resamplers leave is 80 dB and more.
_BAND_DB: Final = 70.0
# Samples that are zero say nothing of noise: a program wrote them.
_LEAST: Final = 1e-10
# Kim and Stern, "Robust signal-to-noise ratio estimation based on waveform amplitude distribution analysis" (2008),
# equation 9: log E|z| - E log|z| of speech (gamma distributed amplitudes of shape 0.4) in Gaussian noise, every 2.5 dB
# from -10 dB; computed by quadrature. Beyond its ends it tells nothing.
_WADA_FIRST_DB: Final = -10.0
_WADA_STEP_DB: Final = 2.5
_WADA: Final = (
    *(0.4121, 0.4160, 0.4238, 0.4382, 0.4618, 0.4967, 0.5435, 0.6012, 0.6673, 0.7387, 0.8123, 0.8853, 0.9558, 1.0225),
    *(1.0846, 1.1418, 1.1940, 1.2414, 1.2842, 1.3227, 1.3572, 1.3882, 1.4159, 1.4407, 1.4628, 1.4826, 1.5002, 1.5159),
    1.5300,
)


@dataclass(frozen=True)
class Sound:
    """What `measure_sound` found.

    Attributes:
        loudness_lufs: integrated, ITU-R BS.1770-4; None for silence and for less than 0.4 s.
        peak_dbfs: the highest sample; None for digital silence.
        silence: share of windows of 20 ms whose level is below a threshold.
        clipping: share of samples in runs of three and more at full scale.
        dc_offset: mean of the samples, of the channel where it is furthest from 0.
        bandwidth_hz: the highest frequency that is there; None for digital silence.
        snr_db: of speech in noise, -10 to 60, by the distribution of amplitudes; None for digital silence.
    """

    loudness_lufs: float | None
    peak_dbfs: float | None
    silence: float
    clipping: float
    dc_offset: float
    bandwidth_hz: float | None
    snr_db: float | None


def measure_sound(data: bytes, max_duration_s: float, silence_dbfs: float) -> Sound:
    """Decode and measure at most the first `max_duration_s` seconds, at the file's own rate.

    Raises SampleError: `not_audio`, `bad_audio` (corrupt), `no_audio` (no frames).
    """
    with open_audio(data) as container:
        return measure_track(container, max_duration_s, silence_dbfs)


def measure_track(container: Any, max_duration_s: float, silence_dbfs: float) -> Sound:
    """The same of the first sound track of an open container."""
    tally: _Tally | None = None
    for rate_hz, audio_CT, loudness in _blocks(container, max_duration_s):
        tally = tally or _Tally(rate_hz, loudness)
        tally.add(audio_CT)
    if tally is None:
        raise SampleError("no_audio", "0.00 s of audio")
    return tally.result(silence_dbfs)


def track_loudness(container: Any, max_duration_s: float) -> float | None:
    """Integrated loudness of the first sound track, LUFS. Raises SampleError as `measure_sound` does."""
    meter = None
    for _, _, meter in _blocks(container, max_duration_s):  # noqa: B007 - the last one has heard all
        pass
    return meter.integrated_lufs() if meter else None


def _blocks(container: Any, max_duration_s: float) -> Iterator[tuple[int, Floats, Loudness]]:
    """Rate, samples `[C, T]` of about a second, and the meter that has heard them."""
    import av

    held: list[Floats] = []
    resampler = meter = None
    total = 0
    for frame in frames_of(container):
        if resampler is None or meter is None:
            rate_hz, layout = frame.sample_rate, frame.layout
            resampler = av.AudioResampler(format="flt", layout=layout, rate=rate_hz)
            meter = Loudness(rate_hz, layout.name)
        frame.pts = None
        for out in resampled(resampler, frame):
            meter.add(out)
            samples_TC: Floats = out.to_ndarray().reshape(-1, len(layout.channels)).astype(np.float32, copy=False)
            held.append(samples_TC.T)
            total += out.samples
        if sum(one.shape[1] for one in held) >= _BLOCK_S * rate_hz:
            yield rate_hz, np.concatenate(held, axis=1), meter
            held = []
        if total >= max_duration_s * rate_hz:
            break
    if held and meter is not None:
        yield rate_hz, np.concatenate(held, axis=1), meter


@dataclass
class _Tally:
    """Sums over blocks."""

    rate_hz: int
    loudness: Loudness
    samples: int = 0
    peak: float = 0.0
    clipped: int = 0
    sums_C: Any = 0.0
    levels: list[Floats] = field(default_factory=list)
    power_B: Any = 0.0
    heard: int = 0
    magnitude: float = 0.0
    log_magnitude: float = 0.0

    def add(self, audio_CT: Floats) -> None:
        """One block."""
        loud_CT = np.abs(audio_CT)
        self.samples += audio_CT.shape[1]
        self.peak = max(self.peak, float(loud_CT.max()))
        self.clipped += sum(_in_runs(one_T >= _FULL_SCALE) for one_T in loud_CT)
        self.sums_C = self.sums_C + audio_CT.sum(axis=1, dtype=np.float64)
        mono_T = audio_CT.mean(axis=0)
        self._add_levels(mono_T)
        self._add_spectrum(mono_T)
        self._add_amplitudes(mono_T)

    def _add_levels(self, mono_T: Floats) -> None:
        size = max(1, int(_WINDOW_S * self.rate_hz))
        cut_T = mono_T[: len(mono_T) // size * size] if len(mono_T) > size else mono_T
        self.levels.append(np.square(cut_T.reshape(-1, min(size, len(cut_T)))).mean(axis=1))

    def _add_spectrum(self, mono_T: Floats) -> None:
        # What is left over at the end of a block is left out, but for a sound that is shorter than a window.
        size = min(_FFT_SAMPLES, len(mono_T))
        cut_T = mono_T[: len(mono_T) // size * size].reshape(-1, size)
        spectrum = np.fft.rfft(cut_T * _window(size), _FFT_SAMPLES, axis=1)
        self.power_B = self.power_B + np.square(np.abs(spectrum)).sum(axis=0, dtype=np.float64)

    def _add_amplitudes(self, mono_T: Floats) -> None:
        heard_T = np.abs(mono_T - mono_T.mean(), dtype=np.float64)[mono_T != 0]
        heard_T = heard_T[heard_T > _LEAST]
        self.heard += len(heard_T)
        self.magnitude += float(heard_T.sum())
        self.log_magnitude += float(np.log(heard_T).sum())

    def result(self, silence_dbfs: float) -> Sound:
        """Of all blocks."""
        levels_W = np.concatenate(self.levels)
        offsets_C = self.sums_C / self.samples
        return Sound(
            loudness_lufs=self.loudness.integrated_lufs(),
            peak_dbfs=20 * math.log10(self.peak) if self.peak > 0 else None,
            silence=float((levels_W < 10 ** (silence_dbfs / 10)).mean()),
            clipping=self.clipped / (self.samples * len(offsets_C)),
            dc_offset=float(offsets_C[np.abs(offsets_C).argmax()]),
            bandwidth_hz=self._bandwidth(),
            snr_db=self._snr(),
        )

    def _bandwidth(self) -> float | None:
        # The constant is no sound.
        power_B = np.asarray(self.power_B)[1:]
        if power_B.max() <= 0:
            return None
        there = np.flatnonzero(power_B >= power_B.max() * 10 ** (-_BAND_DB / 10))
        return float((there[-1] + 1) * self.rate_hz / _FFT_SAMPLES)

    def _snr(self) -> float | None:
        if not self.heard:
            return None
        statistic = math.log(self.magnitude / self.heard) - self.log_magnitude / self.heard
        decibels = _WADA_FIRST_DB + _WADA_STEP_DB * np.arange(len(_WADA))
        return float(np.interp(statistic, _WADA, decibels))


def _window(size: int) -> Floats:
    """Harris, "On the use of windows" (1978), 4-term Blackman-Harris: what leaks elsewhere is 92 dB below."""
    turns = 2 * np.pi * np.arange(size) / size
    terms = (weight * np.cos(n * turns) for n, weight in enumerate((0.35875, -0.48829, 0.14128, -0.01168)))
    return np.asarray(sum(terms), dtype=np.float32)


def _in_runs(full_T: NDArray[np.bool_]) -> int:
    """How many samples stand in runs of at least `_CLIPPED_RUN`."""
    if not full_T.any():
        return 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], full_T, [False]]).astype(np.int8)))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= _CLIPPED_RUN].sum())
