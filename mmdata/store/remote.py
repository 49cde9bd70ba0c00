"""Files in object stores and on other machines, by fsspec: s3://, gs://, abfs://, memory://, ...

Who may read there is told by the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, FSSPEC_S3_..., as fsspec has it),
never by a pipeline. An archive is copied once to an unnamed file on this machine's disk, block by block, and read
there: each byte crosses the network once, and memory holds a block.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, TypeVar

from mmdata.errors import FatalError, PlanError, SampleError

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.:-]*://", re.IGNORECASE)
_BLOCK_BYTES: Final = 8 << 20
_MEMORY_BYTES: Final = 16 << 20
# What may pass: a store's own client has tried again before.
_ATTEMPTS: Final = 3
_PAUSE_S: Final = 1.0
_GONE: Final = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# What stores call the thing that changes when the content does, the surest first.
_CHANGES: Final = (
    "ETag", "etag", "md5Hash", "content_md5", "md5", "crc32c", "checksum", "generation",
    "LastModified", "last_modified", "updated", "mtime", "modified", "created",
)  # fmt: skip
_WEB: Final = frozenset({"http", "https"})
_FIX_WEB: Final = (
    "a web server's files are not read in place: name URLs in a table, which are fetched politely and checked, or copy "
    "the file first"
)
T = TypeVar("T")


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return _SCHEME.match(path) is not None


def check(step: str, url: str) -> None:
    """Raises PlanError for what is read nowhere: the web, URLs that hold a password, stores without their package."""
    scheme = url.partition("://")[0].lower()
    if "::" in scheme:
        raise PlanError([f"{step}: {url}: URLs of several file systems (::) are not read"])
    if scheme in _WEB:
        raise PlanError([f"{step}: {url}: {_FIX_WEB}"])
    if "@" in url.partition("://")[2].partition("/")[0] and scheme not in {"abfs", "abfss", "az"}:
        fix = "credentials come from the environment (AWS_PROFILE, say), never from a file"
        raise PlanError([f"{step}: {scheme}://...: a password in a URL; {fix}"])
    _filesystem(step, url)


def find(step: str, pattern: str) -> list[str]:
    """The files of a URL or of a pattern, sorted. Raises PlanError where the store cannot be asked."""
    check(step, pattern)
    system = _filesystem(step, pattern)
    try:
        if not any(letter in pattern for letter in "*?["):
            return [pattern] if system.isfile(pattern) else []
        return sorted(system.unstrip_protocol(path) for path in system.glob(pattern))
    except Exception as error:  # noqa: BLE001 - each store's client has errors of its own
        raise PlanError([f"{step}: {pattern}: cannot be asked for: {_told(error)}"]) from None


def walk(step: str, root: str) -> Iterator[tuple[str, str]]:
    """Path below `root` and version of every file, a folder at a time; hidden ones left out. Raises PlanError."""
    check(step, root)
    system = _filesystem(step, root)
    try:
        base = system._strip_protocol(root).rstrip("/")
        if not system.isdir(base):
            raise PlanError([f"{step}: the folder {root} is not there"])
        for folder, folders, files in system.walk(base, detail=True):
            below = folder.rstrip("/")[len(base) :].strip("/")
            for name in [name for name in folders if name.startswith(".")]:
                del folders[name]
            for name, info in files.items():
                if name and not name.startswith("."):
                    yield f"{below}/{name}" if below else name, version_of(info)
    except PlanError:
        raise
    except Exception as error:  # noqa: BLE001 - each store's client has errors of its own
        raise PlanError([f"{step}: {root}: cannot be listed: {_told(error)}"]) from None


class Versions:
    """Versions of files that a table names, asked for a folder at a time."""

    def __init__(self, root: str) -> None:
        """`root` is a URL."""
        self._root = root.rstrip("/")
        self._system = _filesystem("table", root)
        self._folder: str | None = None
        self._names: dict[str, str] = {}

    def of(self, path: str) -> str | None:
        """The version of a file below the root; None where there is none."""
        folder, _, name = f"{self._root}/{path}".rpartition("/")
        if folder != self._folder:
            self._folder, self._names = folder, self._list(folder)
        return self._names.get(name)

    def _list(self, folder: str) -> dict[str, str]:
        try:
            found = self._system.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # noqa: BLE001 - each store's client has errors of its own
            raise PlanError([f"table: {folder}: cannot be listed: {_told(error)}"]) from None
        return {info["name"].rpartition("/")[2]: version_of(info) for info in found if info["type"] == "file"}


def version(url: str) -> str:
    """What changes when the content of a file does. Raises PlanError."""
    try:
        return version_of(_filesystem("sources", url).info(url))
    except Exception as error:  # noqa: BLE001 - each store's client has errors of its own
        raise PlanError([f"{url}: cannot be asked for: {_told(error)}"]) from None


def version_of(info: dict[str, Any]) -> str:
    """Of what a store says of a file: its size, and its digest or date."""
    change = next((info[name] for name in _CHANGES if info.get(name) is not None), "")
    return f"{info.get('size')}-{hashlib.sha256(str(change).encode()).hexdigest()[:16]}"


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A file to read anywhere in: one of this machine as it is, another as a copy. Raises SampleError, FatalError."""
    if not is_remote(path):
        try:
            file = Path(path).open("rb")  # noqa: SIM115 - closed below; what fails there is not about opening
        except OSError as error:
            raise SampleError("unreadable", f"cannot be read: {error.strerror}") from None
        with file:
            yield file
        return
    with tempfile.SpooledTemporaryFile(_MEMORY_BYTES) as copy:
        copy_to(path, copy)
        copy.seek(0)
        yield copy  # type: ignore[misc]


def copy_to(url: str, to: IO[bytes]) -> None:
    """Copy a file, block by block. Raises SampleError `unreadable` where it is not there, FatalError."""
    system = _filesystem("sources", url)

    def copy() -> None:
        to.seek(0)
        to.truncate()
        with system.open(url, "rb", block_size=_BLOCK_BYTES, cache_type="readahead") as file:
            while block := file.read(_BLOCK_BYTES):
                to.write(block)

    _tried(url, copy)


def read_range(url: str, offset: int, length: int) -> bytes:
    """At most `length` bytes of a file. Raises SampleError `unreadable` where it is not there, FatalError."""
    system = _filesystem("sources", url)
    return _tried(url, lambda: _range(system, url, offset, length))


def _range(system: Any, url: str, offset: int, length: int) -> bytes:
    # A range that begins after the end is an error in some stores.
    size = system.info(url)["size"]
    end = min(offset + length, size)
    return bytes(system.cat_file(url, start=offset, end=end)) if end > offset else b""


def _tried(url: str, read: Callable[[], T]) -> T:
    """Read, again where that may help: that a store cannot be reached is no fault of a sample."""
    for attempt in range(_ATTEMPTS):
        try:
            return read()
        except _GONE as error:
            raise SampleError("unreadable", f"cannot be read: {_told(error)}") from None
        except Exception as error:
            if attempt + 1 == _ATTEMPTS:
                raise FatalError(f"{url} cannot be read now: {_told(error)}; run it again later") from error
            time.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError


def _filesystem(step: str, url: str) -> Any:
    import fsspec

    scheme = url.partition("://")[0].lower()
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        fix = "pip install 'mmdata[s3]'" if scheme in {"s3", "s3a"} else "install the package that it names"
        raise PlanError([f"{step}: {scheme}:// needs a package: {_told(error)}; {fix}"]) from None
    except ValueError as error:
        raise PlanError([f"{step}: {url}: {_told(error)}"]) from None


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
