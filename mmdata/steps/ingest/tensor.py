"""`tensor`: arrays of numbers (sensors, features) from npy, npz, safetensors, JSON or CSV; stored as npy."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import ByteSize, Field, field_validator

from mmdata.document import nearest
from mmdata.errors import SampleError
from mmdata.sample import Member, Modality
from mmdata.spec import Frozen
from mmdata.steps.base import Ingest
from mmdata.steps.exchange import Ref

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_DTYPES = ("bool", *_INTEGERS, "float16", "float32", "float64")


class Clock(Frozen):
    """What the time of a member is measured by."""

    rate_hz: float = Field(gt=0, description="points a second")
    axis: int = Field(-1, description="which axis is time, as the source has it; stored, it is the last")


class Tensor(Ingest):
    """Arrays: limits before anything is allocated, type, shape, range, share of finite numbers; nothing is unpickled.

    Stored as npy, little-endian, rows first, time as the last axis where `clocks` says which it is.
    """

    step: ClassVar[str] = "tensor"
    modality: ClassVar[Modality] = "tensor"
    max_bytes: ByteSize = Field(ByteSize(64 << 20), description="larger files have failed, unread")
    max_elements: int = Field(16_000_000, ge=1, description="larger arrays have failed, unpacked by no byte more")
    dtypes: list[str] = Field(default=list(_DTYPES), min_length=1, description="types of elements that are taken")
    dtype: Literal["keep", "float16", "float32"] = Field("keep", description="type that is stored")
    array: str | None = Field(None, description="the array of files that hold several, by name")
    clocks: dict[str, Clock] = Field(default={}, description="of members over time: `imu: {rate_hz: 100, axis: 0}`")
    finite: Literal["any", "all"] = Field(
        "any", description="all: what has a number that is not finite has failed; any: `finite_share` says how many are"
    )

    @field_validator("dtypes")
    @classmethod
    def _known(cls, dtypes: list[str]) -> list[str]:
        for one in dtypes:
            if one not in _DTYPES:
                raise ValueError(f"'{one}' is no type of elements that is taken{nearest(one, _DTYPES)}")
        return dtypes

    def decode(self, ref: Ref, data: bytes) -> Member:
        """The member, measured. Raises SampleError as `mmdata.media.tensor` does; `not_finite`, `no_such_axis`."""
        import numpy as np

        from mmdata.media.tensor import Limits, cast, measure_tensor, read_tensor, write_tensor

        value = read_tensor(data, Limits(self.max_elements, frozenset(self.dtypes)), self.array)
        clock = self.clocks.get(ref.name)
        if clock:
            value = _time_last(value, clock.axis)
        if self.finite == "all" and not np.isfinite(value).all():
            raise SampleError("not_finite", f"{np.count_nonzero(~np.isfinite(value))} of {value.size} are not finite")
        value = value if self.dtype == "keep" else cast(value, self.dtype)
        measures = measure_tensor(value, clock.rate_hz if clock else None)
        return Member(ref.name, "tensor", "application/x-npy", "npy", write_tensor(value), ref.lang, measures)


def _time_last(value: Any, axis: int) -> Any:
    import numpy as np

    if not -value.ndim <= axis < value.ndim:
        raise SampleError("no_such_axis", f"shape {list(value.shape)} has no axis {axis}, which `clocks` says is time")
    return np.moveaxis(value, axis, -1)
