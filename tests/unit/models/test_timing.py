from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mmdata.augment.policy import nobody
from mmdata.errors import SampleError
from mmdata.models import timing, timing_search
from mmdata.models.subtitles import Cue
from mmdata.models.timing import _misplaced, _widened, find_timing
from mmdata.models.timing_fit import GRID_S, Clock, Fit, candidates, fit_line, weighted_median
from mmdata.models.timing_pieces import Line, apart, best_path, find_pieces, joined, stretches_unheard
from mmdata.models.timing_search import Segment, _cue_starts, _groups, _spread, onsets
from mmdata.models.word_times import WordTime
from mmdata.sample import Member, Sample, child_id
from mmdata.steps.align.timing import Timing
from mmdata.steps.augment.segments import Segments
from mmdata.steps.exchange import Veto

SEED = 0
SRT = "1\n00:00:00,500 --> 00:00:01,500\nOne\n\n2\n00:00:02,000 --> 00:00:02,900\nTwo\n"


def spoken(seconds: float) -> list[tuple[float, float]]:
    """Spans of speech with pauses of chance lengths."""
    random = np.random.default_rng(SEED)
    edges = np.cumsum(random.uniform(0.5, 4.0, int(seconds / 2.25) // 2 * 2))
    return [(float(start), float(end)) for start, end in edges.reshape(-1, 2)]


def activity(spans: list[tuple[float, float]]) -> np.ndarray:
    speech_F = np.zeros(round(spans[-1][1] / GRID_S) + 100)
    for start, end in spans:
        speech_F[round(start / GRID_S) : round(end / GRID_S)] = 1.0
    return speech_F


@pytest.mark.parametrize("clock", [Clock(0.0, 0.0), Clock(3.0, 0.02), Clock(-40.0, 0.043), Clock(25.0, -0.041)])
def test_cues_and_speech_coincide_under_the_first_candidate(clock):
    spans = spoken(600)
    cues = [((a - clock.offset_s) / (1 + clock.drift), (b - clock.offset_s) / (1 + clock.drift)) for a, b in spans]
    best = candidates(activity(spans), cues, 60.0, 6)[0]
    errors = [abs(best.at(cue) - true) for (cue, _), (true, _) in zip(cues, spans, strict=True)]
    assert max(errors) < 0.5


def test_candidates_differ_by_seconds():
    spans = spoken(300)
    found = candidates(activity(spans), spans, 30.0, 4)
    assert len(found) == 4
    ends = [(clock.at(spans[0][0]), clock.at(spans[-1][1])) for clock in found]
    for i, one in enumerate(ends):
        assert all(max(abs(one[0] - two[0]), abs(one[1] - two[1])) >= 2.0 for two in ends[:i])


@given(st.floats(-60, 60), st.floats(-0.05, 0.05), st.integers(0, 2**32 - 1))
def test_a_line_is_found_among_outliers(offset_s, drift, seed):
    random = np.random.default_rng(seed)
    cue_N = np.sort(random.uniform(0, 600, 60))
    seen_N = offset_s + (1 + drift) * cue_N + random.normal(0, 0.03, 60)
    wrong = random.permutation(60)[:18]
    seen_N[wrong] += random.uniform(1, 5, 18) * random.choice([-1, 1], 18)
    fit = fit_line(cue_N, seen_N, np.ones(60))
    assert max(abs(fit.clock.at(t) - offset_s - (1 + drift) * t) for t in (0.0, 600.0)) < 0.1
    assert fit.agreeing == pytest.approx(0.7, abs=0.06)


def test_a_few_cues_within_seconds_tell_no_drift():
    fit = fit_line(np.array([1.0, 4.0, 9.0]), np.array([3.0, 6.1, 11.0]), np.ones(3))
    assert fit.clock == Clock(pytest.approx(2.0), 0.0)


def test_weights_decide_the_median():
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([5.0, 1.0, 1.0])) == 3.0
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.ones(3)) == 2.0


def test_starts_of_cues_are_told_by_characters():
    words = [
        WordTime(word, start, start + 1, probability)
        for word, start, probability in [
            ("Hello", 1.0, 0.5),
            ("there,", 2.0, 1.0),
            ("you", 3.0, 0.2),
            ("too.", 4.0, 0.4),
        ]
    ]
    assert list(_cue_starts(["Hello there,", "you too."], words)) == [
        (0, 1.0, pytest.approx(0.75)),
        (1, 3.0, pytest.approx(0.3)),
    ]


def test_groups_overlap_and_cover_all():
    cues = [Cue(3.0 * i, 3.0 * i + 2, "x") for i in range(20)]
    groups = list(_groups(cues, range(len(cues)), 10.0, 1))
    assert groups[:2] == [range(3), range(2, 5)]
    assert set().union(*groups) == set(range(20))
    assert _spread(groups, 3) == [groups[0], groups[round((len(groups) - 1) / 2)], groups[-1]]


def test_a_cue_longer_than_a_group_is_a_group():
    cues = [Cue(0, 25, "x"), Cue(26, 27, "y"), Cue(40, 65, "z")]
    assert list(_groups(cues, range(len(cues)), 10.0, 1)) == [range(1), range(1, 2), range(2, 3)]


def test_onsets_are_where_speech_begins():
    assert onsets(np.array([0.9, 0.1, 0.6, 0.7, 0.2, 0.5])) == pytest.approx([0.0, 0.064, 0.16])


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        (Segment(1, 3, "right"), None),
        (Segment(1, 3, ""), "no_words"),
        (Segment(1, 1.2, "short"), "too_short"),
        (Segment(1, 0.5, "backwards"), "too_short"),
        (Segment(1, 32, "long"), "too_long"),
        (Segment(-0.5, 1, "before"), "outside"),
        (Segment(98.5, 100.2, "after"), "outside"),
        (Segment(1, 5.2, "with the next"), "overlaps"),
        (Segment(1, 5.05, "touches"), None),
    ],
)
def test_what_cannot_be_cut_says_why(segment, reason):
    assert _misplaced([segment, Segment(5, 6, "next")], 0, 100.0) == reason


def test_margins_end_in_the_middle_of_the_pause():
    segments = [Segment(1.0, 2.0, "a"), Segment(2.06, 3.0, "b"), Segment(8.0, 9.0, "c")]
    assert _widened(segments, 1, 9.05) == Segment(pytest.approx(2.03), pytest.approx(3.1), "b")
    assert _widened(segments, 2, 9.05) == Segment(pytest.approx(7.9), pytest.approx(9.025), "c")


def judged(*scores: float | None) -> list[Segment]:
    """Segments of a second each, two seconds apart, heard where they are worth more than 1."""
    return [
        Segment(2.0 * i, 2.0 * i + 1, "x", score, None if score is not None and score > 1 else "not_heard")
        for i, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("settled", "stretches"),
    [
        ("11111111", []),
        ("00000011", [range(6)]),
        ("1100011", []),
        ("11000011", [range(2, 6)]),
        ("1100000111100000", [range(2, 7), range(11, 16)]),
        # One is heard by chance, two in a row are not.
        ("110010001", [range(2, 9)]),
        ("110011000", []),
        ("", []),
    ],
)
def test_stretches_that_are_searched_for_again(settled, stretches):
    assert list(stretches_unheard([mark == "1" for mark in settled])) == stretches


def test_each_cue_follows_the_line_of_most_worth_and_changes_have_a_price():
    worth_KQ = np.array([[4, 4, 4, 0, 0, 1.5, 0, -1], [0, 0, 0, 3, 3, -1, 3, 3]], np.float64)
    assert best_path(worth_KQ) == [0, 0, 0, 1, 1, 1, 1, 1]
    assert best_path(worth_KQ[:1]) == [0] * 8


@given(st.lists(st.lists(st.integers(-2, 4), min_size=5, max_size=5), min_size=1, max_size=3))
def test_no_other_path_is_worth_more(rows):
    worth_KQ = np.array(rows, np.float64)

    def total(path: Sequence[int]) -> float:
        changes = sum(one != other for one, other in pairwise(path))
        return sum(worth_KQ[k, i] for i, k in enumerate(path)) - 4.0 * changes

    assert total(best_path(worth_KQ)) == max(map(total, product(range(len(rows)), repeat=5)))


def test_what_two_lines_place_at_one_time_is_the_likelier_ones():
    one, other = Segment(5, 7, "a", 3.0), Segment(5.5, 7.5, "b", 2.0)
    assert [s.reason for s in apart([one, other], [0, 1])] == [None, "overlaps"]
    assert [s.reason for s in apart([other, one], [0, 1])] == ["overlaps", None]
    likelier = replace(other, score=4.0)
    assert [s.reason for s in apart([one, likelier], [0, 1])] == ["overlaps", None]
    assert apart([one, other], [0, 0]) == [one, other]
    assert apart([one, replace(other, start_s=6.95)], [0, 1])[0].end_s == 6.95


def test_lines_share_the_cues_and_one_that_places_few_is_none():
    cues = [Cue(2.0 * i, 2.0 * i + 1, "x") for i in range(10)]
    first = Line(Clock(0, 0), 0.0, 0, judged(*[4.0] * 5, *[-1.0] * 5))
    second = [replace(s, start_s=s.start_s + 100, end_s=s.end_s + 100) for s in judged(*[-1.0] * 2, *[3.0] * 5)]
    chance = Line(Clock(500, 0), 0.0, 0, judged(*[-1.0] * 5, 1.5, *[-1.0] * 4))
    pieces, segments = joined([Line(Clock(106, 0), 0.1, 3, second), chance, first], cues)
    assert [(piece.clock.offset_s, piece.first, piece.placed) for piece in pieces] == [(0, 0, 5), (106, 5, 5)]
    assert [segment.start_s for segment in segments] == [0, 2, 4, 6, 8, 104, 106, 108, 110, 112]
    assert all(segment.reason is None for segment in segments)


def displaced(cues: list[Cue], shift_s: float) -> list[Cue]:
    return [Cue(cue.start_s + shift_s, cue.end_s + shift_s, cue.text) for cue in cues]


class Searched:
    """A finder of a recording in which every cue from `changes` on is said 30 s later than those before it."""

    def __init__(self, cues: Sequence[Cue], changes: int, found_at_once: bool) -> None:
        self.cues, self.changes, self.found_at_once = cues, changes, found_at_once
        self.searches: list[tuple[range, float]] = []
        self.taken: list[tuple[float, float]] = []

    def first_fit(self, span: range, base: Clock, max_offset_s: float) -> Fit | None:
        assert max_offset_s == 60.0
        self.searches.append((span, base.offset_s))
        before = sum(i < self.changes for i in span)
        if not self.found_at_once and 0 < before < len(span):
            return None
        return Fit(Clock(0.0 if before > len(span) / 2 else 30.0, 0.0), 0.0, 1.0)

    def take(self, start_s: float, end_s: float) -> None:
        self.taken.append((start_s, end_s))

    def judge(self, clock: Clock, cues: Sequence[Cue]) -> list[Segment]:
        right = [clock.offset_s == (0.0 if cue.start_s < 2.0 * self.changes else 30.0) for cue in cues]
        return [
            replace(s, start_s=clock.at(c.start_s))
            for s, c in zip(judged(*[4.0 * r for r in right]), cues, strict=True)
        ]


def test_what_one_line_leaves_is_searched_for_from_there():
    finder = Searched(cues := [Cue(2.0 * i, 2.0 * i + 1, "x") for i in range(40)], 25, found_at_once=True)
    lines = find_pieces(finder, cues, finder.judge, 60.0)
    assert finder.searches == [(range(40), 0.0), (range(25, 40), 0.0)]
    assert [(line.clock.offset_s, line.first, len(line.segments)) for line in lines] == [(0.0, 0, 40), (30.0, 15, 25)]
    moved = displaced(cues[25:], 30.0)
    assert finder.taken == [(cue.start_s, cue.end_s) for cue in [*cues[:25], *moved]]


def test_what_is_longest_is_searched_for_first():
    cues = [Cue(2.0 * i, 2.0 * i + 1, "x") for i in range(110)]
    finder = Searched(cues, 100, found_at_once=True)
    unsaid = [cue for i, cue in enumerate(cues[:90]) if i % 6 < 4]

    def judge(clock: Clock, some: Sequence[Cue]) -> list[Segment]:
        placed = zip(finder.judge(clock, some), some, strict=True)
        return [replace(s, reason="not_heard") if cue in unsaid else s for s, cue in placed]

    lines = find_pieces(finder, cues, judge, 60.0)
    assert finder.searches[:3] == [(range(110), 0.0), (range(100, 110), 0.0), (range(4), 0.0)]
    assert len(finder.searches) == 12
    assert 30.0 in [line.clock.offset_s for line in lines]


def test_a_search_goes_on_from_the_line_under_which_nothing_was_heard():
    finder = Searched(cues := [Cue(2.0 * i, 2.0 * i + 1, "x") for i in range(40)], 15, found_at_once=True)
    find_pieces(finder, cues, finder.judge, 60.0)
    assert finder.searches == [(range(40), 0.0), (range(15), 30.0)]


def test_halves_are_searched_where_the_whole_has_no_line():
    finder = Searched(cues := [Cue(2.0 * i, 2.0 * i + 1, "x") for i in range(40)], 20, found_at_once=False)
    lines = find_pieces(finder, cues, finder.judge, 60.0)
    assert [span for span, _ in finder.searches] == [range(40), range(20), range(20, 40)]
    pieces, segments = joined(lines, cues)
    assert [(piece.clock.offset_s, piece.first, piece.placed) for piece in pieces] == [(0.0, 0, 20), (30.0, 20, 20)]
    assert [segment.start_s for segment in segments[18:22]] == [36, 38, 70, 72]


@given(st.floats(-9, 9), st.floats(-0.05, 0.05), st.floats(-9, 9), st.floats(-0.05, 0.05), st.floats(0, 99))
def test_one_clock_after_the_other(offset, drift, then_offset, then_drift, at_s):
    one, other = Clock(offset, drift), Clock(then_offset, then_drift)
    assert one.then(other).at(at_s) == pytest.approx(other.at(one.at(at_s)), abs=1e-9)


@pytest.mark.parametrize(
    ("cues", "problem"),
    [
        ([Cue(0, 1, "one"), Cue(2, 3, "two"), Cue(4, 5, "")], "too_few_cues"),
        ([Cue(0, 1, "one"), Cue(2, 3, "two"), Cue(4, 5, "three")], "no_speech"),
    ],
)
def test_what_has_no_line_says_why(cues, problem):
    found = find_timing(None, np.zeros(160_000, np.int16), cues, "en")
    assert (found.pieces, found.problem) == ((), problem)


def test_cues_that_no_line_brings_into_the_recording_are_not_searched_for(monkeypatch):
    searched = []
    monkeypatch.setattr(timing, "speech_activity", lambda pcm_T: np.ones(pcm_T.size // 512))
    monkeypatch.setattr(timing_search, "candidates", lambda *given: searched.append(given[1]) or [])
    cues = [Cue(second, second + 1, "word") for second in (0, 2, 70)]
    found = find_timing(None, np.zeros(160_000, np.int16), [*cues, Cue(359_999, 360_000, "credit")], "en")
    assert (found.problem, searched) == ("no_agreement", [[(0, 1), (2, 3), (70, 71)]])
    milliseconds = [Cue(cue.start_s * 1000, cue.start_s * 1000 + 1, cue.text) for cue in cues]
    assert find_timing(None, np.zeros(160_000, np.int16), milliseconds, "en").problem == "no_agreement"
    assert len(searched) == 1


def recording(seconds: float = 4.0, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    pcm = np.random.default_rng(SEED).integers(-9000, 9000, int(seconds * rate)).astype(np.int16)
    soundfile.write(buffer, pcm, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def sample(found: dict) -> Sample:
    speech = Member("speech", "audio", "audio/wav", "wav", recording(), "en", {"duration_s": 4.0})
    subtitles = Member("subtitles", "text", "text/plain", "txt", SRT.encode(), "en", {})
    picture = Member("picture", "image", "image/png", "png", b"png", None, {})
    members = {member.name: member for member in (speech, subtitles, picture)}
    return Sample("0" * 32, "films", "one", members, found={"timing": {"speech_subtitles": found}} if found else {})


SEGMENTS = [
    {"start_s": 0.5, "end_s": 1.5, "text": "One", "score": 3.0},
    {"start_s": 2.0, "end_s": 2.9, "text": "Two", "score": 0.1, "reason": "not_heard"},
]


def test_each_placed_cue_is_a_child_and_each_other_a_veto():
    parent = sample({"segments": SEGMENTS})
    child, veto = Segments().make(parent, SEED, nobody)
    assert isinstance(child, Sample)
    assert (child.sample_id, child.parent_id) == (child_id("0" * 32, "segments_0000"), "0" * 32)
    assert (child.variant, dict(child.found), list(child.members)) == ("segments_0000", {}, ["speech", "words"])
    clip, rate = soundfile.read(io.BytesIO(child.members["speech"].data), dtype="int16")
    whole, _ = soundfile.read(io.BytesIO(parent.members["speech"].data), dtype="int16")
    assert rate == 16_000
    assert np.abs(clip.astype(int) - whole[8000:24_000]).max() <= 1
    assert child.members["speech"].measures == {"duration_s": 1.0, "sample_rate": 16_000, "channels": 1}
    assert (child.members["words"].text, child.members["words"].lang) == ("One", "en")
    assert veto == Veto("segments_0001", "not_heard", "Whisper does not hear these words there: 'Two'")


def test_what_is_to_be_kept_is_kept():
    child, _ = Segments(keep=["picture"], text="said").make(sample({"segments": SEGMENTS}), SEED, nobody)
    assert isinstance(child, Sample)
    assert list(child.members) == ["picture", "speech", "said"]


@pytest.mark.parametrize(("found", "reason"), [({}, "not_timed"), ({"problem": "no_agreement"}, "no_agreement")])
def test_no_segments_no_children(found, reason):
    with pytest.raises(SampleError) as error:
        list(Segments().make(sample(found), SEED, nobody))
    assert error.value.reason == reason


def test_prepare_gives_audio_and_cues():
    step = Timing(model="tiny.en")
    item = step.prepare(frozenset({"en"}), sample({}), step.edges())
    assert (item.audio_T.dtype, item.audio_T.shape, item.lang) == (np.int16, (64_000,), "en")
    assert item.cues == [Cue(0.5, 1.5, "One"), Cue(2.0, 2.9, "Two")]


@pytest.mark.parametrize(
    ("step", "languages", "problem"),
    [
        (Timing(model="tiny.en", max_duration_s=3), {"en"}, "recording_too_long"),
        (Timing(model="tiny.en"), {"de"}, "language_unknown_to_model"),
    ],
)
def test_what_the_model_cannot_judge_has_no_score(step, languages, problem):
    score = step.prepare(frozenset(languages), sample({}), step.edges())
    assert (score.score, score.measures) == (None, {"cues": 2, "placed": 0, "problem": problem})


def test_a_sample_without_subtitles_is_not_looked_at():
    step, whole = Timing(model="tiny.en"), sample({})
    members = {name: member for name, member in whole.members.items() if name != "subtitles"}
    assert step.prepare(None, replace(whole, members=members), step.edges()) is None
