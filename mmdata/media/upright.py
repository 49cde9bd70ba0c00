"""Frames as they are to be shown: phones store them as the sensor lies, and beside them how to turn them.

Shapes: H, W pixels; rgb_HWC is uint8; yuv_T are the three planes of 4:2:0, one after the other.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_QUARTER_DEGREES: Final = 90


@dataclass(frozen=True)
class Turn:
    """How a frame is to be shown.

    Attributes:
        quarters: of a turn, counterclockwise; what is between them is rounded.
        mirrored: whether left and right change places before that.
    """

    quarters: int = 0
    mirrored: bool = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        """What a width and a height are then; and what they were."""
        return (height, width) if self.quarters % 2 else (width, height)

    def of(self, picture_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture or a plane as it is to be shown."""
        return np.rot90(picture_HW[:, ::-1] if self.mirrored else picture_HW, self.quarters)


def turn_of(frame: Any) -> Turn:
    """What the matrix beside a frame says: ISO/IEC 14496-12, 8.3.2, as FFmpeg hands it on."""
    from av.sidedata.sidedata import Type

    told = frame.side_data.get(Type.DISPLAYMATRIX)
    if told is None:
        return Turn()
    # x' = ax + cy, y' = bx + dy, with y downwards.
    a, b, _, c, d = struct.unpack_from("=5i", bytes(told))
    if a * d == b * c:  # of zeros, say
        return Turn()
    return Turn(round(math.degrees(math.atan2(c, d)) / _QUARTER_DEGREES) % 4, a * d < b * c)


def upright_rgb(frame: Any) -> NDArray[np.uint8]:
    """A frame as rgb_HWC."""
    return np.ascontiguousarray(turn_of(frame).of(frame.to_ndarray(format="rgb24")))


def upright_image(frame: Any) -> Any:
    """A frame as a Pillow image."""
    from PIL import Image

    return frame.to_image() if turn_of(frame) == Turn() else Image.fromarray(upright_rgb(frame))


def upright_yuv(frame: Any, width: int, height: int) -> Any:
    """A frame as one of 4:2:0, of an even size; nothing is lost by turning it."""
    import av

    turn = turn_of(frame)
    across, down = turn.size(width, height)
    small = frame.reformat(width=across, height=down, format="yuv420p")
    if turn == Turn():
        return small
    yuv_T = small.to_ndarray().reshape(-1)
    luma, chroma = across * down, across * down // 4
    planes = (
        yuv_T[:luma].reshape(down, across),
        yuv_T[luma : luma + chroma].reshape(down // 2, across // 2),
        yuv_T[luma + chroma :].reshape(down // 2, across // 2),
    )
    turned_T = np.concatenate([turn.of(plane).reshape(-1) for plane in planes])
    return av.VideoFrame.from_ndarray(turned_T.reshape(-1, width), format="yuv420p")
