"""Image operators: albumentations' pixel and geometric transforms by their class names.

What each does to texts stands in `image_effects.yaml`. Boxes, transparency and masks move with the picture; a thing of
which less than half is left is claimed no longer. Masks are never interpolated, unless `mask_interpolation` says so.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from mmdata.augment import libraries
from mmdata.augment.base import Box, Change, Mask, Picture, VetoError, View
from mmdata.augment.notes import check_found
from mmdata.errors import SampleError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_VISIBLE: Final = 0.5
_MOST_SIDE_PX: Final = 16_384
# Below this a horizon looks tilted, and left is still left.
_SMALL_ANGLE: Final = 15.0
# Proportions that differ by less are the same to the eye.
SAME: Final = 0.02
# OpenCV's BORDER_REFLECT, BORDER_WRAP and BORDER_REFLECT_101: what is near the frame is there a second time beyond it.
_REPEATING: Final = frozenset({2, 3, 4})
# Values beyond are arrays (displacements, masks) that a seed says better.
_MOST_VALUES: Final = 16


class _Kind(NamedTuple):
    """A line of the table."""

    geometric: bool
    effects: frozenset[str]
    by: str | None
    boxes: bool
    tears: bool


@functools.cache
def _table() -> dict[str, _Kind]:
    data = libraries.table("image_effects.yaml")
    return {
        name: _Kind(
            geometric=group == "geometric",
            effects=frozenset(row.get("effects", ())),
            by=row.get("by"),
            boxes=row.get("boxes", False),
            tears=row.get("tears", False),
        )
        for group in ("pixel", "geometric")
        for name, row in data[group].items()
    }


def image_operators() -> list[str]:
    """Names, without importing albumentations."""
    return list(_table())


def image_operator(name: str, params: Mapping[str, Any]) -> ImageOperator:
    """A transform with its parameters checked. Raises ValueError that names the parameter."""
    kind = _table()[name]
    if params.get("border_mode") in _REPEATING:
        kind = kind._replace(effects=kind.effects | {"more"})
    plain = _compose(name, params, boxes=False)
    return ImageOperator(name, kind.boxes, _compose(name, params, boxes=True) if kind.geometric else plain, plain, kind)


def _compose(name: str, params: Mapping[str, Any], *, boxes: bool) -> Any:
    import cv2

    albumentations = libraries.without_torch("albumentations")

    # As many processes as cores; threads of their own would only wait for each other.
    cv2.setNumThreads(1)
    transform = _transform(name, getattr(albumentations, name), params)
    if not boxes:
        return albumentations.Compose([transform], save_applied_params=True)
    form = albumentations.BboxParams(
        format="albumentations",
        label_fields=["index"],
        clip=True,
        filter_invalid_bboxes=True,
        min_visibility=MIN_VISIBLE,
    )
    return albumentations.Compose([transform], bbox_params=form, save_applied_params=True)


def _transform(name: str, cls: Any, params: Mapping[str, Any]) -> Any:
    libraries.checked(name, cls.__init__, params, frozenset({"p"}))
    with warnings.catch_warnings():
        # It also warns of names that have successors; a value that it would replace by another is an error here.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*([Ii]nvalid|[Aa]djusted)")
        try:
            return cls(**{key: libraries.tuples(value) for key, value in params.items()}, p=1.0)
        except (ValueError, TypeError, UserWarning) as error:
            raise ValueError(f"{name}: {_sentence(error)}") from None


def _sentence(error: Exception) -> str:
    """Pydantic's first complaint: the parameter, and what is wrong with it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "validation error" in lines[0] and len(lines) > 2:  # noqa: PLR2004 - count, place, complaint
        return f"{lines[1]}: {lines[2].partition(' [type=')[0].removeprefix('Value error, ')}"
    return lines[0]


@dataclass(frozen=True)
class ImageOperator:
    """A transform of albumentations; all pictures and all frames of a sample go through it with what was drawn once."""

    name: str
    needs_boxes: bool
    compose: Any = field(repr=False, compare=False)
    plain: Any = field(repr=False, compare=False)
    kind: _Kind = field(repr=False, compare=False)
    changes: frozenset[str] = frozenset({"image", "video"})

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Apply. Raises VetoError `no_boxes`, `nothing_found`, `torn`, SampleError `image_operator` for no picture."""
        if self.needs_boxes:
            check_found(self.name, view)
        seed = int(rng.integers(2**32))
        done = {
            name: self._one(name, view.boxes.get(name), one, seed, _masks_of(view, name))
            for name, one in view.pictures.items()
        }
        films = {name: self._film(name, view.film_boxes.get(name), all_, seed) for name, all_ in view.clips.items()}
        pictures = {name: one.picture for name, one in done.items()}
        boxes = dict(view.boxes) | {name: one.boxes for name, one in done.items() if name in view.boxes}
        film_boxes = {name: tuple(one.boxes for one in films[name]) for name in view.film_boxes if name in films}
        gone: dict[str, tuple[str, ...]] = {}
        for lost in (*(one.gone for one in done.values()), *map(_unseen, films.values())):
            for text, phrases in lost.items():
                gone[text] = gone.get(text, ()) + phrases
        every = [*done.values(), *(frames[0] for frames in films.values())]
        effects = frozenset().union(*(one.effects for one in every))
        clips = {name: tuple(one.picture for one in frames) for name, frames in films.items()}
        masks = dict(view.masks) | {name: mask for one in done.values() for name, mask in one.masks.items()}
        changed = replace(view, pictures=pictures, clips=clips, boxes=boxes, film_boxes=film_boxes, masks=masks)
        return Change(changed, effects, every[0].drawn, gone)

    def _film(
        self, name: str, boxes: tuple[tuple[Box, ...], ...] | None, frames: tuple[Picture, ...], seed: int
    ) -> list[_Done]:
        """Every frame. Raises VetoError `frames_differ`."""
        each = boxes or (None,) * len(frames)
        done = [self._one(name, own, frame, seed) for own, frame in zip(each, frames, strict=True)]
        if boxes and any(one.drawn != done[0].drawn for one in done):
            raise VetoError("frames_differ", f"what {self.name} does depends on boxes: '{name}' would jump")
        return done

    def _one(
        self,
        name: str,
        boxes: tuple[Box, ...] | None,
        picture: Picture,
        seed: int,
        masks: Mapping[str, Mask] = MappingProxyType({}),
    ) -> _Done:
        if self.needs_boxes and boxes is None:
            fix = f"name a member that holds them under `boxes: {{{name}: ...}}`, of a film under `film_boxes:`"
            raise VetoError("no_boxes", f"{self.name} must know where the things of '{name}' are; {fix}")
        before = boxes or ()
        if before and self.kind.tears:
            raise VetoError(
                "torn", f"{self.name} would tear the things of '{name}' apart: no box holds one of them then"
            )
        # The seed alone decides, whatever was drawn before.
        compose = self.compose if before else self.plain
        # (The transform's generators: what composes it draws nothing for one that is always applied.)
        compose.transforms[0].set_random_seed(seed)
        given: dict[str, Any] = {"image": picture.rgb_HWC}
        if self.kind.geometric and before:
            given |= {"bboxes": np.array([box.box for box in before], np.float64), "index": list(range(len(before)))}
        if self.kind.geometric and picture.alpha_HW is not None:
            given["mask"] = picture.alpha_HW
        if self.kind.geometric and masks:
            given["masks"] = _planes(masks)
        try:
            found = compose(**given)
        except Exception as error:  # noqa: BLE001 - see the next line
            # It has classes of its own for a crop larger than the picture, and the like.
            raise VetoError("not_applicable", f"{self.name}: {_sentence(error)}") from None
        changed = _picture(self.name, found, picture)
        ((_, drawn),) = found["applied_transforms"] or [("", {})]
        left, lost = _moved(before, found) if "bboxes" in given else (before, [])
        effects = self.kind.effects
        if self.kind.by:
            effects |= _BY[self.kind.by](drawn, picture.rgb_HWC.shape, changed.rgb_HWC.shape)
        moved = _of_planes(found["masks"], masks) if "masks" in given else {}
        return _Done(changed, left, _phrases(lost), effects, _readable(drawn), moved)


class _Done(NamedTuple):
    """A picture that went through a transform."""

    picture: Picture
    boxes: tuple[Box, ...]
    gone: Mapping[str, tuple[str, ...]]
    effects: frozenset[str]
    drawn: dict[str, Any]
    masks: Mapping[str, Mask]


def _masks_of(view: View, picture: str) -> dict[str, Mask]:
    return {name: mask for name, mask in view.masks.items() if mask.of == picture}


def _planes(masks: Mapping[str, Mask]) -> NDArray[np.uint16]:
    """All channels of all masks as images of their own, `[N, H, W]`: the library wants them to be of one type."""
    return np.concatenate([mask.values_HWC.transpose(2, 0, 1) for mask in masks.values()]).astype(np.uint16)


def _of_planes(planes_NHW: NDArray[np.uint16], masks: Mapping[str, Mask]) -> dict[str, Mask]:
    ends = np.cumsum([mask.values_HWC.shape[-1] for mask in masks.values()])
    parts = np.split(planes_NHW, ends[:-1])
    return {
        name: replace(mask, values_HWC=np.ascontiguousarray(part.transpose(1, 2, 0).astype(mask.values_HWC.dtype)))
        for (name, mask), part in zip(masks.items(), parts, strict=True)
    }


def _unseen(frames: Sequence[_Done]) -> dict[str, tuple[str, ...]]:
    """Phrases that no frame of a film shows any more, by text."""
    seen = {(box.text, box.phrase) for one in frames for box in one.boxes}
    lost = {(text, phrase): None for one in frames for text, all_ in one.gone.items() for phrase in all_}
    found: dict[str, tuple[str, ...]] = {}
    for text, phrase in lost:
        if (text, phrase) not in seen:
            found[text] = (*found.get(text, ()), phrase)
    return found


def _picture(name: str, found: Mapping[str, Any], before: Picture) -> Picture:
    rgb_HWC: NDArray[np.uint8] = np.ascontiguousarray(found["image"])
    if rgb_HWC.dtype != np.uint8 or rgb_HWC.shape[2:] != (3,) or not 0 < max(rgb_HWC.shape[:2]) <= _MOST_SIDE_PX:
        raise SampleError("image_operator", f"{name} gave {rgb_HWC.dtype} of shape {rgb_HWC.shape}: no picture")
    alpha_HW = found.get("mask", before.alpha_HW)
    return Picture(rgb_HWC, None if alpha_HW is None else np.ascontiguousarray(alpha_HW))


def _moved(before: tuple[Box, ...], found: Mapping[str, Any]) -> tuple[tuple[Box, ...], list[Box]]:
    """Boxes that are still there, and those that are not."""
    left = {int(index): box for index, box in zip(found["index"], found["bboxes"], strict=True)}
    kept = tuple(replace(box, box=_box(left[n])) for n, box in enumerate(before) if n in left)
    return kept, [box for n, box in enumerate(before) if n not in left]


def _box(found: Any) -> tuple[float, float, float, float]:
    # The library reckons in single precision.
    x0, y0, x1, y1 = (min(1.0, max(0.0, round(float(value), 6))) for value in found[:4])
    return x0, y0, x1, y1


def _phrases(boxes: list[Box]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for box in boxes:
        if box.text and box.phrase and box.phrase not in found.get(box.text, ()):
            found[box.text] = (*found.get(box.text, ()), box.phrase)
    return found


# The same each time: the record has the parameters.
_NO_NEWS: Final = {
    "shape",
    "bboxes",
    "cols",
    "rows",
    "fill",
    "fill_mask",
    "interpolation",
    "mask_interpolation",
    "bbox_matrix",
}


def _readable(drawn: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: _plain(value) for key, value in drawn.items() if key not in _NO_NEWS}
    return {key: value for key, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """As JSON has it, rounded; None for what is too long or no value."""
    if isinstance(value, str):
        return str(value)  # numpy has a kind of its own
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, (float, np.floating, np.integer)):
        return round(float(value), 6)
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.size <= _MOST_VALUES else None
    if isinstance(value, (list, tuple)) and len(value) <= _MOST_VALUES:
        plain = [_plain(one) for one in value]
        return None if None in plain else plain
    return None


# --- effects that depend on what was drawn ---------------------------------------------------------------------------


def _angle(drawn: Mapping[str, Any], _: Any, __: Any) -> frozenset[str]:
    """A rotation; what falls between a half turn and its neighbours turns as well."""
    matrix = drawn["matrix"]
    angle = abs(math.degrees(math.atan2(matrix[1][0], matrix[0][0])))
    if angle < _SMALL_ANGLE:
        return frozenset()
    if 180.0 - angle < _SMALL_ANGLE:
        return frozenset({"mirror", "upside_down"})
    return frozenset({"turn"})


def _affine(drawn: Mapping[str, Any], before: Any, after: Any) -> frozenset[str]:
    """Where the axes are no longer at right angles, or of other lengths, things have another shape."""
    x_2, y_2 = np.asarray(drawn["matrix"])[:2, :2].T
    lengths = float(np.hypot(*x_2)), float(np.hypot(*y_2))
    skewed = abs(float(x_2 @ y_2)) > SAME * lengths[0] * lengths[1] or abs(lengths[0] / lengths[1] - 1.0) > SAME
    if skewed:
        drawn = {"matrix": [[math.cos(turn := math.radians(drawn["rotate"])), 0], [math.sin(turn), 0]]}
    return frozenset({"move"}) | _angle(drawn, before, after) | (frozenset({"shape"}) if skewed else frozenset())


# Elements of the symmetries of a square, as albumentations names them.
_SYMMETRIES: Final = {
    "e": frozenset[str](),
    "h": frozenset({"mirror"}),
    "v": frozenset({"upside_down"}),
    "r180": frozenset({"mirror", "upside_down"}),
}


def _symmetry(drawn: Mapping[str, Any], _: Any, __: Any) -> frozenset[str]:
    return _SYMMETRIES.get(str(drawn["group_element"]), frozenset({"turn"}))


def _quarters(drawn: Mapping[str, Any], _: Any, __: Any) -> frozenset[str]:
    return (_SYMMETRIES["e"], frozenset({"turn"}), _SYMMETRIES["r180"], frozenset({"turn"}))[int(drawn["factor"]) % 4]


def _hue(drawn: Mapping[str, Any], _: Any, __: Any) -> frozenset[str]:
    colours = {"colour"} if drawn.get("hue_shift") or drawn.get("sat_shift") else set()
    return frozenset(colours | ({"light"} if drawn.get("val_shift") else set()))


def _jitter(drawn: Mapping[str, Any], _: Any, __: Any) -> frozenset[str]:
    colours = {"colour"} if drawn.get("hue") or drawn.get("saturation", 1.0) != 1.0 else set()
    lights = drawn.get("brightness", 1.0) != 1.0 or drawn.get("contrast", 1.0) != 1.0
    return frozenset(colours | ({"light"} if lights else set()))


def _proportions(_: Mapping[str, Any], before: tuple[int, ...], after: tuple[int, ...]) -> frozenset[str]:
    # Rounding to whole pixels is no change of shape.
    change = (after[1] / after[0]) / (before[1] / before[0])
    return frozenset() if abs(change - 1.0) < SAME else frozenset({"shape"})


_BY: Final[dict[str, Callable[[Mapping[str, Any], Any, Any], frozenset[str]]]] = {
    "angle": _angle,
    "affine": _affine,
    "symmetry": _symmetry,
    "quarters": _quarters,
    "hue": _hue,
    "jitter": _jitter,
    "proportions": _proportions,
}
