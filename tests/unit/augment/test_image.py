"""albumentations' transforms: pixels, boxes, transparency, effects, seeds, and the table that says what each does."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.augment import libraries
from mmdata.augment.base import EFFECTS, Box, Change, Mask, Picture, Text, VetoError, View
from mmdata.augment.image import _table, image_operator, image_operators

HEIGHT, WIDTH = 64, 97
PIXELS = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
ALPHA = np.where(np.arange(HEIGHT)[:, None] < 10, 0, 255).astype(np.uint8).repeat(WIDTH, axis=1)
DOG = Box((0.2, 0.3, 0.5, 0.6), "caption", "a dog")
# What a transform cannot do without, or does nothing without on so small a picture.
NEEDED: dict[str, dict[str, Any]] = {
    "Crop": {"x_max": 50, "y_max": 50},
    "CenterCrop": {"height": 40, "width": 50},
    "RandomCrop": {"height": 40, "width": 50},
    "RandomResizedCrop": {"size": [40, 50]},
    "RandomSizedBBoxSafeCrop": {"height": 40, "width": 50},
    "RandomSizedCrop": {"min_max_height": [30, 50], "size": [40, 50]},
    "AtLeastOneBBoxRandomCrop": {"height": 40, "width": 50},
    "CropAndPad": {"px": -4},
    "Pad": {"padding": 5},
    "PadIfNeeded": {"min_height": 100, "min_width": 120},
    "Resize": {"height": 50, "width": 50},
    "LongestMaxSize": {"max_size": 50},
    "SmallestMaxSize": {"max_size": 50},
    "FrequencyMasking": {"freq_mask_param": 20},
    "TimeMasking": {"time_mask_param": 20},
    "XYMasking": {"num_masks_x": 1, "num_masks_y": 1, "mask_x_length": 10, "mask_y_length": 10},
    "GridElasticDeform": {"num_grid_xy": [4, 4], "magnitude": 3},
}


def view(*boxes: Box, alpha: bool = False) -> View:
    picture = Picture(PIXELS, ALPHA if alpha else None)
    return View(pictures={"image": picture}, texts={"caption": Text("a dog", "en")}, boxes={"image": boxes})


def done(name: str, params: dict[str, Any] | None = None, seed: int = 1, of: View | None = None) -> Change:
    return image_operator(name, params or NEEDED.get(name, {}))(of or view(DOG), np.random.default_rng(seed))


def boxes_for(name: str) -> tuple[Box, ...]:
    """None for what tears things apart."""
    return () if _table()[name].tears else (DOG,)


def pixels(change: Change) -> np.ndarray:
    return change.view.pictures["image"].rgb_HWC


def the_box(change: Change) -> list[float]:
    (box,) = change.view.boxes["image"]
    return [round(value, 3) for value in box.box]


def test_every_transform_is_in_the_table_or_left_out_with_its_reason() -> None:
    albumentations = libraries.without_torch("albumentations")
    interface = albumentations.core.transforms_interface
    families = (interface.ImageOnlyTransform, interface.DualTransform)
    classes = {
        name
        for name, cls in vars(albumentations).items()
        if inspect.isclass(cls) and issubclass(cls, families) and cls.__module__.startswith("albumentations.augm")
    }
    data = libraries.table("image_effects.yaml")
    assert classes | {"NoOp"} == set(image_operators()) | set(data["left_out"])
    assert all(data["left_out"].values())
    assert all(kind.effects <= EFFECTS for kind in _table().values())
    assert {name for name, kind in _table().items() if not kind.effects and not kind.by} == {"NoOp"}


@pytest.mark.parametrize("name", image_operators())
def test_each_gives_a_picture_and_the_same_one_for_the_same_seed(name: str) -> None:
    operator = image_operator(name, NEEDED.get(name, {}))
    sample = view(*boxes_for(name), alpha=True)
    first = operator(sample, np.random.default_rng(5))
    operator(sample, np.random.default_rng(6))
    again = image_operator(name, NEEDED.get(name, {}))(sample, np.random.default_rng(5))
    picture = first.view.pictures["image"]
    assert picture.rgb_HWC.dtype == np.uint8
    assert picture.alpha_HW is not None
    assert picture.alpha_HW.shape == picture.rgb_HWC.shape[:2]
    assert np.array_equal(pixels(first), pixels(again))
    assert first.drawn == again.drawn
    assert np.array_equal(sample.pictures["image"].rgb_HWC, PIXELS)


FLIPS = {
    "HorizontalFlip": (PIXELS[:, ::-1], [0.5, 0.3, 0.8, 0.6], {"mirror"}),
    "VerticalFlip": (PIXELS[::-1], [0.2, 0.4, 0.5, 0.7], {"upside_down"}),
    "Transpose": (PIXELS.transpose(1, 0, 2), [0.3, 0.2, 0.6, 0.5], {"turn"}),
}


@pytest.mark.parametrize("name", FLIPS)
def test_flips_move_pixels_and_boxes_alike(name: str) -> None:
    expected, box, effects = FLIPS[name]
    change = done(name)
    assert np.array_equal(pixels(change), expected)
    assert the_box(change) == box
    assert change.effects == effects
    back = image_operator(name, {})(change.view, np.random.default_rng(0))
    assert np.array_equal(pixels(back), PIXELS)
    assert the_box(back) == list(DOG.box)


SYMMETRIES = {
    "same": (PIXELS, set()),
    "mirrored": (PIXELS[:, ::-1], {"mirror"}),
    "upside down": (PIXELS[::-1], {"upside_down"}),
    "half turn": (PIXELS[::-1, ::-1], {"mirror", "upside_down"}),
}


@pytest.mark.parametrize("name", ["D4", "RandomRotate90", "SquareSymmetry"])
def test_a_symmetry_says_what_the_pixels_say(name: str) -> None:
    seen = set()
    for seed in range(60):
        change = done(name, seed=seed)
        known = [kind for kind, (expected, _) in SYMMETRIES.items() if np.array_equal(pixels(change), expected)]
        assert change.effects == (SYMMETRIES[known[0]][1] if known else {"turn"}), (seed, change.drawn)
        seen |= set(known or ["turned"])
    assert {"same", "half turn", "turned"} <= seen


@pytest.mark.parametrize(
    ("name", "params", "effects"),
    [
        ("Rotate", {"limit": [5, 6]}, {"move"}),
        ("Rotate", {"limit": [40, 41]}, {"move", "turn"}),
        ("Rotate", {"limit": [178, 179]}, {"move", "mirror", "upside_down"}),
        ("SafeRotate", {"limit": [-90, -89]}, {"move", "turn"}),
        ("Affine", {"rotate": [3, 4]}, {"move"}),
        ("Affine", {"shear": [10, 11]}, {"move", "shape"}),
        ("HueSaturationValue", {"hue_shift_limit": 0, "sat_shift_limit": 0, "val_shift_limit": [5, 6]}, {"light"}),
        ("HueSaturationValue", {"hue_shift_limit": [9, 10], "val_shift_limit": 0}, {"colour"}),
        ("ColorJitter", {"hue": 0, "saturation": 0, "brightness": [0.5, 0.6], "contrast": 0}, {"light"}),
        ("ToGray", {}, {"grey", "style"}),
        ("Resize", {"height": 128, "width": 194}, {"detail"}),
        ("Resize", {"height": 50, "width": 50}, {"detail", "shape"}),
    ],
)
def test_effects_follow_from_what_was_drawn(name: str, params: dict[str, Any], effects: set[str]) -> None:
    assert done(name, params).effects == effects


def test_a_crop_moves_boxes_and_says_what_is_gone() -> None:
    cat = Box((0.7, 0.7, 0.95, 0.95), "caption", "a cat")
    half = Box((0.3, 0.1, 0.7, 0.4), None, None)
    params = {"x_min": 0, "y_min": 0, "x_max": 48, "y_max": 64}
    change = done("Crop", params, of=view(DOG, cat, half))
    scale = WIDTH / 48
    assert [round(v, 3) for v in change.view.boxes["image"][0].box] == [round(0.2 * scale, 3), 0.3, 1.0, 0.6]
    assert len(change.view.boxes["image"]) == 1  # less than half of the box that no text names is left, too
    assert change.gone == {"caption": ("a cat",)}
    assert np.array_equal(pixels(change), PIXELS[:, :48])


def test_what_is_covered_is_gone() -> None:
    params = {"num_holes_range": [1, 1], "hole_height_range": [0.95, 0.99], "hole_width_range": [0.95, 0.99]}
    assert done("CoarseDropout", params).gone == {"caption": ("a dog",)}
    assert done("CoarseDropout", {**params, "hole_width_range": [0.02, 0.05]}).gone == {}


@pytest.mark.parametrize("name", [name for name in image_operators() if _table()[name].boxes])
def test_what_leads_out_of_the_picture_asks_for_boxes(name: str) -> None:
    unknown = View(pictures={"image": Picture(PIXELS)}, texts={"caption": Text("a dog", "en")})
    with pytest.raises(VetoError) as caught:
        done(name, of=unknown)
    assert caught.value.reason == "no_boxes"
    assert image_operator(name, NEEDED.get(name, {})).needs_boxes


def test_a_crop_larger_than_the_picture_is_a_veto() -> None:
    with pytest.raises(VetoError) as caught:
        done("RandomCrop", {"height": 500, "width": 500})
    assert caught.value.reason == "not_applicable"


def test_all_pictures_of_a_sample_are_changed_alike() -> None:
    two = View(pictures={"image": Picture(PIXELS), "other": Picture(PIXELS.copy())}, boxes={"image": (), "other": ()})
    for name in ("Rotate", "RandomBrightnessContrast", "ElasticTransform"):
        change = image_operator(name, {})(two, np.random.default_rng(2))
        pictures = change.view.pictures
        assert np.array_equal(pictures["image"].rgb_HWC, pictures["other"].rgb_HWC)


CORNERS = st.tuples(*(st.floats(0, 0.85) for _ in range(2)), *(st.floats(0.08, 0.15) for _ in range(2)))


@settings(max_examples=60)
@given(
    st.sampled_from([name for name, kind in _table().items() if kind.geometric]),
    st.lists(CORNERS, min_size=1, max_size=4),
    st.integers(0, 2**31),
)
def test_boxes_stay_inside(name: str, corners: list[tuple[float, ...]], seed: int) -> None:
    boxes = [
        Box((x, y, x + width, y + height), "caption", f"thing {n}") for n, (x, y, width, height) in enumerate(corners)
    ]
    try:
        change = done(name, seed=seed, of=view(*boxes))
    except VetoError:
        return
    for box in change.view.boxes["image"]:
        x0, y0, x1, y1 = box.box
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
    left = {box.phrase for box in change.view.boxes["image"]}
    assert left | set(change.gone.get("caption", ())) == {box.phrase for box in boxes}
    assert not left & set(change.gone.get("caption", ()))


# --- masks -----------------------------------------------------------------------------------------------------------

# Two labels whose mean is a third, in 16 bits, and grey that tells each: blocks of 8 pixels.
LABELS = np.random.default_rng(0).choice([1, 77, 153, 60_000], (8, 13)).astype(np.uint16).repeat(8, 0).repeat(8, 1)
LABELS = np.ascontiguousarray(LABELS[:HEIGHT, :WIDTH])
GREY_OF = {0: 0, 1: 10, 77: 90, 153: 170, 60_000: 250}


def grey_of(labels_HW: np.ndarray) -> np.ndarray:
    return np.vectorize(GREY_OF.__getitem__, otypes=[np.uint8])(labels_HW)


def masked_view(*boxes: Box) -> View:
    rgb_HWC = grey_of(LABELS)[..., None].repeat(3, 2)
    masks = {"labels": Mask(LABELS[..., None], "image"), "parts": Mask(rgb_HWC, "image")}
    return replace(view(*boxes), pictures={"image": Picture(rgb_HWC)}, masks=masks)


@pytest.mark.parametrize("name", image_operators())
@pytest.mark.parametrize("seed", [1, 2])
def test_masks_move_exactly_with_their_picture_and_mix_no_values(name: str, seed: int) -> None:
    params = NEEDED.get(name, {})
    if "interpolation" in inspect.signature(getattr(libraries.without_torch("albumentations"), name)).parameters:
        params = params | {"interpolation": 0}
    try:
        change = done(name, params, seed, masked_view(*boxes_for(name)))
    except VetoError as veto:
        assert veto.reason == "not_applicable"  # noqa: PT017 - any other is a failure
        return
    labels, parts = (change.view.masks[one].values_HWC for one in ("labels", "parts"))
    assert (labels.dtype, labels.shape[-1], parts.dtype, parts.shape[-1]) == (np.uint16, 1, np.uint8, 3)
    assert set(np.unique(labels)) <= {0, *GREY_OF}
    assert set(np.unique(parts)) <= set(GREY_OF.values())
    if not _table()[name].geometric:
        assert (labels[..., 0] == LABELS).all()
        return
    assert labels.shape[:2] == parts.shape[:2] == pixels(change).shape[:2]
    assert (grey_of(labels[..., 0]) == parts[..., 0]).all()
    covers = {"hide", "detail"} & change.effects - ({"detail"} if "Size" in name or "Scale" in name else set())
    if not covers:
        assert (parts == pixels(change)).all()
