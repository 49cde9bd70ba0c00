"""Online augmentation: the policy that travels with the shards, applied as a build would have applied it.

A child is the same as in a build: it follows from the pipeline's seed, the sample and the number of the child, which
here is the epoch; what is mixed in is the other that a build would have mixed in. Where nothing can be applied to a
sample, or a build would have dropped the child, it is seen as it is.

Shapes: N samples.
"""

from __future__ import annotations

import bisect
import functools
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mmdata.errors import SampleError, TrainError
from mmdata.sample import Member, Sample
from mmdata.train.manifest import ShardFolder
from mmdata.train.places import LocalPlace
from mmdata.train.shards import ShardIndex, ShardReader

if TYPE_CHECKING:
    from mmdata.augment.policy import Policy

_PARTNERS_NAME: Final = "partners.npy"
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
        """Payloads of a sample's child in an epoch, by member; None where the sample is seen as it is."""
        policy = self._policies[epoch % len(self._policies)]
        try:
            child = policy.child(self._sample(row), epoch // len(self._policies), self._seed, self._other)
        except (SampleError, _ElsewhereError):
            return None
        return {name: member.data for name, member in child.members.items()}

    @functools.cached_property
    def _policies(self) -> list[Policy]:
        from mmdata.augment.load import load_policy

        try:
            return [load_policy(spec) for spec in self._specs]
        except (ValueError, KeyError) as error:
            raise TrainError(
                f"{self._index.place_of_shards}: its policy of augmentation is unknown here: {error}"
            ) from None

    def _other(self, but: str, draw: int) -> Sample | None:
        """The sample that a build would have mixed in. Raises _ElsewhereError where it is not in the split."""
        from mmdata.augment.policy import chosen

        key = chosen(self._partners.of(but), but, draw)
        if key is None:
            return None
        row = self._partners.row(key)
        if row is None:
            raise _ElsewhereError
        return self._sample(row)

    @functools.cached_property
    def _partners(self) -> _Partners:
        return _Partners(self._index)

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


class _ElsewhereError(Exception):
    """The other parent was dropped, or is in another split: a build drops such a child whole."""


class _Partners:
    """Who may be mixed with whom: what stands beside the shards, as `mmdata.store.partners` writes it.

    What stands there no original for, a segment say, may be mixed with its like in the split.
    """

    def __init__(self, index: ShardIndex) -> None:
        """Raises TrainError where nothing stands beside the shards."""
        place = index.place_of_shards
        path = f"{place}/{_PARTNERS_NAME}"
        try:
            if isinstance(place, LocalPlace):
                rows_N = np.load(path, mmap_mode="r", allow_pickle=False)
            else:
                rows_N = np.load(io.BytesIO(place.read(_PARTNERS_NAME)), allow_pickle=False)
            self._ids_N, group_N = np.asarray(rows_N["sample_id"]), np.asarray(rows_N["group"])
        except (OSError, ValueError, IndexError) as error:
            raise TrainError(f"{path}: who may be mixed cannot be read; build the shards again: {error}") from None
        # By group, in each by id.
        self._order_N = group_N.argsort(kind="stable")
        self._sorted_N = group_N[self._order_N]
        self._group_N = group_N
        self._by_id_N = index.ids_N.argsort(kind="stable")
        self._split_N = index.ids_N[self._by_id_N]

    def of(self, sample_id: str) -> list[str]:
        """The ids among which a partner is chosen, sorted."""
        at = self._at(self._ids_N, sample_id)
        if at is None:
            return self._unlisted
        group = self._group_N[at]
        first, last = np.searchsorted(self._sorted_N, group), np.searchsorted(self._sorted_N, group, "right")
        return [one.decode() for one in self._ids_N[self._order_N[first:last]]]

    def row(self, sample_id: str) -> int | None:
        """Where a sample is in the split; None where it is not."""
        at = self._at(self._split_N, sample_id)
        return None if at is None else int(self._by_id_N[at])

    @functools.cached_property
    def _unlisted(self) -> list[str]:
        return [one.decode() for one in np.setdiff1d(self._split_N, self._ids_N)]

    @staticmethod
    def _at(ids_N: npt.NDArray[np.bytes_], sample_id: str) -> int | None:
        key = sample_id.encode()
        # numpy's own search would copy the whole column, which is mapped from the disk.
        at = bisect.bisect_left(range(len(ids_N)), key, key=ids_N.__getitem__)
        return at if at < len(ids_N) and ids_N[at] == key else None


def online_augment(folder: ShardFolder, index: ShardIndex, member_max_bytes: int) -> OnlineAugment | None:
    """None where no policy of the shards is online."""
    augment = folder.manifest.augment
    return OnlineAugment(folder, index, member_max_bytes) if augment and augment.online else None
