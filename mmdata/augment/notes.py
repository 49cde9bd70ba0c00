"""What a sample's own members say of where things are and when words are said.

Boxes stand in a text member as JSON, in pixels: `[{"box": [x0, y0, x1, y1], "phrase": "a dog"}]`, the phrase as a text
of the sample has it, or none; those of a film say their `frame` too, from 0. Times of words stand in one as JSON, in
seconds: `[{"word": "a", "start_s": 0.1, "end_s": 0.2}]`, or as subtitles (SRT, WebVTT, ASS), whose cues then move like
words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mmdata.augment.base import Box, Text, VetoError, View, WordTime
from mmdata.errors import SampleError
from mmdata.sample import Member

_MOST: Final = 10_000
_MARKS: Final = {"WEBVTT": "vtt", "[Script": "ass"}


def read_boxes(member: Member, shape: tuple[int, ...], texts: Mapping[str, Text]) -> tuple[Box, ...]:
    """Relative boxes in a picture of (height, width, ...); a phrase belongs to the first text that has it.

    Raises SampleError `bad_boxes`.
    """
    boxes = (_box(member, row, shape, texts) for row in _rows(member, "bad_boxes"))
    return tuple(box for box in boxes if box)


def read_film_boxes(
    member: Member, shape: tuple[int, ...], frames: int, texts: Mapping[str, Text]
) -> tuple[tuple[Box, ...], ...]:
    """The same of each frame of a film. Raises SampleError `bad_boxes`."""
    found: list[list[Box]] = [[] for _ in range(frames)]
    for row in _rows(member, "bad_boxes"):
        frame = row.get("frame")
        if type(frame) is not int or not 0 <= frame < frames:
            raise SampleError("bad_boxes", f"'{member.name}': no frame of 0 to {frames - 1} in {str(row)[:80]}")
        if box := _box(member, row, shape, texts):
            found[frame].append(box)
    return tuple(map(tuple, found))


def _box(member: Member, row: Mapping[str, Any], shape: tuple[int, ...], texts: Mapping[str, Text]) -> Box | None:
    """None where it has no area within the picture."""
    height, width = shape[:2]
    try:
        x0, y0, x1, y1 = (float(value) for value in row["box"])
    except (KeyError, TypeError, ValueError):
        raise SampleError("bad_boxes", f"'{member.name}': no box of four numbers in {str(row)[:80]}") from None
    if not (x0 < x1 and y0 < y1):
        # So is [x, y, width, height] mostly, and what is no number.
        raise SampleError("bad_boxes", f"'{member.name}': no x0 < x1, y0 < y1 in {str(row)[:80]}")
    box = (_unit(x0 / width), _unit(y0 / height), _unit(x1 / width), _unit(y1 / height))
    if not (box[0] < box[2] and box[1] < box[3]):
        return None
    phrase = row.get("phrase")
    return Box(box, _text_of(phrase, texts), phrase if isinstance(phrase, str) else None)


def write_boxes(boxes: Iterable[Box], width: int, height: int) -> str:
    """The same form, in pixels of the new picture."""
    return json.dumps([_row(box, width, height) for box in boxes], ensure_ascii=False)


def write_film_boxes(frames: Iterable[Iterable[Box]], width: int, height: int) -> str:
    """The same form, frame by frame."""
    rows = [{"frame": n, **_row(box, width, height)} for n, boxes in enumerate(frames) for box in boxes]
    return json.dumps(rows, ensure_ascii=False)


def _row(box: Box, width: int, height: int) -> dict[str, Any]:
    sides = (width, height, width, height)
    row: dict[str, Any] = {"box": [round(v * side, 2) for v, side in zip(box.box, sides, strict=True)]}
    return row | ({"phrase": box.phrase} if box.phrase else {})


def read_words(member: Member) -> tuple[WordTime, ...]:
    """Words or cues. Raises SampleError `bad_times`."""
    if not _is_json(member.text):
        return _cues(member)
    try:
        words = tuple(
            WordTime(str(row["word"]), float(row["start_s"]), float(row["end_s"])) for row in _rows(member, "bad_times")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SampleError("bad_times", f"'{member.name}': a word without its times: {error}") from None
    for word in words:
        if not 0 <= word.start_s <= word.end_s < math.inf:
            told = f"'{word.word}' from {word.start_s} to {word.end_s} s"
            raise SampleError("bad_times", f"'{member.name}': no time is {told}")
    return words


def write_words(member: Member, words: Iterable[WordTime]) -> str:
    """In the form that the member has."""
    if _is_json(member.text):
        rows = [{"word": w.word, "start_s": round(w.start_s, 4), "end_s": round(w.end_s, 4)} for w in words]
        return json.dumps(rows, ensure_ascii=False)
    import pysubs2

    events = [pysubs2.SSAEvent(round(w.start_s * 1000), round(w.end_s * 1000), w.word) for w in words]
    file = pysubs2.SSAFile()
    file.events = events
    return str(file.to_string(_form(member.text)))


def _is_json(text: str) -> bool:
    # ASS begins with "[Script Info]".
    return text.lstrip().startswith("[") and _form(text) != "ass"


def check_found(name: str, view: View) -> None:
    """Raises VetoError where the things of a picture were looked for in vain, and texts say that there are some."""
    told = next((text.text for text in view.texts.values() if any(map(str.isalpha, text.text))), None)
    every = {**view.boxes, **{film: sum(frames, ()) for film, frames in view.film_boxes.items()}}
    empty = next((one for one, boxes in every.items() if not boxes), None)
    if told and empty:
        raise VetoError("nothing_found", f"no thing of '{told[:80]}' has a box in '{empty}': {name} may take it away")


def claims(view: View, text: str) -> list[str]:
    """Phrases of a text that stand for boxes."""
    films = (boxes for frames in view.film_boxes.values() for boxes in frames)
    found = [b.phrase for boxes in (*view.boxes.values(), *films) for b in boxes if b.text == text and b.phrase]
    return list(dict.fromkeys(found))


def _rows(member: Member, reason: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(member.text)
    except ValueError as error:
        raise SampleError(reason, f"'{member.name}' is no JSON: {error}") from None
    if not isinstance(rows, list) or len(rows) > _MOST or not all(isinstance(row, dict) for row in rows):
        raise SampleError(reason, f"'{member.name}' is no list of up to {_MOST} objects")
    return rows


def _cues(member: Member) -> tuple[WordTime, ...]:
    from mmdata.models.subtitles import parse_subtitles

    return tuple(WordTime(cue.text, cue.start_s, cue.end_s) for cue in parse_subtitles(member.text))


def _form(text: str) -> str:
    head = text.lstrip("\ufeff \r\n")
    return next((form for mark, form in _MARKS.items() if head.startswith(mark)), "srt")


def _text_of(phrase: Any, texts: Mapping[str, Text]) -> str | None:
    if not isinstance(phrase, str) or not phrase:
        return None
    return next((name for name, text in texts.items() if phrase.casefold() in text.text.casefold()), None)


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))
