"""What a crawl knows: every URL with its outcome, on disk, so that it goes on where it was killed.

States: `todo`, `done`, `failed` (with a reason), `skipped` (seen, and no page: with a reason). A page is committed
together with the links it has and with how far the recording has come; what was under way at a crash is `todo`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

_TABLES: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS pages (
    url TEXT PRIMARY KEY, kind TEXT, depth INTEGER, turn INTEGER, state TEXT, reason TEXT, detail TEXT,
    final_url TEXT, status INTEGER, bytes INTEGER, attempts INTEGER
);
CREATE INDEX IF NOT EXISTS waiting ON pages (kind, depth, turn) WHERE state = 'todo';
CREATE TABLE IF NOT EXISTS hosts (host TEXT PRIMARY KEY, urls INTEGER);
CREATE TABLE IF NOT EXISTS recorded (name TEXT PRIMARY KEY, bytes INTEGER);
"""


@dataclass(frozen=True)
class Visit:
    """One URL to visit: a `page` or a `sitemap`."""

    url: str
    kind: str
    depth: int


@dataclass(frozen=True)
class Outcome:
    """What became of a visit."""

    state: str
    reason: str | None = None
    detail: str | None = None
    final_url: str | None = None
    status: int | None = None
    bytes: int = 0
    attempts: int = 1


class Frontier:
    """The database of one crawl."""

    def __init__(self, path: Path) -> None:
        """Open or make it."""
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(_TABLES)
        self._under_way: set[str] = set()
        self._claimed: set[str] = set()

    def close(self) -> None:
        """Close it."""
        self._database.close()

    def add(self, urls: Iterable[str], kind: str, depth: int) -> None:
        """URLs to visit, if they are new."""
        with self._transaction():
            self._add(urls, kind, depth)

    def try_failed_again(self) -> None:
        """What failed is to be visited once more."""
        self._database.execute("UPDATE pages SET state = 'todo' WHERE state = 'failed'")

    def take(self, kind: str) -> Visit | None:
        """The next URL of a kind at the lowest depth that has any; of each host one before another of the first.

        None where nothing waits, or where what waits is deeper than what is under way: links are counted along the
        shortest way.
        """
        rows = self._database.execute(
            "SELECT url, depth FROM pages WHERE state = 'todo' AND kind = ? ORDER BY depth, turn", (kind,)
        )
        lowest: int | None = None
        for url, depth in rows:
            lowest = depth if lowest is None else lowest
            if depth > lowest:
                return None
            if url not in self._under_way:
                self._under_way.add(url)
                return Visit(url, kind, depth)
        return None

    def settle(self, visit: Visit, outcome: Outcome, links: Iterable[str] = (), recorded: tuple[str, int] | None = None,
               *, kind: str = "page", deeper: int = 1) -> None:  # fmt: skip
        """Note what became of a visit, what it led to, and how far the recording has come."""
        with self._transaction():
            self._database.execute(
                "UPDATE pages SET (state, reason, detail, final_url, status, bytes, attempts) = (?, ?, ?, ?, ?, ?, ?) "
                "WHERE url = ?",
                (*vars(outcome).values(), visit.url),
            )
            if outcome.final_url in self._claimed:
                row = (outcome.final_url, "page", visit.depth, 0, "skipped", "redirect_target")
                insert = "INSERT INTO pages (url, kind, depth, turn, state, reason) VALUES (?, ?, ?, ?, ?, ?)"
                self._database.execute(insert, row)
            self._add(links, kind, visit.depth + deeper)
            if recorded:
                self._database.execute("INSERT OR REPLACE INTO recorded VALUES (?, ?)", recorded)
        self._under_way.discard(visit.url)
        self._claimed.discard(outcome.final_url or "")

    def claim(self, url: str) -> bool:
        """Whether a page that a redirect led to is nobody else's; `settle` notes it."""
        if url in self._claimed or self._database.execute("SELECT 1 FROM pages WHERE url = ?", (url,)).fetchone():
            return False
        self._claimed.add(url)
        return True

    def recorded(self) -> dict[str, int]:
        """Bytes that count of each file of the recording."""
        return dict(self._database.execute("SELECT name, bytes FROM recorded").fetchall())

    def spent(self) -> tuple[int, int]:
        """Pages that were visited, and their bytes."""
        query = (
            "SELECT count(*), coalesce(sum(bytes), 0) FROM pages "
            "WHERE kind = 'page' AND state != 'todo' AND reason IS NOT 'redirect_target'"
        )
        pages, size = self._database.execute(query).fetchone()
        return int(pages), int(size)

    def known(self, kind: str | None = None) -> int:
        """All URLs, or those of a kind."""
        query = "SELECT count(*) FROM pages WHERE ? IS NULL OR kind = ?"
        return int(self._database.execute(query, (kind, kind)).fetchone()[0])

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every URL with its outcome, in order."""
        cursor = self._database.execute("SELECT * FROM pages ORDER BY url")
        names = [column[0] for column in cursor.description]
        return (dict(zip(names, row, strict=True)) for row in cursor)

    def _add(self, urls: Iterable[str], kind: str, depth: int) -> None:
        for url in urls:
            host = urlsplit(url).netloc
            known = "SELECT 1 FROM pages WHERE url = ?"
            if self._database.execute(known, (url,)).fetchone():
                continue
            count = "INSERT INTO hosts VALUES (?, 1) ON CONFLICT (host) DO UPDATE SET urls = urls + 1 RETURNING urls"
            (turn,) = self._database.execute(count, (host,)).fetchone()
            row = (url, kind, depth, turn, "todo")
            self._database.execute("INSERT INTO pages (url, kind, depth, turn, state) VALUES (?, ?, ?, ?, ?)", row)

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database)


class _Transaction:
    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")
