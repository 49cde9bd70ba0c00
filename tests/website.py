"""A web site on this machine, with everything that a crawl meets: pages and media, and servers that misbehave.

Raw asyncio: a server that keeps HTTP's rules could not break them.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
import io
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from PIL import Image

_HEADER_LIMIT = 1 << 16
Handler = Callable[["Site", str, dict[str, str]], "Reply"]


@dataclass
class Reply:
    """What is sent: `body` in one piece, or whatever `stream` yields; `length` is what the header claims."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stream: Callable[[], AsyncIterator[bytes]] | None = None
    length: int | None = -1
    delay_s: float = 0.0


@functools.cache
def jpeg(path: str, side_px: int = 32) -> bytes:
    """A small picture that only this path has."""
    digest = hashlib.sha256(path.encode()).digest()
    buffer = io.BytesIO()
    image = Image.frombytes("RGB", (4, 2), digest[:24]).resize((side_px, side_px // 2), Image.Resampling.NEAREST)
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class _Reader(asyncio.StreamReader):
    """Tells at once that a client has hung up: its request is under way no more, whatever the server still meant."""

    gone: Callable[[], None] | None = None

    def feed_eof(self) -> None:
        super().feed_eof()
        if self.gone:
            self.gone()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        if self.gone:
            self.gone()


class Site:
    """Serves until the block ends.

    Attributes:
        pages: how many pages `/p/0`, `/p/1`, ... there are; each links to the next ones.
        seen: how often each path was asked for.
        asked: headers of every request, by path, the latest last.
        most_at_once: the most requests under way at one time.
        robots: the body of robots.txt; None: 404.
        extra: handlers of more paths.
        hold_s: every answer waits so long, so that requests overlap.
        address: all of 127.0.0.0/8 is this machine: each address is a host of its own.
    """

    def __init__(
        self, pages: int = 40, robots: str | None = None, hold_s: float = 0.0, address: str = "127.0.0.1"
    ) -> None:
        self.pages = pages
        self.robots = robots
        self.hold_s = hold_s
        self.address = address
        self.seen: Counter[str] = Counter()
        self.asked: dict[str, list[dict[str, str]]] = {}
        self.most_at_once = 0
        self.extra: dict[str, Handler] = {}
        self._now: set[_Reader] = set()
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def url(self, path: str = "/") -> str:
        """The URL of a path."""
        return f"http://{self.address}:{self.port}{path}"

    @property
    def host(self) -> str:
        """For `allow_private`."""
        return f"{self.address}:{self.port}"

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_server(self._protocol, self.address, 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        reader = _Reader(limit=_HEADER_LIMIT, loop=self._loop)
        return asyncio.StreamReaderProtocol(reader, self._client, loop=self._loop)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, _Reader)
        task = asyncio.current_task()

        def gone() -> None:
            self._now.discard(reader)
            if task:
                task.cancel()

        reader.gone = gone
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                self._now.add(reader)
                self.most_at_once = max(self.most_at_once, len(self._now))
                again = await self._answer(head.decode("latin-1"), writer)
                self._now.discard(reader)
                if not again:
                    break
        self._now.discard(reader)
        writer.close()

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> bool:
        first, *lines = head.split("\r\n")
        path = first.split(" ")[1]
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
        self.seen[path] += 1
        self.asked.setdefault(path, []).append(headers)
        reply = self._reply(path, headers)
        await asyncio.sleep(max(self.hold_s, reply.delay_s))
        length = len(reply.body) if reply.length == -1 else reply.length
        sent = {**({} if length is None else {"Content-Length": str(length)}), **reply.headers}
        top = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        writer.write(f"HTTP/1.1 {reply.status} X\r\n{top}\r\n".encode("latin-1") + reply.body)
        await writer.drain()
        if reply.stream:
            async for block in reply.stream():
                writer.write(block)
                await writer.drain()
        return reply.stream is None and length == len(reply.body)

    def _reply(self, path: str, headers: dict[str, str]) -> Reply:
        name = path.partition("?")[0]
        for prefix, handler in [*self.extra.items(), *HANDLERS.items()]:
            if name == prefix or (prefix.endswith("/") and prefix != "/" and name.startswith(prefix)):
                return handler(self, path, headers)
        return Reply(404, b"nothing here")


def page(site: Site, path: str, _: dict[str, str]) -> Reply:
    """A page with pictures, and links to the three that follow."""
    number = int(path.rpartition("/")[2])
    if number >= site.pages:
        return Reply(404)
    links = "".join(f'<a href="/p/{n}">next</a>' for n in range(number * 3 + 1, number * 3 + 4) if n < site.pages)
    body = f"""<!DOCTYPE html><html lang="en"><head><title>Page {number}</title></head><body>
<h2>Heading {number}</h2><img src="/i/{number}.jpg" alt="picture number {number}">
<figure><img src="/i/f{number}.jpg"><figcaption>figure number {number}</figcaption></figure>
<a rel="license" href="https://creativecommons.org/licenses/by/4.0/">CC BY</a>{links}</body></html>"""
    return Reply(body=body.encode(), headers={"Content-Type": "text/html; charset=utf-8"})


def picture(_: Site, path: str, headers: dict[str, str]) -> Reply:
    """A picture, or 304."""
    data = jpeg(path)
    etag = f'"{hashlib.sha256(data).hexdigest()[:12]}"'
    if headers.get("if-none-match") == etag:
        return Reply(304, headers={"ETag": etag}, length=None)
    stamps = {"ETag": etag, "Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"}
    return Reply(body=data, headers={"Content-Type": "image/jpeg", **stamps})


def robots(site: Site, *_: Any) -> Reply:
    return Reply(404) if site.robots is None else Reply(body=site.robots.encode())


def redirect(to: str, status: int = 302) -> Handler:
    return lambda *_: Reply(status, headers={"Location": to})


def hop(_: Site, path: str, __: dict[str, str]) -> Reply:
    """`/hop/3` leads over 3 redirects to a picture."""
    left = int(path.rpartition("/")[2])
    return Reply(302, headers={"Location": f"/hop/{left - 1}" if left > 1 else "/i/hop.jpg"})


def endless(_: Site, *__: Any) -> Reply:
    async def stream() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 16)

    return Reply(headers={"Content-Type": "image/jpeg"}, stream=stream, length=None)


def drip(_: Site, *__: Any) -> Reply:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b"x"
            await asyncio.sleep(0.02)

    return Reply(stream=stream, length=10_000)


def stall(_: Site, *__: Any) -> Reply:
    async def stream() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(600)

    return Reply(stream=stream, length=100)


def busy(site: Site, path: str, _: dict[str, str]) -> Reply:
    """`/busy/2/...`: 503 twice, with a second of rest, then a picture."""
    if site.seen[path] <= int(path.split("/")[2]):
        return Reply(503, headers={"Retry-After": "1"})
    return Reply(body=jpeg(path), headers={"Content-Type": "image/jpeg"})


def status(_: Site, path: str, __: dict[str, str]) -> Reply:
    return Reply(int(path.split("/")[2]), b"no")


def with_header(name: str, value: str) -> Handler:
    return lambda _, path, __: Reply(body=jpeg(path), headers={"Content-Type": "image/jpeg", name: value})


def packed(data: bytes) -> Handler:
    return lambda *_: Reply(body=data, headers={"Content-Encoding": "gzip"})


HANDLERS: dict[str, Handler] = {
    "/": page,
    "/p/": page,
    "/i/": picture,
    "/robots.txt": robots,
    "/hop/": hop,
    "/loop": redirect("/loop"),
    "/to-private": redirect("http://10.0.0.1/x.jpg"),
    "/to-metadata": redirect("http://169.254.169.254/latest/meta-data/"),
    "/to-file": redirect("file:///etc/passwd"),
    "/endless": endless,
    "/drip": drip,
    "/stall": stall,
    "/slow": lambda *_: Reply(delay_s=600),
    "/busy/": busy,
    "/status/": status,
    "/wait-long": lambda *_: Reply(503, headers={"Retry-After": "86400"}),
    "/noai": with_header("X-Robots-Tag", "noai, noimageai"),
    "/noai-other": with_header("X-Robots-Tag", "otherbot: noai"),
    "/tdm": with_header("tdm-reservation", "1"),
    "/html.jpg": lambda *_: Reply(body=b"<!DOCTYPE html><p>no", headers={"Content-Type": "image/jpeg"}),
    "/truncated": lambda _, path, __: Reply(body=jpeg(path)[:200], length=400, stream=_nothing),
    "/huge": lambda *_: Reply(length=1 << 40, stream=_nothing),
    "/bad-chunks": lambda *_: Reply(body=b"zz\r\nnot a chunk", headers={"Transfer-Encoding": "chunked"}, length=None,
                                    stream=_nothing),
    "/empty": lambda *_: Reply(),
    "/garbage": lambda *_: Reply(999, headers={"Content-Length": "x"}, length=None, stream=_nothing),
    "/bomb": packed(gzip.compress(bytes(64 << 20), 9)),
    "/packed": packed(gzip.compress(b"hello " * 100)),
    "/half-packed": packed(gzip.compress(bytes(range(256)) * 50)[:-20]),
    "/b%C3%A4r.jpg": picture,
}  # fmt: skip


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield
