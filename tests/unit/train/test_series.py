from __future__ import annotations

import io
import json

import av
import numpy as np
import pytest
from film import phone_film

from mmdata.errors import SampleError
from mmdata.train.decode_series import decode_tensor, decode_video


def video(levels: list[int], rate: int = 10, *, kind: str = "mp4", start_s: float = 0.0) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind, options={"output_ts_offset": str(start_s)}) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


def test_frames_stand_at_even_distances_on_white():
    data = video(list(range(0, 200, 10)))  # two seconds, ten levels a second
    frames = decode_video(data, 16, 4, 30.0, 10_000)
    assert (frames.shape, frames.dtype) == ((3, 16, 16, 4), np.uint8)
    middle = frames[:, 8, 8].mean(axis=0)
    assert middle == pytest.approx([20, 70, 120, 170], abs=6)  # at 0.25, 0.75, 1.25 and 1.75 s
    assert (frames[:, 0] == 255).all()
    first = decode_video(data, 16, 4, 1.0, 10_000)[:, 8, 8].mean(axis=0)
    assert first == pytest.approx([10, 30, 60, 80], abs=6)
    assert decode_video(video([0, 200]), 16, 8, 30.0, 10_000).shape[-1] == 2


def test_times_of_a_video_count_from_its_beginning():
    data = video(list(range(0, 200, 10)), kind="matroska", start_s=7.3)
    for seconds, levels in ((30.0, [20, 70, 120, 170]), (1.0, [10, 30, 60, 80])):
        middle = decode_video(data, 16, 4, seconds, 10_000)[:, 8, 8].mean(axis=0)
        assert middle == pytest.approx(levels, abs=6)


def test_frames_of_a_phones_film_are_upright():
    frames = decode_video(phone_film(90), 16, 1, 30.0, 10_000)[0, ..., 0]
    # Upright it is 8 wide, in the middle of white; its right half is orange.
    assert (frames[8, 5] < 50, frames[8, 10] > 200, frames[1, 5] < 50) == (True, True, True)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"GIF89a", "bad_video"), (b"\0\0\0\x18ftypmp42" + b"\0" * 40, "bad_video"), (b"", "bad_video")],
)
def test_what_is_no_video_says_so(data: bytes, reason: str):
    with pytest.raises(SampleError) as caught:
        decode_video(data, 16, 4, 30.0, 10_000)
    assert caught.value.reason == reason


def test_large_frames_are_refused():
    with pytest.raises(SampleError) as caught:
        decode_video(video([0, 9]), 16, 4, 30.0, 2000)
    assert caught.value.reason == "video_too_large"


def test_a_recording_is_channels_in_time():
    values = np.arange(12, dtype=np.float16).reshape(2, 6)
    assert decode_tensor(npy(values), 2, 4).tolist() == values[:, :4].tolist()
    assert decode_tensor(npy([1, 2, 3]), 1, 9).tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    "data",
    [
        b"no", npy(["a"]), npy([[1.0], [np.inf]]), npy(np.zeros((3, 2))), npy(np.zeros((2, 2, 2))), npy([[], []]),
        npy(np.array(1.0)), json.dumps([1]).encode(),
    ],
)  # fmt: skip
def test_what_is_no_recording_says_so(data: bytes):
    with pytest.raises(SampleError) as caught:
        decode_tensor(data, 2, 9)
    assert caught.value.reason == "bad_tensor"


def test_an_object_array_is_not_unpickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(SampleError, match=r"no \.npy"):
        decode_tensor(buffer.getvalue(), 1, 9)
