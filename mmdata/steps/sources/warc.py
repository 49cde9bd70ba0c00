"""`warc`: pairs of the pages that WARC files hold, as crawlers and archives record them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from mmdata.spec import Names
from mmdata.steps.exchange import Input, Keep, Place
from mmdata.steps.sources.pairs import Pages
from mmdata.steps.sources.places import file_places


class Warc(Pages):
    """Media with their texts, of the pages in WARC files; what the files do not hold themselves is fetched."""

    step: ClassVar[str] = "warc"
    name: str | None = Field(None, description="names the source in every sample_id; default: warc")
    files: Names = Field(
        min_length=1, description="WARC files, patterns (crawl/*.warc.gz) or URLs (s3://bucket/crawl/*.warc.gz)"
    )

    def identity(self) -> dict[str, Any]:
        """Where the files lie does not matter."""
        mine = super().identity()
        mine["params"].pop("files")
        return mine

    def places(self, crawled: Path) -> Iterator[Place]:  # noqa: ARG002 - nothing was crawled
        """The files, by name. Raises PlanError."""
        return file_places("warc", self.files)

    def look(self, place: Place, keep: Keep) -> Iterator[Input]:
        """All pairs of one file."""
        return self.pairs(place, keep, with_media=True)
