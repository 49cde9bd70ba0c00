"""`wording`: the language of a text, whether it repeats itself, and whether it says anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from pydantic import Field

from mmdata.sample import Member, Modality
from mmdata.spec import Names
from mmdata.steps.base import Measure


class Wording(Measure):
    """Texts by their characters and words; `chars` and `words` are columns of the member itself.

    `junk` says why a caption says nothing of what it goes with (`file_name`, `url`, `placeholder`, `boilerplate`), and
    is NULL for all others. `repetition` and `top_bigram` are Gopher's (Rae et al. 2021, table A1): shares of the
    characters. `lang` is what the words look like, whatever the source says.
    """

    step: ClassVar[str] = "wording"
    modality: ClassVar[Modality] = "text"
    of: Names = Field(["caption"], min_length=1, description="text members to measure")
    repeated_words: int = Field(
        3, ge=1, le=20, description="of the stretches that repetition looks for; Gopher's rules have 5 and more"
    )

    def columns(self) -> dict[str, str]:
        """See `mmdata.media.wording.Wording`, and the guess of the language."""
        shares = ("letters", "digits", "upper", "mean_word_chars", "distinct_words", "repetition", "top_bigram")
        counts = dict.fromkeys(("urls", "markup"), "INTEGER")
        language = {"lang": "VARCHAR", "lang_confidence": "DOUBLE"}
        return {**language, **dict.fromkeys(shares, "DOUBLE"), **counts, "junk": "VARCHAR"}

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:  # noqa: ARG002 - the library keeps it
        """Always works."""
        from mmdata.media.text import guess_language
        from mmdata.media.wording import measure_wording

        lang, confidence = guess_language(member.text)
        return {
            "lang": lang,
            "lang_confidence": confidence,
            **asdict(measure_wording(member.text, self.repeated_words)),
        }
