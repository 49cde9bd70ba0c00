"""One client for everything that is fetched: limits, politeness and safety stand here and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from mmdata.errors import SampleError
from mmdata.spec import FetchSpec


class FetchError(SampleError):
    """What a URL names was not fetched.

    Attributes:
        passing: whether it may go well another time (a timeout, a 503); a 404 or a refusal will not.
    """

    def __init__(self, reason: str, message: str, *, passing: bool = False, status: int | None = None) -> None:
        """Keep what `--retry-failed` goes by."""
        super().__init__(reason, message)
        self.passing = passing
        self.status = status


@dataclass(frozen=True)
class Validators:
    """What an earlier answer gave to ask by whether it still holds (RFC 9110, section 13)."""

    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a server sent.

    Attributes:
        url: as asked for.
        final_url: after redirects.
        status: 200, or 304 where `Validators` hold.
        data: the body, decoded from its content coding; empty for 304.
        declared: media type of the Content-Type header, without parameters, in lower case; None where there is none.
        charset: of the Content-Type header, None where there is none.
        validators: to ask again by.
        opt_out: what the headers say against use for training: `noai`, `noimageai`, `noml`, `tdm-reservation`.
        robots: other directives of X-Robots-Tag that a crawler obeys: `noindex`, `nofollow`.
        attempts: requests made, redirects apart.
        wall_s: from the first request to the last byte.
    """

    url: str
    final_url: str
    status: int
    data: bytes
    declared: str | None
    charset: str | None
    validators: Validators
    opt_out: tuple[str, ...]
    robots: tuple[str, ...]
    attempts: int
    wall_s: float


class Fetcher:
    """Fetches URLs within the limits of a FetchSpec; `async with` opens and closes its connections."""

    def __init__(self, settings: FetchSpec) -> None:
        """Nothing is opened before `async with`."""
        self.settings = settings

    async def __aenter__(self) -> Self:
        """Open."""
        raise NotImplementedError

    async def __aexit__(self, *error: object) -> None:
        """Close."""

    @asynccontextmanager
    async def get(
        self, url: str, max_bytes: int, known: Validators | None = None, *, accept: str = "*/*"
    ) -> AsyncIterator[Answer]:
        """Fetch one URL; its bytes count as in flight until the block ends.

        Raises FetchError.
        """
        raise NotImplementedError
        yield
