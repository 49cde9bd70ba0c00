"""Processes: a pool of workers that decode, and one process for each accelerator that holds the models.

A worker that dies (a decoder that crashes, the out-of-memory killer) breaks the pool. Whatever was running is then run
again, alone, in a process of its own; what kills that process too is `WorkerDiedError`: its caller finds the sample.

Where there is a fork server, it imports what all of them need, once: a worker starts in milliseconds and shares that
memory with the others. It never runs a step, so it has no threads that a fork would lose.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final, Self

from mmdata.errors import MmdataError
from mmdata.models.device import threads_each

# Elsewhere than on Linux a process that has loaded system libraries must not be forked.
_CONTEXT: Final = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_CONTEXT.set_forkserver_preload(["mmdata.engine.preload"])


class WorkerDiedError(MmdataError):
    """A process died over this piece of work, twice."""


class Pools:
    """The processes of one build; `async with` starts them and leaves none behind."""

    def __init__(self, workers: int, accelerators: list[str]) -> None:
        """`workers` processes that decode, and one for each accelerator, which come with their first use."""
        self.workers = workers
        self.accelerators = accelerators
        self._pool = self._new(workers)
        self._model: ProcessPoolExecutor | None = None
        self._alone = asyncio.Lock()

    def __enter__(self) -> Self:
        """Nothing starts before it is used."""
        return self

    def __exit__(self, *error: object) -> None:
        """End every process, at once if the build did not end well."""
        for pool in (self._pool, self._model):
            if pool is not None:
                _end(pool, kill=error[0] is not None)

    async def work(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run in a worker. Raises WorkerDiedError, or what the function raised."""
        pool = self._pool
        try:
            return await _run(pool, function, arguments)
        except BrokenProcessPool:
            if self._pool is pool:
                _end(pool, kill=True)
                self._pool = self._new(self.workers)
            return await self.work_alone(function, *arguments)

    async def work_alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run in a fresh process, nothing beside it. Raises WorkerDiedError."""
        async with self._alone:
            pool = self._new(1)
            try:
                return await _run(pool, function, arguments)
            except BrokenProcessPool:
                raise WorkerDiedError(
                    "the process that worked on it died (a crash, out of memory, or a picture that takes too long)"
                ) from None
            finally:
                _end(pool, kill=True)

    async def model(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run in a process that holds models. Raises WorkerDiedError."""
        if self._model is None:
            self._model = self._new_model()
        try:
            return await _run(self._model, function, arguments)
        except BrokenProcessPool:
            self._model = None
            raise WorkerDiedError("the process that holds the model died; is there enough memory for it?") from None

    @staticmethod
    def _new(workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, mp_context=_CONTEXT, initializer=_settle, initargs=(dict(os.environ),))

    def _new_model(self) -> ProcessPoolExecutor:
        devices = _CONTEXT.SimpleQueue()
        for device in self.accelerators:
            devices.put(device)
        threads = threads_each(len(self.accelerators))
        arguments = ({**os.environ, "OMP_NUM_THREADS": str(threads)}, devices)
        return ProcessPoolExecutor(len(self.accelerators), mp_context=_CONTEXT, initializer=_claim, initargs=arguments)


device: str = "cpu"
"""In a process that holds models: where they are."""


def _claim(environment: dict[str, str], devices: Any) -> None:
    """Take an accelerator for this process; torch is not imported yet, so the threads hold for all its libraries."""
    global device  # noqa: PLW0603 - one process, one accelerator
    device = devices.get()
    _settle(environment)


async def _run(pool: ProcessPoolExecutor, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """In a process of a pool. Raises BrokenProcessPool where one of them died."""
    try:
        future = pool.submit(_call, function, arguments)
    except OSError as error:
        # One died while another was started for this: the pool's thread closes the pipes that it would have had.
        if not pool._broken:
            raise
        raise BrokenProcessPool(str(error)) from error
    return await asyncio.wrap_future(future)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


def _settle(environment: dict[str, str]) -> None:
    """Take over the build's environment, leave Ctrl-C to it, and do not outlive it, even where it was killed."""
    # The fork server has the environment that there was when it started.
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    """By a pipe whose other end closes with the build, however that ends."""
    build = multiprocessing.parent_process()
    assert build is not None
    build.join()
    os._exit(1)


def _end(pool: ProcessPoolExecutor, *, kill: bool) -> None:
    processes = list((pool._processes or {}).values())  # the executor has no public way to end a running call
    pool.shutdown(wait=not kill, cancel_futures=True)
    if kill:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
