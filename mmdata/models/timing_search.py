"""The search for the line of some cues of a recording: from the subtitles' clock to the recording's.

Coarse: the voice activity of Silero against the time that cues take, over offset and drift; of the best lines the first
under which Whisper finds the cues' words likely. Fine: words of neighbouring cues are timed together in windows of
the recording (Whisper's cross-attention), moved to the onset of speech beside them, and a robust line is laid through
the starts of cues; twice, the second time with narrower windows.

Shapes: T samples of a recording, C of a clip, both at 16 kHz; F frames of 32 ms; N observations; O onsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmdata.errors import MissingExtraError, SampleError
from mmdata.models.subtitles import Cue
from mmdata.models.timing_fit import GRID_S, Clock, Fit, Floats, candidates, fit_line
from mmdata.models.whisper import SAMPLE_RATE, Whisper
from mmdata.models.whisper_network import AudioC
from mmdata.models.word_times import WordTime

Pcm = npt.NDArray[np.int16]

MIN_CUES = 3
_VAD_FRAME_C = 512  # 32 ms, what Silero was trained on
VAD_FRAME_S = _VAD_FRAME_C / SAMPLE_RATE
_VAD_BLOCK_C = _VAD_FRAME_C * 9375  # 5 minutes: its input is 1.1 times the audio again, as float32
_FRAMES_A_GRID_STEP = round(GRID_S / VAD_FRAME_S)
_SPEECH = 0.5  # Silero's own threshold
_CANDIDATES = 6
_TRIED_GROUPS = 6
_FITTED_GROUPS = 40
# Words of a group are timed together: as long as windows with their margins fit into Whisper's 30 s.
_GROUP_S = 20.0
_TRIED_GROUP_S = 10.0
# How far the words may lie from where they are expected, in the first pass and in the second.
_MARGINS_S = (2.5, 0.8)
_TRIED_MARGIN_S = 1.5
# Whisper hears a word after a pause some 0.06 s late (median on the narrated film), Silero within a frame or two. A
# start in running speech has no onset; it counts less.
_ONSET_REACH_S = 0.3
_NO_ONSET_WEIGHT = 0.3
# Groups of the narrated film under tiny.en: 3.5 where they are, 2.8 off by 3 s, 1.7 by 5 s, below 0 by 10 s. Words of
# the first pass may be 2.5 s off; a line that is too far off fits badly, and the next one is tried.
_MIN_TRIED_AGREEMENT = 1.0
_MIN_AGREEING = 0.5


@dataclass(frozen=True)
class Segment:
    """One cue in the recording, or why it is not there.

    Attributes:
        start_s: in the recording, with a margin of 0.1 s where no other cue is in the way.
        end_s: likewise.
        text: what should be heard.
        score: Whisper's agreement (nats a token over silence); None where it was not asked.
        reason: why the cue cannot be used, None where it can: `no_words`, `too_short`, `too_long`, `outside`,
            `overlaps`, `text_too_long`, `not_heard`.
    """

    start_s: float
    end_s: float
    text: str
    score: float | None = None
    reason: str | None = None


class _Seen(NamedTuple):
    cue_s: float
    true_s: float
    weight: float


def speech_activity(pcm_T: Pcm) -> Floats:
    """Probability of speech [F] by Silero, in blocks of 5 minutes that know nothing of each other."""
    try:
        from faster_whisper.vad import get_vad_model
    except ImportError:
        raise MissingExtraError("finding speech", "faster-whisper", "timing") from None

    model = get_vad_model()
    blocks = [np.zeros(0, np.float32)]
    for start in range(0, pcm_T.size, _VAD_BLOCK_C):
        block_C = _float(pcm_T[start : start + _VAD_BLOCK_C])
        blocks.append(model(np.pad(block_C, (0, -block_C.size % _VAD_FRAME_C))).reshape(-1))
    return np.concatenate(blocks).astype(np.float64)


def onsets(speech_F: Floats) -> Floats:
    """Times [O] in seconds at which speech begins after a frame without."""
    said_F = np.concatenate([[False], speech_F >= _SPEECH])
    onset_O: Floats = np.flatnonzero(said_F[1:] & ~said_F[:-1]).astype(np.float64) * VAD_FRAME_S
    return onset_O


class Finder:
    """The search for lines in one recording.

    Attributes:
        cues: those that can be searched for, sorted by their starts.
    """

    def __init__(
        self, whisper: Whisper, pcm_T: Pcm, cues: Sequence[Cue], speech_F: Floats, language: str | None
    ) -> None:
        """Take over a recording, of which `speech_F` is the speech activity."""
        self.whisper, self.pcm_T, self.cues, self.language = whisper, pcm_T, cues, language
        self.onset_O = onsets(speech_F)
        whole = speech_F[: speech_F.size // _FRAMES_A_GRID_STEP * _FRAMES_A_GRID_STEP]
        self._speech_F = whole.reshape(-1, _FRAMES_A_GRID_STEP).mean(axis=1)

    def take(self, start_s: float, end_s: float) -> None:
        """What is said there has been found, and is not to be searched for again."""
        self._speech_F[max(round(start_s / GRID_S), 0) : max(round(end_s / GRID_S), 0)] = 0.0

    def first_fit(self, span: range, base: Clock, max_offset_s: float) -> Fit | None:
        """The line of some cues: the first candidate under which words are likely and most starts agree.

        Args:
            span: which of the cues.
            base: the line that the search begins with.
            max_offset_s: how far from it the cues' middle may be.
        """
        spans = [(base.at(self.cues[i].start_s), base.at(self.cues[i].end_s)) for i in span]
        groups = _spread(list(_groups(self.cues, span, _TRIED_GROUP_S, 0)), _TRIED_GROUPS)
        for moved in candidates(self._speech_F, spans, max_offset_s, _CANDIDATES):
            clock = base.then(moved)
            if self._agreement(clock, groups) >= _MIN_TRIED_AGREEMENT:
                fit = self._refined(clock, span)
                if fit is not None and fit.agreeing >= _MIN_AGREEING:
                    return fit
        return None

    def _agreement(self, clock: Clock, groups: Sequence[range]) -> float:
        """Mean agreement of groups; one that lies outside of the recording counts 0."""
        pairs = [pair for group in groups if (pair := self._window(clock, group, _TRIED_MARGIN_S))]
        if not pairs:
            return 0.0
        clips, texts = [clip_C for _, clip_C, _ in pairs], [text for _, _, text in pairs]
        scores = self.whisper.score(clips, texts, [self.language] * len(pairs))
        return sum(score.score for score in scores) / len(groups)

    def _refined(self, clock: Clock, span: range) -> Fit | None:
        """The line through the starts of cues as Whisper hears them; None where it hears too few."""
        groups = _spread(list(_groups(self.cues, span, _GROUP_S, 1)), _FITTED_GROUPS)
        for margin_s in _MARGINS_S:
            seen = sorted(self._observe(clock, groups, margin_s))
            if len(seen) < MIN_CUES:
                return None
            cue_N, true_N, weight_N = np.asarray(seen).T
            fit = fit_line(cue_N, true_N, weight_N, 1 + clock.drift)
            clock = fit.clock
        return fit

    def _observe(self, clock: Clock, groups: Sequence[range], margin_s: float) -> list[_Seen]:
        windows = [(group, window) for group in groups if (window := self._window(clock, group, margin_s))]
        if not windows:
            return []
        clips, texts = [clip_C for _, (_, clip_C, _) in windows], [text for _, (_, _, text) in windows]
        timed = self.whisper.word_times(clips, texts, [self.language] * len(windows))
        seen: dict[int, _Seen] = {}
        for (group, (start_s, _, _)), words in zip(windows, timed, strict=True):
            for index, word_s, weight in _cue_starts([self.cues[i].text for i in group], words):
                if index == 0 and not self._stands_alone(group[0], margin_s):
                    continue
                one = self._at_onset(_Seen(self.cues[group[index]].start_s, start_s + word_s, weight))
                seen[group[index]] = max(one, seen.get(group[index], one), key=lambda seen: seen.weight)
        return list(seen.values())

    def _at_onset(self, seen: _Seen) -> _Seen:
        """The observation moved to where speech begins beside it, if it does."""
        if self.onset_O.size:
            nearest_s = float(self.onset_O[np.argmin(np.abs(self.onset_O - seen.true_s))])
            if abs(nearest_s - seen.true_s) <= _ONSET_REACH_S:
                return seen._replace(true_s=nearest_s)
        return seen._replace(weight=seen.weight * _NO_ONSET_WEIGHT)

    def _stands_alone(self, index: int, margin_s: float) -> bool:
        """Whether what is said before a cue is too far away to be in a window that begins with the cue.

        The first word of a window is given all that comes before it.
        """
        return index == 0 or self.cues[index].start_s - self.cues[index - 1].end_s > 2 * margin_s

    def _window(self, clock: Clock, group: range, margin_s: float) -> tuple[float, AudioC, str] | None:
        """Where a group's window begins, its clip and its text; None where Whisper cannot take them."""
        start_s = max(0.0, clock.at(self.cues[group[0]].start_s) - margin_s)
        end_s = clock.at(max(self.cues[i].end_s for i in group)) + margin_s
        clip_C = clip_of(self.pcm_T, start_s, end_s)
        text = " ".join(self.cues[i].text for i in group)
        try:
            self.whisper.check(clip_C, text)
        except SampleError:
            return None
        return start_s, clip_C, text


def _groups(cues: Sequence[Cue], span: range, longest_s: float, shared: int) -> Iterator[range]:
    """Ranges of cues that together last at most so long; each begins with the last `shared` ones of that before."""
    start = span.start
    while start < span.stop:
        stop = start + 1
        while stop < span.stop and cues[stop].end_s - cues[start].start_s <= longest_s:
            stop += 1
        yield range(start, stop)
        if stop == span.stop:
            return
        start = max(stop - shared, start + 1)


def _spread(groups: list[range], count: int) -> list[range]:
    """At most so many of them, evenly, the first and the last among them."""
    if len(groups) <= count:
        return groups
    return [groups[round(i * (len(groups) - 1) / (count - 1))] for i in range(count)]


def _cue_starts(texts: Sequence[str], words: Sequence[WordTime]) -> Iterator[tuple[int, float, float]]:
    """Index of each text, start of its first word in its window (seconds) and the mean probability of its words.

    Words are told by counting characters: how they were split, and which marks cling to them, does not matter.
    """
    letters = np.cumsum([len("".join(word.word.split())) for word in words])
    ends = np.cumsum([len("".join(text.split())) for text in texts])
    first = 0
    for index, end in enumerate(ends.tolist()):
        last = int(np.searchsorted(letters, end))
        own = words[first : last + 1]
        if own:
            yield index, own[0].start_s, max(float(np.mean([word.probability for word in own])), 1e-6)
        first = last + 1


def clip_of(pcm_T: Pcm, start_s: float, end_s: float) -> AudioC:
    """A piece of a recording, float32."""
    start, end = max(0, round(start_s * SAMPLE_RATE)), max(0, round(end_s * SAMPLE_RATE))
    return _float(pcm_T[start:end])


def _float(pcm_C: Pcm) -> AudioC:
    return pcm_C.astype(np.float32) / 32767.0
