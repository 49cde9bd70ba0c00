"""The registry of modalities: a new one is a tower and a line here; nothing else in the model knows them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mmdata.train.model.layers import init_weights
from mmdata.train.model.sizes import Architecture
from mmdata.train.model.towers import AudioTower, ImageTower, Limits, TensorTower, TextTower, Tower, VideoTower

# What makes a tower: of the architecture, the limits, and the towers made before it.
Maker = Callable[[Architecture, Limits, Mapping[str, Tower]], Tower]


def make_towers(modalities: tuple[str, ...], shape: Architecture, limits: Limits) -> dict[str, Tower]:
    """The towers, in the order of the registry: one may use another that stands before it.

    Raises ValueError for a modality that has none, and what `load_tower` raises for a pretrained one.
    """
    if unknown := [name for name in modalities if name not in TOWERS]:
        raise ValueError(f"no tower for the modality '{unknown[0]}'")
    made: dict[str, Tower] = {}
    for name, make in TOWERS.items():
        if name in modalities:
            made[name] = _pretrained(shape, name, limits) if name in shape.towers else _fresh(make(shape, limits, made))
    return made


def _fresh(tower: Tower) -> Tower:
    return tower.apply(init_weights)


def _pretrained(shape: Architecture, name: str, limits: Limits) -> Tower:
    # What it loads is heavy, and optional.
    from mmdata.train.model.pretrained import load_tower

    return load_tower(shape.towers[name], limits)


def _own(shape: Architecture, size: str) -> Architecture:
    """With no blocks of its own, where all share a trunk."""
    tower = getattr(shape, size)
    return shape.model_copy(update={size: tower.model_copy(update={"depth": 0})}) if shape.shared_trunk else shape


def _text(shape: Architecture, limits: Limits, _: Mapping[str, Tower]) -> Tower:
    return TextTower(_own(shape, "text").text, limits, shape.dropout, shape.moe, shape.masked)


def _image(shape: Architecture, limits: Limits, _: Mapping[str, Tower]) -> Tower:
    own = _own(shape, "image").image
    return ImageTower(own, limits.image_side_px, shape.patch_px, shape.dropout, shape.moe, shape.masked)


def _audio(shape: Architecture, limits: Limits, _: Mapping[str, Tower]) -> Tower:
    return AudioTower(shape.audio, limits.audio_max_s, shape.masked)


def _video(shape: Architecture, limits: Limits, made: Mapping[str, Tower]) -> Tower:
    images = made.get("image") or _image(shape.model_copy(update={"masked": False}), limits, made)
    return VideoTower(shape.video, limits.video_frames, images, "image" not in made, shape.dropout)


def _tensor(shape: Architecture, limits: Limits, _: Mapping[str, Tower]) -> Tower:
    return TensorTower(shape.tensor, limits, shape.masked)


TOWERS: dict[str, Maker] = {"text": _text, "image": _image, "audio": _audio, "video": _video, "tensor": _tensor}
