"""What chunks of one run leave to each other of what they ask servers for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mmdata.engine.fetch import Asked, Want, fetch_part
from mmdata.net.fetcher import Answer, Fetcher, FetchError
from mmdata.store.fetches import read_rows


class _Gone(Fetcher):
    """Has nothing, and takes its time to say so."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    @asynccontextmanager
    async def get(self, url: str, *_: Any) -> AsyncIterator[Answer]:
        self.seen[url] += 1
        await asyncio.sleep(0.01)
        raise FetchError("http_404", "not there")
        yield


def test_a_part_is_written_once_however_late_another_chunk_of_its_urls_comes(tmp_path: Path) -> None:
    (tmp_path / "fetch").mkdir()
    out, fetcher, asked = tmp_path / "fetch" / "a.parquet", _Gone(), Asked([])
    want = Want({"http://h/1": 9, "http://h/2": 9}, None, anew=False)

    async def chunks() -> int:
        await asyncio.gather(*(fetch_part(fetcher, want, asked, out) for _ in range(2)))
        written = out.stat().st_ino
        await fetch_part(fetcher, want, asked, out)
        return written

    assert asyncio.run(chunks()) == out.stat().st_ino
    assert set(fetcher.seen.values()) == {1}


def test_a_url_under_way_is_left_to_who_asked_first(tmp_path: Path) -> None:
    fetcher, asked = _Gone(), Asked([])
    outs = [tmp_path / name / "a.parquet" for name in ("x", "y", "z")]
    wants = [Want(dict.fromkeys([f"http://h/{n}", f"http://h/{(n + 1) % 3}"], 9), None, anew=False) for n in range(3)]
    for out in outs:
        out.parent.mkdir()

    async def chunks() -> None:
        await asyncio.gather(*(fetch_part(fetcher, want, asked, out) for want, out in zip(wants, outs, strict=True)))

    asyncio.run(chunks())
    assert fetcher.seen == {f"http://h/{n}": 1 for n in range(3)}
    for want, out in zip(wants, outs, strict=True):
        assert {row["url"]: row["reason"] for row in read_rows(out)} == dict.fromkeys(want.urls, "http_404")
