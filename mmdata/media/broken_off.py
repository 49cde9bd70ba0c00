"""Whether a file ends before its container says that it does: what decodes it keeps silent, and gives what is there.

By the bytes alone, in containers that tell the size of what they hold. AAC and most MP3 do not, nor does what was
written by somebody who could not go back; MPEG's streams and FLV only tell of what breaks off within a packet.
"""

from __future__ import annotations

import struct
from typing import Final

# Sizes of who wrote to a pipe and knew none.
NO_SIZE: Final = 0x7FFF_0000
_MOST_BOXES: Final = 100_000
_PAGE_HEAD: Final = 27
_EBML: Final = b"\x1a\x45\xdf\xa3"
_SEGMENT: Final = b"\x18\x53\x80\x67"
_HOLDERS: Final = {_SEGMENT: "segment", b"\x1f\x43\xb6\x75": "last cluster"}
# Ids of what a file and a segment hold are of four bytes, but for those of Void (1) and CRC-32 (1).
_SHORT: Final = frozenset({b"\xec", b"\xbf"})
_ID_BYTES: Final = 4
_PACK: Final = b"\x00\x00\x01\xba"
_FIRST_PACKET: Final = 0xBB
_FLV_TAGS: Final = frozenset({8, 9, 18})
_SYNC: Final = 0x47
_TS_PACKETS: Final = (188, 192, 204)
_TS_TRIED: Final = 5


def broken_off(data: bytes) -> str | None:
    """What is missing, as a sentence; None where nothing is, or where nobody can tell."""
    if data.startswith(_EBML):
        return _of_matroska(data)
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return _of_avi(data)
    if data.startswith(b"OggS"):
        return _of_ogg(data)
    if data[4:8] == b"ftyp":
        return _of_mp4(data)
    if data.startswith(b"FLV\x01"):
        return _of_flv(data)
    return _of_ps(data) if data.startswith(_PACK) else _of_ts(data)


def _missing(what: str, end: int, data: bytes) -> str | None:
    return f"its {what} ends at byte {end}, and the file at {len(data)}" if end > len(data) else None


def _of_matroska(data: bytes) -> str | None:
    """RFC 8794: elements of an id, a size and so many bytes; a segment that was streamed has none, its clusters do."""
    at = 0
    for _ in range(_MOST_BOXES):
        length = 1 if data[at : at + 1] in _SHORT else _ID_BYTES
        name, (size, begin) = data[at : at + length], _vint(data, at + length)
        if name in _HOLDERS and size is not None:
            problem = _missing(_HOLDERS[name], begin + size, data)
            if problem or name == _SEGMENT:
                return problem
        if name == _SEGMENT:
            at = begin
        elif size is None or begin + size > len(data):
            return None
        else:
            at = begin + size
    return None


def _vint(data: bytes, at: int) -> tuple[int | None, int]:
    """A number of as many bytes as it has zero bits before the first one, and where it ends; all ones are unknown."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    most = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & most
    return None if first == 0 or value == most else value, at + length


def _of_avi(data: bytes) -> str | None:
    """Chunks of a name, a size and so many bytes; long files have several (OpenDML AVI, 1996)."""
    at = 0
    for _ in range(_MOST_BOXES):
        if data[at : at + 4] != b"RIFF":
            break
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if not 0 < size < NO_SIZE:
            return None
        if problem := _missing("chunk", at + 8 + size, data):
            return problem
        at += 8 + size + size % 2
    return None


def _of_ogg(data: bytes) -> str | None:
    """RFC 3533, section 6: the last page is a header, its segments' sizes, and they."""
    at = data.rfind(b"OggS")
    sizes = at + _PAGE_HEAD
    body = sizes + data[sizes - 1] if sizes <= len(data) else sizes
    return _missing("last page", body + sum(data[sizes:body]), data)


def _of_mp4(data: bytes) -> str | None:
    """ISO/IEC 14496-12, 4.2: boxes of a size, a name and so many bytes; 0 is the rest of the file."""
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 16 > len(data):
            break
        size, name = struct.unpack_from(">I4s", data, at)
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        # What else is appended to a file need not be a box.
        if name in {b"mdat", b"moov", b"moof"} and (problem := _missing(f"{name.decode()} box", at + size, data)):
            return problem
        if size < 8:  # noqa: PLR2004 - its own head
            break
        at += size
    return None


def _of_flv(data: bytes) -> str | None:
    """Adobe's FLV 10.1, annex E: a header, then tags of a kind, a size and so many bytes, each with its size behind."""
    at = int.from_bytes(data[5:9], "big") + 4
    while at < len(data):
        if data[at] & 0x1F not in _FLV_TAGS:
            return None
        at += 11 + int.from_bytes(data[at + 1 : at + 4], "big") + 4
    return _missing("last tag", at, data)


def _of_ps(data: bytes) -> str | None:
    """ITU-T H.222.0, 2.5.3: packs, of packets of a size and so many bytes; MPEG-1's begin another way."""
    at = 0
    while data[at : at + 3] == _PACK[:3] and at + 4 < len(data):
        kind = data[at + 3]
        if kind == _PACK[3]:
            # 01 begins the time of MPEG-2, 0010 that of MPEG-1.
            at += 14 + (data[at + 13] & 7 if at + 13 < len(data) else 0) if data[at + 4] >> 6 == 1 else 12
        elif kind < _FIRST_PACKET:
            # The end of the stream, or what no file has there.
            return None
        else:
            at += 6 + int.from_bytes(data[at + 4 : at + 6], "big")
    return _missing("last packet", at, data)


def _of_ts(data: bytes) -> str | None:
    """Packets of one size, each with the same byte (ITU-T H.222.0, 2.4.3.2); some have a time before it."""
    for size in _TS_PACKETS:
        first = 4 if size == 192 else 0  # noqa: PLR2004
        marks = data[first : _TS_TRIED * size : size]
        if len(marks) == _TS_TRIED and all(mark == _SYNC for mark in marks):
            more = -len(data) % size
            return _missing("last packet", len(data) + more, data)
    return None
