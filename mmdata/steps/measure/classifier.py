"""`classifier`: somebody's own picture classifier, an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mmdata.models.weights import Weights
from mmdata.sample import Member, Modality
from mmdata.spec import Names
from mmdata.steps.base import Measure

_OWN = ("label", "probability")


class Classifier(Measure):
    """Runs an ONNX picture classifier of your own, on the processor; no code beside it runs.

    A column for each label holds its probability, `label` and `probability` are the most likely one. A measure of any
    other kind is a step of your own: see `examples/own_measure.py`.
    """

    step: ClassVar[str] = "classifier"
    extras: ClassVar[tuple[str, ...]] = ("tags",)
    modality: ClassVar[Modality] = "image"
    of: Names = Field(["image"], min_length=1, description="image members to look at")
    model: str = Field(description="the ONNX file: pictures [N, 3, H, W] or [N, H, W, 3], a value for each label")
    labels: list[str] | str = Field(description="names of the outputs, in their order, or a file with one a line")
    side_px: int = Field(224, ge=8, le=4096, description="side of the square that it takes")
    fit: Literal["stretch", "crop", "pad"] = Field("crop", description="how a picture becomes a square")
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="taken off red, green, blue in [0, 1]")
    std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="what they are divided by then")
    colours: Literal["rgb", "bgr"] = Field("rgb", description="which colour comes first")
    output: Literal["softmax", "sigmoid", "as_is"] = Field(
        "softmax", description="softmax: logits of one choice; sigmoid: of several; as_is: probabilities"
    )

    @model_validator(mode="after")
    def _labels_are_columns(self) -> Classifier:
        names = self._names()
        if not names:
            raise ValueError("labels: there is none")
        wrong = [name for name in names if not name or name in _OWN or names.count(name) > 1]
        if wrong:
            raise ValueError(f"labels: {wrong[0]!r} is no name of a column, or comes twice")
        return self

    def _names(self) -> list[str]:
        from mmdata.models.classifier import column_of, read_labels

        return [column_of(label) for label in read_labels(self.labels)]

    def columns(self) -> dict[str, str]:
        """The most likely label, and each label's probability."""
        return {"label": "VARCHAR", "probability": "DOUBLE", **dict.fromkeys(self._names(), "DOUBLE")}

    def weights(self) -> Weights | None:
        """The file. Raises WeightsError."""
        from mmdata.models.classifier import locate

        return locate(self.model)

    def identity(self) -> dict[str, Any]:
        """Labels by what they are, not by where they stand."""
        mine = super().identity()
        return {**mine, "params": {**mine["params"], "labels": self._names()}}

    def load(self) -> Any:
        """The session. Raises MissingExtraError, or WeightsError where it does not fit what was said of it."""
        from mmdata.models.classifier import Classifier as Network
        from mmdata.models.classifier import Reading, read_labels

        reading = Reading(self.side_px, self.fit, self.mean, self.std, self.colours == "bgr", self.output)
        return Network(self.model, read_labels(self.labels), reading)

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:
        """Raises SampleError as `mmdata.media.image` does."""
        from mmdata.media.image import small_rgb

        values = [float(value) for value in tool.probabilities(small_rgb(member.data, 2 * self.side_px))]
        best = max(range(len(values)), key=lambda k: values[k])
        named = dict(zip(self._names(), values, strict=True))
        return {"label": tool.labels[best], "probability": values[best], **named}
