"""Somebody's own picture classifier: an ONNX file and what it does not say of itself; no code of theirs runs.

Shapes: H, W side of the network's input; K labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mmdata.errors import WeightsError
from mmdata.models.onnx_session import open_session
from mmdata.models.weights import Weights, content_identity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

Fit = Literal["stretch", "crop", "pad"]
Output = Literal["softmax", "sigmoid", "as_is"]
_NDIM: Final = 4
_COLOURS: Final = 3


@dataclass(frozen=True)
class Reading:
    """How a picture becomes the network's input, and its output values between 0 and 1.

    Attributes:
        side_px: of the square it takes.
        fit: how a picture becomes a square: `stretch`, `crop` (the middle), or `pad` (black at the right and below).
        mean: of red, green and blue in [0, 1]: what is taken off.
        std: what it is divided by then.
        bgr: whether blue comes first.
        output: `softmax` over logits of one choice, `sigmoid` over logits of several, or `as_is`.
    """

    side_px: int
    fit: Fit
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool
    output: Output


def locate(model: str) -> Weights:
    """The file and those beside it that hold its tensors, without loading them. Raises WeightsError."""
    path = Path(model).expanduser()
    if not path.is_file():
        raise WeightsError(f"classifier {model!r} is not there: give an ONNX file")
    beside = [other for other in path.parent.iterdir() if other.suffix == ".data" and other.stem.startswith(path.stem)]
    return Weights(content_identity([path, *beside]), path)


def read_labels(labels: str | Sequence[str]) -> list[str]:
    """Labels as they are given, or one a line in a file. Raises ValueError where the file cannot be read."""
    if not isinstance(labels, str):
        return list(labels)
    try:
        lines = Path(labels).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"labels: {labels} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def column_of(label: str) -> str:
    """What a label is called in rules: `Not safe (18+)` is `not_safe_18`."""
    bare = re.sub(r"\W+", "_", label.casefold()).strip("_")
    return f"_{bare}" if bare[:1].isdigit() else bare


class Classifier:
    """A session with its labels; on one thread, so that equal pictures give equal values everywhere."""

    def __init__(self, model: str, labels: Sequence[str], reading: Reading) -> None:
        """Raises MissingExtraError, or WeightsError where it is no picture classifier with so many labels."""
        path = locate(model).path
        assert path is not None
        self.labels = list(labels)
        self._reading = reading
        self._session = open_session(path, "classifier", "safety")
        self._input = self._session.get_inputs()[0]
        shape = self._input.shape
        if len(shape) != _NDIM or _COLOURS not in (shape[1], shape[3]):
            raise WeightsError(f"{model}: its input is {shape}, not pictures [N, 3, H, W] or [N, H, W, 3]")
        self._colours_last = shape[3] == _COLOURS
        sides = shape[1:3] if self._colours_last else shape[2:4]
        if any(isinstance(side, int) and side != reading.side_px for side in sides):
            raise WeightsError(f"{model}: its input is {shape}; side_px: {reading.side_px} does not fit")

    def probabilities(self, image: Image.Image) -> NDArray[np.float64]:
        """Of each label, `[K]`, for an RGB picture. Raises WeightsError where the output has not so many values."""
        import numpy as np

        output = np.asarray(self._session.run(None, {self._input.name: self._prepared(image)})[0], dtype=np.float64)
        if output.size != len(self.labels):
            raise WeightsError(f"classifier: {output.size} values come out, and there are {len(self.labels)} labels")
        values_K = output.reshape(-1)
        if self._reading.output == "softmax":
            powers_K = np.exp(values_K - values_K.max())
            return np.asarray(powers_K / powers_K.sum())
        return np.asarray(1 / (1 + np.exp(-values_K)) if self._reading.output == "sigmoid" else values_K)

    def _prepared(self, image: Image.Image) -> Any:
        import numpy as np

        pixels_HW3 = np.asarray(square(image, self._reading.side_px, self._reading.fit), dtype=np.float32) / 255
        mean_3, std_3 = (np.array(each, dtype=np.float32) for each in (self._reading.mean, self._reading.std))
        values_HW3 = (pixels_HW3 - mean_3) / std_3
        values_HW3 = values_HW3[:, :, ::-1] if self._reading.bgr else values_HW3
        values = values_HW3 if self._colours_last else values_HW3.transpose(2, 0, 1)
        kind = np.float16 if self._input.type == "tensor(float16)" else np.float32
        return np.ascontiguousarray(values[None], dtype=kind)


def square(image: Image.Image, side_px: int, fit: Fit) -> Image.Image:
    """A picture as a square, see `Reading.fit`."""
    from PIL import Image, ImageOps

    resampling = Image.Resampling.BILINEAR
    if fit == "crop":
        return ImageOps.fit(image, (side_px, side_px), resampling)
    if fit == "stretch":
        return image.resize((side_px, side_px), resampling)
    scale = side_px / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    done = Image.new("RGB", (side_px, side_px))
    done.paste(image.resize(size, resampling))
    return done
