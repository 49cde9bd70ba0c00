"""Small tables of candidates, and what curation steps decide over them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmdata.sample import Failure, Member, Sample, child_id, sample_id
from mmdata.steps.base import Curate
from mmdata.store.curation import Columns, Curation, Rows
from mmdata.store.gather import CALIBRATED, Gatherer, Wanted
from mmdata.store.parts import SCORE_SCHEMA, BasePartWriter, write_table

COLUMNS = Columns({"image": "image", "caption": "text"}, {"clip": {"image_caption": {}}}, sources=("s", "web", "radio"))


@dataclass(frozen=True)
class Row:
    """A sample: its key, its caption, the side of its image, its score; None where it has none."""

    key: str
    caption: str | None = "a cat"
    side: int | None = 10
    score: float | None = None
    parent: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    failed: str | None = None
    source: str = "s"
    lang: str | None = "en"

    @property
    def sample_id(self) -> str:
        own = sample_id(self.source, self.key)
        return own if self.parent is None else child_id(sample_id(self.source, self.parent), "flip")

    def sample(self) -> Sample:
        members = {}
        if self.side is not None:
            size = {"width": self.side, "height": self.side}
            members["image"] = Member("image", "image", "image/png", "png", b"%d" % self.side, None, size)
        if self.caption is not None:
            text = {"text": self.caption, "chars": len(self.caption), "words": len(self.caption.split())}
            members["caption"] = Member("caption", "text", "text/plain", "txt", self.caption.encode(), self.lang, text)
        parent = None if self.parent is None else sample_id(self.source, self.parent)
        variant = None if self.parent is None else "flip"
        return Sample(self.sample_id, self.source, self.key, members, parent, variant, self.attributes)


def loaded(folder: Path, rows: Iterable[Row], *, seed: int = 0) -> Curation:
    rows = list(rows)
    folder.mkdir(exist_ok=True)
    with BasePartWriter(folder / "base.parquet") as writer:
        for row in rows:
            sample = row.sample()
            if row.failed:
                writer.add_failure(sample, Failure(sample.sample_id, "ingest", row.failed, "because"))
            else:
                writer.add(sample)
    scores = [
        {"sample_id": row.sample_id, "aligner": "clip", "edge": "image_caption", "score": row.score}
        for row in rows
        if row.score is not None
    ]
    write_table(folder / "scores.parquet", pa.Table.from_pylist(scores, SCORE_SCHEMA))
    return gathered(COLUMNS, Rows([folder / "base.parquet"], [folder / "scores.parquet"]), folder, seed=seed)


def gathered(columns: Columns, rows: Rows, folder: Path, *, seed: int = 0) -> Curation:
    """A curation over the rows of parts, nothing of which is calibrated."""
    made = folder / "gathered"
    made.mkdir()
    with Gatherer(columns, Wanted(list(columns.members), folder, seed), made, "1GB") as gatherer:
        gatherer.link(rows.links)
        gatherer.add(rows, lambda _: CALIBRATED.empty_table())
    return Curation.open(columns, seed, made, folder, "1GB")


def fates(curation: Curation, rows: Iterable[Row]) -> dict[str, tuple[Any, ...]]:
    """By key (`key'` for a child): fate, rule, value, threshold, detail."""
    names = {row.sample_id: row.key + ("'" if row.parent else "") for row in rows}
    found = curation.connection.execute("SELECT sample_id, fate, rule, value, threshold, detail FROM fates").fetchall()
    return {names[row[0]]: row[1:] for row in found}


def decided(folder: Path, rows: list[Row], *steps: Curate) -> dict[str, tuple[Any, ...]]:
    curation = loaded(folder, rows)
    for step in steps:
        step.check(curation)
        step.apply(curation)
    return fates(curation, rows)
