"""Operators that make one sample of two, and those that take members away.

Both texts are told of a mixture, so what is not mixed, and they may tell of, goes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from pydantic import Field, field_validator

from mmdata.augment.audio_own import in_order
from mmdata.augment.base import Change, Picture, Sound, Text, VetoError, View
from mmdata.augment.image import SAME
from mmdata.augment.lexicon import fold, language, primary
from mmdata.augment.meaning import rewrite
from mmdata.augment.notes import check_found
from mmdata.sample import Modality
from mmdata.spec import Frozen

# Between the texts of a pair: a sentence ends where one did not.
_ENDS: Final = ".!?…。！？"  # noqa: RUF001 - full-width marks on purpose
_MORE: Final = frozenset({"more"})
_SPACELESS: Final = frozenset({"zh", "ja", "th"})


class Mixgen(Frozen):
    """MixGen (Hao et al. 2023): images blended, texts joined.

    The first image has `share` of the light; the other is scaled to its size. Boxes of both hold.
    """

    share: float = Field(0.5, gt=0, lt=1, description="of the sample's own image in the blend")

    name: str = Field("mixgen", exclude=True)
    changes: frozenset[str] = Field(frozenset({"image"}), exclude=True)
    needs_boxes: bool = Field(False, exclude=True)

    def mix(self, view: View, other: View, rng: np.random.Generator) -> Change:  # noqa: ARG002 - nothing is drawn
        """Blend every image that both have.

        Raises VetoError `nothing_in_common`, `masked`, `languages_differ`, `negated`, and what keeps the other's texts
        from being true of a picture of these proportions.
        """
        both = _both_pictures(view, other)
        pictures = dict(view.pictures)
        for name in both:
            pictures[name] = _blend(view.pictures[name], other.pictures[name], self.share)
        boxes = {name: (*view.boxes[name], *other.boxes.get(name, ())) for name in view.boxes}
        texts = _joined(view, other, view.texts, _reshaped(view, other, both), view.written)
        mixed = replace(view, pictures=pictures, boxes=boxes, texts=texts, gone=_gone(view, both, texts))
        effects = frozenset({"colour", "light", "detail"})
        return Change(mixed, effects, {"share": self.share, "members": both})


class Cutmix(Frozen):
    """CutMix (Yun et al. 2019) with boxes: a part of the image is the other image's.

    What is covered is claimed no longer; of the other image only what stands in its whole text may be pasted, so the
    whole of it is, made smaller. Both texts are joined.
    """

    share: tuple[float, float] = Field((0.1, 0.3), description="least and most of the area that is covered")

    name: str = Field("cutmix", exclude=True)
    changes: frozenset[str] = Field(frozenset({"image"}), exclude=True)
    needs_boxes: bool = Field(True, exclude=True)

    @field_validator("share")
    @classmethod
    def _in_order(cls, share: tuple[float, float]) -> tuple[float, float]:
        if not 0 < share[0] <= share[1] < 1:
            raise ValueError(f"{list(share)} is no range between 0 and 1")
        return share

    def mix(self, view: View, other: View, rng: np.random.Generator) -> Change:
        """Paste.

        Raises VetoError `no_boxes`, `nothing_found`, `would_hide`, `nothing_in_common`, `masked`, `languages_differ`,
        `negated`, and what keeps the other's texts from being true of a small picture elsewhere.
        """
        (name, *_) = _both_pictures(view, other)
        if name not in view.boxes:
            raise VetoError("no_boxes", f"where the things of '{name}' are is not known: name its boxes under `boxes:`")
        check_found(self.name, view)
        below = view.pictures[name]
        height, width = below.rgb_HWC.shape[:2]
        scale = float(np.sqrt(rng.uniform(*self.share)))
        across, down = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
        patch = (left / width, top / height, (left + across) / width, (top + down) / height)
        kept = tuple(box for box in view.boxes[name] if _overlap(box.box, patch) <= _MOST_HIDDEN)
        gone = [box.phrase for box in view.boxes[name] if box not in kept and box.text and box.phrase]
        if gone:
            # A text of two is no list of things any more, out of which one could be taken.
            raise VetoError("would_hide", f"the patch would cover {', '.join(gone)}")
        pictures = {**view.pictures, name: _pasted(below, other.pictures[name], (left, top, across, down))}
        moved = tuple(replace(box, box=_inside(box.box, patch)) for box in other.boxes.get(name, ()))
        boxes = {**view.boxes, name: (*kept, *moved)}
        small = frozenset({"move", "detail"}) | _reshaped(view, other, [name])
        texts = _joined(view, other, view.texts, small, view.written)
        mixed = replace(view, pictures=pictures, boxes=boxes, texts=texts, gone=_gone(view, [name], texts))
        return Change(mixed, frozenset({"hide"}), {"patch": [round(value, 4) for value in patch]})


class MixSounds(Frozen):
    """Sounds added, texts joined: both are heard, each once and whole.

    The other sound lies `ratio_db` below the sample's own (negative: above), by their mean squares, and is resampled.
    Both begin together; the mixture lasts as long as the longer one. Texts that tell of neither stay as they are.
    """

    ratio_db: tuple[float, float] = Field((-3.0, 3.0), description="least and most of own over other, decibels")

    name: str = Field("mix_sounds", exclude=True)
    changes: frozenset[str] = Field(frozenset({"audio"}), exclude=True)
    needs_boxes: bool = Field(False, exclude=True)

    @field_validator("ratio_db")
    @classmethod
    def _range(cls, ratio_db: tuple[float, float]) -> tuple[float, float]:
        return in_order(ratio_db)

    def mix(self, view: View, other: View, rng: np.random.Generator) -> Change:
        """Add. Raises VetoError `nothing_in_common`, `languages_differ`, `negated`, `spoken`, `silent`."""
        both = _both(view.sounds, other.sounds, "sound")
        words = dict(view.words)
        for name in both:
            if view.spoken.get(name) and view.words.get(name):
                raise VetoError("spoken", f"two speakers at once leave no times of words true in '{name}'")
            if (name in view.words) != (name in other.words):
                raise VetoError("nothing_in_common", f"of one sample it is known when what is heard in '{name}' is")
            if name in words:
                words[name] = tuple(sorted((*words[name], *other.words[name]), key=lambda word: word.start_s))
        ratio_db = float(rng.uniform(*self.ratio_db))
        sounds = {**view.sounds, **{n: _added(view.sounds[n], other.sounds[n], ratio_db) for n in both}}
        said = {text for name in both for text in view.spoken.get(name, ())}
        heard = {text for name in both for text in view.heard.get(name, ())}
        texts = _joined(view, other, said | heard, frozenset({"loudness"}), said)
        anew = frozenset(name for name in texts if texts[name] != view.texts[name])
        mixed = replace(view, sounds=sounds, texts=texts, words=words, gone=_gone(view, both, texts))
        longer = any(sounds[name].audio_CT.shape != view.sounds[name].audio_CT.shape for name in both)
        effects = frozenset({"noise", "loudness"})
        return Change(mixed, effects, {"ratio_db": round(ratio_db, 3)}, spoken_anew=anew, retimed=longer)


class DropModality(Frozen):
    """Take away all members of one modality, drawn among those that the sample has: robustness to what is missing.

    At least two modalities stay, or one, if `leave` says so.
    """

    of: list[Modality] = Field(default=["image", "text", "audio"], min_length=1, description="modalities that may go")
    leave: int = Field(1, ge=1, description="modalities that stay at least")

    name: str = Field("drop_modality", exclude=True)
    needs_boxes: bool = Field(False, exclude=True)

    @property
    def changes(self) -> frozenset[str]:
        """Those that may go."""
        return frozenset(self.of)

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Raises VetoError `too_few_modalities`."""
        there = [kind for kind, names in view.members.items() if set(names) - view.gone]
        may_go = [kind for kind in there if kind in self.of]
        if not may_go or len(there) <= self.leave:
            raise VetoError("too_few_modalities", f"only {', '.join(there)}: nothing can go")
        kind = may_go[int(rng.integers(len(may_go)))]
        gone = frozenset(view.members[kind])
        texts = {} if kind == "text" else view.texts
        return Change(replace(view, texts=texts, gone=view.gone | gone), drawn={"dropped": kind})


OWN: Final[dict[str, type[Frozen]]] = {
    "mixgen": Mixgen,
    "cutmix": Cutmix,
    "mix_sounds": MixSounds,
    "drop_modality": DropModality,
}
# A thing of which more is covered is not in the picture any more, as after a crop.
_MOST_HIDDEN: Final = 0.5


def _both(mine: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> list[str]:
    both = [name for name in mine if name in theirs]
    if not both:
        raise VetoError("nothing_in_common", f"the other sample has no {what} of the same name")
    return both


def _both_pictures(view: View, other: View) -> list[str]:
    both = _both(view.pictures, other.pictures, "image")
    if masks := {**view.masks, **other.masks}:
        raise VetoError("masked", f"a pixel of two pictures has no one value in '{next(iter(masks))}'")
    return both


def _reshaped(view: View, other: View, mixed: Sequence[str]) -> frozenset[str]:
    """What the other's pictures go through where they have other proportions."""
    sides = [(view.pictures[name].rgb_HWC.shape, other.pictures[name].rgb_HWC.shape) for name in mixed]
    changes = (mine[1] / mine[0] * theirs[0] / theirs[1] for mine, theirs in sides)
    return frozenset({"shape"} if any(abs(change - 1.0) >= SAME for change in changes) else ())


def _joined(
    view: View, other: View, names: Collection[str], theirs: frozenset[str], said: Collection[str] = ()
) -> dict[str, Text]:
    """All texts, those of some names with the other's; `theirs` is what the other sample alone goes through.

    Raises VetoError where one is missing, in another language, untrue by then, or says what is not there: the other may
    have just that. What is `said`, or written, is so still.
    """
    return {
        name: _join(name, text, other.texts.get(name), theirs, is_said=name in said) if name in names else text
        for name, text in view.texts.items()
    }


def _join(name: str, mine: Text, theirs: Text | None, effects: frozenset[str], *, is_said: bool) -> Text:
    if theirs is None:
        raise VetoError("nothing_in_common", f"the other sample has no text '{name}'")
    if primary(mine.lang) != primary(theirs.lang):
        raise VetoError("languages_differ", f"'{name}' is {mine.lang} here and {theirs.lang} there")
    first, second = mine.text.rstrip(), theirs.text.strip()
    if not is_said:
        first = rewrite(first, mine.lang, _MORE)
        second = rewrite(second, theirs.lang, _MORE | effects)
    if not first or not second:
        return Text(first or second, mine.lang)
    words = language(mine.lang)
    if words is not None and not is_said:
        for text in (first, second):
            if found := words.negations.search(fold(text)):
                denied = text[found.start() : found.end()]
                raise VetoError("negated", f"'{denied}' in '{text[:80]}': the other sample may have it")
    spaceless = primary(mine.lang) in _SPACELESS
    if first[-1:] in _ENDS:
        return Text(first + ("" if spaceless else " ") + second, mine.lang)
    return Text(first + ("。" if spaceless else ". ") + second, mine.lang)


def _gone(view: View, mixed: Collection[str], texts: Mapping[str, Text]) -> frozenset[str]:
    """With what is gone already: members that are not mixed, and of which a text tells that tells of both now."""
    anew = {name for name, text in texts.items() if text != view.texts[name]}
    told = {sound: anew & {*view.spoken.get(sound, ()), *view.heard.get(sound, ())} for sound in view.spoken}
    others = {name for kind, names in view.members.items() if kind != "text" for name in names} - set(mixed)
    return view.gone | {name for name in others if told.get(name, anew)}


def _blend(mine: Picture, theirs: Picture, share: float) -> Picture:
    import cv2

    height, width = mine.rgb_HWC.shape[:2]
    other_HWC = _scaled(_on_white(theirs), width, height)
    return Picture(np.asarray(cv2.addWeighted(_on_white(mine), share, other_HWC, 1 - share, 0), np.uint8))


def _on_white(picture: Picture) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if picture.alpha_HW is None:
        return picture.rgb_HWC
    alpha_HW1 = picture.alpha_HW[..., None].astype(np.uint16)
    return ((picture.rgb_HWC * alpha_HW1 + 255 * (255 - alpha_HW1) + 127) // 255).astype(np.uint8)


def _scaled(rgb_HWC: np.ndarray[Any, Any], width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    import cv2

    shrinks = width * height < rgb_HWC.shape[0] * rgb_HWC.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb_HWC, (width, height), interpolation=how), np.uint8)


def _pasted(below: Picture, above: Picture, where: tuple[int, int, int, int]) -> Picture:
    left, top, across, down = where
    rgb_HWC = below.rgb_HWC.copy()
    rgb_HWC[top : top + down, left : left + across] = _scaled(_on_white(above), across, down)
    if below.alpha_HW is None:
        return Picture(rgb_HWC)
    alpha_HW = below.alpha_HW.copy()
    alpha_HW[top : top + down, left : left + across] = 255
    return Picture(rgb_HWC, alpha_HW)


def _overlap(box: tuple[float, ...], patch: tuple[float, ...]) -> float:
    """The share of a box that a patch covers."""
    across = max(0.0, min(box[2], patch[2]) - max(box[0], patch[0]))
    down = max(0.0, min(box[3], patch[3]) - max(box[1], patch[1]))
    return across * down / ((box[2] - box[0]) * (box[3] - box[1]))


def _inside(box: tuple[float, ...], patch: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Where a box of the pasted image is."""
    across, down = patch[2] - patch[0], patch[3] - patch[1]
    x0, y0, x1, y1 = box
    return patch[0] + x0 * across, patch[1] + y0 * down, patch[0] + x1 * across, patch[1] + y1 * down


def _added(mine: Sound, theirs: Sound, ratio_db: float) -> Sound:
    other_T = _mono(theirs, mine.rate_hz)
    powers = [float(np.mean(np.square(audio, dtype=np.float64))) for audio in (mine.audio_CT, other_T)]
    if min(powers) <= 0:
        raise VetoError("silent", "one of the two sounds is silence")
    gain = np.sqrt(powers[0] / powers[1] / 10 ** (ratio_db / 10))
    length = max(mine.audio_CT.shape[1], other_T.size)
    mixed_CT = np.zeros((len(mine.audio_CT), length), np.float32)
    mixed_CT[:, : mine.audio_CT.shape[1]] = mine.audio_CT
    mixed_CT[:, : other_T.size] += np.float32(gain) * other_T
    # Both quieter alike, rather than cut at the top.
    return Sound(mixed_CT / max(np.float32(1.0), np.abs(mixed_CT).max()), mine.rate_hz)


def _mono(sound: Sound, rate_hz: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Its channels' mean, at a rate."""
    from scipy.signal import resample_poly

    mono_T = sound.audio_CT.mean(axis=0)
    if sound.rate_hz != rate_hz:
        mono_T = resample_poly(mono_T, rate_hz, sound.rate_hz)
    return np.asarray(mono_T, np.float32)
