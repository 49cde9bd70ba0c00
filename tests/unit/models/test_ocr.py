from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from mmdata.models.ocr import Ocr as OcrModel
from mmdata.models.ocr import _for_engine, caption_overlap, is_mostly_text, locate
from mmdata.sample import Member, Sample
from mmdata.steps.align.ocr import Ocr

CAPTIONS = [
    "Please enter your agent number followed by the pound key.",
    "The letter W.",
    "A mountain goat stands on a steep rock",
    "Big fireworks over the harbour!",
]


def drawn(caption: str, width: int = 480, height: int = 300, size: int = 40) -> Image.Image:
    """The caption, filling a picture."""
    image = Image.new("RGB", (width, height), "navy")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    lines: list[str] = []
    for word in caption.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) < width - size:
            lines[-1] = longer
        else:
            lines.append(word)
    for row, line in enumerate(lines):
        draw.text((size // 2, size // 2 + int(1.4 * size) * row), line, fill="white", font=font)
    return image


@pytest.fixture(scope="module")
def model() -> OcrModel:
    return OcrModel()


def test_overlap_counts_each_written_word_once() -> None:
    assert caption_overlap("The red door", "RED door, the") == 1.0
    assert caption_overlap("stop stop now", "stop") == pytest.approx(1 / 3)
    assert caption_overlap("followed by the pound key", "followedby the poundkey") == pytest.approx(0.6)
    assert caption_overlap("a door", "") == 0.0
    assert caption_overlap("...", "a") is None


def test_mostly_text_needs_both_the_words_and_the_area() -> None:
    assert is_mostly_text(0.8, 0.2)
    assert not is_mostly_text(0.79, 0.9)
    assert not is_mostly_text(1.0, 0.19)
    assert not is_mostly_text(None, 1.0)


def test_drawn_captions_are_read(model: OcrModel) -> None:
    for caption in CAPTIONS:
        writing = model.read(np.asarray(drawn(caption)))
        assert writing.text == caption
        assert writing.confidence is not None
        assert writing.confidence > 0.9
        assert 0.05 < writing.area < 0.8


def test_area_is_that_of_the_boxes_counted_once(model: OcrModel) -> None:
    small = model.read(np.asarray(drawn("Activated", size=24))).area
    large = model.read(np.asarray(drawn("Activated", size=72))).area
    assert 0.01 < small < 0.05
    assert large / small == pytest.approx(9, rel=0.35)


def test_nothing_is_read_where_nothing_is_written(model: OcrModel) -> None:
    empty = model.read(np.full((64, 200, 3), 200, np.uint8))
    assert (empty.lines, empty.confidence, empty.area, empty.text) == ((), None, 0.0, "")


@pytest.mark.parametrize("size", [(1, 1280), (1280, 1), (10, 1280), (1, 1)])
@pytest.mark.slow
def test_a_line_is_read_in_bounded_memory(model: OcrModel, size: tuple[int, int]) -> None:
    image_HW3 = np.zeros((*size, 3), np.uint8)
    assert min(_for_engine(image_HW3).shape[:2]) * 16 >= max(size)
    assert model.read(image_HW3).lines == ()
    assert OcrModel().find(image_HW3)[0] == 0


def test_the_same_image_reads_the_same_whatever_came_before(model: OcrModel) -> None:
    image = np.asarray(drawn(CAPTIONS[0]))
    first = model.read(image)
    model.read(np.asarray(drawn(CAPTIONS[3], 900, 500, 60)))
    assert model.read(image) == first == OcrModel().read(image)


@pytest.mark.slow
def test_stamps_are_no_pictures_of_their_captions(model: OcrModel, stamps_dir: Path) -> None:
    from mmdata.media.image import open_image, to_rgb

    paths = sorted(path for path in stamps_dir.rglob("*.png") if path.with_suffix(".txt").exists())[::20]
    assert len(paths) > 25
    wrong = 0
    for path in paths:
        caption = path.with_suffix(".txt").read_text("utf-8").splitlines()[0]
        image = to_rgb(open_image(path.read_bytes(), 1 << 40))
        image.thumbnail((1280, 1280))
        writing = model.read(np.asarray(image))
        wrong += is_mostly_text(caption_overlap(caption, writing.text), writing.area)
    assert wrong == 0


def test_the_step_measures_and_makes_the_text() -> None:
    step = Ocr()
    assert step.weights().identity == locate().identity
    scorer = step.load("cpu")
    (found, plain) = scorer.score(
        [pickle.loads(pickle.dumps(step.prepare(None, sample(i, "Big fireworks"), step.edges()))) for i in (0, 1)]
    )
    (score,) = found.scores
    assert score.edge == "image_caption"
    assert score.score is None
    assert set(score.measures) == set(step.measures())
    assert score.new_text is not None
    assert (score.new_text.name, score.new_text.text) == ("written", "Big fireworks")
    assert score.measures["mostly_text"] is True
    assert score.measures["ocr_words"] == 2
    assert score.measures["caption_overlap"] == 1.0
    (other,) = plain.scores
    assert other.new_text is None
    assert other.measures == {
        "text_area": 0.0,
        "ocr_words": 0,
        "ocr_confidence": None,
        "caption_overlap": 0.0,
        "mostly_text": False,
    }


def sample(blank: int, caption: str | None) -> Sample:
    buffer = io.BytesIO()
    image = Image.new("RGB", (300, 120), "white") if blank else drawn("Big fireworks", 320, 90, 44)
    image.save(buffer, "PNG")
    members = {"image": Member("image", "image", "image/png", "png", buffer.getvalue())}
    if caption is not None:
        members["caption"] = Member("caption", "text", "text/plain", "txt", caption.encode())
    return Sample("0" * 32, "s", "k", members)


def test_the_step_reads_images_without_a_caption_and_scales_large_ones() -> None:
    step = Ocr(max_side_px=64, into=None)
    item = step.prepare(None, sample(0, None), step.edges())
    assert item is not None
    assert item.image_HW3.shape == (18, 64, 3)
    assert item.caption is None
    assert step.new_members() == {}
    with pytest.raises(ValidationError, match="own"):
        Ocr(into="caption")


def test_importing_the_steps_loads_nothing_heavy() -> None:
    code = (
        "import sys, mmdata.steps.align.ocr, mmdata.steps.align.reconcile as r; "
        "r.Reconcile(texts=['a', 'b'], into='c').edges(); "
        "print([m for m in ('torch', 'numpy', 'rapidocr', 'cv2', 'whisper', 'rapidfuzz') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
