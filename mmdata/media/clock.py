"""The clock of a recording: times count from its beginning, whatever its packets say.

Broadcasts and what is cut out of them begin at any hour, MPEG-TS that FFmpeg writes at 1.4 s; players count from 0, and
subtitles beside a film are written by the player's clock.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Final

_MICROSECOND: Final = Fraction(1, 1_000_000)
# How far back a key frame is looked for at first; doubled until there is one.
_BACK_S: Final = 1.0


def beginning(container: Any) -> Fraction:
    """What its packets' clock says when it begins, seconds, exactly.

    Never below 0: what some containers hold before that is the start of a codec, which decoders throw away.
    """
    told = (container.start_time or 0) * _MICROSECOND
    if told <= 0:
        return Fraction(0)
    # It is told in microseconds; the stream that is first knows it by its own clock.
    exact = [s.start_time * s.time_base for s in container.streams if s.start_time is not None and s.time_base]
    nearest = min(exact, key=lambda one: abs(one - told), default=told)
    return nearest if abs(nearest - told) < _MICROSECOND else told


def told_length_s(container: Any) -> float:
    """How long a container says it is, seconds; 0 where it does not."""
    told_s = float(container.duration or 0) / 1_000_000
    # What Matroska says is when it ends.
    return max(0.0, told_s - float(beginning(container))) if container.format.name.startswith("matroska") else told_s


def seek(container: Any, at_s: float) -> None:
    """Go on at about a time since the beginning, or before."""
    container.seek(int((beginning(container) + Fraction(at_s)) / _MICROSECOND))


def since_beginning(container: Any, stamped: Any) -> float:
    """When a packet or a frame is shown, seconds; 0 where it does not say."""
    if stamped.pts is None or not stamped.time_base:
        return 0.0
    return float(stamped.pts * stamped.time_base - beginning(container))


def seek_key_frame(container: Any, at_s: float) -> float | None:
    """Go on where what is shown at a time can be decoded from, and say when its key frame is.

    MPEG's streams have no index: a seek ends anywhere between two key frames, and pictures up to the second would be
    lost. None: it has to be read from its beginning, where a seek does not lead either.
    """
    back_s = 0.0
    while at_s > back_s:
        seek(container, at_s - back_s)
        key_s = last_key_frame(container, at_s)
        if key_s is not None:
            seek(container, at_s - back_s)
            return key_s
        back_s = max(2 * back_s, _BACK_S)
    return None


def last_key_frame(container: Any, until_s: float) -> float | None:
    """When the last key frame is that comes from here on and not after a time."""
    begins, found = beginning(container), None
    for packet in container.demux(container.streams.video[0]):
        # AVI tells when pictures are decoded, not when they are shown.
        decoded = packet.pts if packet.dts is None else packet.dts
        shown = packet.dts if packet.pts is None else packet.pts
        if decoded is None or shown is None:
            continue
        if decoded * packet.time_base - begins > until_s:
            break
        if packet.is_keyframe and shown * packet.time_base - begins <= until_s:
            found = float(shown * packet.time_base - begins)
    return found
