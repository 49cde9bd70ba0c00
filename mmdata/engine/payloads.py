"""Where payloads come from: the text of a table, a file here or elsewhere, a piece of one, or what was fetched."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from mmdata.errors import SampleError
from mmdata.listing import on_the_web
from mmdata.steps.exchange import Ref
from mmdata.store.fetches import Fetched
from mmdata.store.remote import is_remote, read_range


class NotFetchedError(SampleError):
    """A server did not give it; another time it may."""


class Payloads:
    """Reads the payloads of a chunk, each file once for one input."""

    def __init__(self, fetches: Sequence[Path]) -> None:
        """`fetches`: fetch parts of the chunk, the latest first."""
        self._fetched = Fetched(fetches)
        self._read: dict[tuple[str, tuple[int, int] | None], bytes] = {}
        self._recording: tuple[str, tuple[int, int] | None] | None = None

    def __enter__(self) -> Self:
        """Files are opened as they are asked for."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close them."""
        self._fetched.__exit__(*error)

    def forget(self) -> None:
        """Another input begins."""
        self._read = {place: data for place, data in self._read.items() if place == self._recording}

    def of(self, ref: Ref, max_bytes: int) -> bytes:
        """The payload, never more than `max_bytes`.

        Raises NotFetchedError where a server did not give it, SampleError where it cannot be read.
        """
        if ref.version is None:
            raise SampleError("missing_member", "not there")
        if ref.text is not None:
            return ref.text.encode()
        place = (str(ref.url), ref.span)
        if ref.clip:
            # The pieces of a recording are inputs that follow each other: it is read once.
            self._recording = place
        if place not in self._read:
            self._read[place] = self._fetch(ref, max_bytes) if on_the_web(ref) else _read(ref, max_bytes)
        return self._read[place]

    def _fetch(self, ref: Ref, max_bytes: int) -> bytes:
        row = self._fetched.row(str(ref.url))
        if row["reason"] is not None:
            raise NotFetchedError(row["reason"], row["detail"])
        return _checked(self._fetched.body(str(ref.url)) if row["bytes"] <= max_bytes else None, max_bytes)


def _read(ref: Ref, max_bytes: int) -> bytes:
    offset, length = ref.span or (0, max_bytes + 1)
    wanted = min(length, max_bytes + 1)
    if is_remote(str(ref.url)):
        data = read_range(str(ref.url), offset, wanted)
    else:
        try:
            # A pipe would be waited for without end, and a device read.
            if not stat.S_ISREG(os.stat(str(ref.url)).st_mode):
                raise SampleError("unreadable", "cannot be read: it is no plain file")
            with Path(str(ref.url)).open("rb") as file:
                file.seek(offset)
                data = file.read(wanted)
        except (OSError, ValueError) as error:
            raise SampleError("unreadable", f"cannot be read: {error}") from None
    # Half a caption would be taken for a whole one.
    if ref.span and len(data) < wanted:
        raise SampleError("cut_off", f"the file ends after {len(data)} of its {length} bytes")
    return _checked(data, max_bytes)


def _checked(data: bytes | None, max_bytes: int) -> bytes:
    if data is None or len(data) > max_bytes:
        raise SampleError("too_large", f"more than max_bytes: {max_bytes}")
    if not data:
        raise SampleError("empty_file", "the file is empty")
    return data
