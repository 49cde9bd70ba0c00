"""Texts of other samples, to score a medium with what certainly does not belong to it: calibration is made of these."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice


def other_texts(
    texts: Sequence[str], languages: Sequence[str | None], media: Sequence[str], count: int
) -> list[list[int]]:
    """Up to `count` other texts for each text: of the same language, and of no sample with the same medium.

    Each language's distinct texts stand in a circle, in the order of their digests, and a text's partners are those
    behind it. So neighbours in a list (numbered takes, say) do not meet more often than by chance, and the same texts
    in whatever order give the same partners. A language unknown (None) is one of its own.

    Args:
        texts: one a sample; those equal but for case and outer blanks are one.
        languages: of the texts.
        media: digest of what each text stands beside. What one medium stands beside in two samples may both belong
            to it.
        count: of partners wanted.

    Returns:
        For each text the places of its partners in `texts`.
    """
    keys = [text.strip().casefold() for text in texts]
    beside: dict[str, set[str]] = {}
    for key, medium in zip(keys, media, strict=True):
        beside.setdefault(medium, set()).add(key)
    # Of equal texts one stands for all, whichever order they come in.
    first: dict[tuple[str | None, str], int] = {}
    for place in sorted(range(len(texts)), key=lambda n: texts[n]):
        first.setdefault((languages[place], keys[place]), place)
    circles: dict[str | None, list[str]] = {}
    for language, key in sorted(first, key=lambda known: _digest(known[1])):
        circles.setdefault(language, []).append(key)
    turns = {(language, key): n for language, circle in circles.items() for n, key in enumerate(circle)}
    found = []
    for key, language, medium in zip(keys, languages, media, strict=True):
        circle, turn = circles[language], turns[language, key]
        behind = (circle[(turn + step) % len(circle)] for step in range(1, len(circle)))
        own = beside[medium]
        partners = (first[language, other] for other in behind if other not in own)
        found.append(list(islice(partners, count)))
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
