"""A measure of your own: how many emoji a caption has. Any step is offered like this, by an entry point of a package.

In the pyproject.toml of the package that holds this module:

    [project.entry-points."mmdata.steps"]
    emoji = "own_measure:Emoji"

Then, in a pipeline, `measure: [{emoji: {of: [caption]}}]`, and in its rules `emoji.caption.count <= 3`. What needs a
model returns it from `load`, which a worker calls once; `weights` names it, so that other weights measure anew.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from mmdata.sample import Member, Modality
from mmdata.steps.base import Measure


class Emoji(Measure):
    """Counts emoji in texts."""

    step: ClassVar[str] = "emoji"
    modality: ClassVar[Modality] = "text"

    def columns(self) -> dict[str, str]:
        """One number."""
        return {"count": "INTEGER"}

    def load(self) -> re.Pattern[str]:
        """Most of the blocks of Unicode that hold emoji."""
        return re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")

    def measure(self, tool: re.Pattern[str], member: Member) -> Mapping[str, Any]:
        """Always works; what cannot be measured raises SampleError, and has no values."""
        return {"count": len(tool.findall(member.text))}
