"""Sample and Member: what moves through a build.

Units and shapes, everywhere: durations and times in seconds (`_s`), rates in hertz, sides in pixels (`_px`), sizes in
bytes. Images are (width, height) as Pillow has them; audio for scoring is float32, mono, 16 kHz.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Modality = Literal["image", "text", "audio", "video", "tensor"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)

# What SQL sees of a member of each modality: `image.width`, `caption.words`, `speech.duration_s`.
_ALWAYS = {"bytes": "BIGINT", "mime": "VARCHAR", "sha256": "VARCHAR"}
_PICTURE = {"width": "INTEGER", "height": "INTEGER"}
_SOUND = {"duration_s": "DOUBLE", "sample_rate": "INTEGER", "channels": "INTEGER"}
MEASURES: dict[Modality, dict[str, str]] = {
    "image": {**_ALWAYS, **_PICTURE, "faces": "INTEGER"},
    "text": {
        **_ALWAYS,
        **dict.fromkeys(("text", "lang"), "VARCHAR"),
        "lang_guessed": "BOOLEAN",
        **dict.fromkeys(("chars", "words", "masked"), "INTEGER"),
    },
    "audio": {**_ALWAYS, "lang": "VARCHAR", **_SOUND},
    "video": {**_ALWAYS, **_PICTURE, "duration_s": "DOUBLE", "start_s": "DOUBLE"},
    "tensor": {
        **_ALWAYS,
        "shape": "INTEGER[]",
        "dtype": "VARCHAR",
        "ndim": "INTEGER",
        "elements": "BIGINT",
        "finite_share": "DOUBLE",
        "min": "DOUBLE",
        "max": "DOUBLE",
        "mean": "DOUBLE",
        "rate_hz": "DOUBLE",
        "duration_s": "DOUBLE",
    },
}


@dataclass(frozen=True, slots=True)
class Member:
    """One modality's payload and its measures.

    Attributes:
        name: unique in the sample: `image`, `caption_fr`.
        modality: what it is.
        mime: media type of the payload as stored.
        extension: file extension of the payload, without a dot.
        data: the payload; empty where only the measures were asked for.
        lang: BCP 47 primary tag of text or speech, None where unknown.
        measures: of `MEASURES[modality]`, those beyond bytes, mime and sha256.
    """

    name: str
    modality: Modality
    mime: str
    extension: str
    data: bytes
    lang: str | None = None
    measures: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Digest of the payload, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def language(self) -> str | None:
        """`lang` as models name it, without the region: `en` of `en-US`, `EN` and `en_GB`."""
        return re.split("[-_@]", self.lang)[0].lower() if self.lang else None

    @property
    def told_language(self) -> str | None:
        """`language` where the source gave it; None where it was guessed from the text."""
        return None if self.measures.get("lang_guessed") else self.language

    @property
    def text(self) -> str:
        """The payload of a text member."""
        return self.data.decode("utf-8")


@dataclass(frozen=True, slots=True)
class Sample:
    """One item whose modalities describe the same thing.

    Attributes:
        sample_id: 32 hexadecimal digits, a hash of where the sample came from; stable over rebuilds.
        source: name of the source.
        key: what the source calls it.
        members: by name.
        parent_id: for an augmented child, the sample it was made of.
        variant: for a child, which operator made it.
        attributes: columns that the source carried along.
        found: what aligners measured, by label, edge and measure, where it was asked for.
        augmentation: for a child of a policy, what it went through: see `mmdata.augment.policy`.
    """

    sample_id: str
    source: str
    key: str
    members: dict[str, Member]
    parent_id: str | None = None
    variant: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    found: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    augmentation: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sample is out: the step, a slug to count by, and the sentence."""

    sample_id: str
    step: str
    reason: str
    detail: str


def sample_id(source: str, key: str) -> str:
    """The id of what `source` calls `key`: 128 bits of BLAKE2b."""
    return _digest(f"{source}\0{key}")


def child_id(parent_id: str, variant: str) -> str:
    """The id of the child that `variant` makes of a parent."""
    return _digest(f"{parent_id}\0{variant}")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
