"""What operators work on, and what they say they did.

Shapes: H height and W width in pixels, C channels, T samples of audio, N numbers of a tensor's own shape. Boxes are
(x0, y0, x1, y1), relative to the picture's width and height, 0 to 1. Times are in seconds from the sound's beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mmdata.errors import SampleError

EFFECTS: Final = frozenset(
    {
        # pictures
        "mirror",  # left and right change places, of what is heard too; writing is mirrored
        "upside_down",  # above and below change places
        "turn",  # by so much that sides mean something else: a quarter, a diagonal; what is heard is in the middle then
        "move",  # things are elsewhere in the frame, or another part of the scene is the frame
        "colour",  # colours are others
        "grey",  # colours are gone
        "light",  # brighter or darker: day and night may be others
        "detail",  # less sharp, noisier: small things and writing may be lost
        "hide",  # parts are covered
        "weather",  # rain, snow, fog, sun flare were added
        "shape",  # things are distorted: straight, round and proportions may be others
        "style",  # no photograph any more, or another kind of picture
        "more",  # other things are there too, those of another sample; or the same ones twice
        # sounds
        "tempo",  # faster or slower
        "pitch",  # higher or lower: voices may be others
        "loudness",
        "noise",  # other sound is mixed in, or the sound is less clear
        "echo",
        "reverse",
        "cut",  # parts are gone or silent
        # tensors
        "strength",  # what sensors felt is stronger, weaker or shakier
        "gap",  # parts of a recording are gone or covered
    }
)
"""What an operator may do to what texts say; the words that mind stand in `mmdata/augment/words/`."""


class VetoError(SampleError):
    """An operator that cannot be applied to a sample and keep it true: the reason, and the sentence.

    Attributes:
        record: where a whole child is vetoed, what was tried: see `Sample.augmentation`.
    """

    record: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        rgb_HWC: uint8, three channels.
        alpha_HW: uint8; None where nothing is transparent.
    """

    rgb_HWC: NDArray[np.uint8]
    alpha_HW: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Mask:
    """What an image says of each pixel of a picture: labels, instances, depths.

    Attributes:
        values_HWC: uint8 or uint16, as they are stored; of the picture's height and width.
        of: name of the picture.
    """

    values_HWC: NDArray[Any]
    of: str


@dataclass(frozen=True)
class Sound:
    """A decoded recording: float32, -1 to 1, and samples a second."""

    audio_CT: NDArray[np.float32]
    rate_hz: int


@dataclass(frozen=True)
class Tensor:
    """An array; time is its last axis where it has a rate, channels are its first.

    Attributes:
        value: as it was read.
        rate_hz: points a second, None where it has no time.
    """

    value: NDArray[Any]
    rate_hz: float | None = None


@dataclass(frozen=True)
class Sides:
    """What a mirror does to the channels of a tensor or a sound: those of the left and of the right change places.

    Attributes:
        swap: pairs of channels that change places.
        negate: channels that point to a side: their sign changes.
    """

    swap: tuple[tuple[int, int], ...] = ()
    negate: tuple[int, ...] = ()


@dataclass(frozen=True)
class Text:
    """A text and its language, BCP 47, None where unknown."""

    text: str
    lang: str | None


@dataclass(frozen=True)
class Box:
    """Where something is in a picture.

    Attributes:
        box: see above.
        text: name of the text member whose phrase it is; None for a box that no text names.
        phrase: as the text has it, None for a box that no text names.
    """

    box: tuple[float, float, float, float]
    text: str | None = None
    phrase: str | None = None


@dataclass(frozen=True)
class WordTime:
    """When a word is said."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class View:
    """A sample, decoded; operators return another.

    Attributes:
        pictures: by member name, masks apart.
        clips: frames of videos, by member name.
        sounds: by member name.
        texts: by member name.
        tensors: by member name.
        boxes: of pictures, by member name; a picture whose things were looked for has an entry, an empty one too.
        film_boxes: of videos, by member name: those of each frame.
        words: of sounds, by member name.
        spoken: for each sound the texts that it says: they change together or not at all.
        heard: for each sound the texts that may tell what is heard in it.
        members: names of all members but notes, decoded or not, by modality.
        gone: members that were taken away.
        sides: of tensors and sounds whose sides are known, by member name.
        written: texts that say what is written in a picture.
        felt: for each tensor the texts that may tell what is felt in it.
        masks: by member name; what moves a picture's pixels moves those of its masks alike, and mixes no values.
    """

    pictures: Mapping[str, Picture] = field(default_factory=dict)
    clips: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)
    sounds: Mapping[str, Sound] = field(default_factory=dict)
    texts: Mapping[str, Text] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    boxes: Mapping[str, tuple[Box, ...]] = field(default_factory=dict)
    film_boxes: Mapping[str, tuple[tuple[Box, ...], ...]] = field(default_factory=dict)
    words: Mapping[str, tuple[WordTime, ...]] = field(default_factory=dict)
    spoken: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    heard: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    sides: Mapping[str, Sides] = field(default_factory=dict)
    written: frozenset[str] = frozenset()
    masks: Mapping[str, Mask] = field(default_factory=dict)
    felt: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What an operator made of a view.

    Attributes:
        view: the new one; texts that the effects touch are not rewritten yet.
        effects: of `EFFECTS`.
        drawn: what was chosen at random, for people: numbers and words that JSON has. Empty: nothing changed.
        gone: phrases that left the picture, by text member: they may no longer be claimed.
        spoken_anew: texts that changed together with the sound that says them.
        retimed: whether what is heard at a time is at another time now, or gone.
        shortened: sounds and tensors of which a part is gone, silent or covered, and what was heard or felt in it.
    """

    view: View
    effects: frozenset[str] = frozenset()
    drawn: Mapping[str, Any] = field(default_factory=dict)
    gone: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spoken_anew: frozenset[str] = frozenset()
    retimed: bool = False
    shortened: frozenset[str] = frozenset()


class Operator(Protocol):
    """Changes some modality. What it draws follows from the generator alone, so the same seed gives the same bytes."""

    @property
    def name(self) -> str:
        """As the pipeline file has it."""

    @property
    def changes(self) -> frozenset[str]:
        """Modalities whose members it changes itself: it does nothing to a sample that has none of them."""

    @property
    def needs_boxes(self) -> bool:
        """Whether it moves things out of the picture: then it must know where they are."""

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Apply. Raises VetoError where the result would not be true, SampleError where a member cannot be changed."""


@runtime_checkable
class Mixer(Protocol):
    """Makes one sample of two; both texts hold of the result."""

    @property
    def name(self) -> str:
        """As the pipeline file has it."""

    @property
    def changes(self) -> frozenset[str]:
        """Modalities whose members it changes itself."""

    @property
    def needs_boxes(self) -> bool:
        """As of an `Operator`."""

    def mix(self, view: View, other: View, rng: np.random.Generator) -> Change:
        """Mix `other` into `view`. Raises as an `Operator` does."""
