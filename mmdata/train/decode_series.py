"""From a member's bytes to numbers in time: videos and recordings of sensors, within limits.

Shapes: F frames, C channels, H and W pixels, P steps in time.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from mmdata.errors import SampleError
from mmdata.media.clock import since_beginning, told_length_s
from mmdata.media.upright import upright_image
from mmdata.train.decode import fitted

# (offset, first bytes, FFmpeg's name of the container), as in `mmdata.train.decode`.
_VIDEO_MAGIC = ((4, b"ftyp", "mov"), (0, b"\x1aE\xdf\xa3", "matroska"))
_MAX_FRAMES_PER_S = 240
_USUAL_FRAMES_PER_S = 25
_TENSOR_AXES = 2


def decode_video(data: bytes, side_px: int, frames: int, max_s: float, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Frames at even distances over the first `max_s` seconds, each as `decode_image` gives it. Shape (3, H, W, F).

    A video of fewer frames gives those that it has. Raises SampleError where it is no MP4 or WebM, is damaged, or its
    frames have more than `max_pixels`.
    """
    known = (name for offset, magic, name in _VIDEO_MAGIC if data[offset : offset + len(magic)] == magic)
    container_format = next(known, None)
    if container_format is None:
        raise SampleError("bad_video", "cannot be decoded: no MP4 or WebM")
    try:
        with av.open(io.BytesIO(data), format=container_format, metadata_errors="replace") as container:
            chosen = list(_frames(container, frames, max_s, max_pixels))
    except (av.FFmpegError, ValueError, IndexError, MemoryError) as error:
        raise SampleError("bad_video", f"cannot be decoded: {error}") from None
    if not chosen:
        raise SampleError("empty_video", "no frames in it")
    return np.stack([fitted(upright_image(frame), side_px) for frame in chosen], axis=-1)


def _frames(container: Any, count: int, max_s: float, max_pixels: int) -> Iterator[Any]:
    """The frame that is shown in the middle of each of `count` equal stretches, each once."""
    stream = container.streams.video[0]
    if stream.codec_context.width * stream.codec_context.height > max_pixels:
        raise SampleError("video_too_large", f"frames of more than {max_pixels} pixels")
    long_s = min(max_s, told_length_s(container) or max_s)
    places_s = [(number + 0.5) * long_s / count for number in range(count)]
    shown = None
    for number, frame in enumerate(container.decode(stream)):
        at_s = number / _USUAL_FRAMES_PER_S if frame.pts is None else since_beginning(container, frame)
        if shown is not None and places_s and places_s[0] < at_s:
            yield shown
            places_s = [place for place in places_s if place >= at_s]
        if not places_s or number > max_s * _MAX_FRAMES_PER_S:
            return
        shown = frame
    if shown is not None and places_s:
        yield shown


def decode_tensor(data: bytes, channels: int, max_steps: int) -> npt.NDArray[np.float32]:
    """The first `max_steps` of a recording, `.npy` of the axes channel and time, or of time alone. Shape (C, P).

    Raises SampleError where it is anything else, has another number of channels, or is not finite.
    """
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise SampleError("bad_tensor", f"no .npy: {error}") from None
    values = values[None] if values.ndim == 1 else values
    if values.ndim != _TENSOR_AXES or values.dtype.kind not in "fiu" or not values.size:
        raise SampleError("bad_tensor", f"of shape {values.shape} and type {values.dtype}, no channels of numbers")
    if len(values) != channels:
        raise SampleError("bad_tensor", f"{len(values)} channels, data.tensor_channels says {channels}")
    cut = np.ascontiguousarray(values[:, :max_steps], dtype=np.float32)
    if not np.isfinite(cut).all():
        raise SampleError("bad_tensor", "holds numbers that are not finite")
    return cut
