"""How a peer is measured: a process of its own that loads once and makes a pass whenever it is told to.

Needs the standard library alone: peers run under other Pythons too. Peers take turns (A B A B), so that what else the
machine does meanwhile falls on all of them; each pass reports the CPU-seconds of its process beside those of the clock.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_THREAD_NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def serve(load: Callable[[dict[str, Any]], Callable[[], Any]]) -> None:
    """Run a peer: `load` takes the settings of the command line and gives what makes one pass."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    settings = json.loads(sys.argv[1])
    make_pass = load(settings)
    print(json.dumps({"ready": True}), file=answers)
    for _ in sys.stdin:
        cpu_s, wall_s = _cpu_s(), time.perf_counter()
        result = make_pass()
        spent = {"cpu_s": _cpu_s() - cpu_s, "wall_s": time.perf_counter() - wall_s}
        print(json.dumps({**spent, "result": result}), file=answers)


def _cpu_s() -> float:
    """CPU-seconds of this process and of its children that ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in spent)


class Peer:
    """A peer's process, and the cheapest pass so far."""

    def __init__(self, script: str, settings: dict[str, Any], threads: int, python: str = sys.executable) -> None:
        """Start it; `script` lies beside this file."""
        self.passes: list[dict[str, float]] = []
        self.result: Any = None
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in close()
        environment = {
            **os.environ,
            **dict.fromkeys(_THREAD_NAMES, str(threads)),
            # The checkout that this file lies in, also where another one is installed.
            "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).resolve().parents[1:3])),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.name = script
        self._process = subprocess.Popen(
            [python, str(Path(__file__).parent / script), json.dumps({**settings, "threads": threads})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
        )
        self._answer()

    def turn(self) -> None:
        """One pass."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.result = answer.pop("result")
        self.passes.append(answer)

    def least(self, what: str) -> float:
        """Least `cpu_s` or `wall_s` of a pass."""
        return min(made[what] for made in self.passes)

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self._said.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            raise SystemExit(f"peer {self.name} ended with {code}: {self._said.read()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def take_turns(peers: dict[str, Peer], rounds: int) -> None:
    """A B A B; the processes end, whatever happens."""
    try:
        for _ in range(rounds):
            for peer in peers.values():
                peer.turn()
    finally:
        for peer in peers.values():
            peer.close()
