"""A picture that decodes without end ends its process: what calls no Python cannot be interrupted otherwise."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, time
from typing import ClassVar
from mmdata.engine.ingest import Slice, ingest_part
from mmdata.listing import input_line
from mmdata.sample import Member
from mmdata.steps.base import Ingest
from mmdata.steps.exchange import Input, Ref
from pathlib import Path

def burn(cpu_s):
    until = time.process_time() + cpu_s
    while time.process_time() < until:
        pass

class Slow(Ingest):
    step = "slow"
    modality = "image"
    max_bytes: int = 100
    most_cpu_s: ClassVar = 0.5

    def decode(self, ref, data):
        burn(float(data))
        return Member(ref.name, "image", "image/jpeg", "jpg", data)

folder = Path(sys.argv[1])
for cpu_s in ("0.3", "0.3", "60"):
    lines = input_line(Input("a", (Ref("image", "image", None, cpu_s, version="1"),)))
    (folder / "listing").write_bytes(lines)
    ingest_part(Slice("s", folder / "listing", 0, len(lines)), {"image": Slow()}, folder / "a.parquet", {})
    burn(0.3)
    print("alive", flush=True)
"""


def test_a_picture_that_takes_too_long_ends_its_process_and_each_has_its_own_time(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.split() == ["alive", "alive"], done.stderr
    assert done.returncode == -signal.SIGPROF
