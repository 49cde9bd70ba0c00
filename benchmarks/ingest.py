"""What it costs to fetch, resize and shard images, beside img2dataset: same URLs from a local nginx, same output.

Both make WebDataset shards of JPEG files (256 px, keep_ratio, quality 95), captions and JSON. Each job is a process
tree of its own, run with two lists of URLs: the difference is the cost of more images, what is left is the start-up.
CPU-seconds are those of all processes of the tree, orphans
included; memory is the largest sum of their proportional set sizes, sampled.

Usage: python benchmarks/ingest.py [--quick] [--img2dataset PATH] [--rounds N]; PATH is the `img2dataset` of an
environment that has it (`pip install img2dataset==1.47.0`). nginx must be on PATH (Debian: nginx-light). The last line
is JSON.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from align_peers.clip_data import write_pairs

_PORT = 18080
_PR_SET_CHILD_SUBREAPER = 36
_GOALS = {"cpu_s_per_1000": 4.5, "start_cpu_s": 2.0, "peak_mb": 600}
_NGINX = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; keepalive_requests 100000; types {{ image/jpeg jpg; }}
client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
scgi_temp_path {folder}/s; server {{ listen 127.0.0.1:{port}; root {folder}/site; }} }}
"""


def main() -> None:
    """Run and print."""
    arguments = _arguments()
    adopt_orphans()
    sizes = (100, 300) if arguments.quick else (1000, 4000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = write_site(folder, max(sizes))
        with nginx(folder):
            jobs = {"ours": ours, "ours_reduced": ours_reduced}
            if arguments.img2dataset:
                jobs["img2dataset"] = lambda *given: img2dataset(arguments.img2dataset, *given)
            found = {name: measure(job, folder, sizes, arguments.rounds) for name, job in jobs.items()}
    if "img2dataset" in found:
        theirs = found["img2dataset"]
        found["ratios"] = {n: round(theirs[n] / found["ours"][n], 2) for n in (*_GOALS, "wall_s_per_1000")}
    for name, values in found.items():
        print(name, json.dumps(values))
    print(json.dumps({"goals": _GOALS, "site": facts, "cores": os.cpu_count(), "load": os.getloadavg(), **found}))


def write_site(folder: Path, urls: int) -> dict[str, Any]:
    """Pictures of 640 to 1,000 px under as many names as there are URLs, and nginx's settings."""
    (folder / "pictures").mkdir()
    write_pairs(folder / "pictures", 104, (640, 1000))
    pictures = sorted((folder / "pictures").glob("*.jpg"))
    (folder / "site").mkdir()
    for number in range(urls):
        os.link(pictures[number % len(pictures)], folder / "site" / f"{number}.jpg")
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=_PORT))
    return {"pictures": len(pictures), "bytes": sum(path.stat().st_size for path in pictures)}


@contextmanager
def nginx(folder: Path) -> Iterator[None]:
    """Serve the site."""
    if shutil.which("nginx") is None:
        raise SystemExit("nginx is not on PATH; on Debian: apt-get install nginx-light")
    # As the user who runs this: a worker of another one could not read a temporary folder.
    user = ["-g", "user root;"] if os.getuid() == 0 else []
    server = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder), *user])
    try:
        time.sleep(0.5)
        yield
    finally:
        server.terminate()
        server.wait()


def write_urls(path: Path, count: int) -> None:
    """The list."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["url", "caption"])
        rows.writerows([f"http://127.0.0.1:{_PORT}/{n}.jpg", f"picture number {n}"] for n in range(count))


def ours(folder: Path, urls: Path, *, reduced: bool = False) -> list[str]:
    """`mmdata build`, every JPEG decoded in full."""
    spec = {
        "name": "ingest",
        "sources": [
            {"table": {"file": str(urls), "members": {"image": {"url": "url"}, "caption": {"text": "caption"}}}}
        ],
        "ingest": [{"image": {"resize": "keep_ratio", "side_px": 256, "encode": "jpeg", "reduced_decode": reduced}}],
        "fetch": {"allow_private": ["127.0.0.1"], "connections_per_host": 64},
        "engine": {"workers": 2, "part_samples": 512},
    }
    (folder / "p.yaml").write_text(yaml.safe_dump(spec))
    return [sys.executable, "-m", "mmdata", "build", str(folder / "p.yaml"), "--output", str(folder / "out"), "--json"]


def ours_reduced(folder: Path, urls: Path) -> list[str]:
    """The same, large JPEGs decoded at a reduced scale."""
    return ours(folder, urls, reduced=True)


def img2dataset(program: str, folder: Path, urls: Path) -> list[str]:
    """The same job by img2dataset."""
    options = {
        "url_list": urls,
        "input_format": "csv",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "output_folder": folder / "out",
        "image_size": 256,
        "resize_mode": "keep_ratio",
        "encode_format": "jpg",
        "encode_quality": 95,
        "processes_count": 2,
        "thread_count": 64,
        "number_sample_per_shard": 500,
        "enable_wandb": False,
    }
    return [program, *(f"--{name}={value}" for name, value in options.items())]


def measure(job: Any, folder: Path, sizes: tuple[int, int], rounds: int) -> dict[str, float]:
    """Of each size the cheapest of some runs; their difference is what more images cost."""
    runs = [min((run(job, folder, size) for _ in range(rounds)), key=lambda one: one["cpu_s"]) for size in sizes]
    small, large = runs
    more = (sizes[1] - sizes[0]) / 1000
    each = {name: (large[name] - small[name]) / more for name in ("cpu_s", "wall_s")}
    return {
        "cpu_s_per_1000": round(each["cpu_s"], 2),
        "wall_s_per_1000": round(each["wall_s"], 2),
        "start_cpu_s": round(small["cpu_s"] - each["cpu_s"] * sizes[0] / 1000, 2),
        "peak_mb": round(max(one["peak_mb"] for one in runs), 1),
        "images_per_s": round(sizes[1] / large["wall_s"], 1),
    }


def run(job: Any, folder: Path, count: int) -> dict[str, float]:
    """One process tree from its start to its end. SystemExit where it did not keep all images."""
    place = folder / "job"
    place.mkdir()
    write_urls(place / "urls.csv", count)
    before_it = [child.pid for child in psutil.Process().children()]
    before, began = os.times(), time.time()
    process = subprocess.Popen(job(place, place / "urls.csv"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _pss(process.pid))
        time.sleep(0.2)
    wall_s = time.time() - began
    wait_for_orphans(not_this=set(before_it))
    after = os.times()
    kept = _kept(place / "out")
    shutil.rmtree(place)
    if process.returncode or kept != count:
        error = process.stderr.read().decode()[-2000:] if process.stderr else ""
        raise SystemExit(f"{kept} of {count} images, exit code {process.returncode}\n{error}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu_s": cpu_s, "wall_s": wall_s, "peak_mb": peak / 1e6}


def adopt_orphans() -> None:
    """Become the parent of processes whose own parent ends, so that what they took is counted (prctl(2), Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def wait_for_orphans(not_this: set[int]) -> None:
    """Until all children have ended, but for those."""
    while left := [child.pid for child in psutil.Process().children() if child.pid not in not_this]:
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _pss(pid: int) -> int:
    """Of a process and all below it; shared pages count in parts."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def _kept(out: Path) -> int:
    import tarfile

    found = 0
    for path in out.rglob("*.tar"):
        if "parts" not in path.parts:
            with tarfile.open(path) as tar:
                found += sum(name.endswith((".jpg", ".jpeg")) for name in tar.getnames())
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images: does it run?")
    parser.add_argument("--img2dataset", help="the program of an environment that has it")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each job and size; the cheapest counts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
