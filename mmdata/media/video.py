"""Video by PyAV: measured by a full decode, cut, made smaller; within limits.

Equal input gives equal bytes: encoders and muxers are told to be bit-exact.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from typing import Any, BinaryIO, Final

from mmdata.errors import SampleError
from mmdata.media.audio import UNKNOWN_CODEC
from mmdata.media.audio_write import WHOLE, Clip, cut_samples
from mmdata.media.broken_off import broken_off
from mmdata.media.clock import last_key_frame, seek_key_frame, since_beginning, told_length_s
from mmdata.media.upright import Turn, turn_of, upright_image, upright_rgb, upright_yuv

# What a container's short name is stored as. Playlists and scripts that name other files are not among them.
_KINDS: Final = {
    "mov,mp4,m4a,3gp,3g2,mj2": ("video/mp4", "mp4"),
    "matroska,webm": ("video/x-matroska", "mkv"),
    "avi": ("video/x-msvideo", "avi"),
    "mpeg": ("video/mpeg", "mpg"),
    "mpegts": ("video/mp2t", "ts"),
    "flv": ("video/x-flv", "flv"),
    "ogg": ("video/ogg", "ogv"),
}
_TICKS_A_SECOND: Final = 90_000  # MPEG's clock
_SLIP_S: Final = 1e-4  # of rounding
_MOST_MISSING_S: Final = 0.2  # of a piece: pictures end where the last of them does
_SOUND_HZ: Final = 48_000
_OVERHANG_S: Final = 1.0  # of sound that goes on after the pictures; where it begins is only what a container says


@dataclass(frozen=True)
class Limits:
    """Of a video: seconds, frames, and pixels of a frame."""

    max_duration_s: float
    max_frames: int
    max_pixels: int


_NO_LIMITS: Final = Limits(math.inf, sys.maxsize, sys.maxsize)


@dataclass(frozen=True)
class Target:
    """How video is stored.

    Attributes:
        encode: whether it is encoded anew, as H.264 with AAC in MP4; a piece of a recording always is.
        fps: frames a second at most; None: all there are.
        side_px: what the shorter side is made, if it is longer.
        sound: whether it keeps its sound.
        crf: quality of H.264, 0 (nothing lost) to 51; 18 is hardly to be told from the original.
        copy: whether a piece keeps its packets as they are: it then begins at the key frame before its time.
        whole: whether what breaks off is refused, and of its pieces the one in which it does.
    """

    encode: bool = False
    fps: float | None = None
    side_px: int | None = None
    sound: bool = True
    crf: int = 20
    copy: bool = False
    whole: bool = True


@dataclass(frozen=True)
class VideoInfo:
    """What a full decode found.

    Attributes:
        mime: of the container.
        extension: of its files, without a dot.
        width: as it is shown, pixels.
        height: likewise.
        duration_s: from the first frame to the end of the last.
        has_sound: whether there is a track of it.
        start_s: where a piece begins in its recording; None for a whole one.
    """

    mime: str
    extension: str
    width: int
    height: int
    duration_s: float
    has_sound: bool
    start_s: float | None = None


def open_video(source: bytes | BinaryIO) -> Any:
    """A container with moving pictures. Raises SampleError `not_video`."""
    import av
    from av.stream import Disposition

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        # As of sounds: tags may be in any encoding.
        options = {"protocol_whitelist": "", "format_whitelist": ",".join(_KINDS)}
        container: Any = av.open(file, options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise SampleError("not_video", f"not video that FFmpeg reads: {error}") from None
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        container.close()
        raise SampleError("not_video", f"a '{container.format.name}' file without moving pictures")
    if container.streams.video[0].codec_context is None:
        container.close()
        raise SampleError("not_video", UNKNOWN_CODEC)
    return container


def open_at(source: bytes | BinaryIO, at_s: float) -> tuple[Any, float]:
    """The same, to be read from the key frame on that is needed for a time; and when that is, since the beginning.

    Raises SampleError `not_video`, `bad_video`.
    """
    import av

    container = open_video(source)
    if at_s <= 0:
        return container, -math.inf
    try:
        key_s = seek_key_frame(container, at_s)
        if key_s is None:
            container = _again(container, source)
            key_s = last_key_frame(container, at_s)
            container = _again(container, source)
    except av.FFmpegError as error:
        container.close()
        raise SampleError("bad_video", f"cannot be read: {error.strerror}") from None
    return container, -math.inf if key_s is None else key_s


def _again(container: Any, source: bytes | BinaryIO) -> Any:
    container.close()
    if not isinstance(source, bytes):
        source.seek(0)
    return open_video(source)


# Pictures that went through an operator are encoded once more: the loss should not show.
_AS_IT_IS: Final = Target(encode=True, crf=18)


def normalise(data: bytes, target: Target, limits: Limits, clip: Clip | None = None) -> tuple[bytes, VideoInfo]:
    """The payload that is stored, and what it is.

    Raises SampleError: `not_video`, `truncated` (its container says that there is more), `bad_video` (corrupt),
    `no_video` (no frames within the clip), `too_long`, `too_many_frames`, `too_many_pixels`.
    """
    if target.whole and not clip and (missing := broken_off(data)):
        raise SampleError("truncated", missing)
    whole, start_s = data, clip[0] if clip else None
    if target.copy and clip:
        from mmdata.media.video_copy import copied

        source, key_s = open_at(data, clip[0])
        with source:
            data, start_s = copied(source, clip, key_s, sound=target.sound)
    elif target.encode or clip or target.fps or target.side_px or not target.sound:
        data = _encoded(data, target, limits, clip or WHOLE)
    info = replace(measure_video(data, limits), start_s=start_s)
    if target.whole and clip:
        _check_piece(whole, info.duration_s, clip)
    return data, info


def measure_video(data: bytes, limits: Limits) -> VideoInfo:
    """Decode everything once and measure it. Raises as `normalise` does."""
    with open_video(data) as container:
        kind = _KINDS[container.format.name]
        first = last = length = 0.0
        count, turn = 0, Turn()
        for frame in decoded(container, limits):
            last, length, count = since_beginning(container, frame), _length(frame, container), count + 1
            if count == 1:
                first, turn = last, turn_of(frame)
            _check(last - first, count, limits)
        if count == 0:
            raise SampleError("no_video", "no frame")
        return VideoInfo(*kind, *_size(container, turn), last - first + length, bool(container.streams.audio))


def _size(container: Any, turn: Turn) -> tuple[int, int]:
    """Width and height as they are shown."""
    stored = container.streams.video[0].codec_context
    return turn.size(stored.width, stored.height)


def stills(file: BinaryIO, times_s: Sequence[float], limits: Limits) -> list[Any]:
    """The frames shown at some times since the beginning, as Pillow images; the last there is for times after it."""
    found: list[Any] = []
    wanted = sorted(times_s)
    container, _ = open_at(file, wanted[0] if wanted else 0.0)
    with container:
        shown = None
        for frame in decoded(container, limits):
            at_s = since_beginning(container, frame)
            while len(found) < len(wanted) and shown is not None and at_s > wanted[len(found)]:
                found.append(upright_image(shown))
            if len(found) == len(wanted):
                return found
            shown = frame
        while shown is not None and len(found) < len(wanted):
            found.append(upright_image(shown))
    return found


def spread_stills(data: bytes, count: int) -> list[Any]:
    """Frames from the middles of `count` equal pieces, as Pillow images; of a film that was taken in, without limits.

    Raises SampleError: `not_video`, `bad_video`, `no_video`.
    """
    with open_video(data) as container:
        length_s = told_length_s(container)
    if not length_s:  # a stream that was never closed
        length_s = measure_video(data, _NO_LIMITS).duration_s
    found = stills(io.BytesIO(data), [length_s * (piece + 0.5) / count for piece in range(count)], _NO_LIMITS)
    if not found:
        raise SampleError("no_video", "no frame")
    return found


def decoded(container: Any, limits: Limits) -> Iterator[Any]:
    """Frames, none of them larger than the limit. Raises SampleError `too_many_pixels`, `bad_video`."""
    import av

    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    try:
        _check_size(stream.codec_context, limits)
        for frame in container.decode(stream):
            _check_size(frame, limits)
            yield frame
    # The last is PyAV's of a stream that FFmpeg only finds within.
    except (av.FFmpegError, IndexError) as error:
        raise SampleError("bad_video", f"cannot be decoded: {getattr(error, 'strerror', error)}") from None


def _check_piece(whole: bytes, there_s: float, clip: Clip) -> None:
    wanted_s = clip[1] - clip[0]
    if math.isfinite(wanted_s) and there_s < wanted_s - _MOST_MISSING_S and (missing := broken_off(whole)):
        raise SampleError("truncated", f"{missing}: {there_s:.2f} s of a piece of {wanted_s:.2f} s")


def _check_size(size: Any, limits: Limits) -> None:
    if size.width * size.height > limits.max_pixels:
        shown = f"{size.width} x {size.height}"
        raise SampleError("too_many_pixels", f"frames of {shown}, more than max_pixels: {limits.max_pixels}")


def _check(duration_s: float, frames: int, limits: Limits) -> None:
    if duration_s > limits.max_duration_s:
        raise SampleError("too_long", f"more than max_duration_s: {limits.max_duration_s:g}")
    if frames > limits.max_frames:
        raise SampleError("too_many_frames", f"more than max_frames: {limits.max_frames}")


def _length(frame: Any, container: Any) -> float:
    """How long a frame is shown, seconds."""
    if frame.duration and frame.time_base:
        return float(frame.duration * frame.time_base)
    rate = container.streams.video[0].average_rate
    return float(1 / rate) if rate else 0.0


# --- encode ----------------------------------------------------------------------------------------------------------


def _encoded(data: bytes, target: Target, limits: Limits, clip: Clip) -> bytes:
    import av

    buffer = io.BytesIO()
    options = {"fflags": "+bitexact"}
    opened, _ = open_at(data, clip[0])
    with (
        opened as source,
        open_video(data) as heard,
        av.open(buffer, "w", format="mp4", options=options) as out,
    ):
        shown = _shown(source, target, limits, clip)
        first = next(shown)
        picture = _picture_stream(out, source, target, turn_of(first))
        sound = _sound_stream(out) if target.sound and heard.streams.audio else None
        for frame in chain([first], shown):
            small = upright_yuv(frame, picture.width, picture.height)
            small.pts, small.time_base = frame.pts, Fraction(1, _TICKS_A_SECOND)
            out.mux(picture.encode(small))
        out.mux(picture.encode(None))
        if sound is not None:
            _copy_sound(out, sound, heard, clip, limits)
    return buffer.getvalue()


def _copy_sound(
    out: Any, sound: Any, heard: Any, clip: Clip, limits: Limits, made_of: Callable[[Any], Any] | None = None
) -> None:
    import av

    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=_SOUND_HZ)
    done = 0
    for part in cut_samples(heard, resampler, _SOUND_HZ, clip):
        part.pts = done
        done += part.samples
        _check(done / _SOUND_HZ - _OVERHANG_S, 0, limits)
        out.mux(sound.encode(_made_of(part, made_of) if made_of else part))
    out.mux(sound.encode(None))


def _made_of(part: Any, function: Callable[[Any], Any]) -> Any:
    """A frame of planar channels with what a function makes of them, `[C, T]`."""
    import av

    made = av.AudioFrame.from_ndarray(function(part.to_ndarray()), format=part.format.name, layout=part.layout.name)
    made.rate, made.time_base, made.pts = part.rate, part.time_base, part.pts
    return made


def frames_of_film(data: bytes, limits: Limits, max_bytes: int) -> list[Any]:
    """All frames, uint8 `[H, W, 3]`. Raises SampleError as `normalise` does, `too_many_frames` for their bytes too."""
    frames: list[Any] = []
    with open_video(data) as source:
        for frame in _shown(source, _AS_IT_IS, limits, WHOLE):
            frames.append(upright_rgb(frame))
            if len(frames) * frames[0].nbytes > max_bytes:
                raise SampleError("too_many_frames", f"its frames take more than {max_bytes >> 20} MiB")
    return frames


def redrawn(data: bytes, frames: Sequence[Any], limits: Limits, made_of: Callable[[Any], Any] | None = None) -> bytes:
    """The film with another picture for each of its frames, as H.264 and AAC in MP4; times and sound stay.

    `made_of` makes others of the two channels of its sound, float32 `[C, T]`, a stretch at a time.
    """
    import av

    buffer = io.BytesIO()
    with (
        open_video(data) as source,
        open_video(data) as heard,
        av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as out,
    ):
        picture = _picture_stream(out, source, _AS_IT_IS, Turn())
        picture.width, picture.height = (max(2, round(side / 2) * 2) for side in frames[0].shape[1::-1])
        sound = _sound_stream(out) if heard.streams.audio else None
        for old, rgb_HWC in zip(_shown(source, _AS_IT_IS, limits, WHOLE), frames, strict=True):
            frame = av.VideoFrame.from_ndarray(rgb_HWC, format="rgb24")
            new = frame.reformat(width=picture.width, height=picture.height, format="yuv420p")
            new.pts, new.time_base = old.pts, Fraction(1, _TICKS_A_SECOND)
            out.mux(picture.encode(new))
        out.mux(picture.encode(None))
        if sound is not None:
            _copy_sound(out, sound, heard, WHOLE, limits, made_of)
    return buffer.getvalue()


def _picture_stream(out: Any, source: Any, target: Target, turn: Turn) -> Any:
    size, rate = _size(source, turn), source.streams.video[0].average_rate or Fraction(25)
    scale = min(1.0, target.side_px / min(size)) if target.side_px else 1.0
    rate = min(rate, Fraction(target.fps).limit_denominator(1001)) if target.fps else rate
    stream = out.add_stream("libx264", rate=rate)
    # H.264 with chroma at half the size wants even sides.
    stream.width, stream.height = (max(2, round(side * scale / 2) * 2) for side in size)
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, _TICKS_A_SECOND)
    # One thread: with more, the bytes may depend on how many.
    stream.codec_context.options = {"flags": "+bitexact", "preset": "veryfast", "crf": str(target.crf), "threads": "1"}
    return stream


def _sound_stream(out: Any) -> Any:
    stream = out.add_stream("aac", rate=_SOUND_HZ, layout="stereo")
    stream.codec_context.options = {"flags": "+bitexact"}
    return stream


def _shown(source: Any, target: Target, limits: Limits, clip: Clip) -> Iterator[Any]:
    """Frames of a clip, no more a second than asked for, their times counted from its beginning."""
    count, slot, last = 0, -1, -1
    for frame in decoded(source, limits):
        shown_s = since_beginning(source, frame)
        at = shown_s - clip[0]
        if shown_s >= clip[1]:
            break
        # The frame that is still shown when the clip begins is its first.
        if at + _length(frame, source) <= _SLIP_S:
            continue
        at = max(at, 0.0)
        ticks = round(at * _TICKS_A_SECOND)
        # Some go back, in AVI and after a seek in MPEG's program streams; no encoder takes them.
        if ticks <= last:
            continue
        last = ticks
        wanted = int(at * target.fps + 1e-6) if target.fps else slot + 1
        if wanted > slot:
            slot, count = wanted, count + 1
            _check(at, count, limits)
            frame.pts = ticks
            yield frame
    if count == 0:
        raise SampleError("no_video", "no frame within the clip")
