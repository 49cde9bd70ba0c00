from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdata.errors import SampleError
from mmdata.models.subtitles import Cue, parse_subtitles, spoken_words

SRT = """1
00:00:01,000 --> 00:00:02,500
{\\an8}<b>Hi</b> there,
<font color="red">you</font> &amp; me.

2
00:00:03,250 --> 00:00:04,000
[door slams]

3
00:01:00,000 --> 00:01:02,000
- Who is it?
- Me (sighs).
"""
CUES = [
    Cue(1.0, 2.5, "Hi there, you & me."),
    Cue(3.25, 4.0, ""),
    Cue(60.0, 62.0, "Who is it? Me ."),
]
VTT = """WEBVTT - film

NOTE nothing to see

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.500 align:start position:0%
<v Bob>Hi <i>there</i>, you &amp; me.

00:03.250 --> 00:04.000
♪♪

00:01:00.000 --> 00:01:02.000
<c.yellow>- Who is it?</c>
- Me (sighs).
"""
ASS = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,20

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:03.25,0:00:04.00,Default,,0,0,0,,[door slams]
Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\pos(1,2)}Hi there,\\Nyou & me.
Comment: 0,0:00:09.00,0:00:10.00,Default,,0,0,0,,not shown
Dialogue: 0,0:00:09.00,0:00:10.00,Default,,0,0,0,,{\\p1}m 0 0 l 100 100{\\p0}
Dialogue: 0,0:01:00.00,0:01:02.00,Default,,0,0,0,,Who is it? Me (sighs).
"""
SEGMENTS = [
    {"id": 0, "start": 1, "end": 2.5, "text": " Hi there, you & me."},
    {"id": 1, "start": 3.25, "end": 4.0, "text": "[door slams]"},
    {"id": 2, "start": 60.0, "end": 62.0, "text": "Who is it? Me (sighs)."},
]


@pytest.mark.parametrize(
    "text",
    [SRT, SRT.replace("\n", "\r\n"), "\ufeff" + SRT, SRT.strip(), VTT, ASS, json.dumps(SEGMENTS)],
    ids=["srt", "crlf", "bom", "stripped", "vtt", "ass", "json"],
)
def test_every_format_gives_the_same_cues(text):
    assert parse_subtitles(text) == CUES


def test_segments_as_whisper_writes_them():
    assert parse_subtitles(json.dumps({"text": "...", "segments": SEGMENTS})) == CUES


# As video sites write what they hear by themselves: a line comes word by word under the one before, then stays alone.
ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:00.160 --> 00:00:02.350 align:start position:0%
\x20
hello<00:00:00.400><c> everyone</c>

00:00:02.350 --> 00:00:02.360 align:start position:0%
hello everyone
\x20

00:00:02.360 --> 00:00:04.500 align:start position:0%
hello everyone
and<00:00:02.600><c> welcome</c><c> back</c>

00:00:04.500 --> 00:00:04.510 align:start position:0%
and welcome back
\x20

00:00:04.510 --> 00:00:06.000 align:start position:0%
and welcome back
and<00:00:04.900><c> welcome</c><c> back</c>
"""


def segments(*rows: tuple[float, float, str]) -> str:
    return json.dumps([{"start": start, "end": end, "text": text} for start, end, text in rows])


def test_lines_that_roll_up_are_said_once():
    assert parse_subtitles(ROLLING) == [
        Cue(0.16, 2.36, "hello everyone"),
        Cue(2.36, 4.51, "and welcome back"),
        Cue(4.51, 6.0, "and welcome back"),
    ]


def test_several_lines_may_stay():
    shown = segments((0, 2, "one\ntwo\nthree"), (2, 4, "two\nthree\nfour"), (4, 6, "three\nfour\nfive"))
    assert [cue.text for cue in parse_subtitles(shown)] == ["one two three", "four", "five"]


def test_a_line_that_comes_word_by_word_is_said_once():
    shown = [
        (0.0, 0.4, "hello"),
        (0.4, 0.8, "hello every one"),
        (0.8, 2.3, "hello every one\nand"),
        (2.3, 2.6, "hello every one\nand welcome"),
        (2.6, 3.0, "hello every one\nand welcome back"),
        (3.0, 3.5, "and welcome back\nto"),
        (3.5, 4.0, "and welcome back\nto the"),
        (6.0, 7.0, "and welcome back\nto the show"),
    ]
    assert [cue for cue in parse_subtitles(segments(*shown)) if cue.text] == [
        Cue(0.0, 0.8, "hello every one"),
        Cue(0.8, 3.0, "and welcome back"),
        Cue(3.0, 4.0, "to the"),
        Cue(6.0, 7.0, "and welcome back to the show"),
    ]


def test_who_begins_again_with_the_same_words_says_them_twice():
    cues = [(0.0, 1.0, "Why"), (1.0, 2.0, "Why not"), *((n, n + 0.9, f"Line {n}") for n in range(3, 12))]
    assert parse_subtitles(segments(*cues)) == [Cue(*cue) for cue in cues]


def test_a_cue_that_is_there_twice_is_one():
    cues = [(0.0, 2.0, "one"), (2.5, 4.0, "two"), (4.5, 6.0, "three")]
    assert parse_subtitles(segments(*cues, *cues)) == [Cue(*cue) for cue in cues]


@pytest.mark.parametrize("pause_s", [0.0, 1.0])
def test_what_is_said_again_is_a_cue_again(pause_s):
    twice = [(0.0, 2.0, "no"), (2.0 + pause_s, 4.0, "no"), (5.0, 6.0, "yes")]
    assert parse_subtitles(segments(*twice)) == [Cue(*cue) for cue in twice]


def test_ends_that_most_cues_run_over_are_where_the_next_begins():
    shown = segments((0, 5, "one"), (2, 7, "two"), (3, 3.5, "[door slams]"), (4, 9, "three"), (20, 25, "four"))
    ends = [cue.end_s for cue in parse_subtitles(shown)]
    assert ends == [2.0, 4.0, 3.5, 9.0, 25.0]


def test_two_that_speak_at_once_do():
    cues = [(0.0, 2.0, "one"), (2.0, 4.0, "two"), (3.0, 5.0, "three"), (6.0, 7.0, "four")]
    assert parse_subtitles(segments(*cues)) == [Cue(*cue) for cue in cues]


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("<i>Hello</i>", "Hello"),
        ("[music] Hello （笑）", "Hello"),  # noqa: RUF001
        ("♪ la la ♪", "la la"),
        ("...", ""),
        ("– Yes.\n– No.", "Yes. No."),  # noqa: RUF001
        ("2 < 3", "2 < 3"),
        ("a well-known fact", "a well-known fact"),
        ("你好", "你好"),
    ],
)
def test_what_is_not_said_is_taken_out(shown, said):
    assert spoken_words(shown) == said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not_subtitles"),
        ("Just a sentence.", "not_subtitles"),
        ("a --> b", "not_subtitles"),
        ("{}", "not_subtitles"),
        ('{"segments": 3}', "not_subtitles"),
        ("[1]", "bad_subtitles"),
        ("[" * 100_000, "bad_subtitles"),
        ('[{"start": 0, "end": 1}]', "bad_subtitles"),
        ('[{"start": 0, "end": 1e999, "text": "a"}]', "bad_subtitles"),
        ('[{"start": 0, "end": 1, "text": 2}]', "bad_subtitles"),
        (ASS.replace("0:00:03.25", "soon"), "bad_subtitles"),
        ("WEBVTT", "no_cues"),
        ("[]", "no_cues"),
        ("00:00:01,000 --> 00:00:02,000\na\n\n" * 20_001, "too_many_cues"),
        ("x" * (5 << 20), "subtitles_too_large"),
        ("é" * (3 << 20), "subtitles_too_large"),
    ],
    ids=range(16),
)
def test_what_is_no_subtitles_says_why(text, reason):
    with pytest.raises(SampleError) as error:
        parse_subtitles(text)
    assert error.value.reason == reason


SHOWN = "00:00:01,000 --> 00:00:02,000\n"
EVENT = ASS[: ASS.index("Dialogue")] + "Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,"


@pytest.mark.parametrize(
    "text",
    [
        SHOWN + "<" * 300_000,
        SHOWN + "{" * 300_000,
        SHOWN + "[(" * 300_000,
        SHOWN + "-\t" * 300_000,
        SHOWN + "\n" * 300_000 + "x",
        EVENT + "{\\p1}" * 100_000,
        EVENT + "\\N" * 300_000,
        "\n" * 300_000 + "-->",
        "00:00:01" + " " * 300_000,
    ],
    ids=["tags", "braces", "brackets", "dashes", "lines", "drawings", "breaks", "blank", "spaces"],
)
def test_hostile_text_takes_no_time(text):
    began = time.process_time()
    with contextlib.suppress(SampleError):
        parse_subtitles(text)
    assert time.process_time() - began < 3


@given(st.text(alphabet="01:,.->\n {}<>\\[]WEBVTTp", max_size=200))
def test_only_sample_errors_leave(text):
    for head in ("", "WEBVTT\n\n", SHOWN, EVENT, "[", '{"segments": ['):
        try:
            cues = parse_subtitles(head + text)
        except SampleError:
            continue
        assert cues == sorted(cues, key=lambda cue: (cue.start_s, cue.end_s))
