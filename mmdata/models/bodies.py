"""Faces and bare bodies in pictures, by NudeNet's detector (notAI-tech, MIT); its weights come inside of nudenet.

The package's own class gives the network blue for red, which costs it confidence (skimage's astronaut: 0.74 for 0.83),
and takes all cores; only the weights are used here.

Shapes: H, W pixels of a picture; S side of the network's input; A places where it looks; image_HW3 is RGB, uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmdata.errors import MissingExtraError
from mmdata.models.onnx_session import open_session
from mmdata.models.weights import Weights, content_identity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

# In the order of the network's outputs: nudenet.py, `__labels`.
CLASSES: Final = (
    "female_genitalia_covered",
    "face_female",
    "buttocks_exposed",
    "female_breast_exposed",
    "female_genitalia_exposed",
    "male_breast_exposed",
    "anus_exposed",
    "feet_exposed",
    "belly_covered",
    "feet_covered",
    "armpits_covered",
    "armpits_exposed",
    "face_male",
    "belly_exposed",
    "male_genitalia_exposed",
    "anus_covered",
    "female_breast_covered",
    "buttocks_covered",
)
FACES: Final = frozenset({"face_female", "face_male"})
# What most rules on explicit pictures mean; bare feet, bellies, armpits and men's breasts are on every beach.
UNSAFE: Final = (
    "anus_exposed",
    "buttocks_exposed",
    "female_breast_exposed",
    "female_genitalia_exposed",
    "male_genitalia_exposed",
)
# nudenet.py, `_postprocess`: least confidence, and the most that two boxes of one thing may overlap.
MIN_CONFIDENCE: Final = 0.2
_MOST_OVERLAP: Final = 0.45
_FILE: Final = "320n.onnx"
_STRIDE_PX: Final = 32


@dataclass(frozen=True)
class Seen:
    """A thing in a picture: a name of `CLASSES`, 0 to 1, and left, top, right, bottom in pixels."""

    name: str
    confidence: float
    box: tuple[float, float, float, float]


def locate(needed_by: str) -> Weights:
    """The weights inside of nudenet, without importing it. Raises MissingExtraError."""
    spec = find_spec("nudenet")
    if spec is None or spec.origin is None or find_spec("onnxruntime") is None:
        raise MissingExtraError(needed_by, "nudenet", "safety")
    path = Path(spec.origin).parent / _FILE
    return Weights(content_identity([path]), path)


@cache
def load(needed_by: str, side_px: int) -> Detector:
    """The detector, once a process. Raises MissingExtraError, WeightsError."""
    path = locate(needed_by).path
    assert path is not None
    return Detector(open_session(path, needed_by, "safety"), side_px)


class Detector:
    """Finds bodies and faces; on one thread, so that equal pictures give equal boxes everywhere."""

    def __init__(self, session: Any, side_px: int) -> None:
        """`side_px`: the picture's longer side as the network sees it, rounded to multiples of 32; it learnt at 320."""
        self._session = session
        self._side_px = max(1, round(side_px / _STRIDE_PX)) * _STRIDE_PX

    def detect(self, image: Image.Image) -> list[Seen]:
        """What is in an RGB picture, the surest first."""
        scale = max(image.size) / self._side_px
        output_KA = self._session.run(None, {"images": self._input(image)})[0][0]
        box_A4, score_AK = output_KA[:4].T * scale, output_KA[4:].T
        best_A = score_AK.argmax(axis=1)
        sure_A = score_AK.max(axis=1)
        wanted = [int(place) for place in (-sure_A).argsort(kind="stable") if sure_A[place] >= MIN_CONFIDENCE]
        found: list[Seen] = []
        for place in wanted:
            seen = Seen(CLASSES[best_A[place]], float(sure_A[place]), _corners(box_A4[place], image.size))
            if not any(_overlap(seen.box, other.box) > _MOST_OVERLAP for other in found):
                found.append(seen)
        return found

    def _input(self, image: Image.Image) -> NDArray[np.float32]:
        """`[1, 3, S, S]` in [0, 1]: the picture at the top left of a black square."""
        import numpy as np
        from PIL import Image

        scale = self._side_px / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        square = Image.new("RGB", (self._side_px, self._side_px))
        square.paste(image.resize(size, Image.Resampling.BILINEAR))
        return np.ascontiguousarray(np.asarray(square, dtype=np.float32).transpose(2, 0, 1)[None] / 255)


def _corners(centre_4: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom within the picture, of a middle with width and height."""
    x, y, width, height = (float(value) for value in centre_4)
    left, right = (min(max(at, 0.0), size[0]) for at in (x - width / 2, x + width / 2))
    top, bottom = (min(max(at, 0.0), size[1]) for at in (y - height / 2, y + height / 2))
    return left, top, right, bottom


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Area of the intersection by that of the union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (_area(one) + _area(other) - both)


def _area(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
