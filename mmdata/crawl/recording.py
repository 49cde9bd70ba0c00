"""Write WARC files (ISO 28500), by warcio: what a crawl saw."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, Final

from mmdata.net.fetcher import Answer
from mmdata.net.rights import RESERVED, Rights

_ROTATE_BYTES: Final = 512 << 20
_OPEN: Final = ".open"


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

    def write(self, answer: Answer, says: Rights) -> tuple[str, int]:
        """Append a page, and what it says to us in its own text: the file and how long it is now."""
        from warcio.statusandheaders import StatusAndHeaders
        from warcio.warcwriter import WARCWriter

        file = self._open()
        headers = StatusAndHeaders("200 OK", _headers(answer, says), protocol="HTTP/1.1")
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


def _headers(answer: Answer, says: Rights) -> list[tuple[str, str]]:
    """What we keep of a header: what decides how the page is read, and what its owner says.

    Also in the page: whoever reads the recording does not know by which name it was asked for.
    """
    kind = answer.declared or "application/octet-stream"
    found = [("Content-Type", f"{kind}; charset={answer.charset}" if answer.charset else kind)]
    told = says | Rights(answer.opt_out, answer.robots)
    tags = [tag for tag in (*told.opt_out, *told.robots) if tag != RESERVED]
    found += [("X-Robots-Tag", ", ".join(tags))] if tags else []
    found += [("TDM-Reservation", "1")] if RESERVED in told.opt_out else []
    found += [("ETag", answer.validators.etag)] if answer.validators.etag else []
    return [*found, ("Content-Length", str(len(answer.data)))]
