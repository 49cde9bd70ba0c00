"""NudeNet's detector on photographs: a face is where it is, a cat and a cup have none; what overlaps is one thing."""

from __future__ import annotations

import numpy as np
import pytest
from photos import photo
from PIL import Image

from mmdata.media.blur import blur_boxes
from mmdata.models.bodies import CLASSES, FACES, UNSAFE, Detector, load

# Of the astronaut's face, by eye.
FACE = (175, 65, 280, 190)


def faces(image: Image.Image, side_px: int = 640) -> list[tuple[float, ...]]:
    return [one.box for one in load("a test", side_px).detect(image) if one.name in FACES]


@pytest.mark.parametrize("side_px", [320, 640])
def test_a_face_is_found_where_it_is(side_px: int) -> None:
    (box,) = faces(photo("astronaut"), side_px)
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    assert middle == pytest.approx((224, 131), abs=12)
    assert FACE[0] - 15 < box[0] < box[2] < FACE[2] + 15
    # In a larger picture it is smaller to the network, and where it is pasted.
    large = Image.new("RGB", (900, 700), (90, 120, 60))
    large.paste(photo("astronaut"), (300, 150))
    (moved,) = faces(large)
    assert [a - b for a, b in zip(moved, box, strict=True)] == pytest.approx([300, 150, 300, 150], abs=15)


@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_neither_a_cat_nor_a_cup_has_one(name: str) -> None:
    assert faces(photo(name)) == []


def test_a_blurred_face_is_none_any_more_and_the_rest_of_the_picture_stays() -> None:
    image = photo("astronaut")
    done = blur_boxes(image, faces(image))
    assert faces(done) == []
    before, after = np.asarray(image).astype(int), np.asarray(done).astype(int)
    changed = np.argwhere((before != after).any(axis=2))
    top, left = changed.min(axis=0)
    bottom, right = changed.max(axis=0)
    assert (left > 120, top > 0, right < 340, bottom < 260) == (True, True, True, True)
    # Of the face itself no more is left than six by six colours: neighbours hardly differ.
    inside = after[90:170, 190:260].mean(axis=2)
    own = before[90:170, 190:260].mean(axis=2)
    assert np.abs(np.diff(inside, axis=1)).max() < np.abs(np.diff(own, axis=1)).max() / 4


class _Session:
    """Answers what it is told to: boxes as middle and size, at the network's scale."""

    def __init__(self, boxes: list[tuple[float, float, float, float, str, float]]) -> None:
        self.boxes = boxes

    def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert given["images"].shape == (1, 3, 320, 320)
        table = np.zeros((1, 4 + len(CLASSES), len(self.boxes)), np.float32)
        for place, (*box, name, confidence) in enumerate(self.boxes):
            table[0, :4, place] = box
            table[0, 4 + CLASSES.index(name), place] = confidence
        return [table]


def test_boxes_are_scaled_cut_at_the_border_and_joined_where_they_are_one() -> None:
    session = _Session(
        [
            (100, 100, 40, 40, "face_male", 0.6),
            (102, 100, 40, 40, "face_female", 0.9),
            (300, 10, 60, 60, "feet_exposed", 0.5),
            (200, 200, 40, 40, "belly_exposed", 0.19),
        ]
    )
    seen = Detector(session, 320).detect(Image.new("RGB", (640, 320)))
    assert [(one.name, one.box) for one in seen] == [
        ("face_female", (164, 160, 244, 240)),
        ("feet_exposed", (540, 0, 640, 80)),
    ]


def test_what_is_unsafe_is_a_class() -> None:
    assert set(UNSAFE) <= set(CLASSES)
    assert len(set(CLASSES)) == len(CLASSES) == 18
