from __future__ import annotations

import io
import time
from typing import Any

import pytest
from PIL import Image

from mmdata.errors import SampleError
from mmdata.media.image_frames import frames
from mmdata.media.image_write import Target
from mmdata.steps.exchange import Ref
from mmdata.steps.ingest.image import Image as Ingest

GREYS = [0, 60, 120, 180, 240]


def moving(kind: str, lengths_ms: list[int], size: tuple[int, int] = (8, 6)) -> bytes:
    """Frame n is grey number n, and is shown so long."""
    pictures = [Image.new("RGB", size, (GREYS[n % 5],) * 3) for n in range(len(lengths_ms))]
    buffer = io.BytesIO()
    more: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:], duration=lengths_ms, loop=0, **more)
    return buffer.getvalue()


def greys(data: bytes, count: int, **target: Any) -> list[int]:
    found = []
    for stored in frames(data, count, Target(**target), 1 << 20):
        with Image.open(io.BytesIO(stored.data)) as image:
            assert image.size == (stored.width, stored.height)
            found.append(image.convert("L").getpixel((1, 1)))
    return found


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("lengths_ms", "count", "expected"),
    [
        ([100] * 5, 5, GREYS),
        ([100] * 5, 1, [120]),
        ([100] * 5, 2, [60, 180]),
        # A frame that is shown for longer counts for more, and none comes twice.
        ([100, 100, 800], 2, [120]),
        ([800, 100, 100], 4, [0, 60]),
        ([100] * 2, 8, [0, 60]),
    ],
)
def test_frames_are_taken_evenly_over_the_time(kind: str, lengths_ms: list[int], count: int, expected: list[int]):
    assert greys(moving(kind, lengths_ms), count) == pytest.approx(expected, abs=1)


def test_a_picture_that_stands_still_has_no_frames():
    for kind in ("PNG", "JPEG", "GIF"):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4)).save(buffer, kind)
        if kind != "JPEG":
            assert greys(buffer.getvalue(), 3) == []
        step = Ingest.model_validate({"frames": 3})
        assert list(step.more(Ref("image", "image"), buffer.getvalue())) == []


def test_frames_are_stored_as_the_picture_would_be():
    (stored,) = frames(moving("GIF", [100] * 3), 1, Target("keep_ratio", 3, encode="jpeg"), 1 << 20)
    assert (stored.format, stored.width, stored.height) == ("JPEG", 4, 3)


def test_a_picture_that_moves_without_end_costs_its_frames_alone():
    long = moving("GIF", [20] * 40, (100, 100))
    began = time.process_time()
    with pytest.raises(SampleError) as caught:
        list(frames(long, 2, Target(), 10_000))
    assert caught.value.reason == "too_many_frames"
    assert time.process_time() - began < 2


def test_a_picture_that_breaks_off_is_bad():
    data = moving("GIF", [100] * 5, (64, 64))
    with pytest.raises(SampleError) as caught:
        list(frames(data[:-40] + b"\x21\xf9", 5, Target(), 1 << 20))
    assert caught.value.reason == "bad_image"


def test_frames_are_members_by_name():
    step = Ingest.model_validate({"frames": 2})
    assert list(step.more_members("picture")) == ["picture_frame_0", "picture_frame_1"]
    found = list(step.more(Ref("picture", "image"), moving("GIF", [100] * 4)))
    assert [(one.name, one.mime, one.measures) for one in found] == [
        (f"picture_frame_{n}", "image/png", {"width": 8, "height": 6}) for n in range(2)
    ]
