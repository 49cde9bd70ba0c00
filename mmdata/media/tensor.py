"""Arrays of numbers from strangers: npy, npz, safetensors, JSON and CSV, read within limits; nothing is ever unpickled.

Time is the last axis of what is stored. Shapes: C channels, T points in time.
"""

from __future__ import annotations

import io
import json
import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmdata.errors import SampleError

Array = npt.NDArray[Any]

DTYPES: Final = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64"),
)
_MOST_DIMENSIONS: Final = 16
# Of an .npy header: numpy's own limit, beyond which its parser of Python literals may be slow.
_HEADER_BYTES: Final = 10_000
# Numbers as text become Python objects first, some thirty times as large.
_TEXT_BYTES: Final = 16 << 20


@dataclass(frozen=True)
class Limits:
    """What is read at most: elements, and which types of numbers."""

    max_elements: int
    dtypes: frozenset[str] = frozenset(DTYPES)


# The last two are what numpy says of headers that are no Python literal.
_BROKEN: Final = (
    *(ValueError, KeyError, TypeError, EOFError, OSError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, SyntaxError, tokenize.TokenError),
)


def read_tensor(data: bytes, limits: Limits, array: str | None = None) -> Array:
    """The array of a payload, told by its first bytes; little-endian, rows first.

    Args:
        data: npy, npz, safetensors, JSON (lists of numbers) or CSV (a row for each point in time, perhaps a header).
        limits: see there; checked before anything is allocated.
        array: which of several arrays of an npz or safetensors file; None: it has one.

    Raises SampleError: `bad_tensor` (no such file, or a broken one), `bad_dtype`, `too_large`, `empty_tensor`,
    `which_array`.
    """
    try:
        return _told(data)(data, limits, array)
    except _BROKEN as error:
        first = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise SampleError("bad_tensor", f"no array that can be read: {first}") from None


def write_tensor(value: Array) -> bytes:
    """As npy: equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(value), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def measure_tensor(value: Array, rate_hz: float | None) -> dict[str, Any]:
    """What SQL sees of it: least, greatest and mean are those of its finite numbers."""
    finite = value[np.isfinite(value)]
    some = finite.size > 0
    found = {
        "shape": list(value.shape),
        "dtype": str(value.dtype),
        "ndim": value.ndim,
        "elements": value.size,
        "finite_share": finite.size / value.size,
        "min": float(finite.min()) if some else None,
        "max": float(finite.max()) if some else None,
        "mean": float(finite.mean(dtype=np.float64)) if some else None,
        "rate_hz": rate_hz,
        "duration_s": value.shape[-1] / rate_hz if rate_hz else None,
    }
    return {name: one for name, one in found.items() if one is not None}


def cast(value: Array, dtype: str) -> Array:
    """In another type of float. Raises SampleError `out_of_range` where finite numbers would not stay so."""
    with np.errstate(over="ignore"):
        made = value.astype(dtype)
    if not np.array_equal(np.isfinite(made), np.isfinite(value)):
        raise SampleError("out_of_range", f"{np.abs(value[np.isfinite(value)]).max():g} is no {dtype}")
    return made


def _told(data: bytes) -> Callable[[bytes, Limits, str | None], Array]:
    """The reader for a file of such a beginning."""
    if data[:6] == b"\x93NUMPY":
        return _npy
    if data[:4] == b"PK\x03\x04":
        return _npz
    # Eight bytes of length, then a JSON object.
    if data[8:9] == b"{":
        return _safetensors
    return _json if data.lstrip()[:1] == b"[" else _csv


def _npy(data: bytes, limits: Limits, _: str | None) -> Array:
    """By its header alone first: shape and type decide how many bytes there must be."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"npy of version {version}, which only names of fields need")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        try:
            shape, by_columns, dtype = reader(file, max_header_size=_HEADER_BYTES)
        except MemoryError:  # what Python's parser says of thousands of signs in a row
            raise ValueError("the header is nested too deep") from None
    count = _checked(shape, dtype, limits)
    value = np.frombuffer(data, dtype, count, offset=file.tell())
    return _plain(value.reshape(shape, order="F" if by_columns else "C"))


def _npz(data: bytes, limits: Limits, array: str | None) -> Array:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        entry = entries[_which(list(entries), array)]
        if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError(f"'{entry.filename}' is packed as numpy packs nothing")
        # The largest type has eight bytes; a header may lie of the size, so no more than that is unpacked.
        most = limits.max_elements * 8 + _HEADER_BYTES + 16
        with archive.open(entry) as file:
            inner = file.read(most + 1)
    if len(inner) > most:
        raise SampleError("too_large", f"'{entry.filename}' has more than {most} bytes")
    if inner[:6] != b"\x93NUMPY":
        raise ValueError(f"'{entry.filename}' is no npy")
    return _npy(inner, limits, None)


_SAFETENSORS: Final = {
    "BOOL": "bool",
    **{f"{sign}{bits}": f"{word}int{bits}" for sign, word in (("I", ""), ("U", "u")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}


def _safetensors(data: bytes, limits: Limits, array: str | None) -> Array:
    """Read here, for its library gives all arrays of a file at once, whatever their size."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ValueError("the header of a safetensors file is longer than the file")
    header = json.loads(data[8 : 8 + length])
    about = header[_which([name for name in header if name != "__metadata__"], array)]
    if about["dtype"] not in _SAFETENSORS:
        raise SampleError("bad_dtype", f"{str(about['dtype'])[:40]}, which numpy does not have")
    dtype = np.dtype(_SAFETENSORS[about["dtype"]])
    shape, (first, last) = tuple(about["shape"]), about["data_offsets"]
    count = _checked(shape, dtype, limits)
    if not 0 <= first <= last <= len(data) - 8 - length or last - first != count * dtype.itemsize:
        raise ValueError(f"bytes {first} to {last} do not hold {list(shape)} of {dtype}")
    return _plain(np.frombuffer(data, dtype, count, offset=8 + length + first).reshape(shape))


def _json(data: bytes, limits: Limits, _: str | None) -> Array:
    value = np.array(json.loads(_short(data)), np.float64)
    _checked(value.shape, value.dtype, limits)
    return value


def _csv(data: bytes, limits: Limits, _: str | None) -> Array:
    """A row for each point in time; as [C, T]."""
    text = _short(data).decode("utf-8-sig")
    head, _, rest = text.partition("\n")
    mark = next((mark for mark in "\t;," if mark in head), None)
    try:
        [float(one) for one in head.split(mark)]
    except ValueError:
        text = rest
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "input contained no data"
        try:
            value_TC = np.loadtxt(io.StringIO(text), np.float64, comments=None, delimiter=mark, ndmin=2)
        except UserWarning as error:
            raise ValueError(str(error)) from None
    _checked(value_TC.shape, value_TC.dtype, limits)
    return np.ascontiguousarray(value_TC.T)


def _short(data: bytes) -> bytes:
    if len(data) > _TEXT_BYTES:
        raise SampleError("too_large", f"{len(data)} bytes of numbers as text, more than {_TEXT_BYTES}; use npy")
    return data


def _which(names: list[str], array: str | None) -> str:
    if array is not None and array in names:
        return array
    if array is None and len(names) == 1:
        return names[0]
    wanted = f"none is called '{array}'" if array is not None else "which is meant? Give `array:`"
    raise SampleError("which_array", f"the file has {len(names)} arrays ({', '.join(names)[:200]}); {wanted}")


def _checked(shape: tuple[int, ...], dtype: np.dtype[Any], limits: Limits) -> int:
    """How many elements there are. Raises SampleError."""
    if dtype.name not in limits.dtypes:
        raise SampleError("bad_dtype", f"elements of type {dtype.name[:40]}, not one of {sorted(limits.dtypes)}")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"no shape: {str(shape)[:80]}")
    if len(shape) > _MOST_DIMENSIONS:
        raise SampleError("too_large", f"{len(shape)} dimensions, more than {_MOST_DIMENSIONS}")
    count = math.prod(shape)
    if count > limits.max_elements:
        raise SampleError("too_large", f"{count} elements, more than max_elements: {limits.max_elements}")
    if not count or not shape:
        raise SampleError("empty_tensor", f"of shape {list(shape)}: there is nothing along its axes")
    return count


def _plain(value: Array) -> Array:
    """Rows first, in the processor's own order of bytes: what is stored does not depend on who wrote it."""
    return np.ascontiguousarray(value.astype(value.dtype.newbyteorder("<"), copy=False))
