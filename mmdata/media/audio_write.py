"""What is stored of sound: as it came, or cut to the sample and encoded as FLAC (nothing lost) or Opus (small).

Equal input gives equal bytes: encoders and muxers are told to be bit-exact.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Literal

from mmdata.errors import SampleError
from mmdata.media.audio import AudioInfo, check_length, check_piece, frames_of, measure_audio, open_audio, resampled
from mmdata.media.clock import seek, since_beginning

Encode = Literal["keep", "flac", "opus"]
Clip = tuple[float, float]

# RFC 6716, section 2: what Opus codes; all else is resampled to the first.
_OPUS_RATES: Final = (48_000, 24_000, 16_000, 12_000, 8_000)
WHOLE: Final[Clip] = (0.0, float("inf"))
_MOST_CHANNELS: Final = {"flac": 8, "opus": 2}
_DEEP: Final = frozenset({"s32", "s32p", "s64", "s64p"})
# What a container's index may be off by, and codecs need before they sound right (Opus: 80 ms).
_ROLL_S: Final = 1.0
_SETTLE_S: Final = 0.3
_MOST_BROKEN: Final = 100


@dataclass(frozen=True)
class Target:
    """How sound is stored.

    Attributes:
        encode: the codec; `keep` leaves files as they are, where no piece of them is asked for.
        rate_hz: of samples; None: as they came.
        mono: whether channels are mixed into one.
        bitrate_kbps: of Opus.
        whole: whether what breaks off is refused.
    """

    encode: Encode = "keep"
    rate_hz: int | None = None
    mono: bool = False
    bitrate_kbps: int = 64
    whole: bool = True


def normalise(data: bytes, target: Target, max_duration_s: float, clip: Clip | None = None) -> tuple[bytes, AudioInfo]:
    """The payload that is stored, and what it is.

    Raises SampleError as `measure_audio` does; `no_audio` where nothing sounds within `clip`.
    """
    changes = target.encode != "keep" or target.rate_hz or target.mono or clip
    if not changes:
        info = measure_audio(data, max_duration_s, whole=target.whole)
        # The sound of a film is not the film.
        if not info.has_video:
            return data, info
    return _encoded(data, target, max_duration_s, clip or WHOLE)


def _encoded(data: bytes, target: Target, max_duration_s: float, clip: Clip) -> tuple[bytes, AudioInfo]:
    import av

    codec = "opus" if target.encode == "opus" else "flac"
    buffer = io.BytesIO()
    with open_audio(data) as source:
        context = source.streams.audio[0].codec_context
        if context.format is None or not context.layout.channels:
            raise SampleError("bad_audio", "its header does not say what its samples are")
        rate = _rate(target, codec, context.sample_rate)
        layout = _layout(target, codec, context.layout)
        samples = _sample_format(codec, context.format.name)
        resampler = av.AudioResampler(format=samples, layout=layout, rate=rate)
        with av.open(buffer, "w", format="ogg" if codec == "opus" else "flac", options={"fflags": "+bitexact"}) as out:
            stream = out.add_stream("libopus" if codec == "opus" else "flac", rate=rate, layout=layout)
            stream.codec_context.format = samples
            stream.codec_context.options = {"flags": "+bitexact"}
            if codec == "opus":
                stream.codec_context.bit_rate = target.bitrate_kbps * 1000
            done = 0
            for frame in cut_samples(source, resampler, rate, clip):
                frame.pts = done
                done += frame.samples
                if done > max_duration_s * rate:
                    raise SampleError("too_long", f"more than max_duration_s: {max_duration_s:g}")
                out.mux(stream.encode(frame))
            if not done or clip == WHOLE:
                check_length(source, data, done / rate, whole=target.whole)
            elif target.whole and math.isfinite(clip[1]):
                check_piece(source, data, done / rate, clip[1] - clip[0])
            out.mux(stream.encode(None))
            channels = len(stream.layout.channels)
    kind = ("audio/ogg", "opus") if codec == "opus" else ("audio/flac", "flac")
    return buffer.getvalue(), AudioInfo(*kind, done / rate, rate, channels, has_video=False)


def _rate(target: Target, codec: str, rate_hz: int) -> int:
    wanted = target.rate_hz or rate_hz
    return wanted if codec == "flac" or wanted in _OPUS_RATES else _OPUS_RATES[0]


def _layout(target: Target, codec: str, layout: Any) -> str:
    if target.mono:
        return "mono"
    return str(layout.name) if len(layout.channels) <= _MOST_CHANNELS[codec] else "stereo"


def _sample_format(codec: str, name: str) -> str:
    if codec == "opus":
        return "flt"
    return "s32" if name in _DEEP else "s16"


def cut_samples(source: Any, resampler: Any, rate: int, clip: Clip) -> Iterator[Any]:
    """Resampled frames of an open container within a clip, the first and the last cut to the sample.

    Where the sound begins after the clip, as beside pictures it may, silence comes first.
    """
    first, last = round(clip[0] * rate), clip[1] * rate
    begun = False
    for at, out in _placed(source, resampler, rate, clip[0]):
        if not begun and at < last:
            yield from _silence(out, at - first)
        begun = True
        yield from _within(out, at, first, last)
        if at + out.samples >= last:
            return


def _placed(source: Any, resampler: Any, rate: int, from_s: float) -> Iterator[tuple[int, Any]]:
    """Resampled frames from about a time on, and at which sample of the recording each begins."""
    if from_s > _ROLL_S:
        seek(source, from_s - _ROLL_S)
    at: int | None = None
    for frame in chain(_settled(source, from_s) if from_s > _ROLL_S else frames_of(source), [None]):
        if at is None:
            at = round(since_beginning(source, frame) * rate) if frame else 0
        if frame:
            frame.pts = None
        for out in resampled(resampler, frame):
            yield at, out
            at += out.samples


def _silence(like: Any, samples: int) -> Iterator[Any]:
    """So much of it, in frames of at most a second."""
    import av

    while samples > 0:
        frame = av.AudioFrame(like.format.name, like.layout.name, min(samples, like.sample_rate))
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate = like.sample_rate
        samples -= frame.samples
        yield frame


def _settled(source: Any, from_s: float) -> Iterator[Any]:
    """Its frames from shortly before a time on, after a seek to longer before.

    In MPEG's streams a seek ends within a frame: the first are broken, and FFmpeg takes them for one too early or late.
    """
    for left in reversed(range(_MOST_BROKEN)):
        frames = frames_of(source)
        try:
            first = next((one for one in frames if since_beginning(source, one) >= from_s - _SETTLE_S), None)
        except SampleError:
            if not left:
                raise
            continue
        if first is not None:
            yield first
            yield from frames
        return


def _within(frame: Any, at: int, first: int, last: float) -> Iterator[Any]:
    """The part of a frame that is wanted; it begins at sample `at` of the recording."""
    import av

    begin, end = max(first - at, 0), min(last - at, frame.samples)
    if begin >= end:
        return
    if (begin, end) == (0, frame.samples):
        yield frame
        return
    # Planes have a row each; packed samples of all channels are one row.
    step = 1 if frame.format.is_planar else len(frame.layout.channels)
    part = frame.to_ndarray()[:, begin * step : round(end) * step]
    cut = av.AudioFrame.from_ndarray(part.copy(), format=frame.format.name, layout=frame.layout.name)
    cut.sample_rate = frame.sample_rate
    yield cut
