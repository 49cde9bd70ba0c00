"""Find model weights without loading them, and name them by content.

Imports nothing heavy: `mmdata plan` calls this to say in milliseconds whether weights are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Weights:
    """Weights as a plan sees them.

    Attributes:
        identity: goes into fingerprints; equal identities give equal scores. For local files a digest of their
            content, for a tag or hub id the name itself.
        path: local folder or file, None for what the model library fetches by name.
    """

    identity: str
    path: Path | None = None


def cache_dir() -> Path:
    """Where fetched media and weights live: `$MMDATA_CACHE`, else `~/.cache/mmdata`."""
    return Path(os.environ.get("MMDATA_CACHE") or "~/.cache/mmdata").expanduser()


def refusal(error: Exception) -> str:
    """Why a checkpoint does not load, in one line.

    Of a file that holds more than tensors torch, and timm after it, go on to say how to let it run code.
    """
    if any(isinstance(one, pickle.UnpicklingError) for one in (error, error.__cause__)):
        return "it is damaged, or holds objects that could run code, which are not read"
    return " ".join(str(error).split())


def content_identity(paths: list[Path]) -> str:
    """Digest of the files' names and bytes (sha256, 16 hex digits).

    A file's digest is remembered in the cache folder by (path, size, mtime), so that a plan does not read
    gigabytes again. Raises OSError where a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        digest.update(_file_digest(path).encode())
    return digest.hexdigest()[:16]


def _file_digest(path: Path) -> str:
    stat = path.stat()
    name = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    remembered = cache_dir() / "digests" / name
    try:
        return str(json.loads(remembered.read_text())["sha256"])
    except (OSError, ValueError, KeyError):
        pass
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    remembered.parent.mkdir(parents=True, exist_ok=True)
    scratch = remembered.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps({"sha256": digest.hexdigest(), "path": str(path)}))
    scratch.replace(remembered)
    return digest.hexdigest()
