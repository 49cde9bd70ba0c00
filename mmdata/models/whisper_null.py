"""Texts of other clips, to score a clip with what is certainly not said in it: calibration is made of such scores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def other_texts(texts: Sequence[str], languages: Sequence[str | None], count: int) -> list[list[str]]:
    """Up to `count` other texts for each text: of the same language, never equal but for case and outer blanks.

    Each language's distinct texts stand in a circle, in the order of their digests, and a text's partners are those
    behind it. So neighbours in a list (numbered takes, say) do not meet more often than by chance, and the same texts
    in whatever order give the same partners. A language unknown (None) is one of its own.
    """
    circles: dict[str | None, dict[str, str]] = {}
    for text, language in sorted(zip(texts, languages, strict=True), key=lambda pair: pair[0]):
        circles.setdefault(language, {}).setdefault(_key(text), text)
    ordered = {language: sorted(circle, key=_digest) for language, circle in circles.items()}
    places = {language: {key: place for place, key in enumerate(keys)} for language, keys in ordered.items()}
    found = []
    for text, language in zip(texts, languages, strict=True):
        keys, place = ordered[language], places[language][_key(text)]
        steps = range(1, min(count, len(keys) - 1) + 1)
        found.append([circles[language][keys[(place + step) % len(keys)]] for step in steps])
    return found


def _key(text: str) -> str:
    return text.strip().casefold()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
