"""Deterministic tar: the same members give the same bytes, on any machine, at any time.

ustar headers (POSIX.1-1988) with mtime 0, owner 0 and mode 0644. Names are ids and extensions, ASCII and short, so no
extended header is ever needed, and a header is a template with name, size and checksum filled in: the standard library
takes longer for a header than for the 20 KB behind it. A test holds each header against `tarfile`'s own.
"""

from __future__ import annotations

from io import FileIO
from typing import BinaryIO, Final, Protocol

from mmdata.errors import FatalError

BLOCK_BYTES: Final = 512
_NAME_BYTES: Final = 100
_SIZE_LIMIT: Final = 8**11
# After the name: mode, uid, gid; after the size: mtime; after the checksum: type, link name, magic, version, and empty
# names of owner and group, device numbers, prefix and padding.
_BEFORE_SIZE: Final = b"0000644\x000000000\x000000000\x00"
_AFTER_SIZE: Final = b"00000000000\x00"
_TAIL: Final = b"0" + bytes(100) + b"ustar\x0000" + bytes(64 + 16 + 167)
_FIXED_SUM: Final = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(b" " * 8) + sum(_TAIL)
# Two zero blocks end an archive; `tarfile` pads to 20 blocks, which no reader needs.
END_BYTES: Final = 2 * BLOCK_BYTES


# Written at once: a system call for each member costs as much as its copy.
_BUFFER_BYTES: Final = 1 << 20


class Writable(Protocol):
    """What a `TarWriter` needs of a file."""

    def write(self, data: bytes, /) -> int:
        """Write all of it."""


class TarWriter:
    """Appends members to an open file and says where each payload begins.

    Attributes:
        offset: bytes added so far; the last of them reach the file in `finish`.
    """

    def __init__(self, file: Writable) -> None:
        """Write to `file`, from its beginning."""
        self._file = file
        self._pending: list[bytes] = []
        self._written = 0
        self.offset = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one member; returns the offset of its payload's first byte."""
        begins = self.offset + BLOCK_BYTES
        self._append(_header(name, len(data)), data, bytes(-len(data) % BLOCK_BYTES))
        if self.offset - self._written >= _BUFFER_BYTES:
            self._write()
        return begins

    def finish(self) -> None:
        """Write what is left, and the end of the archive."""
        self._append(bytes(END_BYTES))
        self._write()

    def _append(self, *pieces: bytes) -> None:
        self._pending += pieces
        self.offset += sum(map(len, pieces))

    def _write(self) -> None:
        self._file.write(b"".join(self._pending))
        self._pending.clear()
        self._written = self.offset


def _header(name: str, size: int) -> bytes:
    """Raises ValueError for what ustar cannot say: a name over 100 bytes, 8 GiB or more."""
    raw = name.encode("ascii")
    if len(raw) > _NAME_BYTES or size >= _SIZE_LIMIT:
        raise ValueError(f"'{name}' of {size} bytes does not fit a ustar header")
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(raw) + sum(digits))
    return b"".join((raw.ljust(_NAME_BYTES, b"\0"), _BEFORE_SIZE, digits, _AFTER_SIZE, checksum, _TAIL))


def read_range(file: BinaryIO | FileIO, offset: int, size: int) -> bytes:
    """`size` bytes at `offset`. Raises FatalError where the file is shorter: it was changed after it was written."""
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        there = f"{size} bytes wanted at {offset}, {len(data)} there"
        raise FatalError(f"{file.name} was changed on disk: {there}; delete the part, this and the .parquet beside it")
    return data
