"""Read a body within limits, its content coding undone as it comes: a small body may unpack to a large one."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from mmdata.net.errors import FetchError

_BLOCK_BYTES = 1 << 16
CODINGS = "gzip, deflate"
# zlib: 15 bits of window, and 32 to take gzip's and zlib's headers alike.
_ANY_HEADER = 15 + 32


class Grow(Protocol):
    """Makes room for more bytes."""

    async def __call__(self, more: int) -> None:
        """Wait until there is."""


async def read_body(response: Any, max_bytes: int, grow: Grow, *, cut: bool = False) -> bytes:
    """The decoded body of an aiohttp response that does not decode by itself.

    Args:
        response: whose body is to be read.
        max_bytes: of the decoded body.
        grow: called before bytes are kept.
        cut: whether a longer body is cut there; else it is an error.

    Raises FetchError: `too_large`, `truncated`, `bad_answer` for a coding that was not asked for or is broken.
    """
    kept = bytearray()
    async for block in _decoded(response):
        if len(kept) + len(block) > max_bytes:
            if cut:
                return bytes(kept + block[: max_bytes - len(kept)])
            raise FetchError("too_large", f"{response.url.raw_host} sends more than max_bytes: {max_bytes}")
        await grow(len(block))
        kept += block
    return bytes(kept)


async def _decoded(response: Any) -> AsyncIterator[bytes]:
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    blocks = response.content.iter_chunked(_BLOCK_BYTES)
    if coding in {"", "identity"}:
        async for block in blocks:
            yield block
    elif coding in {"gzip", "x-gzip", "deflate"}:
        async for block in _unpacked(blocks, coding):
            yield block
    else:
        raise FetchError("bad_answer", f"content coding '{coding[:40]}', which was not asked for")


async def _unpacked(blocks: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    packed = zlib.decompressobj(_ANY_HEADER)
    came = False
    try:
        async for block in blocks:
            came, rest = True, block
            while rest:
                yield packed.decompress(rest, _BLOCK_BYTES)
                rest = packed.unconsumed_tail
            if packed.eof:
                return  # as browsers do, who ignore what follows: it could be endless
    except zlib.error as error:
        raise FetchError("bad_answer", f"the {coding} coding is broken: {error}", passing=True) from None
    if came:
        raise FetchError("truncated", f"the {coding} coding ends too soon", passing=True)
