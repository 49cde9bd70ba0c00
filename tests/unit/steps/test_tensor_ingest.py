"""Taking arrays in: every form, every limit, the slug and sentence of every failure; nothing is unpickled."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mmdata.errors import SampleError
from mmdata.media.tensor import DTYPES, Limits, read_tensor, write_tensor
from mmdata.sample import MEASURES, Member
from mmdata.steps.exchange import Ref
from mmdata.steps.ingest.tensor import Tensor
from mmdata.steps.sources.files import MemberFiles
from mmdata.steps.sources.table import Table

ANY = Limits(1000)
WAVE_CT = np.array([[1, 2, 3, 4], [0.5, -1, 0, 2.5]], np.float32)


def npy(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


def npz(**values: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **values)
    return buffer.getvalue()


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """An npy file of a header and nothing else."""
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode()


def claims(shape: str, dtype: str = "<f4") -> bytes:
    return header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n")


def safetensors(about: dict[str, Any], data: bytes) -> bytes:
    head = json.dumps(about).encode()
    return struct.pack("<Q", len(head)) + head + data


def taken(data: bytes, name: str = "imu", **params: Any) -> Member:
    return Tensor.model_validate(params).decode(Ref(name, "tensor"), data)


def reason(data: bytes, **params: Any) -> str:
    with pytest.raises(SampleError) as caught:
        taken(data, **params)
    assert len(str(caught.value)) < 500
    return caught.value.reason


def stored(member: Member) -> np.ndarray[Any, Any]:
    value: np.ndarray[Any, Any] = np.load(io.BytesIO(member.data), allow_pickle=False)
    return value


@pytest.mark.parametrize(
    "data",
    [
        npy(WAVE_CT),
        npy(np.asfortranarray(WAVE_CT)),
        npy(WAVE_CT.astype(">f4")),
        npz(wave=WAVE_CT),
        npz(wave=WAVE_CT.astype(">f4")),
        safetensors({"wave": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}}, WAVE_CT.tobytes()),
        safetensors(
            {"__metadata__": {"by": "x"}, "wave": {"dtype": "F32", "shape": [2, 4], "data_offsets": [4, 36]}},
            b"else" + WAVE_CT.tobytes(),
        ),
    ],
)
def test_every_form_of_an_array_is_stored_as_the_same_npy(data: bytes) -> None:
    member = taken(data)
    assert (member.mime, member.extension, member.modality) == ("application/x-npy", "npy", "tensor")
    assert member.data == npy(WAVE_CT)
    assert member.measures == {
        "shape": [2, 4],
        "dtype": "float32",
        "ndim": 2,
        "elements": 8,
        "finite_share": 1.0,
        "min": -1.0,
        "max": 4.0,
        "mean": 1.5,
    }
    assert member.measures.keys() <= MEASURES["tensor"].keys()


def test_what_safetensors_writes_is_read() -> None:
    from safetensors.numpy import save

    assert taken(save({"wave": WAVE_CT})).data == npy(WAVE_CT)


@pytest.mark.parametrize(
    "data",
    [
        b"1,2.5\n3,4\n5,6\n",
        b"x,y\r\n1,2.5\r\n3,4\r\n5,6\r\n",
        b"1\t2.5\n3\t4\n5\t6",
        b"\xef\xbb\xbfx y\n1 2.5\n3 4\n5 6",
    ],
)
def test_a_row_of_csv_is_a_point_in_time(data: bytes) -> None:
    assert stored(taken(data)).tolist() == [[1, 3, 5], [2.5, 4, 6]]


def test_json_is_as_it_is_nested_and_null_is_no_number() -> None:
    member = taken(b" [[1, 2], [null, NaN]]")
    assert np.array_equal(stored(member), [[1, 2], [np.nan, np.nan]], equal_nan=True)
    assert (member.measures["finite_share"], member.measures["mean"]) == (0.5, 1.5)


def test_what_is_not_finite_is_counted_and_left_out_of_the_range() -> None:
    data = npy(np.array([np.nan, np.inf, -np.inf, 3.0]))
    assert {n: taken(data).measures[n] for n in ("finite_share", "min", "max", "mean")} == {
        "finite_share": 0.25,
        "min": 3.0,
        "max": 3.0,
        "mean": 3.0,
    }
    assert reason(data, finite="all") == "not_finite"
    nothing = taken(npy(np.full(3, np.nan)))
    assert nothing.measures["finite_share"] == 0.0
    assert "mean" not in nothing.measures


def test_a_clock_gives_the_duration_and_puts_time_last() -> None:
    member = taken(npy(WAVE_CT.T), clocks={"imu": {"rate_hz": 8, "axis": 0}})
    assert stored(member).tolist() == WAVE_CT.tolist()
    assert (member.measures["rate_hz"], member.measures["duration_s"], member.measures["shape"]) == (8.0, 0.5, [2, 4])
    other = taken(npy(WAVE_CT.T), name="feature", clocks={"imu": {"rate_hz": 8, "axis": 0}})
    assert "rate_hz" not in other.measures
    assert other.measures["shape"] == [4, 2]
    assert reason(npy(WAVE_CT), clocks={"imu": {"rate_hz": 8, "axis": 2}}) == "no_such_axis"


def test_it_is_stored_in_the_type_asked_for_or_not_at_all() -> None:
    assert taken(npy(WAVE_CT.astype(np.float64)), dtype="float32").data == npy(WAVE_CT)
    assert reason(npy(np.array([1e39])), dtype="float32") == "out_of_range"
    assert stored(taken(npy(np.array([np.inf])), dtype="float16")).tolist() == [np.inf]


def test_the_array_of_several_is_named() -> None:
    both = npz(wave=WAVE_CT, other=np.ones(3))
    assert taken(both, array="wave").data == npy(WAVE_CT)
    assert reason(both) == "which_array"
    assert reason(both, array="waves") == "which_array"
    two = {n: {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]} for n, at in (("a", 0), ("b", 1))}
    assert stored(taken(safetensors(two, b"\x03\x04"), array="b")).tolist() == [4]


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/mmdata-was-here"),))


def test_pickles_are_never_opened() -> None:
    objects = npy(np.array([Evil()], dtype=object))
    assert reason(objects) == "bad_dtype"
    assert reason(npz(a=np.array([Evil()], dtype=object))) == "bad_dtype"
    assert reason(pickle.dumps(Evil())) == "bad_tensor"
    assert not Path("/tmp/mmdata-was-here").exists()


def lying_zip() -> bytes:
    """An npz whose directory says 10 bytes, where 40 MB are unpacked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy(np.zeros(10_000_000, np.float32)))
    data = buffer.getvalue()
    return data.replace(struct.pack("<I", 40_000_128), struct.pack("<I", 10))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "bad_tensor"),
        (b"\x93NUMPY", "bad_tensor"),
        (b"\x93NUMPY\x01", "bad_tensor"),
        (npy(WAVE_CT)[:-1], "bad_tensor"),
        (npy(WAVE_CT)[:40], "bad_tensor"),
        (claims("(100000000000,)"), "too_large"),
        (claims("(4294967296, 4294967296, 4294967296)"), "too_large"),
        (claims("(1000,)"), "bad_tensor"),
        (claims("(-4,)"), "bad_tensor"),
        (claims("(-2, -2)"), "bad_tensor"),
        (claims("(True,)"), "bad_tensor"),
        (claims("(2.0,)"), "bad_tensor"),
        (claims("()"), "empty_tensor"),
        (claims("(0, 3)"), "empty_tensor"),
        (claims("(" + "1," * 20 + ")"), "too_large"),
        (claims("(1,)", "|O"), "bad_dtype"),
        (claims("(1,)", "<U4"), "bad_dtype"),
        (claims("(1,)", "<c8"), "bad_dtype"),
        (claims("(1,)", "|V8"), "bad_dtype"),
        (claims("(1,)", "<M8[s]"), "bad_dtype"),
        (header("__import__('os').system('true')\n"), "bad_tensor"),
        (header("(" * 9000 + "\n"), "bad_tensor"),
        (header("9" * 60_000), "bad_tensor"),
        (claims("-" * 9000 + "1"), "bad_tensor"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", (3, 0)), "bad_tensor"),
        (npz(a=np.zeros(5_000_000)), "too_large"),
        (lying_zip(), "bad_tensor"),
        (npz(a=WAVE_CT)[:-40], "bad_tensor"),
        (npz(), "bad_tensor"),
        (struct.pack("<Q", 1 << 60) + b"{}", "bad_tensor"),
        (safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"0000"), "bad_tensor"),
        (safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"0000"), "bad_tensor"),
        (safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [8, 4]}}, b"0000"), "bad_tensor"),
        (safetensors({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, b"00"), "bad_dtype"),
        (safetensors({"a": 3}, b"00"), "bad_tensor"),
        (b"[1, [2, 3]]", "bad_tensor"),
        (b"[" * 100_000, "bad_tensor"),
        (b'["a"]', "bad_tensor"),
        (b"[1" + b"0" * 400 + b"]", "bad_tensor"),
        (b"[]", "empty_tensor"),
        (b"[" + b"1," * (9 << 20) + b"1]", "too_large"),
        (b"1,2\n3\n", "bad_tensor"),
        (b"a,b\n", "bad_tensor"),
        (b"a\nb\n", "bad_tensor"),
        (b"\xff\xfe\x00", "bad_tensor"),
    ],
)
def test_what_is_broken_or_hostile_costs_its_sample(data: bytes, expected: str) -> None:
    assert reason(data, max_elements=1_000_000) == expected


def test_limits_are_the_users() -> None:
    assert reason(npy(WAVE_CT), max_elements=7) == "too_large"
    assert taken(npy(WAVE_CT), max_elements=8)
    assert reason(npy(WAVE_CT), dtypes=["int8", "float64"]) == "bad_dtype"
    with pytest.raises(ValueError, match="did you mean 'float32'"):
        Tensor(dtypes=["float23"])


def test_files_that_hold_arrays_are_tensors() -> None:
    for extension in ("npy", "npz", "safetensors"):
        assert MemberFiles(path=[f"{{stem}}.{extension}"]).kind == "tensor"


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_column_of_a_table_holds_numbers(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{kind}"
    rows = [{"id": "a", "accel": [1.0, 2.5]}, {"id": "b", "accel": [float("nan"), 3.0]}, {"id": "c", "accel": None}]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        path.write_text('id,accel\na,"[1.0, 2.5]"\nb,"[NaN, 3.0]"\nc,\n')
    else:
        path.write_text("".join(json.dumps({**row, "accel": row["accel"]}) + "\n" for row in (rows[0], rows[2])))
    source = Table.model_validate({"file": str(path), "key": "id", "members": {"imu": {"values": "accel"}}})
    assert source.members()["imu"].modality == "tensor"
    found = {one.key: one.refs[0] for one in source.inputs()}
    assert stored(taken((found["a"].text or "").encode())).tolist() == [1.0, 2.5]
    assert found["c"].version is None
    if "b" in found:
        assert np.isnan(stored(taken((found["b"].text or "").encode()))[0])


@given(arrays.arrays(st.sampled_from(DTYPES), arrays.array_shapes(max_dims=4, max_side=5)))
def test_what_is_written_is_read_again(value: np.ndarray[Any, Any]) -> None:
    again = read_tensor(write_tensor(value), ANY)
    assert again.dtype == value.dtype
    assert np.array_equal(again, value, equal_nan=value.dtype.kind == "f")
    assert write_tensor(again) == write_tensor(value)
    np.testing.assert_array_equal(np.load(io.BytesIO(write_tensor(value)), allow_pickle=False), value)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"[", npy(WAVE_CT)[:70]]))
def test_any_bytes_are_an_array_or_an_error_of_the_sample(data: bytes, start: bytes) -> None:
    with contextlib.suppress(SampleError):
        assert read_tensor(start + data, ANY).size <= ANY.max_elements
