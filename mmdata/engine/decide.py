"""What a worker does when all parts are there: gather them into wide rows, then decide over those.

Gathering reads everything and depends on no rule; deciding reads the columns that the rules speak of. Each is done
once, in a scratch folder that is renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from mmdata.engine.calibrate import fit_curves
from mmdata.engine.work import Done
from mmdata.plan import Plan, is_mapped
from mmdata.steps.base import Align, Augment, Curate, Fitted, Measure, Write
from mmdata.steps.curate.faults import faults_told
from mmdata.steps.curate.unknown import told, unknown
from mmdata.store import versions
from mmdata.store.crossings import write_crossings, write_moved
from mmdata.store.curation import SCORE_PARTS, Columns, Curation, Rows, base_rows
from mmdata.store.files import write_json
from mmdata.store.gather import Gatherer, Wanted
from mmdata.store.selection import ShardPlan, decide_fates, drop_losses, write_decisions

# Samples that are gathered at a time, about: a block is whole parts.
_BLOCK_ROWS: Final = 100_000
# DuckDB counts what it holds; what it hands out, and what is sorted outside of it, comes on top.
_SQL_SHARE: Final = 0.5
# In the folder of decisions: see `mmdata.steps.curate.unknown`.
_UNKNOWN: Final = "unknown.json"


@dataclass(frozen=True)
class Corpus:
    """All parts of a build.

    Attributes:
        columns: what rules can speak of.
        wanted: what shards will hold.
        align: the aligners.
        scores: the score parts of each, by label.
        chunks: of each chunk its base parts, children included, and their score parts.
        links: the part of links of each measure that has one, by label.
    """

    columns: Columns
    wanted: Wanted
    align: Sequence[Align]
    scores: Mapping[str, Sequence[Path]]
    chunks: Sequence[Rows]
    links: Mapping[str, Path]

    @classmethod
    def of(cls, plan: Plan) -> Corpus:
        """Of a plan whose parts are all there."""
        pipeline = plan.pipeline
        wanted = Wanted(pipeline.written_members, plan.output, pipeline.spec.seed)
        links = {label: plan.part(label, part) for label, part in plan.link_parts()}
        return cls(pipeline.columns, wanted, pipeline.align, _scores(plan), list(_chunks(plan)), links)

    @property
    def base(self) -> str:
        """A query of the rows of all base parts."""
        return base_rows([path for rows in self.chunks for path in rows.base], self.chunks[0].retried)


@dataclass(frozen=True)
class Decisions:
    """What decides.

    Attributes:
        columns: what rules can speak of.
        seed: of the pipeline.
        inputs: how many there are.
        augment: what made children.
        curate: the steps, in order.
        write: what is cut into shards.
        before: folder of other decisions of this build, if there is one.
    """

    columns: Columns
    seed: int
    inputs: int
    augment: Sequence[Augment]
    curate: Sequence[Curate]
    write: Write
    before: Path | None = None

    @classmethod
    def of(cls, plan: Plan) -> Decisions:
        """Of a plan."""
        of = plan.pipeline
        before = versions.before(plan.decided)
        folder = before.folder if before else None
        return cls(of.columns, of.spec.seed, plan.inputs, of.augment, of.curate, of.write, folder)


def gather(plan: Plan, scratch: Path, memory: int) -> Done:
    """Calibrate, and write the gathered folder of a plan whose parts are all there."""
    with _appearing(plan.gathered, scratch) as folder:
        gather_corpus(Corpus.of(plan), folder, memory)
    return Done(plan.inputs)


def decide(plan: Plan, scratch: Path, memory: int) -> Done:
    """Run the curation over the gathered folder and write the decisions. Raises LedgerError."""
    with _appearing(plan.decided, scratch) as folder:
        decide_over(plan.gathered, Decisions.of(plan), folder, scratch, memory)
        versions.note_version(folder, plan.decided, _version(plan))
    return Done(plan.inputs)


def _version(plan: Plan) -> versions.Version:
    name, parts = plan.pipeline.spec.name, plan.base_parts()
    return versions.Version(0, name, versions.now(), plan.gathering, plan.inputs, parts, plan.document.value)


def gather_corpus(corpus: Corpus, folder: Path, memory: int) -> None:
    """Fit the curves over all parts, then write block after block of wide rows into `folder`, which is empty."""
    with Gatherer(corpus.columns, corpus.wanted, folder, sql_memory(memory)) as gatherer:
        gatherer.link(corpus.links)
        curves = fit_curves(corpus.align, corpus.base, corpus.scores, gatherer.connection)
        curves.write(folder / "calibrations.parquet")
        named = {
            label: [os.path.relpath(path, corpus.wanted.output) for path in parts]
            for label, parts in corpus.scores.items()
        }
        write_json(folder / SCORE_PARTS, named)
        for rows in blocks(corpus.chunks, _BLOCK_ROWS):
            gatherer.add(rows, curves.apply)


def decide_over(gathered: Path, what: Decisions, folder: Path, scratch: Path, memory: int) -> list[ShardPlan]:
    """Decide who is kept and which shards there will be; writes into `folder`. Raises LedgerError.

    Raises FatalError for a value that an expression cannot take.
    """
    curation = Curation.open(what.columns, what.seed, gathered, scratch, sql_memory(memory))
    for augment in what.augment:
        drop_losses(curation, augment.label, augment.most_match_loss())
    found: dict[str, dict[str, Any]] = {}
    for step in what.curate:
        with faults_told(curation, step):
            # Two steps of one kind may say the same.
            found |= {told(row): row for row in unknown(curation, step)}
            step.apply(curation)
    decide_fates(curation, what.inputs, [step.label for step in what.augment if step.replaces])
    for step in {step.step: step for step in what.curate}.values():
        step.verify(curation)
    write_json(folder / _UNKNOWN, list(found.values()))
    write_crossings(curation, folder)
    write_moved(curation, folder, what.before)
    shards = write_decisions(curation, folder, what.write.samples_per_shard, int(what.write.bytes_per_shard))
    curation.connection.close()
    return shards


def read_unknown(folder: Path) -> list[dict[str, Any]]:
    """What decisions speak of and no sample has; of decisions by an older mmdata nothing is known."""
    path = folder / _UNKNOWN
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return found


def sql_memory(memory: int) -> str:
    """DuckDB's share of so many bytes."""
    return f"{int(memory * _SQL_SHARE) // 1_000_000}MB"


def blocks(chunks: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Rows of several chunks together, about so many samples each."""
    run: list[Rows] = []
    count = 0
    for rows in chunks:
        run.append(rows)
        count += sum(pq.read_metadata(path).num_rows for path in rows.base)
        if count >= size:
            yield _together(run)
            run, count = [], 0
    if run:
        yield _together(run)


def _together(run: Sequence[Rows]) -> Rows:
    # What is fitted to all samples stands in one part, which every chunk names.
    scores = list(dict.fromkeys(path for rows in run for path in rows.scores))
    return Rows([path for rows in run for path in rows.base], scores, run[0].retried)


def _chunks(plan: Plan) -> Iterator[Rows]:
    """Of each chunk its base parts, children included, and all their score parts."""
    steps: list[Align | Measure] = [*plan.pipeline.align, *filter(is_mapped, plan.pipeline.measure)]
    fits = [plan.part(step.label, plan.fitted(step)) for step in plan.pipeline.align if isinstance(step, Fitted)]
    retried = [plan.part(*part) for part in plan.retried_parts()]
    for chunk in plan.chunks:
        children = [(step.label, plan.child(step, chunk.fingerprint)) for step in plan.pipeline.augment]
        base = [("ingest", chunk.fingerprint), *children]
        scores = [plan.part(step.label, plan.scored(step, part)) for step in steps for _, part in base]
        yield Rows([plan.part(*part) for part in base], [*scores, *fits], retried)


def _scores(plan: Plan) -> dict[str, list[Path]]:
    """The score parts of each aligner."""
    parts: dict[str, list[Path]] = {step.label: [] for step in plan.pipeline.align}
    for label, part in plan.score_parts():
        if label in parts:
            parts[label].append(plan.part(label, part))
    return parts


@contextmanager
def _appearing(folder: Path, scratch: Path) -> Iterator[Path]:
    """A folder in `scratch` that becomes `folder` when the block ends well."""
    made = scratch / folder.name
    made.mkdir(parents=True)
    yield made
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
