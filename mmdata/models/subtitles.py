"""Timed text as cues of plain words: SubRip, WebVTT and SubStation by pysubs2, transcripts as JSON, within limits.

What is written for the eye is taken out of a cue: markup, descriptions of sounds in brackets, notes, the dash of a
speaker; lines that stay on the screen while the next one rolls in (CEA-608's roll-up, and the automatic captions of
video sites), lines that grow while they are shown (live captions), and cues that are there twice. What is left is what
should be heard.
"""

from __future__ import annotations

import html
import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from mmdata.errors import MissingExtraError, SampleError

# Three hours of speech with a cue each second have 10,800; a larger file is not read on.
MAX_BYTES = 4 << 20
MAX_CUES = 20_000
_TAG = re.compile(r"<[^<>]*>")
# SubStation: tags in braces, of which `\p1` to `\p9` say that what follows is a drawing.
_OVERRIDE = re.compile(r"\{[^{}]*\}")
_DRAWING = re.compile(r"\\p[1-9]")
_DRAWN = "\ue000"  # for private use: no font has it, so no text
_UNSAID = re.compile(r"\[[^\[\]]*\]|\([^()]*\)|（[^（）]*）|【[^【】]*】|[♪♫#*]+")  # noqa: RUF001 (full-width on purpose)
_DASH = re.compile(r"^[^\S\n]*[-–—][^\S\n]*", re.MULTILINE)  # noqa: RUF001 (dashes)
# A time as `01:02:03,456`, the hour and the kind of separator left open; so many digits are no time of a recording.
_ARROW = re.compile(r"^[^\S\n]*(?:\d{1,4}:)?\d{1,3}:\d{1,3}[.,]\d{1,3}\s*-->", re.MULTILINE)
# Automatic captions show a line alone for 10 ms between one that comes and the next.
_SEAM_S = 0.05
# Two that speak at once overlap in some cues of a film. Where most cues run so far into the next one, ends are none.
MAX_OVERLAP_S = 0.1
_MOST = 0.5
# In live captions all cues go on with the one before but those that begin a line; in others somebody says "Why" and
# then, at once, "Why not".
_GROWN = 0.25


@dataclass(frozen=True)
class Cue:
    """Words and when they are shown.

    Attributes:
        start_s: by the file's own clock, which may be wrong.
        end_s: likewise; may lie before `start_s` in a broken file.
        text: what should be heard, on one line; empty where nothing is said.
    """

    start_s: float
    end_s: float
    text: str


class Shown(NamedTuple):
    """What is on the screen from `start_s` to `end_s`, seconds; its lines apart."""

    start_s: float
    end_s: float
    text: str


def parse_subtitles(text: str, max_cues: int = MAX_CUES) -> list[Cue]:
    """Cues, as by `as_said`, of SRT, WebVTT, ASS or SSA, or of segments as JSON.

    JSON is a list of objects with `start`, `end` (seconds) and `text`, or an object that has it as `segments`, as
    openai-whisper writes it.

    Raises:
        SampleError: `subtitles_too_large`, `not_subtitles`, `bad_subtitles`, `no_cues`, `too_many_cues`.
        MissingExtraError: pysubs2 is not installed.
    """
    if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
        raise SampleError("subtitles_too_large", f"more than {MAX_BYTES} bytes of subtitles")
    kind = _kind(text)
    # Before it is parsed, which takes a hundred times the memory of the file.
    if kind != "json" and text.count("-->" if kind in {"srt", "vtt"} else "Dialogue:") > max_cues:
        raise SampleError("too_many_cues", f"more than {max_cues} cues")
    shown = _segments(text) if kind == "json" else _events(text, kind)
    if len(shown) > max_cues:
        raise SampleError("too_many_cues", f"{len(shown)} cues, more than {max_cues}")
    if not shown:
        raise SampleError("no_cues", "no cue in the subtitles")
    return as_said(shown)


def as_said(shown: Sequence[Shown]) -> list[Cue]:
    """Cues in the order of their starts; where most run into the next one, each ends where the next begins."""
    return _ended(_new_lines(_full_grown(sorted(shown, key=lambda cue: (cue.start_s, cue.end_s)))))


def spoken_words(shown: str) -> str:
    """What of a shown text should be heard, on one line; empty where that is no letter and no digit."""
    words = _UNSAID.sub(" ", _DASH.sub("", html.unescape(_TAG.sub("", shown))))
    line = " ".join(words.split())
    return line if any(char.isalnum() for char in line) else ""


def _kind(text: str) -> str:
    head = text.lstrip("\ufeff \t\r\n")
    if head.startswith("WEBVTT"):
        return "vtt"
    if "[Events]" in text and "Dialogue:" in text:
        return "ass" if "[V4+ Styles]" in text else "ssa"
    if head[:1] in {"[", "{"}:
        return "json"
    if _ARROW.search(text):
        return "srt"
    raise SampleError("not_subtitles", "neither SRT, WebVTT, ASS or SSA, nor segments as JSON")


def _full_grown(shown: list[Shown]) -> list[Shown]:
    """Lines that come word by word, a cue for each word, as one cue: with all words, from the first one's time."""
    growing = [_goes_on(one, after) for one, after in pairwise(shown)]
    if sum(growing) <= _GROWN * len(growing):
        return shown
    whole: list[Shown] = []
    for one, grows in zip(shown, [False, *growing], strict=True):
        whole[-1:] = [one._replace(start_s=whole[-1].start_s)] if grows else [*whole[-1:], one]
    return whole


def _goes_on(before: Shown, one: Shown) -> bool:
    """Whether a cue shows what the one before it does, and more words in the same line."""
    return one.start_s <= before.end_s + _SEAM_S and one.text.strip().startswith(f"{before.text.strip()} ")


def _new_lines(shown: Sequence[Shown]) -> list[Cue]:
    """Cues of what each shows for the first time; one that shows nothing new prolongs the one before it."""
    cues: list[Cue] = []
    before = Shown(-math.inf, -math.inf, "")
    lines_before: list[str] = []
    for one in shown:
        lines = [line.strip() for line in one.text.splitlines() if line.strip()]
        kept = _rolled(before, lines_before, one, lines)
        if cues and kept and kept == len(lines):
            cues[-1] = replace(cues[-1], end_s=max(cues[-1].end_s, one.end_s))
        else:
            cues.append(Cue(one.start_s, one.end_s, spoken_words("\n".join(lines[kept:]))))
        before, lines_before = one, lines
    return cues


def _rolled(before: Shown, lines_before: Sequence[str], one: Shown, lines: Sequence[str]) -> int:
    """How many of its first lines were the last ones of the cue before, which are still shown."""
    if one.start_s > before.end_s + _SEAM_S:
        return 0
    most = min(len(lines), len(lines_before))
    same = next((n for n in range(most, 0, -1) if lines_before[-n:] == lines[:n]), 0)
    if same < len(lines):
        return same
    # Somebody may say the same twice in two cues of which the first ends when the second begins.
    seam = min(before.end_s - before.start_s, one.end_s - one.start_s) <= _SEAM_S
    return same if seam or one.start_s < before.end_s - _SEAM_S else 0


def _ended(cues: list[Cue]) -> list[Cue]:
    said = [cue for cue in cues if cue.text]
    running = sum(cue.end_s - after.start_s > MAX_OVERLAP_S for cue, after in pairwise(said))
    if running <= _MOST * (len(said) - 1):
        return cues
    ends = {id(cue): after.start_s for cue, after in pairwise(said)}
    return [replace(cue, end_s=min(cue.end_s, ends.get(id(cue), cue.end_s))) for cue in cues]


def _events(text: str, kind: str) -> list[Shown]:
    try:
        import pysubs2
    except ImportError:
        raise MissingExtraError("reading subtitles", "pysubs2", "timing") from None

    # Markup goes before pysubs2 sees it, which takes minutes for some hundred kilobytes of open or of many tags.
    text = _OVERRIDE.sub(lambda found: _DRAWN if _DRAWING.search(found[0]) else "", text).replace("{", " ")
    if kind in {"srt", "vtt"}:
        text = _TAG.sub("", text).replace("<", " ")
    try:
        with warnings.catch_warnings():
            # It warns of a layer that is no number; times and words are all that is asked for.
            warnings.simplefilter("ignore", RuntimeWarning)
            events = list(pysubs2.SSAFile.from_string(text, format_=kind))
    except (pysubs2.exceptions.Pysubs2Error, ValueError, LookupError, OverflowError) as error:
        # It raises these, and not its own, for numbers and columns that are not there.
        raise SampleError("bad_subtitles", f"cannot be read as {kind}: {error}") from None
    said = [event for event in events if not (event.is_comment or _DRAWN in event.text)]
    return [Shown(event.start / 1000, event.end / 1000, event.plaintext) for event in said]


def _segments(text: str) -> list[Shown]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SampleError("bad_subtitles", f"cannot be read as JSON: {error}") from None
    rows = value.get("segments") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise SampleError("not_subtitles", "JSON without a list of segments")
    return [_segment(row, number) for number, row in enumerate(rows)]


def _segment(row: Any, number: int) -> Shown:
    try:
        start_s, end_s, words = float(row["start"]), float(row["end"]), row["text"]
    except (TypeError, ValueError, KeyError, OverflowError):
        raise SampleError("bad_subtitles", f"segment {number}: needs numbers start and end, and text") from None
    if not (math.isfinite(start_s) and math.isfinite(end_s) and isinstance(words, str)):
        raise SampleError("bad_subtitles", f"segment {number}: needs finite start and end, and text")
    return Shown(start_s, end_s, words)
