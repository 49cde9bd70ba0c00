"""`text`: strict UTF-8 in NFC, with its language."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ByteSize, Field, StringConstraints

from mmdata.errors import SampleError
from mmdata.sample import Member, Modality
from mmdata.steps.base import Ingest
from mmdata.steps.exchange import Ref

PersonalKind = Literal["email", "iban", "card", "id", "phone", "ip"]
# Goes into fingerprints where something is masked: raise it when more is found.
_MASKED_AS_OF = 2
Region = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]


class Text(Ingest):
    """Text: strict UTF-8, NFC, blanks around it removed; one line of many where the source says so; its language."""

    step: ClassVar[str] = "text"
    version: ClassVar[int] = 3
    modality: ClassVar[Modality] = "text"
    max_bytes: ByteSize = Field(ByteSize(1 << 20), description="larger files have failed, unread")
    controls: Literal["strip", "keep"] = Field(
        "strip", description="control, direction and zero-width characters, which nobody sees"
    )
    entities: bool = Field(True, description="turn HTML entities (&eacute;) into what they stand for")
    detect_language: bool = Field(True, description="guess the language where the source does not give it")
    mask: list[PersonalKind] = Field(
        [],
        description="personal data that <EMAIL>, <PHONE>, ... stand for in the text, not in keys nor in columns that "
        "are carried along; the column `masked` counts it",
    )
    phone_regions: list[Region] | None = Field(
        None,
        description="countries whose telephone numbers are masked without their code; default: where most write the "
        "text's language",
    )

    def decode(self, ref: Ref, data: bytes) -> Member:
        """The member, measured. Raises SampleError: `not_utf8`, `no_such_line`, `empty_text`, ..."""
        from mmdata.media.text import count_words, decode_text, detect_language

        text = decode_text(
            _line(data, ref.line) if ref.line is not None else data,
            unseen=self.controls == "keep",
            entities=self.entities,
        )
        if not text:
            raise SampleError("empty_text", "the text is empty")
        guess = detect_language(text) if self.detect_language and not ref.lang else None
        lang = ref.lang or guess
        text, hidden = self._masked(text, lang)
        guessed = {"lang_guessed": bool(guess)} if lang else {}
        measures = {"text": text, **guessed, "chars": len(text), "words": count_words(text), **hidden}
        return Member(ref.name, "text", "text/plain", "txt", text.encode(), lang, measures)

    def _masked(self, text: str, lang: str | None) -> tuple[str, dict[str, int]]:
        if not self.mask:
            return text, {}
        from mmdata.media.personal import mask_personal, regions_of

        text, count = mask_personal(text, self.mask, regions_of(self.phone_regions, lang))
        return text, {"masked": count}

    def identity(self) -> dict[str, Any]:
        """With the date of what masks."""
        mine = super().identity()
        return {**mine, "masked_as_of": _MASKED_AS_OF} if self.mask else mine

    def needs(self) -> tuple[str, ...]:
        """What masks."""
        return ("personal",) if self.mask else ()


def _line(data: bytes, line: int | str) -> bytes:
    """The line of that number (from 1), or the `{text}` of the first line that fits the template."""
    lines = data.removeprefix(b"\xef\xbb\xbf").splitlines()
    if isinstance(line, int):
        if not 1 <= line <= len(lines):
            raise SampleError("no_such_line", f"line {line} of {len(lines)}")
        return lines[line - 1]
    before, after = (re.escape(part.encode()) for part in line.split("{text}", 1))
    for candidate in lines:
        if match := re.fullmatch(before + b"(.*)" + after, candidate):
            return match[1]
    raise SampleError("no_such_line", f"no line like '{line}'")
