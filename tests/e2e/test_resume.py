"""Builds that are killed, stopped, started twice and changed end as one that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmdata.demo.scenes import write_scenes

KILLS = 20
SCENES = 60
CURATE = [
    {"duplicates": {"of": ["image", "caption"]}},
    {"rules": {"keep": {"wide": "image.width >= 48", "long": "caption.words >= 6"}}},
    {"splits": {"shares": {"train": 0.7, "val": 0.3}, "augmented": ["train", "val"]}},
]
FATES = "SELECT * FROM fates ORDER BY sample_id"


@pytest.fixture
def scenes(cli):
    """Scenes, a duplicate and a failure; their build has some of everything."""
    media = cli.folder / "media"
    write_scenes(media, SCENES, seed=5, side_px=48, sound="tones")
    for extension in ("png", "txt", "wav"):
        (media / f"again.{extension}").write_bytes((media / f"00003.{extension}").read_bytes())
    (media / "bad.png").write_bytes(b"")
    (media / "bad.txt").write_text("A bad one.")
    cli.spec(**blocks())
    return cli


def blocks(**more):
    members = {
        "image": "{stem}.png",
        "caption": {"path": "{stem}.txt", "lang": "en"},
        "sound": {"path": "{stem}.wav", "required": False},
    }
    return {
        "sources": [{"files": {"name": "scenes", "root": "media", "members": members}}],
        "augment": [{"joint": {"name": "flip", "apply": ["HorizontalFlip"]}}],
        "curate": CURATE,
        "write": [{"webdataset": {"samples_per_shard": 25}}],
        "engine": {"workers": 2, "part_samples": 8},
        **more,
    }


def parts(build: Path, label: str) -> dict[str, int]:
    """Every file of a step's parts and when it was written."""
    return {file.name: file.stat().st_mtime_ns for file in (build / "parts" / label).iterdir()}


def committed(build: Path, label: str) -> dict[str, int]:
    """`parts` without tars that stand alone: the Parquet, renamed last, is the commit."""
    found = parts(build, label)
    return {name: written for name, written in found.items() if f"{Path(name).stem}.parquet" in found}


def everything(build: Path) -> dict[Path, int]:
    """Every file of a build and when it was written; the lock is touched by whoever asks for it."""
    return {file: file.stat().st_mtime_ns for file in build.rglob("*") if file.is_file() and file.name != ".lock"}


def start_working(cli, output: str) -> subprocess.Popen[str]:
    """A build that has begun its work: what it notes first is there."""
    noted = cli.folder / output / "build.json"
    before = noted.stat().st_mtime_ns if noted.exists() else 0
    process = cli.start("build", "pipeline.yaml", "--output", output)
    wait_for(process, lambda: noted.exists() and noted.stat().st_mtime_ns > before)
    return process


def wait_for(process: subprocess.Popen[str], event: Callable[[], bool]) -> None:
    """Returns once it has happened, or the build has ended."""
    until = time.monotonic() + 60
    while process.poll() is None and not event():
        assert time.monotonic() < until
        time.sleep(0.005)


def wait_for_a_part(cli, process: subprocess.Popen[str], output: str) -> None:
    """Workers are there by then, and most of the work is still ahead of them."""
    ingested = cli.folder / output / "parts" / "ingest"
    wait_for(process, lambda: any(ingested.glob("*.parquet")))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_at_any_moment_and_rerun_it_ends_as_if_undisturbed(scenes, shard_digests, layout):
    whole = scenes.folder / "whole"
    process = start_working(scenes, "whole")
    began = time.monotonic()
    process.communicate()
    work_s = time.monotonic() - began
    assert process.returncode == 0
    digests, fates = shard_digests(whole), scenes.query(FATES, "whole")
    assert len({fate["fate"] for fate in fates}) == 4, "kept, dropped, failed and duplicate are all there"
    assert len([name for name in digests if name.endswith(".tar")]) > 3

    rng = random.Random(20)
    kills = finished = 0
    while kills < KILLS:
        output = f"out{finished}"
        # Three of four go on from where the last one was killed, so that reruns are killed too.
        until_killed = rng.uniform(0, work_s)
        process = start_working(scenes, output)
        time.sleep(until_killed)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        scenes.wait_for_no_process()
        if process.returncode == -signal.SIGKILL and rng.random() < 0.75 and kills < KILLS:
            continue
        scenes.build(output=output)
        build = scenes.folder / output
        assert shard_digests(build) == digests, f"after {kills} kills"
        assert scenes.query(FATES, output) == fates
        assert layout(build) == layout(whole), "nothing more and nothing less than undisturbed"
        finished += 1
    scenes.wait_for_no_process()
    assert not list(scenes.folder.rglob("*.partial-*"))
    assert not list(scenes.folder.rglob("listing*"))
    print(f"{kills} kills in {finished} builds; {work_s:.1f} s of work undisturbed")  # noqa: T201


def test_workers_do_not_outlive_a_killed_parent(scenes):
    process = start_working(scenes, "out")
    wait_for_a_part(scenes, process, "out")
    process.kill()
    process.communicate()
    scenes.wait_for_no_process()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "parent"])
def test_asked_to_stop_it_stops_cleanly_and_goes_on_later(scenes, shard_digests, number, code, whole_group):
    process = start_working(scenes, "out")
    wait_for_a_part(scenes, process, "out")
    os.killpg(process.pid, number) if whole_group else process.send_signal(number)
    began = time.monotonic()
    _, err = process.communicate()
    assert time.monotonic() - began < 10
    assert process.returncode == code, err
    assert "stopped; what is finished is kept, the same command goes on from there" in err
    assert "Traceback" not in err
    scenes.wait_for_no_process()
    assert not list(scenes.folder.rglob("*.partial-*"))
    before = committed(scenes.folder / "out", "ingest") if (scenes.folder / "out" / "parts" / "ingest").exists() else {}
    scenes.build()
    assert before.items() <= parts(scenes.folder / "out", "ingest").items()
    scenes.build(output="whole")
    assert shard_digests(scenes.folder / "out") == shard_digests(scenes.folder / "whole")
    status = [run["status"] for run in scenes.query("SELECT status FROM runs ORDER BY started")]
    assert status == ["stopped", "done"]


@pytest.mark.slow
def test_a_finished_build_is_left_as_it_is_and_a_changed_one_only_does_what_changed(scenes, shard_digests):
    build = scenes.folder / "out"
    said = scenes.build()
    assert "nothing to do" not in said.stdout
    before, digests = everything(build), shard_digests(build)

    began = time.monotonic()
    assert "out: nothing to do, all 62 inputs have their fate" in scenes.build().stdout
    print(f"nothing to do: {time.monotonic() - began:.2f} s")  # noqa: T201
    assert everything(build) == before
    (rerun,) = scenes.query("SELECT count(*) AS runs FROM runs")
    assert rerun == {"runs": 1}

    # A threshold: the parts stay, the selection changes.
    ingested, flipped = parts(build, "ingest"), parts(build, "flip")
    kept = scenes.query("SELECT count(*) AS n FROM fates WHERE fate = 'kept'")
    scenes.build("--set", "curate.rules.keep.long=caption.words >= 12")
    assert (parts(build, "ingest"), parts(build, "flip")) == (ingested, flipped)
    fewer = scenes.query("SELECT count(*) AS n FROM fates WHERE fate = 'kept'")
    assert 0 < fewer[0]["n"] < kept[0]["n"]
    (dropped,) = scenes.query(
        "SELECT min(value) AS low, max(value) AS high, min(threshold) AS t FROM fates WHERE rule = 'long'"
    )
    assert dropped["high"] < dropped["t"] == 12
    assert shard_digests(build) != digests
    manifest_samples = scenes.query("SELECT sum(samples)::INT AS n FROM shards")
    assert manifest_samples == fewer

    # And back.
    scenes.build()
    assert shard_digests(build) == digests
    assert (parts(build, "ingest"), parts(build, "flip")) == (ingested, flipped)

    # An added file is one part of each step anew, or two where it falls on a boundary.
    for extension in ("png", "txt", "wav"):
        (scenes.folder / "media" / f"00030b.{extension}").write_bytes(
            (scenes.folder / "media" / f"00031.{extension}").read_bytes()
        )
    said = scenes.build()
    assert "63 inputs" in said.stdout
    for label, old in (("ingest", ingested), ("flip", flipped)):
        now = parts(build, label)
        assert old.items() <= now.items()
        assert 1 <= len([name for name in now.keys() - old.keys() if name.endswith(".parquet")]) <= 2
    scenes.build(output="whole")
    assert shard_digests(build) == shard_digests(scenes.folder / "whole")


@pytest.mark.slow
def test_what_was_removed_or_damaged_is_made_again_or_reported(scenes, shard_digests):
    build = scenes.folder / "out"
    scenes.build()
    digests, ingested = shard_digests(build), parts(build, "ingest")
    shards = sorted((build / "shards").glob("*.tar"))

    untouched = shards[1].stat().st_mtime_ns
    shards[0].unlink()
    scenes.build()
    assert shard_digests(build) == digests
    assert shards[1].stat().st_mtime_ns == untouched, "only what is missing is written"

    with shards[0].open("r+b") as file:
        file.truncate(1000)
    scenes.build()
    assert shard_digests(build) == digests

    for name in ("catalog.duckdb", "shards/manifest.json"):
        (build / name).unlink()
        scenes.build()
        assert shard_digests(build) == digests
        assert (build / name).exists()
    assert parts(build, "ingest") == ingested

    # A part without its Parquet is no part.
    gone = next((build / "parts" / "ingest").glob("*.parquet"))
    gone.unlink()
    (build / "shards" / "manifest.json").unlink()
    scenes.build()
    assert shard_digests(build) == digests
    assert gone.exists()

    # A part whose payloads are short, or are others, is not written as if nothing were.
    tar = max((build / "parts" / "ingest").glob("*.tar"), key=lambda path: path.stat().st_size)
    whole = tar.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole.replace(b"IDAT", b"TADI")):
        tar.write_bytes(damaged)
        for shard in shards:
            shard.unlink(missing_ok=True)
        said = scenes.build(code=1).stderr
        assert "Traceback" not in said
        assert tar.stem in said
        assert "delete the part" in said
    tar.unlink()
    assert "is not there; delete the .parquet beside it too" in scenes.build(code=1).stderr
    tar.with_suffix(".parquet").unlink()
    scenes.build()
    assert shard_digests(build) == digests


@pytest.mark.slow
def test_a_second_build_in_the_folder_is_refused(scenes):
    first = start_working(scenes, "out")
    # It stands still meanwhile: on a busy machine it would be done before the second has begun.
    first.send_signal(signal.SIGSTOP)
    second = scenes.build(code=1)
    assert "mmdata: out: another build runs here; wait for it, or give this one its own --output" in second.stderr
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate()
    assert first.returncode == 0, err
    assert "62 inputs = " in out
    assert not list(scenes.folder.rglob("listing*"))
    assert len(scenes.query("SELECT * FROM runs")) == 1
