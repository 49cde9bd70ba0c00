"""A child on its way: through one operator after the other, all modalities together or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mmdata.augment import codec, mirror, notes
from mmdata.augment.base import Change, Mask, Mixer, Operator, Sides, Sound, Text, VetoError, View
from mmdata.augment.view import FIELDS, Notes, decoded, told
from mmdata.errors import SampleError
from mmdata.sample import Member, Sample

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from mmdata.augment.policy import Others, Step


# Effects of what puts pixels elsewhere.
_MOVING: Final = frozenset({"mirror", "upside_down", "turn", "move", "shape"})


class Child:
    """A child on its way.

    Attributes:
        applied: what it went through, for its record.
        skipped: what was left out, and why.
        partner_id: its second parent, where it was mixed.
    """

    def __init__(self, sample: Sample, known: Notes, changes: frozenset[str], others: Others) -> None:
        """`changes` are the modalities that will change. Raises SampleError where a member cannot be decoded."""
        self.sample = sample
        self.notes = known
        self.others = others
        # What a mirror of the picture mirrors too.
        self.changes = changes | ({"tensor"} if known.sides else set())
        self.view = decoded(sample, known, self.changes)
        # Without what is large: the parent's pixels go as soon as an operator has made others of them.
        self.before = replace(self.view, pictures={}, clips={}, sounds={}, tensors={}, masks={})
        self.sizes = _sizes(self.view)
        self.changed: set[str] = set()
        self.mirrored = False
        self.turned = False
        self.applied: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self.partner_id: str | None = None

    def apply(self, step: Step) -> None:
        """Go through one operator, all modalities or none. Raises VetoError, SampleError."""
        operator, rng = step.entry.operator, np.random.default_rng(step.seed)
        partner: Sample | None = None
        if _mixes(operator):
            partner = self._partner(rng)
            try:
                other = decoded(partner, self.notes, operator.changes)
            except SampleError as error:
                raise VetoError("partner_broken", f"the sample to mix it with: {error}") from None
            change = operator.mix(self.view, other, rng)
        else:
            change = operator(self.view, rng)
        if change.view is self.view:
            raise VetoError("nothing_changed", "what was drawn changes nothing")
        if change.retimed:
            self._check_in_step(operator.name, change.view)
        if change.effects & {"mirror", "turn"}:
            self._check_sides()
        if "mirror" in change.effects:
            change = replace(change, view=mirror.mirrored(change.view, self.view))
        self._check_masks(operator.name, change)
        self._goes_on(told(self.view, change))
        self.mirrored ^= "mirror" in change.effects
        self.turned |= "turn" in change.effects
        self.partner_id = partner.sample_id if partner else self.partner_id
        row = {"op": operator.name, "params": dict(step.entry.params), "seed": step.seed, "drawn": dict(change.drawn)}
        self.applied.append(row)

    def _goes_on(self, view: View) -> None:
        for place in (*FIELDS.values(), "masks"):
            old, new = getattr(self.view, place), getattr(view, place)
            self.changed |= {name for name, one in new.items() if one is not old.get(name)}
        self.view = view

    def _check_masks(self, name: str, change: Change) -> None:
        """Raises VetoError where an operator, of another package say, moves a picture's pixels and not its masks'."""
        for mask, before in self.view.masks.items() if change.effects & _MOVING else ():
            old, new = (view.pictures.get(before.of) for view in (self.view, change.view))
            if old is not new and change.view.masks.get(mask) is before and before.of not in change.view.gone:
                raise VetoError("mask_stays", f"{name} moves what '{before.of}' shows, and not its mask '{mask}'")

    def _check_sides(self) -> None:
        """Raises VetoError where a sound has sides that are not known."""
        for member in self.sample.members.values():
            if member.modality == "audio" and member.name not in self.view.gone:
                self._sides(member)

    def _sides(self, sound: Member) -> Sides:
        return mirror.sides_of(sound.name, sound.measures.get("channels") or 1, self.notes.sides)

    def _check_in_step(self, name: str, after: View) -> None:
        """What runs along with a sound must be cut and stretched like it. Raises VetoError."""
        for member in self.sample.members.values():
            place = {"tensor": "tensors", "video": "clips"}.get(member.modality)
            runs = member.modality == "video" or member.measures.get("rate_hz")
            if place and runs and member.name not in after.gone:
                old, new = (getattr(view, place).get(member.name) for view in (self.view, after))
                if old is new:
                    raise VetoError("out_of_step", f"'{member.name}' may run along, and {name} does not change it")

    def _partner(self, rng: np.random.Generator) -> Sample:
        if self.partner_id is not None:
            raise VetoError("mixed_already", "a child has two parents at most")
        partner = self.others(self.sample.sample_id, int.from_bytes(rng.bytes(16), "big"))
        if partner is None:
            raise VetoError("no_partner", "there is no other sample to mix it with")
        return partner

    def members(self) -> dict[str, Member]:
        """All that is left, what changed encoded anew."""
        found: dict[str, Member] = {}
        for name, member in self.sample.members.items():
            made = self._member(name, member)
            if made is not None:
                found[name] = made
        return found

    def _member(self, name: str, member: Member) -> Member | None:
        if name in self.notes.members:
            return self._note(member)
        if member.modality == "text":
            return self._text(member)
        after = self.view.masks.get(name) or getattr(self.view, FIELDS[member.modality]).get(name)
        # What was never decoded can only have been taken away.
        if name in self.view.gone or (after is None and member.modality in self.changes):
            return None
        return self._encoded(member, after)

    def _text(self, member: Member) -> Member | None:
        text = self.view.texts.get(member.name)
        if text is None:
            return None
        return member if text == self.before.texts[member.name] else codec.encode_text(member, text)

    def _encoded(self, member: Member, after: Any) -> Member:
        other_sides = self.mirrored or self.turned
        if member.modality == "audio" and other_sides:
            return self._heard(member, after)
        if member.name not in self.changed:
            return member
        if member.modality == "video":
            heard = partial(mirror.channels_heard, member.name, sides=mirror.STEREO, turned=self.turned)
            return codec.encode_clip(member, after, heard if other_sides else None)
        if isinstance(after, Mask):
            return codec.encode_mask(member, after)
        encode: Callable[[Member, Any], Member] = codec.ENCODERS[member.modality]
        return encode(member, after)

    def _heard(self, member: Member, sound: Sound | None) -> Member:
        """A sound. Late, so that none is decoded that has no sides, or for a mirror that a second one undoes."""
        before = sound or (codec.decode_sound(member) if self._sides(member) != Sides() else None)
        after = before and mirror.sound_heard(member.name, before, self._sides(member), turned=self.turned)
        if after is None or (after is before and member.name not in self.changed):
            return member
        return codec.encode_sound(member, after)

    def _note(self, member: Member) -> Member | None:
        """It goes with what it is of, and is written anew where that has another size, place or time."""
        if self._owner(member.name) in self.view.gone:
            return None
        sizes = self._sizes_now()
        for image, name in self.notes.boxes.items():
            if name == member.name and image in sizes:
                now, old = (view.boxes.get(image, ()) for view in (self.view, self.before))
                return self._of(image, member, notes.write_boxes(now, *sizes[image]), same=now == old)
        for film, name in self.notes.film_boxes.items():
            if name == member.name and film in sizes:
                each, before = (view.film_boxes.get(film, ()) for view in (self.view, self.before))
                return self._of(film, member, notes.write_film_boxes(each, *sizes[film]), same=each == before)
        for sound, name in self.notes.times.items():
            if name == member.name and sound in self.view.sounds:
                words = self.view.words.get(sound, ())
                same = words == self.before.words.get(sound, ())
                return self._of(sound, member, notes.write_words(member, words), same=same)
        return member

    def _sizes_now(self) -> dict[str, tuple[int, int]]:
        """Films have even sides as soon as they are encoded."""
        films = self.changed & set(self.view.clips)
        return {n: codec.even(*size) if n in films else size for n, size in _sizes(self.view).items()}

    def _of(self, owner: str, member: Member, text: str, *, same: bool) -> Member:
        if same and self._sizes_now().get(owner) == self.sizes.get(owner):
            return member
        return codec.encode_text(member, Text(text, member.lang))

    def _owner(self, note: str) -> str | None:
        owners = {**self.notes.boxes, **self.notes.times, **self.notes.film_boxes}
        return next((owner for owner, name in owners.items() if name == note), None)

    def record(self, label: str) -> dict[str, Any]:
        """What a replay needs, and what was left out and why."""
        mixed = {"partner_id": self.partner_id} if self.partner_id else {}
        return {"policy": label, "applied": self.applied, "skipped": self.skipped, **mixed}


def _mixes(operator: Operator | Mixer) -> TypeIs[Mixer]:
    # `isinstance` of a protocol looks at every attribute, which shows beside a flip of two milliseconds.
    return hasattr(operator, "mix")


def _sizes(view: View) -> dict[str, tuple[int, int]]:
    """Width and height of pictures and films."""
    shown = {**view.pictures, **{name: frames[0] for name, frames in view.clips.items()}}
    return {name: (one.rgb_HWC.shape[1], one.rgb_HWC.shape[0]) for name, one in shown.items()}
