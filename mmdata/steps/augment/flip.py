"""`flip`: mirror the image, and every text with it.

What a mirror exchanges is exchanged in the captions; what would no longer be true, or might not be, is a veto. Speech
cannot be rewritten: where a text of the sample names a side, the child goes without its speech.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import Field

from mmdata.errors import SampleError
from mmdata.sample import Member, Modality, Sample, child_id
from mmdata.spec import Names
from mmdata.steps.base import Augment


class Flip(Augment):
    """Mirror the image left to right; left and right change places in its texts, in six languages.

    Vetoes, each with its reason in the ledger: a text in another language, a side named in a way that may mean
    something else, writing or digits in the picture as far as the texts tell.
    """

    step: ClassVar[str] = "flip"
    image: Names = Field(default=["image"], min_length=1, description="image members, all mirrored")

    def reads(self) -> dict[str, Modality | None]:
        """The images it mirrors."""
        return dict.fromkeys(self.image, "image")

    def make(self, sample: Sample, seed: int) -> Iterator[Sample]:  # noqa: ARG002 - nothing here is random
        """One mirrored child; there is nothing random in it, so `seed` does not matter.

        Raises SampleError `no_image`, `unknown_language`, `ambiguous_side`, `mirrored_writing`.
        """
        if not any(name in sample.members for name in self.image):
            raise SampleError("no_image", f"none of {', '.join(self.image)} to mirror")
        texts = {m.name: _mirror_text(m) for m in sample.members.values() if m.modality == "text"}
        sided = any(texts[name].data != sample.members[name].data for name in texts)
        members = dict(sample.members) | texts
        for name in self.image:
            if name in members:
                members[name] = _mirror_image(members[name])
        if sided:
            members = {name: m for name, m in members.items() if m.modality != "audio"}
        yield replace(
            sample,
            sample_id=child_id(sample.sample_id, self.step),
            parent_id=sample.sample_id,
            variant=self.step,
            members=members,
        )


def mirror_words(text: str, lang: str | None) -> str:
    """The text of a mirrored picture. Raises SampleError where that cannot be told."""
    words = _languages().get((lang or "").lower().split("_")[0].split("-")[0])
    if words is None:
        if not any(char.isalpha() for char in text):
            return text
        raise SampleError("unknown_language", f"no left and right for the language '{lang}': '{text}'")
    return words.mirror(text)


@dataclass(frozen=True)
class _Language:
    """The words of one language, as patterns."""

    swaps: dict[str, str]
    definite: tuple[re.Pattern[str], ...]
    any_side: re.Pattern[str]
    veto: re.Pattern[str]

    def mirror(self, text: str) -> str:
        if found := self.veto.search(text):
            raise SampleError("mirrored_writing", f"'{found[0]}' may be writing, which a mirror makes unreadable")
        spans = {match.span("side") for phrase in self.definite for match in phrase.finditer(text)}
        for match in self.any_side.finditer(text):
            # Equal but for case is more than `lower` undoes: a long s is found as s.
            if match.span() not in spans or match[0].lower() not in self.swaps:
                raise SampleError("ambiguous_side", f"'{match[0]}' in '{text}' may be no side")
        return self.any_side.sub(lambda match: _cased_like(match[0], self.swaps[match[0].lower()]), text)


def _mirror_text(member: Member) -> Member:
    text = mirror_words(member.text, member.lang)
    return replace(member, data=text.encode(), measures={**member.measures, "text": text, "chars": len(text)})


def _mirror_image(member: Member) -> Member:
    from PIL import ImageOps

    from mmdata.media.image import ANY_SIZE, encode_like, open_image

    mirrored = ImageOps.mirror(open_image(member.data, ANY_SIZE))
    measures = {**member.measures, "width": mirrored.width, "height": mirrored.height}
    return replace(member, data=encode_like(mirrored, member.extension), measures=measures)


def _cased_like(original: str, word: str) -> str:
    if original.isupper() and len(original) > 1:
        return word.upper()
    return word.capitalize() if original[0].isupper() else word


@functools.cache
def _languages() -> dict[str, _Language]:
    table = yaml.safe_load(Path(__file__).with_name("directions.yaml").read_text(encoding="utf-8"))
    return {lang: _language(entry) for lang, entry in table.items()}


def _language(entry: dict[str, Any]) -> _Language:
    swaps = {a: b for pair in entry["swap"] for a, b in (pair, pair[::-1])}
    edge = "" if entry.get("spaceless") else r"\b"
    sides = "|".join(sorted(swaps, key=len, reverse=True))
    also = "|".join(sorted([*swaps, *entry.get("also", [])], key=len, reverse=True))
    phrases = [_phrase(phrase, sides, edge) for phrase in entry.get("in", ["{}"])]
    veto = "|".join(f"{edge}{_stem(word, edge)}" for word in entry["veto"])
    any_side = re.compile(f"{edge}(?:{also}){edge}", re.IGNORECASE)
    return _Language(swaps, tuple(phrases), any_side, re.compile(veto, re.IGNORECASE))


def _phrase(phrase: str, sides: str, edge: str) -> re.Pattern[str]:
    before, after = map(re.escape, phrase.split("{}"))
    return re.compile(f"{edge}{before}(?P<side>{sides}){after}{edge}", re.IGNORECASE)


def _stem(word: str, edge: str) -> str:
    return re.escape(word[:-1]) if word.endswith("*") else re.escape(word) + edge
