"""Run a Plan: each chunk goes its way through the steps; then the decisions; then the shards.

A chunk's way is a coroutine: taken in, scored by each aligner, its children made and scored. Some chunks are under
way at once, never more than keep the processes busy, so memory does not grow with the number of chunks.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from mmdata.engine import align, children, decide, fit, ingest, measure, work
from mmdata.engine.deaths import Arguments, despite_death
from mmdata.engine.discover import discover
from mmdata.engine.events import Reporter, StepProgress
from mmdata.engine.fetch import Asked, fetch_part, fetched_parts, wanted
from mmdata.engine.outcome import Outcome, outcome
from mmdata.engine.pools import Pools
from mmdata.engine.record import recorded
from mmdata.engine.stopping import Streak, stoppable, told
from mmdata.engine.tasks import in_order
from mmdata.errors import FatalError
from mmdata.listing import Chunk
from mmdata.models.device import accelerators
from mmdata.net.fetcher import Fetcher
from mmdata.plan import Plan, is_mapped
from mmdata.steps.base import Align, Augment, Fitted, Linked, Measure
from mmdata.store import catalog, embeddings, partners, shards, sql, versions
from mmdata.store.files import keep_only, locked, sweep_scratch
from mmdata.store.selection import ShardPlan, read_shard_plans

# Decoded batches that wait for the model, so that it never waits for them; each is some tens of megabytes.
_BATCHES_AHEAD: Final = 2
# Chunks that are fetched while others are worked on: the slowest hosts of some chunks must not leave the rest idle.
_CHUNKS_AHEAD: Final = 6
_CATALOG_EVERY_S: Final = 10.0


def build(plan: Plan, reporter: Reporter) -> Outcome:
    """Run a plan to its end.

    Raises FatalError (and StoppedError) where it cannot go on; what is finished stays finished.
    """
    began = time.time()
    plan.output.mkdir(parents=True, exist_ok=True)
    with locked(plan.output):
        # First of all: a build may be killed after its last file was in place and before it has cleaned up.
        sweep_scratch(plan.output, catalog.path_of(plan.output).name)
        if plan.is_complete and plan.written() and catalog.is_fresh(plan.output, plan.selection):
            return outcome(plan, began, did_nothing=True)
        run = _Run(plan, reporter)
        with reporter, recorded(lambda: run.plan, run.steps):
            try:
                asyncio.run(stoppable(run.everything))
            except OSError as error:
                raise told(error, plan.output) from error
            finally:
                # Of workers that were ended in the middle of a part.
                sweep_scratch(plan.output, catalog.path_of(plan.output).name)
        return outcome(run.plan, began, did_nothing=False)


class _Run:
    """One run of a plan."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        self.plan = plan
        self.reporter = reporter
        engine = plan.pipeline.spec.engine
        self.device = engine.device
        self.workers = (os.cpu_count() or 1) if engine.workers == "auto" else engine.workers
        self.steps: dict[str, StepProgress] = {}
        self.streak = Streak(engine.max_failures_in_a_row)
        self._catalog_at = 0.0

    async def everything(self) -> None:
        """The inputs, then all parts, then the decisions, then the shards, then the catalog."""
        async with AsyncExitStack() as stack:
            self.pools = stack.enter_context(Pools(self.workers, accelerators(self.device)))
            if not self.plan.is_complete:
                self.plan, steps = await discover(self.plan, self.pools, self.reporter)
                self.steps |= {step.label: step for step in steps}
            self.steps |= self._steps()
            self._describe()
            self._ahead = asyncio.Semaphore(self.workers + _BATCHES_AHEAD)
            # One chunk more than workers: while one waits for the model, another keeps its worker busy.
            at_once = self.workers + 1
            self._busy = asyncio.Semaphore(at_once)
            if self._to_fetch():
                self._fetcher = await stack.enter_async_context(Fetcher(self.plan.pipeline.spec.fetch))
                parts = fetched_parts(self.plan)
                self._asked = stack.enter_context(closing(await asyncio.to_thread(Asked, parts)))
                at_once += _CHUNKS_AHEAD
            await in_order((self._rounds(chunks) for chunks in self._chains()), at_once)
            for step in self.plan.pipeline.align:
                if isinstance(step, Fitted):
                    await self._fit(step)
            for linked in self.plan.pipeline.linked:
                await self._link(linked)
            plans = await self._decide()
            await self._write(plans)
        self.reporter.progress(list(self.steps.values()))

    def _describe(self) -> None:
        plan = self.plan
        catalog.describe_build(
            plan.output,
            catalog.Build(
                plan.pipeline.spec.name,
                plan.selection,
                plan.gathering,
                plan.base_parts(),
                plan.score_parts(),
                plan.fetch_parts(),
                plan.retried_parts(),
                plan.link_parts(),
                [("look", one.fingerprint) for one in plan.looked],
                plan.crawls(),
            ),
        )
        self._refresh_catalog(force=True)

    def _to_fetch(self) -> bool:
        return any(self._lacks_fetch(chunk) for chunk in self.plan.chunks)

    def _chains(self) -> Iterator[list[Chunk]]:
        """Each chunk with its retries, one after the other."""
        chain: list[Chunk] = []
        for chunk in self.plan.chunks:
            if chain and not chunk.retry_of:
                yield chain
                chain = []
            chain.append(chunk)
        yield chain

    def _steps(self) -> dict[str, StepProgress]:
        plan = self.plan
        by_label: dict[str, list[tuple[str, str]]] = {}
        for part in plan.parts():
            by_label.setdefault(part[0], []).append(part)
        found = {}
        for label in plan.mapped:
            done = plan.done(by_label[label])
            found[label] = StepProgress(label, "parts", len(by_label[label]), done, done)
        found["gather"] = StepProgress("gather", "tables", 1, 0, 0)
        found["curate"] = StepProgress("curate", "tables", 1, 0, 0)
        found["write"] = StepProgress("write", "shards", 1, 0, 0)
        return found

    # --- one chunk --------------------------------------------------------------------------------------------------

    async def _rounds(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            base = self.plan.part("ingest", chunk.fingerprint)
            if self._lacks_fetch(chunk):
                await self._fetch(chunk)
            async with self._busy:
                await self._chunk(chunk, base)

    def _lacks_fetch(self, chunk: Chunk) -> bool:
        if not chunk.fetched or self.plan.part("ingest", chunk.fingerprint).exists():
            return False
        part = self.plan.part("fetch", chunk.fetched[0])
        return not (part.exists() and part.with_suffix(".tar").exists())

    async def _fetch(self, chunk: Chunk) -> None:
        out = self.plan.part("fetch", chunk.fetched[0])
        began = time.time()
        want = await asyncio.to_thread(wanted, self.plan.pipeline, ingest.Slice.of(self.plan, chunk))
        self._moved("fetch", await fetch_part(self._fetcher, want, self._asked, out), began)

    async def _chunk(self, chunk: Chunk, base: Path) -> None:
        if not base.exists():
            await self._ingest(chunk, base)
        if self.plan.pipeline.spec.fetch.downloads == "discard" and chunk.fetched:
            self._discard(chunk)
        await self._align_all(chunk.fingerprint, base)
        await self._measure_all(chunk.fingerprint, base)
        for step in self.plan.pipeline.augment:
            fingerprint = self.plan.child(step, chunk.fingerprint)
            out = self.plan.part(step.label, fingerprint)
            if not out.exists():
                await self._augment(step, children.Known.of(self.plan, step, chunk.fingerprint), out)
            await self._align_all(fingerprint, out, of=chunk.fingerprint)
            await self._measure_all(fingerprint, out, of=chunk.fingerprint)
        self._refresh_catalog()

    async def _ingest(self, chunk: Chunk, out: Path) -> None:
        inputs = ingest.Slice.of(self.plan, chunk)

        def arguments(poison: dict[str, str], to: Path = out) -> tuple[Any, ...]:
            return (ingest.ingest_part, inputs, self.plan.pipeline.ingest, to, poison)

        done: work.Done = await self._despite_death(arguments, lambda: [found.key for found in inputs.inputs()])
        self.streak.add(done.failures)
        self._moved("ingest", done)

    @cached_property
    def _readers(self) -> dict[str, list[str]]:
        """The chunks that read each fetch part."""
        found: dict[str, list[str]] = {}
        for chunk in self.plan.chunks:
            for part in chunk.fetched[:1]:
                found.setdefault(part, []).append(chunk.fingerprint)
        return found

    def _discard(self, chunk: Chunk) -> None:
        """Throw bodies away, where no other chunk of the same URLs has still to read them."""
        # From the last chunk, which is the likeliest to be missing.
        same = reversed(self._readers[chunk.fetched[0]])
        if all(self.plan.part("ingest", one).exists() for one in same):
            self.plan.part("fetch", chunk.fetched[0]).with_suffix(".tar").unlink(missing_ok=True)

    async def _augment(self, step: Augment, known: children.Known, out: Path) -> None:
        def arguments(poison: dict[str, str], to: Path = out) -> tuple[Any, ...]:
            return (children.augment_part, step, self.plan.pipeline.spec.seed, known, to, poison)

        done: work.Done = await self._despite_death(arguments, lambda: align.rows_of(known.base)[1])
        self._moved(step.label, done)

    async def _despite_death(self, arguments: Arguments, names: Callable[[], list[str]]) -> Any:
        return await despite_death(self.pools, arguments, names, self.plan.output / "scratch" / "trial.parquet")

    async def _align_all(self, fingerprint: str, base: Path, of: str | None = None) -> None:
        """Score a base part; `of` is the fingerprint of the parents' part, where it holds children."""
        for step in self.plan.pipeline.align:
            out = self.plan.part(step.label, self.plan.scored(step, fingerprint))
            if not out.exists():
                await self._align(step, self._whole(step, fingerprint, base, of), out)

    async def _measure_all(self, fingerprint: str, base: Path, of: str | None = None) -> None:
        """Measure a base part; `of` as above."""
        for step in filter(is_mapped, self.plan.pipeline.measure):
            out = self.plan.part(step.label, self.plan.scored(step, fingerprint))
            if not out.exists():
                await self._measure(step, self._whole(step, fingerprint, base, of), out)

    def _whole(self, step: Align | Measure, fingerprint: str, base: Path, of: str | None) -> align.Batch:
        """A base part, what aligners made of it, and its parents."""
        plan = self.plan
        made = tuple(plan.scores_of(label, fingerprint) for label in plan.makers(step))
        parents = align.Parents(plan.part("ingest", of), plan.part(step.label, plan.scored(step, of))) if of else None
        return align.Batch(base, made, parents, (0, None))

    async def _measure(self, step: Measure, batch: align.Batch, out: Path) -> None:
        def arguments(poison: dict[str, str], to: Path = out) -> tuple[Any, ...]:
            return (measure.measure_part, step, batch, to, poison)

        done: work.Done = await self._despite_death(arguments, lambda: align.rows_of(batch.base)[1])
        self._moved(step.label, done)

    async def _align(self, step: Align, batch: align.Batch, out: Path) -> None:
        """Score a part, batch by batch: workers decode ahead while the model scores."""
        recipe = await self.pools.model(align.load_scorer, step)
        total, _ = await self.pools.work(align.rows_of, batch.base)
        size = step.batch_samples
        batches = [replace(batch, span=(at, min(at + size, total))) for at in range(0, total, size)]
        scored: list[align.Scored] = await in_order(
            (self._batch(step, recipe, one) for one in batches), self.workers + _BATCHES_AHEAD
        )
        await self.pools.work(align.commit_scores, step, scored, batch.base, batch.parents, out)
        failures = [(row["reason"], row["detail"]) for one in scored for row in one.rows if row.get("reason")]
        cpu_s, rss = sum(one.cpu_s for one in scored), max((one.rss_bytes for one in scored), default=0)
        self._moved(step.label, work.Done(total, list(failures), cpu_s, rss))

    async def _batch(self, step: Align, recipe: Any, batch: align.Batch) -> align.Scored:
        def arguments(poison: dict[str, str], _: Path | None = None) -> tuple[Any, ...]:
            return (align.prepare_batch, step, recipe, batch, poison)

        async with self._ahead:
            prepared: align.Prepared = await self._despite_death(
                arguments, lambda: align.rows_of(batch.base, batch.span)[1]
            )
            scored: align.Scored = await self.pools.model(align.score_batch, step, prepared)
        return scored

    # --- all of them ------------------------------------------------------------------------------------------------

    async def _fit(self, step: Fitted) -> None:
        """Let an aligner learn from all parts, on all cores."""
        plan = self.plan
        out = plan.part(step.label, plan.fitted(step))
        keep = plan.output / "aligners" / step.label
        there = out.exists()
        if there and fit.is_kept(keep, out):
            return
        parts = plan.base_parts()
        base, scores = [plan.part(*part) for part in parts], [plan.scores_of(step.label, part) for _, part in parts]
        seed = plan.pipeline.spec.seed
        done = await self.pools.work(work.measured, fit.fit_corpus, step, seed, base, scores, keep, out)
        if not there:
            self._moved(step.label, done)

    async def _link(self, step: Linked) -> None:
        """Let a measure look at all originals together."""
        out = self.plan.part(step.label, self.plan.linked(step))
        if not out.exists():
            parts = [self.plan.part(*part) for part in self.plan.to_link(step)]
            self._moved(step.label, await self.pools.work(work.measured, measure.link_corpus, step, parts, out))

    async def _decide(self) -> list[ShardPlan]:
        await self._once("gather", decide.gather, self.plan.is_gathered)
        await self._once("curate", decide.decide, self.plan.is_decided)
        return read_shard_plans(self.plan.decided)

    async def _once(self, label: str, function: Callable[[Plan, Path, int], work.Done], done: bool) -> None:
        """What is done once for all parts, in a scratch folder of its own."""
        if done:
            self.steps[label].done = self.steps[label].before = 1
            return
        scratch = self.plan.output / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        began = time.time()
        memory = self.plan.pipeline.spec.engine.memory
        try:
            gone: work.Done = await self.pools.work(work.measured, function, self.plan, scratch, int(memory))
        except sql.OutOfMemoryError as error:
            raise FatalError(f"{label}: {str(error).splitlines()[0]}; engine.memory is {memory}: set more") from None
        self._moved(label, gone, began)
        shutil.rmtree(scratch, ignore_errors=True)

    async def _write(self, plans: list[ShardPlan]) -> None:
        folder = self.plan.output / "shards"
        todo = [plan for plan in plans if not shards.is_written(folder, plan)]
        step = self.steps["write"]
        step.total, step.done, step.before = len(plans), len(plans) - len(todo), len(plans) - len(todo)
        # Half-old, half-new shards are no data set: without a manifest no trainer takes them for one.
        (folder / "manifest.json").unlink(missing_ok=True)
        await in_order((self._write_one(plan) for plan in todo), self.workers)
        mixing = self.plan.base_parts() if self.plan.pipeline.mixes_online else []
        originals = [self.plan.part(label, part) for label, part in mixing if label == "ingest"]
        await self.pools.work(partners.write_partners, folder, originals)
        members = {name: (declared.modality, declared.lang) for name, declared in self.plan.pipeline.members.items()}
        name = self.plan.pipeline.spec.name
        arguments = (self.plan.output, name, self.plan.selection, plans, members, await self._beside(plans))
        await self.pools.work(shards.write_manifest, *arguments)
        keep_only(self.plan.gathered)
        versions.prune_versions(self.plan.decided)

    async def _beside(self, plans: list[ShardPlan]) -> dict[str, Any]:
        """What the manifest says beyond the shards; writes the vectors beside them."""
        plan, bases = self.plan, self.plan.base_parts()
        wanted = {
            name: [plan.scores_of(name.split(".")[0], part) for _, part in bases]
            for name in plan.pipeline.write.embeddings
        }
        written = [(shard.path, shard.split) for shard in plans]
        base = [plan.part(*part) for part in bases]
        vectors = await self.pools.work(embeddings.write_embeddings, plan.output, written, wanted, base)
        policies = plan.pipeline.policies
        augment = {"augment": {"seed": plan.pipeline.spec.seed, "policies": policies}} if policies else {}
        for name, about in vectors.items():
            aligner, member = name.split(".")
            about["space"] = next(step.vector_space(member) for step in plan.pipeline.align if step.label == aligner)
        return {**augment, **({"embeddings": vectors} if vectors else {})}

    async def _write_one(self, plan: ShardPlan) -> None:
        folders = self.plan.output, self.plan.gathered, self.plan.decided
        done = await self.pools.work(work.measured, work.write_one, *folders, plan)
        self._moved("write", done)

    def _moved(self, label: str, done: work.Done, began: float | None = None) -> None:
        self.steps[label].add(done, began)
        self.reporter.progress(list(self.steps.values()))

    def _refresh_catalog(self, *, force: bool = False) -> None:
        if force or time.monotonic() - self._catalog_at > _CATALOG_EVERY_S:
            catalog.refresh(self.plan.output)
            self._catalog_at = time.monotonic()
