"""Measures as steps: their values in words of rules, what they need, and what changes their fingerprints."""

from __future__ import annotations

import csv
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from onnx_file import colours_onnx
from photos import photo
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont
from pydantic import ValidationError

from mmdata import extras
from mmdata.errors import MissingExtraError
from mmdata.media.personal import KINDS
from mmdata.sample import Member, Modality
from mmdata.steps.base import Measure, Step
from mmdata.steps.exchange import Ref
from mmdata.steps.ingest.image import Image
from mmdata.steps.ingest.text import PersonalKind, Text
from mmdata.steps.measure.classifier import Classifier
from mmdata.steps.measure.nsfw import Nsfw
from mmdata.steps.measure.personal import Personal
from mmdata.steps.measure.voice import Voice
from mmdata.steps.measure.wording import Wording
from mmdata.steps.measure.writing import Writing


def member(modality: Modality, data: bytes, lang: str | None = None) -> Member:
    return Member("m", modality, "", "", data, lang)


def measured(step: Measure, one: Member) -> dict[str, Any]:
    found = dict(step.measure(step.load(), one))
    assert set(found) == set(step.columns())
    return found


def png(image: Pictures.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV")
    return buffer.getvalue()


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("the quick brown fox jumps over the lazy dog", "en"),
        ("der schnelle braune Fuchs springt über den faulen Hund", "de"),
        ("быстрая лиса перепрыгнула через ленивую собаку", "ru"),
        ("1234 !", None),
    ],
)
def test_the_language_of_the_words_and_how_sure_that_is(text: str, lang: str | None) -> None:
    found = measured(Wording(), member("text", text.encode(), "xx"))
    assert found["lang"] == lang
    assert found["lang_confidence"] is None if lang is None else 0.5 < found["lang_confidence"] <= 1
    assert found["junk"] is None


def test_a_caption_that_is_a_file_name() -> None:
    found = measured(Wording(), member("text", b"IMG_1234.JPG"))
    assert (found["junk"], found["upper"], found["repetition"], found["digits"]) == ("file_name", 1.0, 0.0, 4 / 12)


def test_personal_data_is_counted_by_its_kind() -> None:
    text = b"jane@example.org, joe@example.org, (650) 253-0000, 4111 1111 1111 1111"
    expected = {"emails": 2, "ibans": 0, "cards": 1, "ids": 0, "phones": 1, "ips": 0, "total": 4}
    assert measured(Personal(), member("text", text, "en")) == expected
    # A number without its country's code is looked for where the language, or the file, says so.
    assert measured(Personal(), member("text", text, "ja"))["phones"] == 0
    assert measured(Personal(regions=["US"]), member("text", text, "ja"))["phones"] == 1
    assert measured(Personal(kinds=["email"]), member("text", text)) == {"emails": 2, "total": 2}


def test_kinds_are_those_that_can_be_found() -> None:
    assert set(PersonalKind.__args__) == set(KINDS) == set(Personal().kinds)  # type: ignore[attr-defined]


# --- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_share_of_a_picture_that_is_writing() -> None:
    page = Pictures.new("RGB", (640, 320), "white")
    assert measured(Writing(), member("image", png(page))) == {"area": 0.0, "lines": 0}
    font = ImageFont.load_default(40)
    for number, line in enumerate(("A sentence to be found", "and another line of it")):
        ImageDraw.Draw(page).text((40, 60 + 120 * number), line, fill="black", font=font)
    found = measured(Writing(), member("image", png(page)))
    assert found["lines"] == 2
    assert 0.1 < found["area"] < 0.3
    assert measured(Writing(), member("image", png(photo("chelsea"))))["area"] < 0.02


def test_bodies_and_faces_in_pictures() -> None:
    found = measured(Nsfw(side_px=640), member("image", png(photo("astronaut"))))
    assert found["faces"] == 1
    assert max(found["face_female"], found["face_male"]) > 0.7
    assert found["unsafe"] < 0.2
    assert measured(Nsfw(), member("image", png(photo("chelsea"))))["faces"] == 0


def test_a_classifier_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "colours.onnx"
    path.write_bytes(colours_onnx())
    step = Classifier(model=str(path), labels=["Red!", "green", "blue"], mean=(0, 0, 0), std=(1, 1, 1), output="as_is")
    found = measured(step, member("image", png(Pictures.new("RGB", (9, 9), (255, 0, 51)))))
    assert found.pop("label") == "Red!"
    assert found == pytest.approx({"probability": 1.0, "red": 1.0, "green": 0.0, "blue": 0.2}, abs=1e-5)


def test_a_classifiers_labels_must_be_columns_and_its_identity_is_its_content(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="'label' is no name of a column"):
        Classifier(model="m", labels=["label"])
    with pytest.raises(ValidationError, match="comes twice"):
        Classifier(model="m", labels=["a b", "a-b"])
    with pytest.raises(ValidationError, match=r"none\.txt cannot be read"):
        Classifier(model="m", labels=str(tmp_path / "none.txt"))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.onnx").write_bytes(colours_onnx())
        (tmp_path / folder / "labels.txt").write_text("red\ngreen\nblue\n")
    steps = [Classifier(model=f"{tmp_path}/{f}/m.onnx", labels=f"{tmp_path}/{f}/labels.txt") for f in ("one", "two")]
    assert steps[0].identity() == steps[1].identity()
    (tmp_path / "two" / "labels.txt").write_text("red\ngreen\nviolet\n")
    assert steps[0].identity() != steps[1].identity()


# --- sounds ---------------------------------------------------------------------------------------------------------


def test_where_somebody_speaks(prompts_dir: Path) -> None:
    with (prompts_dir / "prompts.csv").open(encoding="utf-8") as file:
        path = next(row["path"] for row in csv.DictReader(file) if row["path"].endswith("vm-intro.wav"))
    speech, rate = soundfile.read(prompts_dir / path)
    quiet = np.zeros(3 * rate)
    alone = measured(Voice(), member("audio", wav(speech, rate)))
    assert alone["speech"] > 0.7
    between = measured(Voice(), member("audio", wav(np.concatenate([quiet, speech, quiet, speech]), rate)))
    assert between["speech_s"] == pytest.approx(2 * alone["speech_s"], rel=0.15)
    assert between["starts_s"] == pytest.approx(3, abs=0.3)
    # The prompt itself does not begin and end with speech.
    assert 3 <= between["longest_pause_s"] < 4
    expected = {"speech": 0.0, "speech_s": 0, "starts_s": None, "ends_s": None, "longest_pause_s": None}
    assert measured(Voice(), member("audio", wav(quiet, rate))) == expected


# --- at ingest ------------------------------------------------------------------------------------------------------


def test_personal_data_is_masked_as_it_comes_in() -> None:
    data = b"Ask Jane: jane@example.org or (650) 253-0000"
    found = Text(mask=["email", "phone"]).decode(Ref("m", "text", lang="en"), data)
    assert found.text == found.measures["text"] == "Ask Jane: <EMAIL> or <PHONE>"
    assert (found.measures["masked"], found.measures["chars"]) == (2, 28)
    assert "masked" not in Text().decode(Ref("m", "text", lang="en"), data).measures
    assert Text(mask=["phone"]).decode(Ref("m", "text", lang="ja"), data).measures["masked"] == 0
    assert Text(mask=["phone"], phone_regions=["US"]).decode(Ref("m", "text", lang="ja"), data).measures["masked"] == 1


@pytest.mark.parametrize(
    ("kind", "mime"), [("PNG", "image/png"), pytest.param("JPEG", "image/jpeg", marks=pytest.mark.slow)]
)
def test_faces_are_taken_out_as_they_come_in(kind: str, mime: str) -> None:
    buffer = io.BytesIO()
    photo("astronaut").save(buffer, kind)
    step = Image(blur_faces=True)
    found = step.decode(Ref("m", "image"), buffer.getvalue())
    assert (found.mime, found.measures) == (mime, {"width": 512, "height": 512, "faces": 1})
    assert found == step.decode(Ref("m", "image"), buffer.getvalue())
    assert measured(Nsfw(side_px=640), found)["faces"] == 0
    small = Image(blur_faces=True, resize="longest", side_px=200).decode(Ref("m", "image"), buffer.getvalue())
    assert small.measures == {"width": 200, "height": 200, "faces": 1}


def test_a_picture_without_faces_stays_byte_for_byte() -> None:
    data = png(photo("chelsea"))
    found = Image(blur_faces=True, keep_metadata=True).decode(Ref("m", "image"), data)
    assert (found.data == data, found.measures["faces"]) == (True, 0)
    assert "faces" not in Image().decode(Ref("m", "image"), data).measures


@pytest.mark.slow
def test_a_transparent_picture_keeps_its_transparency() -> None:
    image = photo("astronaut")
    image.putalpha(200)
    found = Image(blur_faces=True).decode(Ref("m", "image"), png(image))
    assert found.measures["faces"] == 1
    done = Pictures.open(io.BytesIO(found.data))
    assert (done.mode, done.getchannel("A").getextrema()) == ("RGBA", (200, 200))


# --- what is not installed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "step", "extra"),
    [
        ("nudenet", Nsfw(), "safety"),
        ("nudenet", Image(blur_faces=True), "safety"),
        ("phonenumbers", Personal(), "personal"),
        ("stdnum", Text(mask=["card"]), "personal"),
        ("rapidocr", Writing(), "ocr"),
        ("faster_whisper", Voice(), "whisper"),
    ],
)
def test_steps_say_what_they_need(hidden: str, step: Step, extra: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == hidden else importlib.util.find_spec(name))
    (needed,) = step.needs()
    with pytest.raises(MissingExtraError, match=rf"pip install 'mmdata\[{extra}\]'"):
        extras.require("it", needed)


def test_what_needs_nothing_asks_for_nothing() -> None:
    assert Image().needs() == Text().needs() == ()


@pytest.mark.parametrize("step", [Voice(), Writing(), Nsfw()])
def test_weights_inside_of_packages_are_named_by_their_content(step: Measure) -> None:
    weights = step.weights()
    assert weights is not None
    assert weights.path is not None
    assert weights.path.exists()
    assert step.identity()["weights"] == weights.identity
