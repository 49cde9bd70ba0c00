"""Online augmentation: the policy that travels with the shards, applied as a build would have applied it.

A child is the same as in a build: it follows from the pipeline's seed, the sample and the number of the child, which
here is the epoch. Where nothing can be applied to a sample, it is seen as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmdata.errors import TrainError
from mmdata.sample import Member, Sample
from mmdata.train.manifest import ShardFolder
from mmdata.train.shards import ShardIndex, ShardReader

if TYPE_CHECKING:
    from mmdata.augment.policy import Policy

_ABOUT = ("width", "height", "duration_s", "sample_rate", "channels", "chars", "words", "rate_hz")


class OnlineAugment:
    """Children of the samples of a split."""

    def __init__(self, folder: ShardFolder, index: ShardIndex, member_max_bytes: int) -> None:
        """`index` holds every member of the manifest."""
        assert folder.manifest.augment is not None
        self._seed = folder.manifest.augment.seed
        self._specs = folder.manifest.augment.online
        self._members = folder.manifest.members
        self._index = index
        self._reader = ShardReader(index, member_max_bytes)

    def child(self, epoch: int, row: int) -> Mapping[str, bytes] | None:
        """Payloads of a sample's child in an epoch, by member; None where the sample is seen as it is.

        Raises SampleError where a member cannot be decoded.
        """
        from mmdata.augment.base import VetoError

        policy = self._policies[epoch % len(self._policies)]
        try:
            child = policy.child(self._sample(row), epoch // len(self._policies), self._seed, self._other)
        except VetoError:
            return None
        return {name: member.data for name, member in child.members.items()}

    @functools.cached_property
    def _policies(self) -> list[Policy]:
        from mmdata.augment.load import load_policy

        try:
            return [load_policy(spec) for spec in self._specs]
        except (ValueError, KeyError) as error:
            raise TrainError(f"{self._index.folder}: its policy of augmentation is unknown here: {error}") from None

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        """Rows by sample id, in the order of the ids; only mixing needs them."""
        return {self._index.id(int(row)): int(row) for row in self._index.ids_N.argsort(kind="stable")}

    @functools.cached_property
    def _ids(self) -> list[str]:
        return list(self._rows)

    def _other(self, but: str, draw: int) -> Sample | None:
        from mmdata.augment.policy import chosen

        key = chosen(self._ids, but, draw)
        return None if key is None else self._sample(self._rows[key])

    def _sample(self, row: int) -> Sample:
        record = self._reader.record(row)
        members = {}
        for name, about in dict(record.get("members") or {}).items():
            if name in self._members and self._index.has_member(row, name):
                members[name] = self._member(row, name, about)
        return Sample(self._index.id(row), str(record.get("source", "")), str(record.get("key", "")), members)

    def _member(self, row: int, name: str, about: Mapping[str, Any]) -> Member:
        measures = {key: about[key] for key in _ABOUT if about.get(key) is not None}
        extension = str(about["field"]).rpartition(".")[-1]
        kind: Any = about["modality"]
        return Member(
            name, kind, str(about["mime"]), extension, self._reader.read(row, name), about.get("lang"), measures
        )


def online_augment(folder: ShardFolder, index: ShardIndex, member_max_bytes: int) -> OnlineAugment | None:
    """None where no policy of the shards is online."""
    augment = folder.manifest.augment
    return OnlineAugment(folder, index, member_max_bytes) if augment and augment.online else None
