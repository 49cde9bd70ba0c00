"""WARC files (ISO 28500): what a crawl saw, and what others recorded. By warcio."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from mmdata.net.fetcher import Answer

_ROTATE_BYTES: Final = 512 << 20
_OPEN: Final = ".open"
# Beginnings of records, packed and plain.
_MAGIC: Final = (b"\x1f\x8b\x08", b"WARC/1.")
_SEARCH_BYTES: Final = 1 << 20


class Recorder:
    """Appends pages to `pages-00000.warc.gz`, ...; a file that is still written to has `.open` at its end."""

    def __init__(self, folder: Path, committed: dict[str, int]) -> None:
        """Go on in `folder`: what was written after the last commit is cut off."""
        self._folder = folder
        self._file: BinaryIO | None = None
        for path in sorted(folder.glob(f"pages-*{_OPEN}")):
            with path.open("r+b") as file:
                file.truncate(committed.get(path.name.removesuffix(_OPEN), 0))
            path.rename(path.with_name(path.name.removesuffix(_OPEN)))
        self._number = len(list(folder.glob("pages-*.warc.gz")))

    def write(self, answer: Answer) -> tuple[str, int]:
        """Append a page: the file and how long it is now."""
        from warcio.statusandheaders import StatusAndHeaders
        from warcio.warcwriter import WARCWriter

        file = self._open()
        headers = StatusAndHeaders("200 OK", _headers(answer), protocol="HTTP/1.1")
        writer = WARCWriter(file, gzip=True)
        record = writer.create_warc_record(
            answer.final_url, "response", payload=io.BytesIO(answer.data), http_headers=headers
        )
        writer.write_record(record)
        record.raw_stream.close()  # a temporary file of warcio's
        file.flush()
        done = (self._name, file.tell())
        if done[1] >= _ROTATE_BYTES:
            self.close()
        return done

    def close(self) -> None:
        """The file that is written to is finished."""
        if self._file is not None:
            self._file.close()
            self._file = None
            (self._folder / f"{self._name}{_OPEN}").rename(self._folder / self._name)
            self._number += 1

    @property
    def _name(self) -> str:
        return f"pages-{self._number:05d}.warc.gz"

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._file = (self._folder / f"{self._name}{_OPEN}").open("wb")
        return self._file


def _headers(answer: Answer) -> list[tuple[str, str]]:
    """What we keep of a header: what decides how the page is read, and what its owner says."""
    kind = answer.declared or "application/octet-stream"
    found = [("Content-Type", f"{kind}; charset={answer.charset}" if answer.charset else kind)]
    tags = [tag for tag in (*answer.opt_out, *answer.robots) if tag != "tdm-reservation"]
    found += [("X-Robots-Tag", ", ".join(tags))] if tags else []
    found += [("TDM-Reservation", "1")] if "tdm-reservation" in answer.opt_out else []
    found += [("ETag", answer.validators.etag)] if answer.validators.etag else []
    return [*found, ("Content-Length", str(len(answer.data)))]


@dataclass(frozen=True)
class Record:
    """One thing that was recorded.

    Attributes:
        offset: where its record begins in the file.
        url: that it was asked for by.
        status: of HTTP; 200 for a `resource`.
        headers: of HTTP, by name and value.
        data: the body, decoded; at most as long as was asked for, and a byte more where it is longer.
    """

    offset: int
    url: str
    status: int
    headers: tuple[tuple[str, str], ...]
    data: bytes

    def header(self, name: str) -> str:
        """The first header of that name, '' where there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


@dataclass(frozen=True)
class Damaged:
    """A place of the file where no record can be read."""

    offset: int
    detail: str


def read_records(path: Path, max_bytes: int) -> Iterator[Record | Damaged]:
    """All responses and resources of a WARC file; what cannot be read is passed over, and said."""
    with path.open("rb") as file:
        start: int | None = 0
        while start is not None:
            at = start
            try:
                for found in _from(file, start, max_bytes):
                    at = found.offset
                    yield found
                return
            except Exception as error:  # noqa: BLE001 - whatever a parser of hostile bytes raises
                # A record that was given out is whole: the damage is behind it.
                yield Damaged(at, f"after byte {at}: {' '.join(str(error).split())[:200] or type(error).__name__}")
                start = _next_beginning(file, at + 1)


def read_record(path: Path, offset: int, max_bytes: int) -> Record:
    """The record that begins at an offset."""
    with path.open("rb") as file:
        return next(_from(file, offset, max_bytes))


def _from(file: BinaryIO, start: int, max_bytes: int) -> Iterator[Record]:
    from warcio.archiveiterator import ArchiveIterator

    file.seek(start)
    iterator = ArchiveIterator(file, check_digests=True)
    for record in iterator:
        if record.format != "warc":
            raise ValueError("no WARC record")
        if record.rec_type not in {"response", "resource"}:
            continue
        data = record.content_stream().read(max_bytes + 1)
        # Asked for after the body: it reads on to the record's end.
        offset = iterator.get_record_offset()
        if record.digest_checker and record.digest_checker.passed is False:
            raise ValueError("its digest is wrong")
        yield Record(offset, record.rec_headers.get_header("WARC-Target-URI") or "", *_http(record), data)


def _http(record: Any) -> tuple[int, tuple[tuple[str, str], ...]]:
    if record.http_headers is None:
        return 200, (("Content-Type", record.rec_headers.get_header("Content-Type") or ""),)
    code = record.http_headers.get_statuscode()
    return int(code) if code.isdecimal() else 0, tuple(record.http_headers.headers)


def _next_beginning(file: BinaryIO, start: int) -> int | None:
    overlap = max(map(len, _MAGIC)) - 1
    while True:
        file.seek(start)
        block = file.read(_SEARCH_BYTES)
        places = [place for magic in _MAGIC if (place := block.find(magic)) >= 0]
        if places:
            return start + min(places)
        if len(block) < _SEARCH_BYTES:
            return None
        start += len(block) - overlap
