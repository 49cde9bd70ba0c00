"""Subtitles against long speech: the recording's clock from the subtitles', and which cues are heard where they say.

A line is searched for (`timing_search`), and each cue is judged by itself, by Whisper's agreement of its words with its
clip. Recordings that were cut differently than their subtitles, or have advertisements between, follow several lines:
what one leaves unheard is searched for again, in what speech is left (`timing_pieces`).

Shapes: T samples of a recording, C of a clip, both at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmdata.errors import SampleError
from mmdata.models.subtitles import MAX_OVERLAP_S, Cue
from mmdata.models.timing_fit import MAX_DRIFT, Clock
from mmdata.models.timing_pieces import Piece, find_pieces, joined
from mmdata.models.timing_search import MIN_CUES, VAD_FRAME_S, Finder, Pcm, Segment, clip_of, speech_activity
from mmdata.models.whisper import MAX_AUDIO_S, SAMPLE_RATE, Whisper

MIN_CUE_S = 0.3
_MIN_SPEECH_S = 1.0
_CLIP_MARGIN_S = 0.1


@dataclass(frozen=True)
class Timing:
    """What was found of a recording and its subtitles.

    Attributes:
        pieces: lines from the subtitles' time to the recording's, in the order of the cues; most recordings have one.
        segments: one a cue, in the order of the cues; empty without a line.
        problem: why there is no line: `too_few_cues`, `no_speech`, `no_agreement`.
    """

    pieces: Sequence[Piece] = ()
    segments: Sequence[Segment] = ()
    problem: str | None = None

    @property
    def main(self) -> Piece:
        """The line of most cues."""
        return max(self.pieces, key=lambda piece: piece.placed)


def find_timing(
    whisper: Whisper,
    pcm_T: Pcm,
    cues: Sequence[Cue],
    language: str | None,
    max_offset_s: float = 60.0,
    min_agreement: float = 1.0,
) -> Timing:
    """Where each cue is said.

    Args:
        whisper: the model; `tiny` does.
        pcm_T: the recording as int16, mono, 16 kHz.
        cues: sorted by their starts.
        language: of the speech; None to let Whisper tell, window by window.
        max_offset_s: how far the cues' middle may be off; and how far what another line places, from that line.
        min_agreement: cues with less are `not_heard`.

    Raises MissingExtraError where faster-whisper is not installed, FatalError for a language unknown to the model.
    """
    usable = [cue for cue in cues if cue.text and MIN_CUE_S <= cue.end_s - cue.start_s <= MAX_AUDIO_S]
    if len(usable) < MIN_CUES:
        return Timing(problem="too_few_cues")
    speech_F = speech_activity(pcm_T)
    if speech_F.sum() * VAD_FRAME_S < _MIN_SPEECH_S:
        return Timing(problem="no_speech")
    usable = _in_reach(usable, pcm_T.size / SAMPLE_RATE, max_offset_s)
    if len(usable) < MIN_CUES:
        return Timing(problem="no_agreement")

    def judge(clock: Clock, some: Sequence[Cue]) -> list[Segment]:
        return _judge(whisper, pcm_T, [_placed(cue, clock) for cue in some], language, min_agreement)

    finder = Finder(whisper, pcm_T, usable, speech_F, language)
    found = find_pieces(finder, cues, judge, max_offset_s)
    if not found:
        return Timing(problem="no_agreement")
    return Timing(*joined(found, cues))


def _in_reach(cues: Sequence[Cue], duration_s: float, max_offset_s: float) -> list[Cue]:
    """Those that some line can bring into the recording.

    The lines that are tried grow with the time that cues span: a credit at 99:59:59 took minutes and gigabytes.
    """
    reach_s = (duration_s + max_offset_s) / (1 - MAX_DRIFT)
    return [cue for cue in cues if abs(cue.start_s) <= reach_s]


def _placed(cue: Cue, clock: Clock) -> Segment:
    return Segment(clock.at(cue.start_s), clock.at(cue.end_s), cue.text)


def _judge(
    whisper: Whisper, pcm_T: Pcm, segments: list[Segment], language: str | None, min_agreement: float
) -> list[Segment]:
    """The segments with their margins, scores and reasons."""
    duration_s = pcm_T.size / SAMPLE_RATE
    judged = [replace(s, reason=_misplaced(segments, i, duration_s)) for i, s in enumerate(segments)]
    judged = [_widened(judged, i, duration_s) for i in range(len(judged))]
    clips = [clip_of(pcm_T, s.start_s, s.end_s) if s.reason is None else None for s in judged]
    asked = []
    for index, clip_C in enumerate(clips):
        if clip_C is None:
            continue
        try:
            whisper.check(clip_C, judged[index].text)
            asked.append(index)
        except SampleError as error:
            judged[index] = replace(judged[index], reason=error.reason)
    scores = whisper.score(
        [clip_C for i in asked if (clip_C := clips[i]) is not None],
        [judged[i].text for i in asked],
        [language] * len(asked),
    )
    for index, found in zip(asked, scores, strict=True):
        reason = None if found.score >= min_agreement else "not_heard"
        judged[index] = replace(judged[index], score=found.score, reason=reason)
    return judged


def _misplaced(segments: Sequence[Segment], index: int, duration_s: float) -> str | None:
    """Why a segment cannot be cut out, by its times alone."""
    mine = segments[index]
    if not mine.text:
        return "no_words"
    if mine.end_s - mine.start_s < MIN_CUE_S:
        return "too_short"
    if mine.end_s - mine.start_s > MAX_AUDIO_S:
        return "too_long"
    if mine.start_s < -MAX_OVERLAP_S or mine.end_s > duration_s + MAX_OVERLAP_S:
        return "outside"
    beside = [other for other in segments[max(0, index - 1) : index + 2] if other is not mine and other.text]
    if any(min(mine.end_s, o.end_s) - max(mine.start_s, o.start_s) > MAX_OVERLAP_S for o in beside):
        return "overlaps"
    return None


def _widened(segments: Sequence[Segment], index: int, duration_s: float) -> Segment:
    """The segment with a margin on both sides, at most to the middle of the pause before the next one."""
    mine = segments[index]
    if mine.reason is not None:
        return mine
    before_s = segments[index - 1].end_s if index else 0.0
    after_s = segments[index + 1].start_s if index + 1 < len(segments) else duration_s
    room_s = (MAX_AUDIO_S - (mine.end_s - mine.start_s)) / 2
    left_s = min(max(mine.start_s - before_s, 0.0) / 2, _CLIP_MARGIN_S, room_s)
    right_s = min(max(after_s - mine.end_s, 0.0) / 2, _CLIP_MARGIN_S, room_s)
    return replace(mine, start_s=max(mine.start_s - left_s, 0.0), end_s=min(mine.end_s + right_s, duration_s))
