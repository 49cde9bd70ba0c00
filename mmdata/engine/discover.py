"""Before there are inputs: sources that walk the web, and sources that look into files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdata.engine import ingest, work
from mmdata.engine.deaths import unless_it_kills
from mmdata.engine.events import Reporter, StepProgress
from mmdata.engine.pools import Pools, WorkerDiedError
from mmdata.engine.tasks import in_order
from mmdata.listing import Looked
from mmdata.net.fetcher import Fetcher
from mmdata.plan import Plan
from mmdata.steps.base import Crawled
from mmdata.steps.exchange import Place


async def discover(plan: Plan, pools: Pools, reporter: Reporter) -> tuple[Plan, list[StepProgress]]:
    """Crawl and look until the plan is complete; what was done before is not done again.

    Returns:
        the complete plan, and what this took.
    """
    steps: list[StepProgress] = []
    if plan.to_crawl:
        async with Fetcher(plan.pipeline.spec.fetch) as fetcher:
            for source in plan.to_crawl:
                steps.append(StepProgress(f"crawl {source.label}", "pages", 0, 0, 0))
                await _crawl(plan, source, fetcher, reporter, steps)
        plan = plan.listed_again()
    if plan.to_look:
        total, left = len(plan.looked), len(plan.to_look)
        steps.append(StepProgress("look", "files", total, total - left, total - left))
        await in_order((_look(plan, one, pools, reporter, steps) for one in plan.to_look), pools.workers)
        plan = plan.listed_again()
    return plan, steps


async def _crawl(plan: Plan, source: Crawled, fetcher: Fetcher, reporter: Reporter, steps: list[StepProgress]) -> None:
    # Most builds crawl nothing.
    from mmdata.crawl.walk import reopen

    folder = plan.crawl_folder(source)
    folder.mkdir(parents=True, exist_ok=True)
    # Here, where no other build is at work in the folder.
    reopen(folder)
    step = steps[-1]
    step.begin()

    def told(visited: int, known: int) -> None:
        step.samples += visited - step.done
        step.done, step.total = visited, known
        step.touch()
        reporter.progress(steps)

    await source.crawl(fetcher, folder, told)


async def _look(plan: Plan, one: Looked, pools: Pools, reporter: Reporter, steps: list[StepProgress]) -> None:
    source: Any = plan.pipeline.sources[one.source]
    out = plan.part("look", one.fingerprint)
    done = await _looked_into(source, one.place, pools, out)
    steps[-1].add(done)
    reporter.progress(steps)


async def _looked_into(source: Any, place: Place, pools: Pools, out: Path) -> work.Done:
    """Look; a file that kills the process that reads it is one failed input."""
    try:
        return await unless_it_kills(pools, work.measured, ingest.look_into, source, place, out)  # type: ignore[no-any-return]
    except WorkerDiedError as death:
        # Not to be found out which of its inputs kills: nothing of it was read yet.
        return await pools.work(work.measured, ingest.give_up, place, str(death), out)  # type: ignore[no-any-return]
