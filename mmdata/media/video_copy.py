"""A piece of a recording, its packets as they are: nothing is decoded, nothing lost, and it takes no time.

Packets between two key frames cannot be shown without the first: a piece begins at the key frame before its time, and
where that is, is told. Its end is exact to a packet.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from mmdata.errors import SampleError
from mmdata.media.audio_write import Clip
from mmdata.media.clock import beginning

# FFmpeg's muxer for what its demuxer calls by several names.
_MUXERS: Final = {"mov,mp4,m4a,3gp,3g2,mj2": "mp4", "matroska,webm": "matroska"}
_SLIP_S: Final = 1e-6  # of rounding


def copied(source: Any, clip: Clip, key_s: float, *, sound: bool) -> tuple[bytes, float]:
    """The piece from the key frame at `key_s` on, in the container format it came in, and where it begins, seconds.

    Times count from the beginning of the recording.

    Raises SampleError: `no_video` (no key frame before its end), `bad_video`.
    """
    import av

    kind = source.format.name
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format=_MUXERS.get(kind, kind), options={"fflags": "+bitexact"}) as out:
            begins_s = float(beginning(source))
            start_s = _copy(source, out, key_s + begins_s, clip[1] + begins_s, sound=sound)
    except (av.FFmpegError, ValueError) as error:
        raise SampleError("bad_video", f"cannot be cut: {error}") from None
    if start_s is None:
        raise SampleError("no_video", "no key frame before the end of the clip")
    return buffer.getvalue(), start_s - begins_s


def _copy(source: Any, out: Any, key_s: float, end_s: float, *, sound: bool) -> float | None:
    """By the packets' own clock."""
    picture = source.streams.video[0]
    heard = [source.streams.audio[0]] if sound and source.streams.audio else []
    target = {stream.index: out.add_stream_from_template(stream) for stream in (picture, *heard)}
    start_s: float | None = None
    early: list[Any] = []
    over: set[int] = set()
    for packet in _stamped(source.demux(picture, *heard)):
        index = packet.stream.index
        if packet.pts is None or index in over:
            continue
        # Pictures are stored in the order in which they are decoded: later ones may need one shown after the end.
        if float(packet.dts * packet.time_base) >= end_s:
            over.add(index)
            if len(over) == len(target):
                break
            continue
        if start_s is None:
            early.append(packet)
            shown_s = float(packet.pts * packet.time_base)
            if index != picture.index or not packet.is_keyframe or shown_s < key_s - _SLIP_S:
                continue
            start_s = shown_s
            wanted = [one for one in early if one is packet or _sounds(one, picture, start_s)]
        else:
            wanted = [packet] if index == picture.index or _sounds(packet, picture, start_s) else []
        for one in wanted:
            _mux(out, target, one, start_s)
    return start_s


def _stamped(packets: Iterator[Any]) -> Iterator[Any]:
    """Packets that all say when they are decoded.

    Matroska tells when they are shown alone. FFmpeg reckons the rest, but where pictures change places not of the first
    ones, and of those that a seek leads to the key frame is the first.
    """
    held: dict[int, list[Any]] = defaultdict(list)
    for packet in packets:
        index = packet.stream.index
        if packet.dts is not None:
            yield from _dated(held.pop(index, []), packet.dts)
            yield packet
        elif packet.pts is not None:
            held[index].append(packet)
    for late in held.values():  # a piece of so few that none was reckoned
        yield from _dated(late, min(packet.pts for packet in late))


def _dated(packets: list[Any], before: int) -> Iterator[Any]:
    """Each decoded a picture before the next."""
    for place, packet in enumerate(packets):
        packet.dts = before - (len(packets) - place) * max(packet.duration or 0, 1)
        yield packet


def _sounds(packet: Any, picture: Any, start_s: float) -> bool:
    """Whether it is a packet of sound that begins with the piece or later."""
    return packet.stream.index != picture.index and float(packet.pts * packet.time_base) >= start_s


def _mux(out: Any, target: dict[int, Any], packet: Any, start_s: float) -> None:
    offset = round(start_s / packet.time_base)
    packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
    packet.stream = target[packet.stream.index]
    out.mux(packet)
