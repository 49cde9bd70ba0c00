"""A sample as operators see it, and its texts made true again after each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from mmdata.augment import codec, meaning, notes
from mmdata.augment.base import Box, Change, Mask, Picture, Sides, Sound, Text, VetoError, View
from mmdata.errors import SampleError
from mmdata.sample import MODALITIES, Member, Sample

# Where a view holds members of each modality.
FIELDS: Final = {"image": "pictures", "video": "clips", "audio": "sounds", "tensor": "tensors"}
_SOUND_EFFECTS: Final = frozenset({"tempo", "pitch", "loudness", "noise", "echo", "reverse", "cut"})


@dataclass(frozen=True)
class Notes:
    """Members that say something of other members.

    Attributes:
        boxes: image member: the text member with its boxes.
        film_boxes: video member: the text member with the boxes of its frames.
        times: audio member: the text member with the times of its words.
        spoken: audio member: the texts that it says; None: every text may be what any sound says.
        heard: audio or tensor member: the texts that tell what is heard or felt in it; default: every text that
            no sound says.
        sides: tensor or sound: what a mirror does to its channels.
        written: texts that say what is written in a picture.
        masks: image member: the image members that say something of each of its pixels.
    """

    boxes: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, str] = field(default_factory=dict)
    spoken: Mapping[str, Sequence[str]] | None = None
    sides: Mapping[str, Sides] = field(default_factory=dict)
    film_boxes: Mapping[str, str] = field(default_factory=dict)
    written: frozenset[str] = frozenset()
    masks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    heard: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def members(self) -> frozenset[str]:
        """Members that hold notes: no operator sees them as texts."""
        return frozenset({*self.boxes.values(), *self.times.values(), *self.film_boxes.values()})


def decoded(sample: Sample, known: Notes, changes: frozenset[str]) -> View:
    """A sample as operators see it: texts, notes, and members of the modalities that will change."""
    members = {name: m for name, m in sample.members.items() if name not in known.members}
    texts = {name: Text(m.text, m.lang) for name, m in members.items() if m.modality == "text"}
    masked = {name for names in known.masks.values() for name in names}
    parts = {
        place: {n: codec.DECODERS[kind](m) for n, m in members.items() if m.modality == kind and n not in masked}
        for kind, place in FIELDS.items()
        if kind in changes
    }
    pictures: dict[str, Picture] = parts.get("pictures", {})
    masks = dict(_masks(members, known, pictures)) if "image" in changes else {}
    sounds: dict[str, Sound] = parts.get("sounds", {})
    boxes = {
        image: notes.read_boxes(sample.members[name], pictures[image].rgb_HWC.shape, texts)
        for image, name in known.boxes.items()
        if name in sample.members and image in pictures
    }
    words = {
        sound: notes.read_words(sample.members[name])
        for sound, name in known.times.items()
        if name in sample.members and sound in sounds
    }
    sounding = [name for name, m in members.items() if m.modality == "audio"]
    spoken = {s: tuple(texts if known.spoken is None else known.spoken.get(s, ())) for s in sounding}
    described = [name for name in texts if name not in known.written]
    heard = {s: tuple(t for t in known.heard.get(s, described) if t in texts and t not in spoken[s]) for s in sounding}
    said = {name for texts_said in spoken.values() for name in texts_said}
    felt = {
        tensor: tuple(t for t in known.heard.get(tensor, described) if t in texts and t not in said)
        for tensor, member in members.items()
        if member.modality == "tensor"
    }
    names = {str(kind): tuple(n for n, m in members.items() if m.modality == kind) for kind in MODALITIES}
    clips, tensors = parts.get("clips", {}), parts.get("tensors", {})
    film_boxes = {
        film: notes.read_film_boxes(sample.members[name], clips[film][0].rgb_HWC.shape, len(clips[film]), texts)
        for film, name in known.film_boxes.items()
        if name in sample.members and film in clips
    }
    view = View(pictures, clips, sounds, texts, tensors, boxes, film_boxes, words, spoken, heard, names)
    return replace(view, sides=known.sides, written=known.written & texts.keys(), masks=masks, felt=felt)


def _masks(members: Mapping[str, Member], known: Notes, pictures: Mapping[str, Picture]) -> Iterator[tuple[str, Mask]]:
    """Raises SampleError `mask_alone`, `mask_differs`, and as `codec.decode_mask` does."""
    for of, names in known.masks.items():
        for name in names:
            if name not in members:
                continue
            if of not in pictures:
                raise SampleError("mask_alone", f"'{name}' is a mask of '{of}', which the sample lacks")
            mask = codec.decode_mask(members[name], of)
            sizes = ["{1} x {0}".format(*shape) for shape in (mask.values_HWC.shape, pictures[of].rgb_HWC.shape)]
            if sizes[0] != sizes[1]:
                raise SampleError("mask_differs", f"'{name}' is {sizes[0]}, and '{of}', whose mask it is, {sizes[1]}")
            yield name, mask


def told(before: View, change: Change) -> View:
    """The view with its texts true again; a sound whose words are others now is gone.

    Raises VetoError where a text would not be true and cannot be rewritten.
    """
    view = change.view
    of_pictures, of_sounds = change.effects - _SOUND_EFFECTS, change.effects & _SOUND_EFFECTS
    said = {name for texts in view.spoken.values() for name in texts}
    heard = {name for texts in view.heard.values() for name in texts} - said
    texts = dict(view.texts)
    for name, text in view.texts.items():
        if name in view.written:
            meaning.check_written(text.text, of_pictures)
            continue
        effects = of_pictures | (of_sounds if name in heard else frozenset())
        words = text.text
        for phrase in (*_untrue(before, change, name), *_unheard(before, change, name)):
            words = meaning.unclaim(words, text.lang, phrase)
        texts[name] = Text(meaning.rewrite(words, text.lang, effects), text.lang)
    changed = {name for name, text in texts.items() if text != before.texts.get(name)} - change.spoken_anew
    mute = {sound for sound, names in view.spoken.items() if changed & set(names)}
    boxes = {image: tuple(_renamed(box, texts) for box in all_) for image, all_ in view.boxes.items()}
    films = {
        film: tuple(tuple(_renamed(box, texts) for box in all_) for all_ in frames)
        for film, frames in view.film_boxes.items()
    }
    return replace(view, texts=texts, boxes=boxes, film_boxes=films, gone=view.gone | mute)


def _untrue(before: View, change: Change, name: str) -> list[str]:
    """Phrases that left the picture, and that a text says, or says by other words for all that is known.

    One text has a phrase for all of them: what the others, of other languages too, say of the thing is no truer.
    """
    text = before.texts[name].text.casefold() if name in before.texts else ""
    gone = dict.fromkeys(phrase for phrases in change.gone.values() for phrase in phrases)
    if not gone or not any(map(str.isalpha, text)):
        return []
    has_boxes = any(notes.claims(before, name))
    return [phrase for phrase in gone if not has_boxes or phrase.casefold() in text]


def _unheard(before: View, change: Change, name: str) -> list[str]:
    """Phrases of a description that are heard no more. Raises VetoError where it is not known when they were."""
    text = before.texts[name].text.casefold() if name in before.texts else ""
    _check_felt(before, change, name)
    unheard: list[str] = []
    for sound in sorted(change.shortened - change.view.gone):
        if name not in before.heard.get(sound, ()) or not any(map(str.isalpha, text)):
            continue
        if before.spoken.get(sound) or sound not in before.words:
            fix = f"give `times: {{{sound}: ...}}`, or `heard: {{{sound}: []}}` if no text tells of it"
            raise VetoError("may_be_cut", f"when what '{text[:80]}' tells is heard in '{sound}' is not known; {fix}")
        phrases = [word.word for word in before.words[sound]]
        left = {word.word for word in change.view.words.get(sound, ())}
        told = [phrase for phrase in phrases if phrase.casefold() in text]
        unheard += [phrase for phrase in told or phrases if phrase not in left]
    return list(dict.fromkeys(unheard))


def _check_felt(before: View, change: Change, name: str) -> None:
    """Raises VetoError where a text tells what may have been felt in a part that is gone.

    Where a sound of the same clock has times of what the text tells, these say what is left of it.
    """
    text = before.texts[name].text if name in before.texts else ""
    timed = any(
        name in before.heard.get(sound, ()) and sound in before.words and not before.spoken.get(sound)
        for sound in change.shortened
    )
    if timed or not any(map(str.isalpha, text)):
        return
    for tensor in sorted(change.shortened - change.view.gone):
        if name in before.felt.get(tensor, ()):
            fix = f"give `heard: {{{tensor}: []}}` if no text tells of it, or if what it tells goes on all the time"
            raise VetoError("may_be_cut", f"when what '{text[:80]}' tells is felt in '{tensor}' is not known; {fix}")


def _renamed(box: Box, texts: Mapping[str, Text]) -> Box:
    """A box whose phrase was rewritten keeps its place and loses its name."""
    if box.text is None or box.phrase is None:
        return box
    text = texts.get(box.text)
    return box if text and box.phrase.casefold() in text.text.casefold() else replace(box, text=None, phrase=None)
