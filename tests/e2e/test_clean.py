"""`mmdata clean`: what a changed pipeline left behind goes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from website import jpeg


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in (folder / "parts").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_what_a_changed_pipeline_left_behind_goes(cli):
    for n in range(20):
        (cli.folder / "media" / f"{n}.png").write_bytes(jpeg(f"{n}"))
        (cli.folder / "media" / f"{n}.txt").write_text(f"picture {n}")
    cli.spec()
    cli.build()
    before = files(cli.folder / "out")
    assert "nothing that the build does not need" in cli.run("clean", "out").stdout
    cli.spec(ingest=[{"image": {"max_pixels": 1_000_000}}])
    cli.build()
    after = files(cli.folder / "out")
    said = cli.run("clean", "out").stdout
    assert "would go; --yes removes it" in said
    assert f"{len(before)} files" in " ".join(said.split())
    assert files(cli.folder / "out") == after
    assert "removed" in cli.run("clean", "out", "--yes").stdout
    assert files(cli.folder / "out") == after - before
    assert "nothing to do" in cli.build().stdout
    cli.spec()
    assert "20 inputs = 20 kept" in cli.build().stdout
