"""Generated paired media: drawn shapes, a true caption, and the caption spoken (or a melody that stands for it).

For machines where the real media cannot be fetched, and for tests. Everything follows from `(seed, n)`: the same
numbers give the same bytes with the same versions of Pillow and espeak-ng. Coordinates are fractions of the image's
side, x to the right and y downwards.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Literal

from PIL import Image, ImageDraw, ImageOps

from mmdata.demo.sound import can_speak, melody_wav, speech_wav
from mmdata.store.files import make_folder

RGB = tuple[int, int, int]

# Saturated, so that no pastel ground and no jitter (`_COLOUR_JITTER`) can be taken for another colour.
COLOURS: Final[dict[str, RGB]] = {
    "red": (214, 30, 30),
    "orange": (250, 140, 0),
    "yellow": (245, 220, 20),
    "green": (30, 150, 50),
    "blue": (30, 70, 210),
    "purple": (130, 40, 170),
    "pink": (250, 100, 180),
    "brown": (115, 65, 25),
    "black": (15, 15, 15),
}
GROUNDS: Final[tuple[RGB, ...]] = (
    (244, 244, 244),
    (224, 234, 242),
    (242, 236, 222),
    (226, 240, 228),
    (238, 228, 240),
    (206, 210, 214),
)
# Corners by their angle in degrees (0 is up) and their distance from the centre; a circle has none.
_STAR_INNER: Final = 0.45
SHAPES: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "circle": (),
    "triangle": ((0, 1.1), (120, 1.1), (240, 1.1)),
    "square": ((45, 1.2), (135, 1.2), (225, 1.2), (315, 1.2)),
    "star": tuple((36 * i, 1.15 if i % 2 == 0 else _STAR_INNER * 1.15) for i in range(10)),
    "hexagon": tuple((60 * i, 1.0) for i in range(6)),
}
SIZES: Final[dict[str, tuple[float, float]]] = {"small": (0.06, 0.08), "large": (0.13, 0.16)}
# Where the first of a pair lies, seen from the second.
RELATIONS: Final = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SPOTS: Final = {
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "in the middle": (0, 0),
}
_STEP: Final = 0.24  # from the middle to a place; two large shapes at +-_STEP stay apart
_PLACE_JITTER: Final = 0.04
_COLOUR_JITTER: Final = 10
_MAX_TILT_DEGREES: Final = 12  # a square tilted further would be called a diamond
_SUPERSAMPLING: Final = 2
_GROUND_CELLS: Final = 8

Sound = Literal["auto", "speech", "tones"]


@dataclass(frozen=True)
class Shape:
    """One drawn thing; `x`, `y` and `radius` in fractions of the side."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    tilt_degrees: float
    rgb: RGB

    @property
    def phrase(self) -> str:
        """As the caption names it."""
        return f"a {self.size} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """What is on one picture, and what is said about it."""

    shapes: tuple[Shape, ...]
    caption: str
    ground: str
    tones: tuple[RGB, RGB]


def write_scenes(
    folder: Path, count: int, seed: int, *, audio: bool = True, side_px: int = 224, sound: Sound = "auto"
) -> None:
    """Write `{n:05d}.png`, `.txt` and, with `audio`, `.wav` (16 kHz mono) for n below `count`.

    `sound`: `speech` is espeak-ng reading the caption, `tones` the melody of `mmdata.demo.sound`, and `auto` speech
    where the program is there. Raises MmdataError where `speech` is asked for and the program is missing or fails.
    """
    make_folder(folder)

    def write(n: int) -> None:
        scene = scene_of(seed, n)
        draw(scene, side_px).save(folder / f"{n:05d}.png")
        (folder / f"{n:05d}.txt").write_text(scene.caption + "\n", encoding="utf-8")
        if audio:
            (folder / f"{n:05d}.wav").write_bytes(say(scene, Random(f"voice:{seed}:{n}")))

    # Pillow and espeak-ng leave the interpreter free while they work.
    say = voice_of(sound)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        deque(pool.map(write, range(count)), maxlen=0)


def voice_of(sound: Sound) -> Callable[[Scene, Random], bytes]:
    """What turns a scene into WAV bytes."""
    if sound == "speech" or (sound == "auto" and can_speak()):
        return lambda scene, rng: speech_wav(scene.caption, rng)
    return lambda scene, rng: melody_wav([(list(COLOURS).index(s.colour), s.kind, s.size) for s in scene.shapes], rng)


def scene_of(seed: int, n: int) -> Scene:
    """The n-th scene of a seed."""
    rng = Random(f"scene:{seed}:{n}")
    shapes, caption = rng.choice((_one, _two, _three))(rng)
    first, second = rng.sample(GROUNDS, 2)
    return Scene(shapes, caption, rng.choice(tuple(_GROUND_MAKERS)), (first, second))


def _one(rng: Random) -> tuple[tuple[Shape, ...], str]:
    spot = rng.choice(tuple(SPOTS))
    (shape,) = _shapes(rng, [SPOTS[spot]])
    return (shape,), _sentence(f"{shape.phrase} {spot}")


def _two(rng: Random) -> tuple[tuple[Shape, ...], str]:
    relation = rng.choice(tuple(RELATIONS))
    dx, dy = RELATIONS[relation]
    first, second = _shapes(rng, [(dx, dy), (-dx, -dy)])
    return (first, second), _sentence(f"{first.phrase} {relation} {second.phrase}")


def _three(rng: Random) -> tuple[tuple[Shape, ...], str]:
    """A pair along one axis moved to one side of the other axis, and the third shape on that axis' other side."""
    relation = rng.choice(tuple(RELATIONS))
    dx, dy = RELATIONS[relation]
    beside = rng.choice([name for name, (x, y) in RELATIONS.items() if x * dx + y * dy == 0])
    x, y = RELATIONS[beside]
    first, second, third = _shapes(rng, [(dx - x, dy - y), (-dx - x, -dy - y), (x, y)])
    pair = f"{first.phrase} {relation} {second.phrase}"
    return (first, second, third), _sentence(f"{pair}, with {third.phrase} {beside} both")


def _shapes(rng: Random, places: list[tuple[int, int]]) -> tuple[Shape, ...]:
    # No colour and no kind twice: the caption can mean only one arrangement.
    kinds, colours = rng.sample(tuple(SHAPES), len(places)), rng.sample(tuple(COLOURS), len(places))
    return tuple(_shape(rng, *named) for named in zip(kinds, colours, places, strict=True))


def _shape(rng: Random, kind: str, colour: str, place: tuple[int, int]) -> Shape:
    size = rng.choice(tuple(SIZES))
    x, y = (0.5 + _STEP * axis + rng.uniform(-_PLACE_JITTER, _PLACE_JITTER) for axis in place)
    tilt = rng.uniform(-_MAX_TILT_DEGREES, _MAX_TILT_DEGREES)
    red, green, blue = (_jittered(rng, channel) for channel in COLOURS[colour])
    return Shape(kind, colour, size, x, y, rng.uniform(*SIZES[size]), tilt, (red, green, blue))


def _jittered(rng: Random, channel: int) -> int:
    return min(255, max(0, channel + rng.randint(-_COLOUR_JITTER, _COLOUR_JITTER)))


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def draw(scene: Scene, side_px: int) -> Image.Image:
    """The scene as an RGB picture of `side_px` x `side_px`, edges smoothed by supersampling."""
    canvas_px = side_px * _SUPERSAMPLING
    canvas = _GROUND_MAKERS[scene.ground](scene.tones, canvas_px)
    pen = ImageDraw.Draw(canvas)
    for shape in scene.shapes:
        _draw_shape(pen, shape, canvas_px)
    return canvas.reduce(_SUPERSAMPLING)


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, canvas_px: int) -> None:
    x, y, radius = (canvas_px * value for value in (shape.x, shape.y, shape.radius))
    if not SHAPES[shape.kind]:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shape.rgb)
        return
    angles = [(math.radians(degrees + shape.tilt_degrees), reach) for degrees, reach in SHAPES[shape.kind]]
    corners = [(x + radius * reach * math.sin(a), y - radius * reach * math.cos(a)) for a, reach in angles]
    pen.polygon(corners, fill=shape.rgb)


def _plain(tones: tuple[RGB, RGB], side_px: int) -> Image.Image:
    return Image.new("RGB", (side_px, side_px), tones[0])


def _gradient(tones: tuple[RGB, RGB], side_px: int) -> Image.Image:
    # One column is enough to colour; it is the same in all of them.
    column = Image.linear_gradient("L").crop((0, 0, 1, 256))
    return ImageOps.colorize(column, tones[0], tones[1]).resize((side_px, side_px))


def _pattern(tones: tuple[RGB, RGB], side_px: int, is_first: Callable[[int, int], bool]) -> Image.Image:
    cells = range(_GROUND_CELLS)
    small = Image.new("RGB", (_GROUND_CELLS, _GROUND_CELLS))
    small.putdata([tones[is_first(x, y)] for y in cells for x in cells])
    return small.resize((side_px, side_px), Image.Resampling.NEAREST)


def _stripes(tones: tuple[RGB, RGB], side_px: int) -> Image.Image:
    return _pattern(tones, side_px, lambda x, _: x % 2 == 0)


def _checks(tones: tuple[RGB, RGB], side_px: int) -> Image.Image:
    return _pattern(tones, side_px, lambda x, y: (x + y) % 2 == 0)


_GROUND_MAKERS: Final = {"plain": _plain, "gradient": _gradient, "stripes": _stripes, "checks": _checks}
