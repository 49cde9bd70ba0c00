"""What a server sent, and what of its headers is believed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from mmdata.net.rights import Rights

# RFC 9110, section 5.6.2: the characters of a token.
_NAME: Final = r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}"
_MEDIA_TYPE: Final = re.compile(f"{_NAME}/{_NAME}")
_CHARSET: Final = re.compile(_NAME, re.IGNORECASE)


@dataclass(frozen=True)
class Validators:
    """What an earlier answer gave to ask by whether it still holds (RFC 9110, section 13)."""

    etag: str | None = None
    last_modified: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Of the request that asks."""
        found = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in found.items() if value}


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
        opt_out: what the headers, those of redirects included, say against use for training: `noai`, `noimageai`,
            `noml`, `tdm-reservation`.
        robots: other directives of X-Robots-Tag that a crawler obeys: `noindex`, `nofollow`; of what is at `final_url`.
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


def answer_of(response: Any, data: bytes, rights: Rights) -> Answer:
    """The answer of an aiohttp response whose body is `data`, and whose headers say what `rights` holds."""
    headers = response.headers
    declared = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    charset = response.charset or ""
    return Answer(
        url=str(response.url),
        final_url=str(response.url),
        status=response.status,
        data=data,
        declared=declared if _MEDIA_TYPE.fullmatch(declared) else None,
        charset=charset if _CHARSET.fullmatch(charset) else None,
        validators=Validators(_ascii(headers.get("ETag")), _ascii(headers.get("Last-Modified"))),
        opt_out=rights.opt_out,
        robots=rights.robots,
        attempts=1,
        wall_s=0.0,
    )


def _ascii(value: str | None) -> str | None:
    """Headers may hold any bytes; such a value could be neither stored nor sent back."""
    return value if value and value.isascii() and value.isprintable() else None


def retry_after_s(value: str | None) -> float | None:
    """Retry-After: a number of seconds or a date (RFC 9110, section 10.2.3); None where it is neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip())
    try:
        then = parsedate_to_datetime(value)
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        return max(0.0, (then - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
