"""The shards' manifest: which members there are, and how many samples each shard holds."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from mmdata.document import nearest
from mmdata.errors import TrainError
from mmdata.train.places import Place, open_place

_MAX_BYTES = 256 << 20
# A shard lies in the manifest's own folder: no path leads out of it.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,250}")


class MemberEntry(BaseModel):
    """A member: its modality, and the file endings it has in the tars."""

    modality: str
    fields: list[str] = Field(min_length=1)


class EmbeddingEntry(BaseModel):
    """A model's vectors of a member.

    Attributes:
        dim: how long they are.
        suffix: what their files have in place of a shard's `.tar`.
        space: those of one space can be compared; None in shards that were written before spaces had names.
    """

    dim: int = Field(ge=1, le=1 << 16)
    suffix: str = Field(pattern=r"^\.[A-Za-z0-9_.-]{1,200}\.npy$")
    space: str | None = None


class ShardEntry(BaseModel):
    """One tar."""

    path: str
    samples: int = Field(ge=0)
    bytes: int = Field(ge=0)


class SplitEntry(BaseModel):
    """One split."""

    samples: int = Field(ge=0)
    shards: list[ShardEntry]


class AugmentEntry(BaseModel):
    """The policies of augmentation, and the pipeline's seed, which all of them draw from."""

    seed: int
    policies: list[dict[str, Any]] = []

    @property
    def online(self) -> list[dict[str, Any]]:
        """Those that a loader applies."""
        return [policy for policy in self.policies if policy.get("mode") == "online"]


class Manifest(BaseModel):
    """`manifest.json`. What it says beyond this is not read."""

    format: Literal["mmdata-shards"]
    version: Literal[1]
    name: str = ""
    members: dict[str, MemberEntry]
    embeddings: dict[str, EmbeddingEntry] = {}
    splits: dict[str, SplitEntry]
    augment: AugmentEntry | None = None


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards.

    Attributes:
        place: where it lies.
        manifest: what it says of itself.
        digest: sha256 of the manifest's bytes; names the data set, as the manifest holds the shards' digests.
    """

    place: Place
    manifest: Manifest
    digest: str

    def split(self, name: str) -> SplitEntry:
        """The split. Raises TrainError where there is none of that name, or nothing in it."""
        splits = self.manifest.splits
        if name not in splits:
            raise TrainError(f"{self.place}: the shards have no split '{name}'{nearest(name, splits)}")
        if not (splits[name].samples and splits[name].shards):
            raise TrainError(f"{self.place}: the split '{name}' has no samples; build one, or name another split")
        return splits[name]


def open_folder(where: str | Path) -> ShardFolder:
    """Read `manifest.json`. Raises TrainError where it is missing, damaged, of another format, or names no samples."""
    place = open_place(where)
    file = f"{place}/manifest.json"
    try:
        if place.size("manifest.json") > _MAX_BYTES:
            raise TrainError(f"{file}: larger than {_MAX_BYTES} bytes; this is no manifest of shards")
        data = place.read("manifest.json")
        manifest = Manifest.model_validate(_plain(data))
    except OSError as error:
        fix = "data.shards is the `shards` folder of a build, so build it first"
        raise TrainError(f"{file}: cannot be read: {error.strerror or error}; {fix}") from None
    except ValueError as error:
        raise TrainError(f"{file}: no manifest of shards of version 1: {_reason(error)}") from None
    _check_names(file, manifest)
    if not any(split.samples for split in manifest.splits.values()):
        why = 'why: mmdata query BUILD "SELECT rule, count(*) FROM fates GROUP BY rule"'
        raise TrainError(f"{file}: no samples: its build kept none; {why}")
    return ShardFolder(place, manifest, hashlib.sha256(data).hexdigest())


def _plain(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        detail = error.errors()[0]
        return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
    return str(error)


def _check_names(file: str, manifest: Manifest) -> None:
    for split in manifest.splits.values():
        for shard in split.shards:
            if not _SHARD_NAME.fullmatch(shard.path):
                raise TrainError(f"{file}: the shard name {shard.path!r} is not a plain file name")
