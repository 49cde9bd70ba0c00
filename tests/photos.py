"""Photographs with people, out of the package scikit-image: NASA's Eileen Collins, MIT's cameraman; a cat; a cup."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image


def photo(name: str) -> Image.Image:
    """`astronaut`, `camera`, `chelsea` or `coffee`, as RGB; found without importing the package."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return Image.open(Path(spec.origin).parent / "data" / f"{name}.png").convert("RGB")
