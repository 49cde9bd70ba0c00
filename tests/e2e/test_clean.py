"""`mmdata clean`: what a changed pipeline left behind goes, and nothing else."""

from __future__ import annotations

import json
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


@pytest.mark.slow
def test_what_went_with_its_part_is_still_named(cli):
    """Of inputs that are no more, only parts that the build no longer needs know what they are called."""
    files = {"files": {"name": "texts", "root": "media", "members": {"text": "{stem}.txt"}}}
    cli.spec(sources=[files], engine={"workers": 1, "part_samples": 2})
    for n in range(20):
        (cli.folder / "media" / f"{n:02}.txt").write_text(f"text {n}")
    cli.build()
    gone = {f"{n:02}" for n in range(0, 20, 3)}
    for key in gone:
        (cli.folder / "media" / f"{key}.txt").unlink()
    cli.build()
    before = cli.run("diff", "out@1", "out", "--format", "json").stdout
    assert {row["key"] for row in json.loads(before)} == gone
    # Some parts of the first version go, then the others.
    for max_bytes in (2_000_000, 3_000_000):
        cli.run("clean", "out", "--yes")
        assert cli.run("diff", "out@1", "out", "--format", "json").stdout == before
        cli.spec(sources=[files], ingest=[{"text": {"max_bytes": max_bytes}}])
        cli.build()
