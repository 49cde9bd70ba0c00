"""A day's crawl in small: very many URLs of tiny files from this machine, and the memory of the whole process tree.

A server of its own process answers every path with a picture of 8 px that only this path has; one in a hundred is 404.
The build fetches, takes in and writes all. Memory (proportional set sizes, summed) is sampled all the time; what counts
is whether it grows between the second and the last quarter.

Usage: python benchmarks/crawl_shape.py [--urls N]. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import hashlib
import io
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from ingest import _pss
from PIL import Image

_PORT = 18081
_MISSING_EVERY = 100


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", type=int, default=200_000)
    urls = parser.parse_args().urls
    server = multiprocessing.get_context("spawn").Process(target=serve, daemon=True)
    server.start()
    try:
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(measure(Path(name), urls)))
    finally:
        server.kill()


def serve() -> None:
    """Answer for ever."""
    asyncio.run(_serve())


async def _serve() -> None:
    server = await asyncio.start_server(_client, "127.0.0.1", _PORT, backlog=1024)
    async with server:
        await server.serve_forever()


async def _client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split(b" ", 2)[1]
            number = path.strip(b"/").partition(b".")[0]
            found = number.isdigit() and int(number) % _MISSING_EVERY != 0
            body = _picture(path) if found else b"none"
            status = b"200 OK" if found else b"404 Not Found"
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _picture(path: bytes) -> bytes:
    buffer = io.BytesIO()
    digest = hashlib.sha256(path).digest()
    Image.frombytes("RGB", (8, 8), digest * 6).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def measure(folder: Path, urls: int) -> dict[str, Any]:
    """One build, its memory sampled."""
    with (folder / "urls.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["url", "caption"])
        rows.writerows([f"http://127.0.0.1:{_PORT}/{n}.png", f"picture {n}"] for n in range(urls))
    spec = {
        "name": "crawl",
        "sources": [
            {
                "table": {
                    "file": str(folder / "urls.csv"),
                    "members": {"image": {"url": "url"}, "caption": {"text": "caption"}},
                }
            }
        ],
        "fetch": {"allow_private": ["127.0.0.1"], "connections_per_host": 64, "downloads": "discard"},
    }
    (folder / "p.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "mmdata", "build", str(folder / "p.yaml"), "--output", str(folder / "out")]
    began = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    memory = []
    while process.poll() is None:
        memory.append(_pss(process.pid) / 1e6)
        time.sleep(1)
    said = process.stdout.read() if process.stdout else ""
    quarter = max(1, len(memory) // 4)
    return {
        "urls": urls,
        "wall_s": round(time.time() - began, 1),
        "said": said.strip().splitlines()[1:2],
        "mb_by_quarter": [round(median(memory[n * quarter : (n + 1) * quarter]), 1) for n in range(4)],
        "mb_peak": round(max(memory), 1),
    }


if __name__ == "__main__":
    main()
