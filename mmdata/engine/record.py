"""The record of a run: when, where, by which command, and how it ended (`log/*.json`, catalog view `runs`)."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmdata import __version__
from mmdata.engine.events import StepProgress
from mmdata.engine.stopping import StoppedError
from mmdata.plan import Plan
from mmdata.store import catalog
from mmdata.store.files import write_json


@contextmanager
def recorded(plan_now: Callable[[], Plan], steps: dict[str, StepProgress]) -> Iterator[None]:
    """Keep a record of a run of a plan that may become complete meanwhile, also of one that fails."""
    plan = plan_now()
    path = plan.output / "log" / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.json"
    record = {
        "run_id": path.stem,
        "mmdata": __version__,
        "started": time.time(),
        "ended": None,
        "status": "running",
        "inputs": plan.inputs,
        "selection": plan.selection,
        "command": " ".join(sys.argv[1:]),
        "host": socket.gethostname(),
    }
    write_json(path, {"run": record, "steps": []})
    try:
        yield
        record["status"] = "done"
    except BaseException as error:
        record["status"] = "stopped" if isinstance(error, StoppedError) else f"failed: {error}"
        raise
    finally:
        record["ended"] = time.time()
        record["inputs"], record["selection"] = plan_now().inputs, plan_now().selection
        write_json(path, {"run": record, "steps": [step.as_json() for step in steps.values()]})
        # After the record, so that the catalog has this run's end and steps too.
        if (plan.output / "build.json").exists():
            catalog.refresh(plan.output)
