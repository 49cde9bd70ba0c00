"""Media on the web, through the command line: every URL has its outcome, and no server is asked twice for the same."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from website import Reply, Site, jpeg

HOSTILE = {
    "/status/404": "http_404",
    "/status/500": "http_500",
    "/slow": "timeout",
    "/drip": "too_slow",
    "/endless": "too_large",
    "/bomb": "too_large",
    "/truncated": "truncated",
    "/loop": "too_many_redirects",
    "/to-private": "private_address",
    "/to-file": "bad_url",
    "/noai": "opted_out",
    "/tdm": "opted_out",
    "http://10.1.2.3/x.jpg": "private_address",
}
# Fetched well, and then no image.
BROKEN = {"/html.jpg": "not_an_image", "/empty": "empty_file", "/packed": "not_an_image"}


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(robots="User-agent: *\nDisallow: /i/secret\n") as found:
        yield found


def write_table(cli, site: Site, urls: list[str]) -> None:
    with (cli.folder / "urls.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["url", "caption", "page"])
        for url in urls:
            rows.writerow([url if "://" in url else site.url(url), f"caption of {url}", "p"])


def spec(cli, site: Site, *, part_samples: int = 16, **fetch: Any) -> None:
    kind = {"allow_private": [site.host], "idle_s": 10, "timeout_s": 20, "attempts": 1, "connections_per_host": 4}
    cli.spec(
        sources=[{"table": {"file": "urls.csv", "members": {"image": {"url": "url"}, "caption": {"text": "caption"}}}}],
        ingest=[{"image": {"max_bytes": "1MB"}}],
        fetch={**kind, **fetch},
        engine={"workers": 2, "part_samples": part_samples},
    )


def outcomes(cli) -> dict[str, tuple[str, str | None]]:
    rows = cli.query("SELECT s.key, f.fate, f.step, f.rule FROM samples s JOIN fates f USING (sample_id) ORDER BY 1")
    return {row["key"]: (row["fate"], row["step"], row["rule"]) for row in rows}


def shards(cli, folder: str = "out") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((cli.folder / folder / "shards").glob("*.tar"))}


@pytest.mark.slow
def test_each_url_has_the_outcome_it_should(cli, site: Site):
    good = [f"/i/{n}.jpg" for n in range(60)] + ["/hop/3"]
    urls = [*good, *HOSTILE, *BROKEN, "/i/secret.jpg"]
    write_table(cli, site, [*urls, "ftp://x/y", "/etc/passwd"][:-1])
    # Far apart, and far above what a good picture takes beside other work.
    spec(cli, site, idle_s=2, timeout_s=6)
    out = cli.build().stdout
    total = len(urls) + 1
    assert f"{total} inputs = {len(good)} kept + {total - len(good)} failed" in out
    found = outcomes(cli)
    expected = {path: ("failed", "fetch", reason) for path, reason in HOSTILE.items()}
    expected |= {path: ("failed", "ingest", reason) for path, reason in BROKEN.items()}
    expected |= dict.fromkeys(good, ("kept", None, None))
    expected |= {"/i/secret.jpg": ("failed", "fetch", "robots_denied"), "ftp://x/y": ("failed", "ingest", "bad_url")}
    assert found == {path if "://" in path else site.url(path): fate for path, fate in expected.items()}
    assert site.most_at_once <= 4
    assert site.seen["/i/secret.jpg"] == 0
    # What the catalog knows of servers.
    rows = cli.query("SELECT status, mime, count(*) AS n FROM fetches GROUP BY ALL")
    assert {"status": 200, "mime": "image/jpeg", "n": len(good)} in rows
    seen = site.seen.total()
    assert "nothing to do" in cli.build().stdout
    assert site.seen.total() == seen


@pytest.mark.slow
def test_a_longer_list_or_other_parts_ask_for_nothing_twice(cli, site: Site):
    urls = [f"/i/{n}.jpg" for n in range(80)] + ["/status/404", "/status/500"]
    write_table(cli, site, urls)
    spec(cli, site)
    cli.build()
    write_table(cli, site, [*urls[3:], "/i/new.jpg"])
    spec(cli, site, part_samples=7)
    assert "80 inputs = 78 kept + 2 failed" in cli.build().stdout
    assert {site.seen[path] for path in [*urls, "/i/new.jpg"]} == {1}
    # A folder of its own gives the same shards: what was taken over is what would have been fetched.
    cli.build(output="fresh")
    assert shards(cli) == shards(cli, "fresh")


@pytest.mark.parametrize("downloads", ["keep", "discard"])
def test_a_url_that_many_parts_name_is_asked_for_once(cli, site: Site, downloads: str):
    urls = [f"/i/{n}.jpg" for n in range(6)] + ["/status/404"]
    with (cli.folder / "urls.csv").open("w", newline="") as file:
        # A fragment is never sent: what differs in it alone is one thing to ask for.
        rows = ([n, site.url(urls[n % len(urls)]) + f"#{n}" * (n % 2)] for n in range(105))
        csv.writer(file).writerows([["id", "url"], *rows])
    spec(cli, site, part_samples=8, downloads=downloads)
    read = {"file": "urls.csv", "key": "id", "members": {"image": {"url": "url"}}}
    assert "105 inputs = 90 kept + 15 failed" in cli.build("--set", "sources=" + json.dumps([{"table": read}])).stdout
    # What was thrown away when another part came to need it is asked for again.
    assert {site.seen[path] for path in urls} == {1} or downloads == "discard"
    assert len(list((cli.folder / "out" / "parts" / "fetch").glob("*.parquet"))) > 5


@pytest.mark.slow
def test_a_later_date_asks_whether_answers_still_hold(cli, site: Site):
    write_table(cli, site, [f"/i/{n}.jpg" for n in range(20)])
    spec(cli, site)
    cli.build()
    before = shards(cli)
    site.extra["/i/7.jpg"] = lambda *_: Reply(body=jpeg("other"))
    spec(cli, site, as_of="2026-11-24")
    cli.build()
    assert cli.query("SELECT status, count(*) AS n FROM fetches GROUP BY 1 ORDER BY 1") == [
        {"status": 200, "n": 1},
        {"status": 304, "n": 19},
    ]
    assert shards(cli) != before


@pytest.mark.slow
def test_another_way_to_ingest_fetches_nothing_unless_downloads_were_discarded(cli, site: Site):
    write_table(cli, site, [f"/i/{n}.jpg" for n in range(20)])
    spec(cli, site)
    cli.build()
    cli.build("--set", "ingest.image.max_pixels=1000000")
    assert {site.seen[f"/i/{n}.jpg"] for n in range(20)} == {1}
    spec(cli, site, downloads="discard")
    cli.build("--set", "ingest.image.max_pixels=2000000")
    assert not list((cli.folder / "out" / "parts" / "fetch").glob("*.tar"))
    cli.build("--set", "ingest.image.max_pixels=3000000")
    assert {site.seen[f"/i/{n}.jpg"] for n in range(20)} == {2}


@pytest.mark.slow
def test_retry_failed_asks_for_those_alone_and_leaves_the_others_as_they_are(cli, site: Site):
    urls = [f"/i/{n}.jpg" for n in range(30)]
    write_table(cli, site, [*urls, "/busy/1/a", "/busy/2/b", "/status/404"])
    spec(cli, site)
    assert "33 inputs = 30 kept + 3 failed" in cli.build().stdout
    parts = {path: path.stat().st_mtime_ns for path in (cli.folder / "out" / "parts" / "ingest").iterdir()}
    assert "nothing to do" in cli.build().stdout
    assert "33 inputs = 31 kept + 2 failed" in cli.build("--retry-failed").stdout
    assert "nothing to do" in cli.build().stdout
    assert "33 inputs = 32 kept + 1 failed" in cli.build("--retry-failed").stdout
    assert {site.seen[path] for path in urls} == {1}
    assert [site.seen[path] for path in ("/busy/1/a", "/busy/2/b", "/status/404")] == [2, 3, 3]
    assert all(path.stat().st_mtime_ns == made for path, made in parts.items())
    # With other ingest parameters all rounds count again.
    assert "33 inputs = 32 kept + 1 failed" in cli.build("--set", "ingest.image.max_pixels=1000000").stdout
    assert site.seen["/busy/2/b"] == 3


@pytest.mark.slow
def test_a_build_that_was_killed_goes_on_and_loses_nothing(cli, site: Site, tmp_path: Path):
    site.hold_s = 0.01
    urls = [f"/i/{n}.jpg" for n in range(300)]
    write_table(cli, site, urls)
    spec(cli, site, connections_per_host=8)
    for killed_after in (40, 120, 200):
        process = cli.start("build", "pipeline.yaml", "--output", "out")
        while site.seen.total() < killed_after and process.poll() is None:
            pass
        process.kill()
        process.communicate()
        names = [path.name for path in (cli.folder / "out").rglob("*") if path.is_file()]
        assert names
    assert "300 inputs = 300 kept" in cli.build().stdout
    cli.build(output="fresh")
    assert shards(cli) == shards(cli, "fresh")
    shutil.rmtree(cli.folder / "fresh")
