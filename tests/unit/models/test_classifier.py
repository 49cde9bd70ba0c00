"""Somebody's own classifier: one whose answers are known, in every form that it may be given in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_file import colours_onnx
from PIL import Image

from mmdata.errors import WeightsError
from mmdata.models.classifier import Classifier, Reading, column_of, locate, read_labels, square

PLAIN = Reading(16, "stretch", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr=False, output="as_is")
COLOUR = Image.new("RGB", (20, 10), (255, 102, 51))
LABELS = ["red", "green", "blue"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "m.onnx").write_bytes(colours_onnx())
    (tmp_path / "last.onnx").write_bytes(colours_onnx(colours_last=True))
    return str(tmp_path / "m.onnx")


def values(model: str, reading: Reading) -> list[float]:
    return [float(value) for value in Classifier(model, LABELS, reading).probabilities(COLOUR)]


def test_colours_come_in_as_they_are_declared(model: str) -> None:
    assert values(model, PLAIN) == pytest.approx([1.0, 0.4, 0.2], abs=1e-5)
    assert values(model, replace(PLAIN, bgr=True)) == pytest.approx([0.2, 0.4, 1.0], abs=1e-5)
    scaled = replace(PLAIN, mean=(0.5, 0.4, 0.1), std=(0.5, 1.0, 0.1))
    assert values(model, scaled) == pytest.approx([1.0, 0.0, 1.0], abs=1e-5)
    assert values(model.replace("m.onnx", "last.onnx"), PLAIN) == pytest.approx([1.0, 0.4, 0.2], abs=1e-5)


def test_logits_become_probabilities(model: str) -> None:
    powers = np.exp([1.0, 0.4, 0.2])
    assert values(model, replace(PLAIN, output="softmax")) == pytest.approx(powers / powers.sum(), abs=1e-5)
    assert values(model, replace(PLAIN, output="sigmoid")) == pytest.approx(powers / (1 + powers), abs=1e-5)


def test_a_picture_becomes_a_square() -> None:
    wide = Image.new("RGB", (30, 10), (0, 0, 0))
    wide.paste((255, 255, 255), (10, 0, 20, 10))
    means = {fit: np.asarray(square(wide, 12, fit)).mean() / 255 for fit in ("stretch", "crop", "pad")}
    assert means == pytest.approx({"stretch": 1 / 3, "crop": 1.0, "pad": 1 / 9}, abs=0.03)


def test_what_does_not_fit_is_said_before_or_with_the_first_picture(model: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="3 values come out, and there are 2 labels"):
        Classifier(model, ["a", "b"], PLAIN).probabilities(COLOUR)
    with pytest.raises(WeightsError, match="give an ONNX file"):
        locate(str(tmp_path / "none.onnx"))
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(WeightsError, match="does not load"):
        Classifier(str(tmp_path / "bad.onnx"), LABELS, PLAIN)


def test_labels_are_columns(tmp_path: Path) -> None:
    assert [column_of(label) for label in ("Not safe (18+)", "Chat noir", "猫", "2nd")] == [
        "not_safe_18",
        "chat_noir",
        "猫",
        "_2nd",
    ]
    (tmp_path / "labels.txt").write_text("red\n\n green \nblue\n")
    assert read_labels(str(tmp_path / "labels.txt")) == LABELS
    with pytest.raises(ValueError, match="cannot be read"):
        read_labels(str(tmp_path / "none.txt"))
