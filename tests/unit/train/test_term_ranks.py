"""Two ranks that average their gradients have those of one process, for every kind of term."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

CODE = """
import sys, torch
from torch import distributed as dist
from tests_of_ranks import gradients
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
found = gradients(rank, world, sys.argv[4] == "True")
if rank == 0:
    torch.save(found, f"{folder}/{world}.pt")
if world > 1:
    # Threads of gloo that outlive the interpreter abort the process while they release their tensors.
    dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("shared_trunk", [False, True])
def test_every_term_has_the_gradients_of_one_process(tmp_path: Path, shared_trunk: bool):
    """One rank has no sound, no teacher and no questions; neither waits for the other for ever.

    With a shared trunk that sound runs through experts, where what a rank runs over nothing is no load.
    """
    here = Path(__file__).parent
    path = [str(here), str(here.parents[1]), *filter(None, sys.path)]
    for world in (1, 2):
        command = [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{CODE}"]
        told = [str(world), str(tmp_path), str(shared_trunk)]
        ranks = [subprocess.Popen([*command, str(rank), *told]) for rank in range(world)]
        assert [process.wait(timeout=300) for process in ranks] == [0] * world
    one, two = torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt")
    assert one.keys() == two.keys()
    terms = {name for name in one if name.startswith("term ")}
    assert {name.split()[1].split(".")[0].split("~")[0] for name in terms} == {
        "text", "image", "fusion", "masked", "caption", "answer", "flow", "route", "distill", "mimic",
        "experts",
    }  # fmt: skip
    for name, expected in one.items():
        assert torch.allclose(two[name], expected, atol=1e-5, rtol=1e-4), name
    # Flows begin with zeros: what stands before those has no gradient yet.
    assert sum(float(expected.abs().sum()) > 0 for expected in one.values()) > len(one) / 2
