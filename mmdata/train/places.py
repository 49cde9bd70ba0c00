"""Where shards lie: a folder of this machine, or one of an object store that fsspec knows.

From a store members are read by range. Where all shards fit into the cache they are fetched whole instead, each once;
a cache that is smaller than what is read in random order would only be filled and emptied.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from mmdata.errors import TrainError

_MAX_OPEN = 64


@dataclass
class LocalPlace:
    """A folder of this machine."""

    path: Path
    _open: OrderedDict[str, int] = field(default_factory=OrderedDict, repr=False)

    def __str__(self) -> str:
        """The path."""
        return str(self.path)

    def size(self, name: str) -> int:
        """Bytes of a file. Raises OSError."""
        return (self.path / name).stat().st_size

    def read(self, name: str) -> bytes:
        """A whole file. Raises OSError."""
        return (self.path / name).read_bytes()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file to seek in. Raises OSError."""
        with (self.path / name).open("rb") as file:
            yield file

    def range(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file, fewer where it ends before. Raises OSError."""
        return os.pread(self._handle(name), size, offset)

    def close(self) -> None:
        """Close what `range` opened."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _handle(self, name: str) -> int:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[name] = os.open(self.path / name, os.O_RDONLY)
        return self._open[name]

    def __del__(self) -> None:
        """Close with the place."""
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Each process opens its own files."""
        return {**self.__dict__, "_open": OrderedDict()}


@contextmanager
def _os_errors() -> Iterator[None]:
    """Each store's client has errors of its own: S3's without credentials is none of the system's."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@dataclass
class RemotePlace:
    """A folder of an object store.

    Attributes:
        url: `s3://bucket/folder`, or whatever fsspec takes.
        cache: a folder for whole shards; None: ranges only.
    """

    url: str
    cache: LocalPlace | None = None

    def __str__(self) -> str:
        """The URL."""
        return self.url

    def size(self, name: str) -> int:
        """Bytes of a file. Raises OSError."""
        with _os_errors():
            return int(self._system().size(self._path(name)))

    def read(self, name: str) -> bytes:
        """A whole file. Raises OSError."""
        with _os_errors():
            return cast(bytes, self._system().cat_file(self._path(name)))

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file to seek in. Raises OSError."""
        with _os_errors():
            opened = self._system().open(self._path(name), "rb")
        with opened as file:
            yield cast(BinaryIO, file)

    def range(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file, fewer where it ends before. Raises OSError."""
        if self.cache:
            self._fetch(name, self.cache.path)
            return self.cache.range(name, offset, size)
        with _os_errors():
            return cast(bytes, self._system().cat_file(self._path(name), start=offset, end=offset + size))

    def close(self) -> None:
        """Close what the cache holds open."""
        if self.cache:
            self.cache.close()

    def _fetch(self, name: str, folder: Path) -> None:
        """Have a shard in the cache; two processes at once both fetch, and the later one's file is the same."""
        file = folder / name
        if not file.exists():
            scratch = folder / f".{name}.{os.getpid()}.{threading.get_ident()}"
            try:
                with _os_errors():
                    self._system().get_file(self._path(name), str(scratch))
                scratch.replace(file)
            finally:
                scratch.unlink(missing_ok=True)

    def _system(self) -> Any:
        import fsspec

        # fsspec keeps one client a process, and makes a new one after a fork.
        return fsspec.core.url_to_fs(self.url)[0]

    def _path(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}"


Place = LocalPlace | RemotePlace


def open_place(where: str | Path) -> Place:
    """A path, or a URL that fsspec opens. Raises TrainError where nothing here knows the URL's kind."""
    if "://" not in str(where):
        return LocalPlace(Path(where))
    import fsspec

    try:
        fsspec.core.url_to_fs(str(where))
    except (ImportError, ValueError) as error:
        raise TrainError(f"{where}: {error}") from None
    return RemotePlace(str(where))
