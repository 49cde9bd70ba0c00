"""Deterministic tar: the same members give the same bytes, on any machine, at any time.

ustar headers with mtime 0, owner 0 and mode 0644, built with the standard library's own `TarInfo`; names are ids and
extensions, ASCII and short, so no extended header is ever needed.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import BinaryIO, Final

BLOCK_BYTES: Final = 512
# Two zero blocks end an archive; `tarfile` pads to 20 blocks, which no reader needs.
_END: Final = b"\0" * (2 * BLOCK_BYTES)


class TarWriter:
    """Appends members to an open file and says where each payload begins.

    Attributes:
        offset: bytes written so far.
        sha256: running digest of all bytes written.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Write to `file`, from its beginning."""
        self._file = file
        self.offset = 0
        self.sha256 = hashlib.sha256()

    def add(self, name: str, data: bytes) -> int:
        """Append one member; returns the offset of its payload's first byte."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        header = info.tobuf(format=tarfile.USTAR_FORMAT)
        self._write(b"".join((header, data, b"\0" * (-len(data) % BLOCK_BYTES))))
        return self.offset - len(data) - (-len(data) % BLOCK_BYTES)

    def finish(self) -> None:
        """Write the end of the archive."""
        self._write(_END)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.sha256.update(data)
        self.offset += len(data)


def stored_bytes(payload_bytes: int) -> int:
    """What a payload takes in a tar, its header and padding included."""
    return BLOCK_BYTES + payload_bytes + (-payload_bytes % BLOCK_BYTES)


def read_range(file: BinaryIO, offset: int, size: int) -> bytes:
    """`size` bytes at `offset`. Raises OSError where the file is shorter: it was changed after it was written."""
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise OSError(f"{Path(file.name).name}: {size} bytes wanted at {offset}, {len(data)} there")
    return data
