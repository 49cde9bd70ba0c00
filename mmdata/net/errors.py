"""What a request can end with instead of an answer."""

from __future__ import annotations

from mmdata.errors import SampleError

_MOST_CHARACTERS = 500


class FetchError(SampleError):
    """What a URL names was not fetched.

    Attributes:
        passing: whether it may go well another time (a timeout, a 503); a 404 or a refusal will not.
        status: of HTTP, None where there was no answer.
        retry_after_s: how long the server asks to be left alone, None where it does not.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        passing: bool = False,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Keep what another attempt goes by."""
        super().__init__(reason, _printable(message))
        self.passing = passing
        self.status = status
        self.retry_after_s = retry_after_s


class RobotsError(FetchError):
    """robots.txt forbids it or is not to be had; it was asked for often enough, another attempt would not ask again."""


def _printable(message: str) -> str:
    """Servers' words stand in messages: bytes that are no text, and what a terminal would obey, do not."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in message[:_MOST_CHARACTERS])
