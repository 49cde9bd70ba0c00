"""Audio by PyAV: any codec FFmpeg reads, bounded in seconds.

Shapes: T samples in time; audio_T is mono float32 in [-1, 1].
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mmdata.errors import SampleError
from mmdata.media.broken_off import NO_SIZE, broken_off
from mmdata.media.clock import told_length_s

if TYPE_CHECKING:
    import numpy as np

SCORING_RATE_HZ = 16_000
UNKNOWN_CODEC: Final = "its codec is none that FFmpeg knows"

# What a container's short name is stored as.
_KINDS = {
    "wav": ("audio/wav", "wav"),
    "ogg": ("audio/ogg", "ogg"),
    "flac": ("audio/flac", "flac"),
    "mp3": ("audio/mpeg", "mp3"),
    "aac": ("audio/aac", "aac"),
    "aiff": ("audio/aiff", "aiff"),
    "mov,mp4,m4a,3gp,3g2,mj2": ("audio/mp4", "m4a"),
    "matroska,webm": ("audio/webm", "webm"),
    "asf": ("audio/x-ms-wma", "wma"),
    "amr": ("audio/amr", "amr"),
    "caf": ("audio/x-caf", "caf"),
    "wv": ("audio/x-wavpack", "wv"),
    "avi": ("video/x-msvideo", "avi"),
    "mpeg": ("video/mpeg", "mpg"),
    "mpegts": ("video/mp2t", "ts"),
    "flv": ("video/x-flv", "flv"),
}


@dataclass(frozen=True)
class AudioInfo:
    """What a full decode found; `has_video` where moving pictures go with it."""

    mime: str
    extension: str
    duration_s: float
    sample_rate: int
    channels: int
    has_video: bool


def measure_audio(data: bytes, max_duration_s: float, *, whole: bool = True) -> AudioInfo:
    """Decode everything once, in blocks, and measure it.

    Raises SampleError: `not_audio`, `bad_audio` (corrupt), `no_audio` (no frames), `too_long`, `not_finite`,
    `truncated` (it says that it is longer, and has to be `whole`).
    """
    import numpy as np
    from av.stream import Disposition

    with open_audio(data) as container:
        # A cover is a video stream to FFmpeg.
        has_video = any(not stream.disposition & Disposition.attached_pic for stream in container.streams.video)
        kind = _KINDS.get(container.format.name)
        if kind is None:
            raise SampleError("not_audio", f"container '{container.format.name}' is not one of {sorted(_KINDS)}")
        # No other codec holds what is no number; nobody could measure it.
        may_be_none = container.streams.audio[0].codec_context.name.startswith("pcm_f")
        rate = channels = frames = 0
        for frame in frames_of(container):
            rate, channels, frames = frame.sample_rate, len(frame.layout.channels), frames + frame.samples
            if frames > max_duration_s * rate:
                raise SampleError("too_long", f"more than max_duration_s: {max_duration_s:g}")
            if may_be_none and not np.isfinite(frame.to_ndarray()).all():
                raise SampleError("not_finite", f"a sample before {frames / rate:.2f} s is not finite")
        check_length(container, data, frames / (rate or 1), whole=whole)
    return AudioInfo(*kind, frames / rate, rate, channels, has_video)


def check_length(container: Any, data: bytes, there_s: float, *, whole: bool) -> None:
    """Raises SampleError: `no_audio` where nothing was decoded, `truncated` where there was more once.

    Of Ogg, Matroska, AVI, MP4 and MPEG-TS it is their bytes that count; of Matroska with sound alone its seconds too.
    AAC and MP3 without a header of its encoder do not say how long they are.
    """
    if there_s == 0:
        raise SampleError("no_audio", "0.00 s of audio")
    if not whole:
        return
    kind, stream = container.format.name, container.streams.audio[0]
    told_s = 0.0
    if kind == "wav":
        told_s = there_s * _times_of_wav(data)
    elif kind == "aiff" or (kind == "mp3" and _has_xing(data)):
        told_s = float((stream.duration or 0) * stream.time_base)
    elif kind.startswith("matroska") and not container.streams.video:
        told_s = told_length_s(container)
    if there_s < told_s - max(_MOST_MISSING_S, _MOST_MISSING * told_s):
        raise SampleError("truncated", f"{there_s:.2f} s of the {told_s:.2f} s that its header says")
    if missing := _broken_off(container, data):
        raise SampleError("truncated", f"{missing}, after {there_s:.2f} s")


def check_piece(container: Any, data: bytes, there_s: float, wanted_s: float) -> None:
    """Raises SampleError `truncated` where the end of a piece is missing because the recording breaks off within it."""
    if there_s < wanted_s - _MOST_MISSING_S and (missing := _broken_off(container, data)):
        raise SampleError("truncated", f"{missing}: {there_s:.2f} s of a piece of {wanted_s:.2f} s")


def _broken_off(container: Any, data: bytes) -> str | None:
    return broken_off(data) if container.format.name.partition(",")[0] in _TELL_BYTES else None


# What encoders add and decoders take away is less; so is what clocks are off by.
_MOST_MISSING_S: Final = 0.2
_MOST_MISSING: Final = 0.005
_TELL_BYTES: Final = frozenset({"ogg", "matroska", "avi", "mov", "mpegts"})
_MOST_CHUNKS: Final = 1000


def _times_of_wav(data: bytes) -> float:
    """How many times as long a WAV file says to be as it is. Of chunks, each a name, a size and so many bytes."""
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 >= len(data):
            break
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"data":
            return float(size / (len(data) - at - 8)) if size < NO_SIZE else 0.0
        at += 8 + size + size % 2
    return 0.0


def _has_xing(data: bytes) -> bool:
    """Whether the first frame of an MP3 says how many follow."""
    begin = 0
    if data.startswith(b"ID3"):
        begin = 10 + sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(data[6:10])))
    first = data[begin : begin + 200]
    return any(name in first for name in (b"Xing", b"Info"))


def decode_mono(
    data: bytes, max_duration_s: float, rate_hz: int = SCORING_RATE_HZ
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """audio_T at `rate_hz`, mono, at most the first `max_duration_s` seconds.

    Raises SampleError as `measure_audio` does.
    """
    import av
    import numpy as np

    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
    limit = int(max_duration_s * rate_hz)
    blocks: list[Any] = []
    there = 0
    with open_audio(data) as container:
        for frame in frames_of(container):
            frame.pts = None
            more = [out.to_ndarray()[0] for out in resampled(resampler, frame)]
            blocks += more
            there += sum(map(len, more))
            if there >= limit:
                break
        else:
            blocks += [out.to_ndarray()[0] for out in resampled(resampler, None)]
    if not blocks:
        raise SampleError("no_audio", "0.00 s of audio")
    return np.concatenate(blocks)[:limit]


def open_audio(data: bytes) -> Any:
    """A container of one self-contained stream of bytes. Raises SampleError `not_audio`."""
    import av

    try:
        # Only formats of one self-contained stream of bytes: a playlist or a concat script would open other files.
        # Tags are in whatever encoding a player of their time had; nobody reads them here.
        options = {"protocol_whitelist": "", "format_whitelist": _WHITELIST}
        container: Any = av.open(io.BytesIO(data), options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise SampleError("not_audio", f"not audio that FFmpeg reads: {error.strerror}") from None
    if not container.streams.audio:
        container.close()
        raise SampleError("not_audio", f"a '{container.format.name}' file without an audio stream")
    if container.streams.audio[0].codec_context is None:
        container.close()
        raise SampleError("not_audio", UNKNOWN_CODEC)
    return container


_WHITELIST = ",".join(_KINDS)


# From telemetry to ultrasound. FLAC has no more (RFC 9639, section 8.2); far beyond, FFmpeg's resampler fails.
_LEAST_RATE_HZ: Final = 100
_MOST_RATE_HZ: Final = (1 << 20) - 1


def frames_of(container: Any) -> Iterator[Any]:
    """Its decoded frames, all of one rate, layout and format: resamplers take no others.

    Raises SampleError `bad_audio`, also where they differ, as those of files that were put one behind the other may.
    """
    import av

    begins = None
    # Of a film, whose pictures may be read all the same.
    if container.streams.audio[0].codec_context is None:
        raise SampleError("bad_audio", UNKNOWN_CODEC)
    try:
        for frame in container.decode(audio=0):
            kind = (frame.sample_rate, frame.layout.name, frame.format.name)
            if begins is None:
                begins = kind
                if not _LEAST_RATE_HZ <= frame.sample_rate <= _MOST_RATE_HZ:
                    bounds = f"from {_LEAST_RATE_HZ} to {_MOST_RATE_HZ}"
                    raise SampleError("bad_audio", f"a rate of {frame.sample_rate} Hz; those {bounds} are read")
            if kind != begins:
                raise SampleError("bad_audio", f"it begins as {_kind(begins)}, and goes on as {_kind(kind)}")
            yield frame
    # The last is PyAV's of a stream that FFmpeg only finds within.
    except (av.FFmpegError, IndexError) as error:
        raise SampleError("bad_audio", f"cannot be decoded: {getattr(error, 'strerror', error)}") from None


def resampled(resampler: Any, frame: Any) -> list[Any]:
    """What a resampler makes of a frame, or of the end (None). Raises SampleError `bad_audio`."""
    import av

    try:
        return list(resampler.resample(frame))
    except av.FFmpegError as error:
        raise SampleError("bad_audio", f"cannot be resampled: {error.strerror}") from None


def _kind(kind: tuple[int, str, str]) -> str:
    return f"{kind[0]} Hz {kind[1]} {kind[2]}"
