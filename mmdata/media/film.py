"""What can be told of a film by its frames: whether anything moves, whether anything is seen, how often it cuts.

Shapes: H, W pixels of a frame made smaller; bgr_HW3 is uint8, grey_HW is luma in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mmdata.errors import MissingExtraError, SampleError
from mmdata.media.sound import track_loudness
from mmdata.media.video import Limits, decoded, open_video

if TYPE_CHECKING:
    from numpy.typing import NDArray

# PySceneDetect looks at frames of about this width (`scene_manager.DEFAULT_MIN_WIDTH`).
_WIDTH_PX: Final = 256
# FFmpeg's `freezedetect`: two frames are one where their mean absolute difference is at most -60 dB of full scale.
_STILL: Final = 0.001
# FFmpeg's `blackdetect`: `pixel_black_th` and `picture_black_ratio_th`.
_BLACK_PIXEL: Final = 0.1
_BLACK_SHARE: Final = 0.98
# A flash is no cut: PySceneDetect's 15 frames, of 25 a second.
_MIN_SCENE_S: Final = 0.6
# ITU-R BT.601, of blue, green, red in bytes.
_LUMA: Final = np.array([0.114, 0.587, 0.299], dtype=np.float32) / 255
_FPS_UNKNOWN: Final = 25.0
_SECONDS_A_MINUTE: Final = 60


@dataclass(frozen=True)
class Film:
    """What `measure_film` found.

    Attributes:
        static: share of the time in which nothing moves.
        black: share of the time that is black.
        cuts_per_minute: where PySceneDetect's ContentDetector cuts.
        fps: frames a second, the mean.
        loudness_lufs: of its sound, ITU-R BS.1770-4; None without one, and for silence.
    """

    static: float
    black: float
    cuts_per_minute: float
    fps: float
    loudness_lufs: float | None


@dataclass
class _Tally:
    """Seconds and counts over frames."""

    seconds: float = 0.0
    static_s: float = 0.0
    black_s: float = 0.0
    frames: int = 0


def measure_film(data: bytes, limits: Limits, threshold: float) -> Film:
    """Decode once and measure; `threshold`: of PySceneDetect's ContentDetector, lower cuts more.

    Raises:
        SampleError: `not_video`, `bad_video`, `no_video`, `too_long`, `too_many_frames`, `too_many_pixels`.
        MissingExtraError: scenedetect is not installed.
    """
    with open_video(data) as container:
        rate = float(container.streams.video[0].average_rate or _FPS_UNKNOWN)
        tally, cuts = _watch(container, limits, _Cuts(threshold, rate), 1 / rate)
        has_sound = bool(container.streams.audio)
    minutes = tally.seconds / _SECONDS_A_MINUTE
    return Film(
        static=tally.static_s / tally.seconds,
        black=tally.black_s / tally.seconds,
        cuts_per_minute=cuts / minutes,
        fps=tally.frames / tally.seconds,
        loudness_lufs=_loudness(data, limits) if has_sound else None,
    )


def _watch(container: Any, limits: Limits, cuts: _Cuts, frame_s: float) -> tuple[_Tally, int]:
    tally = _Tally()
    before: Any = None
    for bgr_HW3, length_s in _shown(container, limits, frame_s):
        grey_HW = bgr_HW3 @ _LUMA
        tally.frames += 1
        tally.seconds += length_s
        if before is not None and float(np.abs(grey_HW - before).mean()) <= _STILL:
            tally.static_s += length_s
        if float((grey_HW <= _BLACK_PIXEL).mean()) >= _BLACK_SHARE:
            tally.black_s += length_s
        before = grey_HW
        cuts.add(bgr_HW3)
    if tally.frames == 0:
        raise SampleError("no_video", "no frame")
    return tally, cuts.count


def _shown(container: Any, limits: Limits, frame_s: float) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Frames made smaller, all to one size, each with how long it is shown; the last as long as most."""
    held, since, first = None, 0.0, None
    for number, frame in enumerate(decoded(container, limits)):
        at = float(frame.time or 0.0)
        first = at if first is None else first
        if at - first > limits.max_duration_s or number >= limits.max_frames:
            raise SampleError("too_long", f"more than {limits.max_duration_s:g} s or {limits.max_frames} frames")
        if held is not None:
            yield held, max(at - since, 0.0) or frame_s
        held, since = _small(frame, held), at
    if held is not None:
        yield held, frame_s


def _small(frame: Any, like: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """A frame made as small as the one before: films that were put one behind the other may be of several sizes."""
    scale = min(1.0, _WIDTH_PX / frame.width)
    width, height = (max(2, round(side * scale)) for side in (frame.width, frame.height))
    if like is not None:
        height, width = like.shape[:2]
    small: NDArray[np.uint8] = frame.reformat(
        width=width, height=height, format="bgr24", interpolation="AREA"
    ).to_ndarray()
    return small


def _loudness(data: bytes, limits: Limits) -> float | None:
    """None where the sound cannot be decoded: the pictures can."""
    try:
        with open_video(data) as container:
            return track_loudness(container, limits.max_duration_s)
    except SampleError:
        return None


class _Cuts:
    """Counts cuts by PySceneDetect."""

    def __init__(self, threshold: float, fps: float) -> None:
        """Raises MissingExtraError."""
        try:
            import scenedetect
        except ImportError:
            raise MissingExtraError("film", "scenedetect", "video") from None
        self.count = 0
        self._timecode = scenedetect.FrameTimecode
        self._fps = fps
        self._number = 0
        self._detector = scenedetect.ContentDetector(threshold, max(1, round(_MIN_SCENE_S * fps)))

    def add(self, bgr_HW3: NDArray[np.uint8]) -> None:
        """The next frame."""
        self.count += len(self._detector.process_frame(self._timecode(self._number, self._fps), bgr_HW3))
        self._number += 1
