"""A disk that fills up: the build says so, and goes on when there is room."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can make a disk of a few megabytes here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_build_goes_on_when_there_is_room(cli, small_disk: Path, shard_digests):
    noise = random.Random(0)
    for n in range(60):
        pixels = noise.randbytes(100 * 100 * 3)
        Image.frombytes("RGB", (100, 100), pixels).save(cli.folder / "media" / f"{n:02d}.png")
        (cli.folder / "media" / f"{n:02d}.txt").write_text(f"noise {n}")
    cli.spec()
    output = small_disk / "out"
    error = cli.build(output=str(output), code=1).stderr
    assert "no room is left on the disk; what is finished is kept" in error
    assert "Traceback" not in error
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    assert "60 inputs = 60 kept" in cli.build(output=str(output)).stdout
    cli.build(output="fresh")
    assert shard_digests(output) == shard_digests(cli.folder / "fresh")
    assert not list(output.rglob("*.partial-*"))
