"""A policy: which operators a child goes through, and the child.

What a child is follows from (seed, sample_id, variant) alone, and, where operators mix samples, from which others there
are. Each operator draws from a generator of its own, so its record (name, parameters, seed) is all a replay needs.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from mmdata.augment import codec, meaning, notes, tensor
from mmdata.augment.base import Box, Change, Mixer, Operator, Picture, Sides, Sound, Text, VetoError, View
from mmdata.errors import SampleError
from mmdata.sample import MODALITIES, Member, Sample, child_id

if TYPE_CHECKING:
    from typing_extensions import TypeIs

_SOUND_EFFECTS: Final = frozenset({"tempo", "pitch", "loudness", "noise", "echo", "reverse", "cut"})
# Where a view holds members of each modality.
_FIELDS: Final = {"image": "pictures", "video": "clips", "audio": "sounds", "tensor": "tensors"}

Others = Callable[[str, int], Sample | None]
"""Another sample than the one with this id, chosen by a number of 128 bits; None where there is none."""


def nobody(_: str, __: int) -> None:
    """The `Others` of a sample that is alone."""


def chosen(ids: Sequence[str], but: str, draw: int) -> str | None:
    """Of sorted sample ids the next after `draw` on their ring: they are hashes, so each is as likely."""
    at = bisect.bisect_left(ids, f"{draw:032x}")
    around = (ids[(at + step) % len(ids)] for step in range(min(2, len(ids))))
    return next((one for one in around if one != but), None)


@dataclass(frozen=True)
class Notes:
    """Members that say something of other members.

    Attributes:
        boxes: image member: the text member with its boxes.
        film_boxes: video member: the text member with the boxes of its frames.
        times: audio member: the text member with the times of its words.
        spoken: audio member: the texts that it says; None: every text may be what any sound says.
        sides: tensor: what a mirror does to its channels.
        written: texts that say what is written in a picture.
    """

    boxes: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, str] = field(default_factory=dict)
    spoken: Mapping[str, Sequence[str]] | None = None
    sides: Mapping[str, Sides] = field(default_factory=dict)
    film_boxes: Mapping[str, str] = field(default_factory=dict)
    written: frozenset[str] = frozenset()

    @property
    def members(self) -> frozenset[str]:
        """Members that hold notes: no operator sees them as texts."""
        return frozenset({*self.boxes.values(), *self.times.values(), *self.film_boxes.values()})


@dataclass(frozen=True)
class Entry:
    """An operator of a policy.

    Attributes:
        operator: the operator.
        params: as the pipeline file has them, for the record.
        p: how likely a child goes through it.
    """

    operator: Operator | Mixer
    params: Mapping[str, Any]
    p: float = 1.0


@dataclass(frozen=True)
class _Step:
    """An operator that a child goes through, and its seed."""

    entry: Entry
    seed: int


@dataclass(frozen=True)
class Policy:
    """Operators in their order.

    Attributes:
        label: names the children: variant `{label}_{n}`.
        entries: the operators.
        notes: members that say something of others.
    """

    label: str
    entries: Sequence[Entry]
    notes: Notes = Notes()

    def child(self, sample: Sample, number: int, seed: int, others: Others = nobody) -> Sample:
        """Child `number` of a sample, its record in `augmentation`.

        Raises VetoError with the first reason where no operator could be applied, `nothing_drawn` where none was drawn.
        """
        variant = f"{self.label}_{number}"
        return self._made(sample, variant, self._drawn(sample.sample_id, variant, seed), others, replayed=False)

    def replay(self, sample: Sample, record: Mapping[str, Any], variant: str, others: Others = nobody) -> Sample:
        """The child that a record describes, from its parent; `entries` are those of the record.

        Raises SampleError where an operator cannot be applied again: then the parent is not what it was.
        """
        seeds = [int(one["seed"]) for one in record["applied"]]
        steps = [_Step(entry, own) for entry, own in zip(self.entries, seeds, strict=True)]
        return replace(self._made(sample, variant, steps, others, replayed=True), augmentation=record)

    def _drawn(self, sample_id: str, variant: str, seed: int) -> list[_Step]:
        digest = hashlib.blake2b(f"{seed}\0{sample_id}\0{variant}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        # All are drawn, also for those left out: what one entry does never depends on another's `p`.
        draws = [(rng.random(), int(rng.integers(2**63))) for _ in self.entries]
        return [_Step(e, own) for e, (u, own) in zip(self.entries, draws, strict=True) if u < e.p]

    def _made(self, sample: Sample, variant: str, steps: Sequence[_Step], others: Others, *, replayed: bool) -> Sample:
        steps = [step for step in steps if _concerns(step.entry.operator, sample)]
        if not steps:
            raise VetoError("nothing_drawn", "no operator that concerns the sample was drawn")
        work = _Work(self, sample, frozenset().union(*(step.entry.operator.changes for step in steps)), others)
        for step in steps:
            try:
                work.apply(step)
            except SampleError as error:
                if replayed or not isinstance(error, VetoError):
                    raise
                work.skipped.append({"op": step.entry.operator.name, "reason": error.reason, "detail": str(error)})
        if not work.applied:
            first = work.skipped[0]
            veto = VetoError(first["reason"], f"{first['op']}: {first['detail']}")
            veto.record = work.record()
            raise veto
        return replace(
            sample,
            sample_id=child_id(sample.sample_id, variant),
            parent_id=sample.sample_id,
            variant=variant,
            members=work.members(),
            augmentation=work.record(),
            found={},
        )


def _mixes(operator: Operator | Mixer) -> TypeIs[Mixer]:
    # `isinstance` of a protocol looks at every attribute, which shows beside a flip of two milliseconds.
    return hasattr(operator, "mix")


def _concerns(operator: Operator | Mixer, sample: Sample) -> bool:
    return any(member.modality in operator.changes for member in sample.members.values())


class _Work:
    """A child on its way."""

    def __init__(self, policy: Policy, sample: Sample, changes: frozenset[str], others: Others) -> None:
        self.policy = policy
        self.sample = sample
        self.others = others
        # What a mirror of the picture mirrors too.
        self.changes = changes = changes | ({"tensor"} if policy.notes.sides else set())
        self.view = decoded(sample, policy.notes, changes)
        # Without what is large: the parent's pixels go as soon as an operator has made others of them.
        self.before = replace(self.view, pictures={}, clips={}, sounds={}, tensors={})
        self.sizes = _sizes(self.view)
        self.changed: set[str] = set()
        self.applied: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self.partner_id: str | None = None

    def apply(self, step: _Step) -> None:
        """Go through one operator, all modalities or none. Raises VetoError, SampleError."""
        operator, rng = step.entry.operator, np.random.default_rng(step.seed)
        partner: Sample | None = None
        if _mixes(operator):
            partner = self._partner(rng)
            try:
                other = decoded(partner, self.policy.notes, operator.changes)
            except SampleError as error:
                raise VetoError("partner_broken", f"the sample to mix it with: {error}") from None
            change = operator.mix(self.view, other, rng)
        else:
            change = operator(self.view, rng)
        if change.view is self.view:
            raise VetoError("nothing_changed", "what was drawn changes nothing")
        if change.retimed:
            self._check_in_step(operator.name, change.view)
        if "mirror" in change.effects:
            change = replace(change, view=tensor.mirrored(change.view, self.view))
        self._goes_on(told(self.view, change))
        self.partner_id = partner.sample_id if partner else self.partner_id
        row = {"op": operator.name, "params": dict(step.entry.params), "seed": step.seed, "drawn": dict(change.drawn)}
        self.applied.append(row)

    def _goes_on(self, view: View) -> None:
        for place in _FIELDS.values():
            old, new = getattr(self.view, place), getattr(view, place)
            self.changed |= {name for name, one in new.items() if one is not old.get(name)}
        self.view = view

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
        if name in self.policy.notes.members:
            return self._note(member)
        if member.modality == "text":
            text = self.view.texts.get(name)
            if text is None:
                return None
            return member if text == self.before.texts[name] else codec.encode_text(member, text)
        if member.modality not in self.changes:
            # What was never decoded can only have been taken away.
            return None if name in self.view.gone else member
        after = getattr(self.view, _FIELDS[member.modality]).get(name)
        if after is None or name in self.view.gone:
            return None
        return cast(Member, codec.ENCODERS[member.modality](member, after)) if name in self.changed else member

    def _note(self, member: Member) -> Member | None:
        """It goes with what it is of, and is written anew where that has another size, place or time."""
        if self._owner(member.name) in self.view.gone:
            return None
        sizes = self._sizes_now()
        for image, name in self.policy.notes.boxes.items():
            if name == member.name and image in sizes:
                now, old = (view.boxes.get(image, ()) for view in (self.view, self.before))
                return self._of(image, member, notes.write_boxes(now, *sizes[image]), same=now == old)
        for film, name in self.policy.notes.film_boxes.items():
            if name == member.name and film in sizes:
                each, before = (view.film_boxes.get(film, ()) for view in (self.view, self.before))
                return self._of(film, member, notes.write_film_boxes(each, *sizes[film]), same=each == before)
        for sound, name in self.policy.notes.times.items():
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
        owners = {**self.policy.notes.boxes, **self.policy.notes.times, **self.policy.notes.film_boxes}
        return next((owner for owner, name in owners.items() if name == note), None)

    def record(self) -> dict[str, Any]:
        """What a replay needs, and what was left out and why."""
        mixed = {"partner_id": self.partner_id} if self.partner_id else {}
        return {"policy": self.policy.label, "applied": self.applied, "skipped": self.skipped, **mixed}


def _sizes(view: View) -> dict[str, tuple[int, int]]:
    """Width and height of pictures and films."""
    shown = {**view.pictures, **{name: frames[0] for name, frames in view.clips.items()}}
    return {name: (one.rgb_HWC.shape[1], one.rgb_HWC.shape[0]) for name, one in shown.items()}


def decoded(sample: Sample, known: Notes, changes: frozenset[str]) -> View:
    """A sample as operators see it: texts, notes, and members of the modalities that will change."""
    members = {name: m for name, m in sample.members.items() if name not in known.members}
    texts = {name: Text(m.text, m.lang) for name, m in members.items() if m.modality == "text"}
    parts = {
        place: {n: codec.DECODERS[kind](m) for n, m in members.items() if m.modality == kind}
        for kind, place in _FIELDS.items()
        if kind in changes
    }
    pictures: dict[str, Picture] = parts.get("pictures", {})
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
    heard = [name for name, m in members.items() if m.modality == "audio"]
    spoken = {s: tuple(texts if known.spoken is None else known.spoken.get(s, ())) for s in heard}
    names = {str(kind): tuple(n for n, m in members.items() if m.modality == kind) for kind in MODALITIES}
    clips, tensors = parts.get("clips", {}), parts.get("tensors", {})
    film_boxes = {
        film: notes.read_film_boxes(sample.members[name], clips[film][0].rgb_HWC.shape, len(clips[film]), texts)
        for film, name in known.film_boxes.items()
        if name in sample.members and film in clips
    }
    view = View(pictures, clips, sounds, texts, tensors, boxes, film_boxes, words, spoken, names)
    return replace(view, sides=known.sides, written=known.written & texts.keys())


def told(before: View, change: Change) -> View:
    """The view with its texts true again; a sound whose words are others now is gone.

    Raises VetoError where a text would not be true and cannot be rewritten.
    """
    view = change.view
    of_pictures, of_sounds = change.effects - _SOUND_EFFECTS, change.effects & _SOUND_EFFECTS
    said = {name for texts in view.spoken.values() for name in texts}
    texts = dict(view.texts)
    for name, text in view.texts.items():
        if name in view.written:
            meaning.check_written(text.text, of_pictures)
            continue
        effects = of_pictures | (frozenset() if name in said else of_sounds)
        words = text.text
        for phrase in _untrue(before, change, name):
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


def _renamed(box: Box, texts: Mapping[str, Text]) -> Box:
    """A box whose phrase was rewritten keeps its place and loses its name."""
    if box.text is None or box.phrase is None:
        return box
    text = texts.get(box.text)
    return box if text and box.phrase.casefold() in text.text.casefold() else replace(box, text=None, phrase=None)
