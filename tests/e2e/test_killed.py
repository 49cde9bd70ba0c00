"""`kill -9` of the build and of its workers at random moments of a fetch and of a crawl: nothing is lost or doubled."""

from __future__ import annotations

import csv
import random
import subprocess
import time
from contextlib import suppress

import psutil
import pytest
from website import Site

PAGES = 120


def spec(cli, site: Site, kind: str) -> None:
    web = {"web": {"seeds": [site.url("/p/0")], "max_depth": 9, "sitemaps": False}}
    table = {"table": {"file": "urls.csv", "members": {"image": {"url": "url"}, "caption": {"text": "caption"}}}}
    with (cli.folder / "urls.csv").open("w", newline="") as file:
        rows = [[site.url(f"/i/{n}.jpg"), f"picture {n}"] for n in range(2 * PAGES)]
        csv.writer(file).writerows([["url", "caption"], *rows])
    fetch = {
        "contact": "mailto:t@example.org",
        "allow_private": [site.host],
        "attempts": 1,
        "idle_s": 60,
        "connections_per_host": 8,
    }
    cli.spec(sources=[web if kind == "crawl" else table], fetch=fetch, engine={"workers": 2, "part_samples": 12})


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Children of the fork server, which is a child of the build."""
    with suppress(psutil.Error):
        build = psutil.Process(process.pid)
        return [worker for child in build.children() for worker in child.children()]
    return []


def kill_a_worker(process: subprocess.Popen[str], chance: random.Random) -> bool:
    found = workers(process)
    for worker in chance.sample(found, min(1, len(found))):
        with suppress(psutil.Error):
            worker.kill()
            return True
    return False


def progress(cli, site: Site) -> int:
    """Requests, and parts that were made of what they brought."""
    parts = cli.folder / "out" / "parts"
    return site.seen.total() + sum(1 for label in ("look", "ingest") for _ in (parts / label).glob("*.parquet"))


def run_until(cli, site: Site, most: int, chance: random.Random) -> int:
    """Build, killing workers, and the build itself when so much more is done; how many workers died."""
    process = cli.start("build", "pipeline.yaml", "--output", "out")
    # By what is done, not by the clock: on a busy machine nothing would be done between two deaths.
    begun, killed = progress(cli, site), 0
    next_kill = begun + chance.randrange(5, 40)
    while process.poll() is None and (done := progress(cli, site)) - begun < most:
        if done >= next_kill and kill_a_worker(process, chance):
            killed += 1
            next_kill = done + chance.randrange(5, 60)
        time.sleep(0.002)
    process.kill()
    process.communicate()
    return killed


def torn(cli) -> list[str]:
    """Files under a final name that are not whole."""
    out = cli.folder / "out"
    bad = [str(path) for path in out.rglob("*.parquet") if path.read_bytes()[-4:] != b"PAR1"]
    tars = [path for path in out.rglob("*.tar") if "shards" in path.parts or path.with_suffix(".parquet").exists()]
    return bad + [str(path) for path in tars if path.read_bytes()[-1024:] != bytes(1024)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), [("fetch", 1), ("crawl", 2)])
def test_a_build_whose_processes_are_killed_comes_to_the_same(cli, shard_digests, kind: str, seed: int):
    chance = random.Random(seed)
    with Site(pages=PAGES, hold_s=0.02) as site:
        spec(cli, site, kind)
        died = 0
        for _ in range(2):
            died += run_until(cli, site, chance.randrange(20, 200), chance)
            assert torn(cli) == []
        # Nothing but workers dies in this one: it comes to its end.
        died += run_until(cli, site, 10**9, chance)
        said = cli.build().stdout
        assert died
        assert cli.query("SELECT * FROM fates WHERE fate <> 'kept'") == []
        assert f"{2 * PAGES} inputs = {2 * PAGES} kept" in said
        assert not list((cli.folder / "out").rglob("*.partial-*"))
        site.hold_s = 0.0
        cli.build(output="fresh")
    assert shard_digests(cli.folder / "out") == shard_digests(cli.folder / "fresh")
    keys = cli.query("SELECT count(*) AS n, count(DISTINCT key) AS keys FROM samples")
    assert keys == [{"n": 2 * PAGES, "keys": 2 * PAGES}]
    status = [row["status"] for row in cli.query("SELECT status FROM runs ORDER BY started")]
    assert status[:2] == ["killed", "killed"]
    assert status[-1] == "done"
    cli.wait_for_no_process()
