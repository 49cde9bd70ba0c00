"""Pipeline to Plan: list the inputs, cut them into parts, name every part by its fingerprint.

Nothing heavy is imported here: a plan is made in well under a second, so that a mistake costs a second and not a night.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mmdata import spec as specs
from mmdata.document import Document, read_yaml
from mmdata.errors import PlanError
from mmdata.listing import Chunk, Looked, crawl_folder, fingerprint, is_crawled, iter_chunks, iter_looked
from mmdata.pipeline import Pipeline, resolve
from mmdata.steps.base import Align, Augment, Crawled, Fitted, Linked, Measure, Step
from mmdata.store.files import SCRATCH_MARK, make_folder


@dataclass(frozen=True)
class Plan:
    """What a build will do, part by part.

    Attributes:
        document: the file, for the places of problems.
        pipeline: the file, resolved.
        output: the build folder.
        to_crawl: sources that have to walk the web before their inputs are known.
        looked: files that sources look into for their inputs.
        chunks: all inputs; none as long as the plan is not complete.
        listing: where the inputs stand, a line each, while a build runs; a plan that is only shown has none.
        retry_failed: whether what could not be fetched is tried again.
    """

    document: Document
    pipeline: Pipeline
    output: Path
    to_crawl: tuple[Crawled, ...] = ()
    looked: tuple[Looked, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    listing: Path | None = None
    retry_failed: bool = False

    @cached_property
    def to_look(self) -> tuple[Looked, ...]:
        """Files that were not looked into yet."""
        there = _names(self.output / "parts" / "look")
        return tuple(one for one in self.looked if f"{one.fingerprint}.parquet" not in there)

    @property
    def is_complete(self) -> bool:
        """Whether all inputs are known."""
        return not self.to_crawl and not self.to_look

    def crawl_folder(self, source: Crawled) -> Path:
        """Where a crawl records what it visits."""
        return crawl_folder(self.output, source, self.pipeline.as_of)

    def crawls(self) -> list[str]:
        """Names of the folders in which crawls are recorded."""
        return [self.crawl_folder(source).name for source in self.pipeline.sources if isinstance(source, Crawled)]

    def listed_again(self) -> Plan:
        """The plan with what was found since it was made. Raises PlanError."""
        return _listed(replace(self))

    @cached_property
    def _identities(self) -> dict[str, dict[str, Any]]:
        # Asked for once a plan: that of weights reads files.
        pipeline = self.pipeline
        steps: list[Step] = [*pipeline.align, *pipeline.measure, *pipeline.augment, *pipeline.curate, pipeline.write]
        return {_key(step): step.identity() for step in steps}

    @property
    def inputs(self) -> int:
        """How many inputs the sources name."""
        return sum(chunk.inputs for chunk in self.chunks)

    def part(self, label: str, fingerprint: str) -> Path:
        """The Parquet of a part; its tar, if it has one, is beside it."""
        return self.output / "parts" / label / f"{fingerprint}.parquet"

    def base_parts(self) -> list[tuple[str, str]]:
        """(label, fingerprint) of all base parts: what was taken in, then the children."""
        taken_in = [("ingest", chunk.fingerprint) for chunk in self.chunks]
        children = [
            (step.label, self.child(step, chunk.fingerprint)) for step in self.pipeline.augment for chunk in self.chunks
        ]
        return taken_in + children

    def score_parts(self) -> list[tuple[str, str]]:
        """(label, fingerprint) of all score parts: of each base part, then of fits over all of them."""
        steps: list[Align | Measure] = [*self.pipeline.align, *filter(is_mapped, self.pipeline.measure)]
        parts = [(step.label, self.scored(step, base)) for step in steps for _, base in self.base_parts()]
        return parts + [(step.label, self.fitted(step)) for step in self.pipeline.align if isinstance(step, Fitted)]

    def link_parts(self) -> list[tuple[str, str]]:
        """(label, fingerprint) of the links that each `Linked` finds."""
        return [(step.label, self.linked(step)) for step in self.pipeline.linked]

    def parts(self) -> list[tuple[str, str]]:
        """(label, fingerprint) of all parts but those of discovery."""
        return [*self.fetch_parts(), *self.base_parts(), *self.score_parts(), *self.link_parts()]

    @property
    def mapped(self) -> list[str]:
        """Labels of the steps that map parts to parts, in the order in which a sample meets them."""
        return [*(["fetch"] if self.fetch_parts() else []), *self.pipeline.mapped]

    def fetch_parts(self) -> list[tuple[str, str]]:
        """(label, fingerprint) of all fetch parts."""
        return [("fetch", chunk.fetched[0]) for chunk in self.chunks if chunk.fetched]

    def retried_parts(self) -> list[tuple[str, str]]:
        """(label, fingerprint) of base parts whose failed fetches a later base part speaks of."""
        return [("ingest", chunk.retry_of) for chunk in self.chunks if chunk.retry_of]

    def fitted(self, step: Fitted) -> str:
        """Fingerprint of what a fit over all parts of an aligner makes."""
        parts = [self.scored(step, base) for _, base in self.base_parts()]
        return fingerprint("fit", parts, self.pipeline.spec.seed, step.fitting())

    def linked(self, step: Linked) -> str:
        """Fingerprint of the links between all originals."""
        return fingerprint("link", self._identities[_key(step)], step.linking(), self.to_link(step))

    def to_link(self, step: Linked) -> list[tuple[str, str]]:
        """(label, fingerprint) of the score parts of originals that it links by: its own, or the aligner's it names."""
        label = step.vectors_of()
        of = step if label is None else self._aligner(label)
        return [(of.label, self.scored(of, chunk.fingerprint)) for chunk in self.chunks]

    def scored(self, step: Align | Measure, base: str) -> str:
        """Fingerprint of what a step finds in a base part, and in the texts that aligners before it made."""
        made = [self.scored(self._aligner(label), base) for label in self.makers(step)]
        return fingerprint(self._identities[_key(step)], base, *([made] if made else []))

    def scores_of(self, label: str, base: str) -> Path:
        """The score part of an aligner for a base part."""
        return self.part(label, self.scored(self._aligner(label), base))

    def makers(self, step: Align | Measure | Augment) -> list[str]:
        """Labels of the aligners before `step` that may make a text it reads."""
        align, read = self.pipeline.align, set(step.reads())
        if isinstance(step, Align):
            align = align[: align.index(step)]
            read |= {name for edge in step.edges() for name in (edge.left, edge.right)}
        return [other.label for other in align if read & set(other.new_members())]

    def child(self, step: Augment, base: str) -> str:
        """Fingerprint of the children of a base part, and of what they need to know of their parents."""
        found = [self.scored(self._aligner(label), base) for label in (*step.findings(), *self.makers(step))]
        return fingerprint(self._identities[_key(step)], base, self.pipeline.spec.seed, *([found] if found else []))

    def _aligner(self, label: str) -> Align:
        return next(step for step in self.pipeline.align if step.label == label)

    @cached_property
    def selection(self) -> str:
        """Fingerprint of the decisions: of all parts and all that decides."""
        steps = [self._identities[_key(step)] for step in (*self.pipeline.curate, self.pipeline.write)]
        losses = [(step.label, step.most_match_loss()) for step in self.pipeline.augment]
        return fingerprint(self.gathering, steps, list(self.pipeline.policies), losses)

    @cached_property
    def gathering(self) -> str:
        """Fingerprint of the wide rows that are decided over: of all parts, and of how they are joined."""
        pipeline = self.pipeline
        references = [(s.label, s.reference_file.read_bytes().hex()) for s in pipeline.align if s.reference_file]
        parts = [self.base_parts(), self.score_parts(), self.link_parts(), self.retried_parts()]
        columns = [dict(pipeline.columns.members), pipeline.columns.findings]
        return fingerprint("gather", parts, references, columns, pipeline.written_members, pipeline.spec.seed)

    @property
    def gathered(self) -> Path:
        """Folder of the wide rows."""
        return self.output / "gathered" / self.gathering

    @property
    def decided(self) -> Path:
        """Folder of the decisions: fates and selection."""
        return self.output / "decided" / self.selection

    @property
    def is_gathered(self) -> bool:
        """Whether the wide rows are there."""
        return (self.gathered / "gathered.json").exists()

    @property
    def is_decided(self) -> bool:
        """Whether the decisions are there."""
        return (self.decided / "shards.json").exists()

    def written(self) -> bool:
        """Whether the shards that are there are those of this plan."""
        try:
            manifest = json.loads((self.output / "shards" / "manifest.json").read_text(encoding="utf-8"))
            shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
            sizes = all((self.output / "shards" / s["path"]).stat().st_size == s["bytes"] for s in shards)
            return bool(manifest["fingerprint"] == self.selection and sizes)
        except (OSError, ValueError, KeyError):
            return False

    def done(self, parts: Sequence[tuple[str, str]]) -> int:
        """How many of these parts are there."""
        there = {label: _names(self.output / "parts" / label) for label in {label for label, _ in parts}}
        return sum(f"{fingerprint}.parquet" in there[label] for label, fingerprint in parts)


def make_plan(path: Path, overrides: Sequence[str] = (), output: Path | None = None) -> Plan:
    """Read, resolve and check a pipeline file, and list its inputs.

    Raises SpecError or PlanError with all problems found.
    """
    document, pipeline = _resolved(path, overrides)
    return _listed(Plan(document, pipeline, _folder(pipeline, output)))


@contextmanager
def plan_to_build(
    path: Path, overrides: Sequence[str] = (), output: Path | None = None, *, retry_failed: bool = False
) -> Iterator[Plan]:
    """`make_plan`, with the listing that workers read: it lies in the build folder until the block ends."""
    document, pipeline = _resolved(path, overrides)
    folder = _folder(pipeline, output)
    make_folder(folder)
    # Of this process alone: a second build of the folder must not change what the first one reads.
    listing = folder / f"listing{SCRATCH_MARK}{os.getpid()}"
    try:
        plan = Plan(document, pipeline, folder, listing=listing, retry_failed=retry_failed)
        yield _listed(plan, reopening=retry_failed)
    finally:
        listing.unlink(missing_ok=True)


def _resolved(path: Path, overrides: Sequence[str]) -> tuple[Document, Pipeline]:
    document = read_yaml(path, overrides)
    return document, resolve(document, specs.parse_spec(document))


def _folder(pipeline: Pipeline, output: Path | None) -> Path:
    """Raises PlanError where no build folder can be."""
    folder = output or Path("builds") / pipeline.spec.name
    try:
        whole = folder.resolve()
        there = next(path for path in (whole, *whole.parents) if path.exists())
        problem = None if there.is_dir() else f"{there} is no folder"
    except (OSError, RuntimeError) as error:  # too long a name; links that lead to themselves
        whole, problem = folder, str(getattr(error, "strerror", None) or error)
    if "?" in str(whole):
        problem = "DuckDB takes what follows a '?' in a path for no part of it"
    if problem:
        raise PlanError([f"{folder}: no build can be here: {problem}; give another folder with --output"])
    return folder


def _listed(plan: Plan, *, reopening: bool = False) -> Plan:
    """List the inputs: all, or none as long as a source has not looked for its own.

    `reopening`: crawls in which pages failed are to be walked again.
    """
    pipeline, output = plan.pipeline, plan.output
    try:
        crawled = [source for source in pipeline.sources if isinstance(source, Crawled)]
        walking = [source for source in crawled if not is_crawled(plan.crawl_folder(source))]
        if reopening:
            walking += [source for source in crawled if source not in walking and _what_failed(plan, source)]
        looked = tuple(iter_looked(pipeline, output))
        plan = replace(plan, to_crawl=tuple(walking), looked=looked)
        if plan.is_complete:
            with plan.listing.open("wb") if plan.listing else nullcontext() as file:
                plan = replace(plan, chunks=tuple(_with_retries(plan, iter_chunks(pipeline, looked, plan.part, file))))
    except PlanError as error:
        raise PlanError([plan.document.problem(("sources",), problem) for problem in error.problems]) from None
    if plan.is_complete and not plan.chunks:
        fix = "; ".join(_fruitless_crawls(plan)) or "look at what they are given: folders, templates, files"
        raise PlanError([plan.document.problem(("sources",), f"the sources name no inputs; {fix}")])
    return plan


def _fruitless_crawls(plan: Plan) -> Iterator[str]:
    # Most plans need no pyarrow.
    from mmdata.crawl.walk import what_was_skipped

    for source in (one for one in plan.pipeline.sources if isinstance(one, Crawled)):
        if problem := _what_failed(plan, source):
            yield f"{source.label}: {problem}; mend it, and build with --retry-failed"
        elif problem := what_was_skipped(plan.crawl_folder(source)):
            yield f"{source.label}: {problem}; `hosts`, `include` and `exclude` say what is visited"


def _what_failed(plan: Plan, source: Crawled) -> str:
    # Most plans need no pyarrow.
    from mmdata.crawl.walk import what_failed

    return what_failed(plan.crawl_folder(source))


def _with_retries(plan: Plan, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Each chunk, and each round in which its failed fetches were tried again; one more where that is asked for."""
    there = _names(plan.output / "parts" / "fetch")
    for chunk in chunks:
        latest = chunk
        yield latest
        while latest.fetched and f"{latest.retry().fetched[0]}.parquet" in there:
            latest = latest.retry()
            yield latest
        if latest.fetched and plan.retry_failed and _failed_fetches(plan.part("ingest", latest.fingerprint)):
            yield latest.retry()


def _failed_fetches(base: Path) -> bool:
    # Most plans need no pyarrow.
    from mmdata.store.parts import failed_fetches

    return bool(failed_fetches(base))


def is_mapped(step: Measure) -> bool:
    """Whether a measure has parts: not one that links by an aligner's embeddings."""
    return not (isinstance(step, Linked) and step.vectors_of())


def _key(step: Step) -> str:
    return f"{step.step} {step.model_dump_json()}"


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
