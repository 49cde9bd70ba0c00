"""Where containers of packets break off: within one they tell, between two they cannot."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from mmdata.errors import SampleError
from mmdata.media.broken_off import broken_off
from mmdata.media.video import Limits, Target, normalise

END_OF_PROGRAM = b"\x00\x00\x01\xb9"


@pytest.fixture(
    scope="module", params=[("mpeg", "mpeg1video"), ("vob", "mpeg2video"), ("flv", "flv1")], ids=lambda pair: pair[0]
)
def film(request: pytest.FixtureRequest) -> bytes:
    """Four seconds of noise."""
    kind, codec = request.param
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    with av.open(buffer, "w", format=kind) as container:
        picture = container.add_stream(codec, rate=25, width=64, height=64, pix_fmt="yuv420p")
        for _ in range(100):
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode(None))
    return buffer.getvalue()


def test_what_breaks_off_within_a_packet_is_told(film: bytes) -> None:
    assert broken_off(film) is None
    assert broken_off(film + END_OF_PROGRAM) is None
    ends = range(len(film) // 2, len(film), 7)
    silent = [end for end in ends if broken_off(film[:end]) is None]
    assert len(silent) < len(ends) / 100
    limits = Limits(60, 5000, 1 << 20)
    assert normalise(film, Target(), limits)[1].duration_s == pytest.approx(4, abs=0.2)
    with pytest.raises(SampleError, match=r"its last (packet|tag) ends at byte \d+, and the file at \d+"):
        normalise(film[: next(end for end in ends if end not in silent)], Target(), limits)


@pytest.mark.parametrize("head", [b"\x00\x00\x01\xba", b"FLV\x01\x05\x00\x00\x00\x09"])
def test_nobody_can_tell_of_what_is_no_such_stream(head: bytes) -> None:
    for tail in (b"", b"\x00", b"\x21" + bytes(100), b"\xff" * 100):
        broken_off(head + tail)
    assert broken_off(head + bytes(4) + b"\x00\x00\x01\x00" * 9) is None
