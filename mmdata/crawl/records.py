"""Read WARC files (ISO 28500) that may be damaged: what cannot be read of one costs itself."""

from __future__ import annotations

import io
import logging
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO, Final

from warcio.exceptions import ArchiveLoadFailed
from warcio.statusandheaders import StatusAndHeadersParserException

from mmdata.errors import SampleError
from mmdata.net.sniff import sniff

_BLOCK_BYTES: Final = 1 << 14
_SEARCH_BYTES: Final = 1 << 20
_MOST_HEADER_BYTES: Final = 1 << 20
# Text packs to a tenth, zeros to a thousandth. What is below the first bound is not worth to be called a bomb.
_UNPACKED_FREELY: Final = 64 << 20
_MOST_RATIO: Final = 300
_GZIP: Final = 16 + zlib.MAX_WBITS
_ANY_HEADER: Final = 32 + zlib.MAX_WBITS
_MEMBER: Final = b"\x1f\x8b\x08"
_PLAIN: Final = b"WARC/"
# What looks like a gzip member is tried out; in a file made of nothing else, not for ever.
_MOST_TRIED: Final = 1_000_000
_CHARSET: Final = re.compile(r"""charset\s{0,9}=\s{0,9}["']?([^\s"';,]{1,40})""", re.IGNORECASE)
_HTML: Final = frozenset({"text/html", "application/xhtml+xml"})
_NOT_UNDONE: Final = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})
# Kinds of records that archives offer beside the answers that they were made of (Common Crawl's names).
_MADE_OF_ANSWERS: Final = {
    "conversion": "texts that were taken out of pages, a WET file",
    "metadata": "facts about pages, a WAT file",
}
_TOLD_BY_RECORDS: Final = 20
_UNTOLD: Final = frozenset({"", "text/plain", "application/octet-stream", "application/unknown", "unknown/unknown"})
_SNIFFED_BYTES: Final = 1445
# What warcio raises over bytes that are no record: it was written for those that are.
_UNREADABLE: Final = (
    SampleError,
    ArchiveLoadFailed,
    StatusAndHeadersParserException,
    zlib.error,
    EOFError,
    ValueError,
    AttributeError,
    TypeError,
    IndexError,
)


@dataclass(frozen=True)
class Damage:
    """A record that cannot be read, and why."""

    offset: int
    message: str


@dataclass
class Record:
    """What a server once answered; its body can be read until the next record is asked for.

    Attributes:
        offset: in the file, of the record or the gzip member it is in.
        leads: whether reading can begin at that offset: it is the first in its member.
        url: that was asked for.
        headers: of HTTP, by name and value; for a resource its content type.
        is_whole: whether nothing was cut when it was recorded.
        failed: whether its body could not be read.
    """

    offset: int
    leads: bool
    url: str
    headers: list[tuple[str, str]]
    is_whole: bool
    _stream: Any = field(repr=False)
    _taken: bytearray = field(default_factory=bytearray, repr=False)
    failed: bool = False

    def header(self, name: str) -> str:
        """The first of that name; empty where there is none."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def charset(self) -> str | None:
        """As the content type says."""
        match = _CHARSET.search(self.header("content-type")[:1000])
        return match[1] if match else None

    def mime(self) -> str:
        """The media type: as declared, or by the first bytes where that says nothing. Raises SampleError."""
        declared = self.header("content-type").partition(";")[0].strip().lower()
        if declared not in _UNTOLD:
            return "text/html" if declared in _HTML else declared
        return sniff(self.body(_SNIFFED_BYTES, cut=True), declared)

    def body(self, max_bytes: int, *, cut: bool = False) -> bytes:
        """The body, its transfer and content coding undone; a longer one is cut, or an error.

        Raises SampleError: `bad_record`, `too_large`.
        """
        try:
            data = self._decoded(max_bytes)
        except _UNREADABLE as error:
            self.failed = True
            raise SampleError("bad_record", _told(error)) from None
        if len(data) > max_bytes and not cut:
            raise SampleError("too_large", f"more than {max_bytes} bytes")
        return data[:max_bytes]

    def _decoded(self, max_bytes: int) -> bytes:
        coded = self._coded(max_bytes)
        coding = self.header("content-encoding").strip().lower()
        # Many record a body decoded and its header as it came.
        if coding not in {"gzip", "x-gzip", "deflate"}:
            if coded and coding in _NOT_UNDONE and sniff(coded, None) == "application/octet-stream":
                raise SampleError("bad_record", f"content coding '{coding}', which is not read")
            return coded
        for window in (_ANY_HEADER, -zlib.MAX_WBITS):
            try:
                return zlib.decompressobj(window).decompress(coded, max_bytes + 1)
            except zlib.error:
                continue
        return coded

    def _coded(self, max_bytes: int) -> bytes:
        """The body without its transfer coding: as many bytes of it as may be needed."""
        from warcio.bufferedreaders import ChunkedDataReader

        wanted = 2 * max_bytes + _BLOCK_BYTES
        while len(self._taken) < wanted and (block := self._stream.read(_BLOCK_BYTES)):
            self._taken += block
        if self.header("transfer-encoding").strip().lower() != "chunked":
            return bytes(self._taken)
        return bytes(ChunkedDataReader(io.BytesIO(self._taken)).read(max_bytes + 1))


def records(file: BinaryIO, offset: int = 0) -> Iterator[Record | Damage]:
    """The answers in a WARC file from an offset on: records of other kinds are left out, and so is what failed.

    Where a record is damaged, reading goes on with the next that can be found. The file is read from one place at a
    time: another reader needs a file of its own.
    """
    file.seek(0)
    packed = file.read(len(_PLAIN)) != _PLAIN
    while True:
        member = _Member(file, offset, packed=packed)
        try:
            if member.is_end():
                return
            yield from _records(member)
            if not packed:
                return
            offset = member.end()
        except _UNREADABLE as error:
            if not member.told:
                yield Damage(member.at, _told(error))
            following = _next_start(file, member.at + 1, packed=packed)
            if following is None:
                return
            offset = following


def instead_of_answers(file: BinaryIO) -> str | None:
    """What a readable file without answers is made of, by its first records; None where that is nothing known."""
    from warcio.archiveiterator import ArchiveIterator

    file.seek(0)
    first = islice(ArchiveIterator(file, no_record_parse=True), _TOLD_BY_RECORDS)
    kinds = {str(record.rec_type) for record in first} - {"warcinfo"}
    return _MADE_OF_ANSWERS.get(kinds.pop()) if len(kinds) == 1 else None


def record_at(file: BinaryIO, offset: int) -> Record | None:
    """The answer whose record begins there; None where there is none that can be read."""
    found = next(records(file, offset), None)
    return found if isinstance(found, Record) and found.offset == offset else None


class _Member:
    """A gzip member, or what is left of a file that is not packed, as a stream within bounds.

    Attributes:
        at: offset of the record that is being read, or of its member.
        told: whether somebody else says that the record is damaged.
        header_bytes_left: so many may be read before there is a record.
    """

    def __init__(self, file: BinaryIO, offset: int, *, packed: bool) -> None:
        file.seek(offset)
        self.at = offset
        self.told = False
        self.header_bytes_left: int | None = None
        self.packed = packed
        self._file = file
        self._offset = offset
        self._unpack = zlib.decompressobj(_GZIP) if packed else None
        self._input = file.read(_BLOCK_BYTES)
        self._unpacked = 0

    def is_end(self) -> bool:
        return not self._input

    def end(self) -> int:
        """Offset of what follows the member; reads what is left of it."""
        while self.read(_BLOCK_BYTES):
            pass
        assert self._unpack is not None
        return self._file.tell() - len(self._unpack.unused_data)

    def read(self, size: int) -> bytes:
        """As files do. Raises SampleError `bad_record`, zlib.error."""
        data = self._unpacked_block(size) if self._unpack else self._block(size)
        if self.header_bytes_left is not None:
            self.header_bytes_left -= len(data)
            if self.header_bytes_left < 0:
                raise SampleError("bad_record", f"headers of more than {_MOST_HEADER_BYTES} bytes")
        return data

    def _block(self, size: int) -> bytes:
        data = self._input or self._file.read(size)
        data, self._input = data[:size], data[size:]
        return data

    def _unpacked_block(self, size: int) -> bytes:
        unpack = self._unpack
        assert unpack is not None
        while not unpack.eof:
            data = unpack.decompress(self._input, size)
            self._input = unpack.unconsumed_tail
            self._unpacked += len(data)
            packed = self._file.tell() - self._offset
            if self._unpacked > _UNPACKED_FREELY + _MOST_RATIO * packed:
                raise SampleError("bad_record", f"unpacks to more than {_MOST_RATIO} times its size")
            if data:
                return data
            if not self._input and not unpack.eof:
                self._input = self._file.read(_BLOCK_BYTES)
                if not self._input:
                    raise SampleError("bad_record", "the file ends within it")
        return b""


def _records(member: _Member) -> Iterator[Record]:
    """The answers of a member."""
    from warcio.bufferedreaders import BufferedReader
    from warcio.recordloader import ArcWarcRecordLoader

    # It warns of every URL with a blank.
    logging.getLogger("warcio.recordloader").setLevel(logging.ERROR)
    loader = ArcWarcRecordLoader(verify_http=False)
    reader = BufferedReader(member, _BLOCK_BYTES)
    begins, leads = member.at, True
    while True:
        member.header_bytes_left = _MOST_HEADER_BYTES
        line = _next_line(reader)
        if not line:
            return
        if not member.packed:
            member.at = begins + reader.tell() - reader.rem_length() - len(line)
        read = loader.parse_record_stream(reader, line, known_format="warc")
        member.header_bytes_left = None
        record = _answer(read, member.at, leads=leads)
        if record:
            yield record
            member.told = record.failed
        while read.raw_stream.read(_BLOCK_BYTES):
            pass
        if read.length is None or getattr(read.raw_stream, "limit", 0) > 0:
            raise SampleError("bad_record", "its length is not what it says")
        leads = not member.packed


def _next_line(reader: Any) -> bytes:
    """The first line of the next record; empty at the end."""
    while (line := bytes(reader.readline())) and not line.strip():
        pass
    return line


def _answer(read: Any, offset: int, *, leads: bool) -> Record | None:
    """A record as far as it is an answer of a server with what was asked for."""
    url = read.rec_headers.get_header("WARC-Target-URI")
    if not url or not url.startswith(("http://", "https://")):
        return None
    if read.rec_type == "response" and read.http_headers:
        if read.http_headers.get_statuscode() != "200":
            return None
        headers = [(str(name), str(value)) for name, value in read.http_headers.headers]
    elif read.rec_type == "resource":
        headers = [("Content-Type", read.content_type or "")]
    else:
        return None
    is_whole = read.rec_headers.get_header("WARC-Truncated") is None
    return Record(offset, leads, url, headers, is_whole, read.raw_stream)


def _next_start(file: BinaryIO, offset: int, *, packed: bool) -> int | None:
    """Where the next record begins, by how it looks."""
    mark = _MEMBER if packed else b"\r\n" + _PLAIN
    tried = 0
    while tried < _MOST_TRIED:
        file.seek(offset)
        block = file.read(_SEARCH_BYTES)
        found = block.find(mark)
        if found < 0:
            if len(block) < _SEARCH_BYTES:
                return None
            offset += len(block) - len(mark) + 1
            continue
        offset += found
        if not packed:
            return offset + 2
        tried += 1
        if _begins_record(block[found : found + _BLOCK_BYTES]):
            return offset
        offset += 1
    return None


def _begins_record(packed: bytes) -> bool:
    try:
        return zlib.decompressobj(_GZIP).decompress(packed, len(_PLAIN)) == _PLAIN
    except zlib.error:
        return False


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
