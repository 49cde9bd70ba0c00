from __future__ import annotations

import ctypes
import re
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import torch
import whisper
from whisper.audio import log_mel_spectrogram
from whisper.model import ModelDimensions
from whisper.timing import find_alignment, merge_punctuations

from mmdata.models.whisper import Whisper

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "Please leave your message after the tone.",
    "Seven small boats were waiting near the harbour wall.",
    "I have never seen such a beautiful garden in my life.",
    "When the rain stopped, we walked slowly back to the village.",
    "Her brother works in a hospital on the other side of town.",
    "Open the window. It is far too warm in this room.",
    "The train to London leaves at nine in the morning.",
    "Nobody knew where the old map had come from.",
    "Could you tell me how to get to the museum?",
    "They bought bread, cheese, apples and a bottle of water.",
    "My grandmother used to tell us stories about the war.",
    "A red kite was flying high above the empty beach.",
    "The doctor said that he must rest for two weeks.",
    "We will meet again on Thursday, at the same place.",
    "Children were playing football behind the school.",
    "If you press this button, the machine will start.",
    "The river has been rising since yesterday evening.",
    "He opened the letter, read it twice, and smiled.",
    "Most of the students had already finished the test.",
]
_WORD = 1  # espeak_EVENT_TYPE: espeakEVENT_WORD
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: AUDIO_OUTPUT_SYNCHRONOUS
_UTF8 = 1  # espeakCHARS_UTF8


class _Event(ctypes.Structure):
    """`espeak_EVENT` of espeak-ng's speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
Spoken = tuple[np.ndarray, str, dict[int, float]]


class Espeak:
    """espeak-ng with its own marks of where each word begins."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(Path(espeakng_loader.get_data_path()).parent).encode()
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        self.callback = _CALLBACK(self._take)
        self.library.espeak_SetSynthCallback(self.callback)

    def speak(self, text: str) -> Spoken:
        """Audio at 16 kHz, the text, and the start of words in seconds, by where in the text they begin.

        Words that espeak-ng speaks as one ("of the") have one mark, which may stand amid another word.
        """
        self.pieces: list[np.ndarray] = []
        self.marks: dict[int, float] = {}
        data = text.encode()
        assert self.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None) == 0
        wave = np.concatenate(self.pieces).astype(np.float32) / 32768
        times = np.arange(0, len(wave), self.rate / 16_000)
        return np.interp(times, np.arange(len(wave)), wave).astype(np.float32), text, self.marks

    def _take(self, wave, count: int, events) -> int:
        if count > 0:
            self.pieces.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type:
            # A word of no letters is a pause.
            if events[index].type == _WORD and events[index].length:
                self.marks[events[index].text_position - 1] = events[index].sample / self.rate
            index += 1
        return 0


@pytest.fixture(scope="module")
def random_whisper() -> Whisper:
    """Small, with random weights; every head of its upper half is an alignment head."""
    torch.manual_seed(0)
    network = whisper.model.Whisper(ModelDimensions(80, 1500, 64, 2, 2, 51865, 448, 64, 2, 2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    return Whisper(network, torch.device("cpu"))


@pytest.fixture(scope="module")
def spoken() -> list[Spoken]:
    espeak = Espeak()
    return [espeak.speak(text) for text in SENTENCES]


def start_errors_s(model: Whisper, spoken: list[Spoken]) -> np.ndarray:
    audio, texts = [clip for clip, _, _ in spoken], [text for _, text, _ in spoken]
    times = model.word_times(audio, texts, ["en"] * len(texts))
    assert [[time.word for time in own] for own in times] == [text.split() for text in texts]
    errors = []
    for own, (_, text, marks) in zip(times, spoken, strict=True):
        places = [found.start() for found in re.finditer(r"\S+", text)]
        starts_s = {place: time.start_s for place, time in zip(places, own, strict=True)}
        errors += [starts_s[place] - mark_s for place, mark_s in marks.items() if place in starts_s]
    return np.array(errors)


@pytest.fixture(scope="module")
def with_pauses(spoken: list[Spoken]) -> list[Spoken]:
    """Two sentences each, with a second of faint noise before, between and behind them."""
    random = np.random.default_rng(0)
    joined = []
    for (first, text, marks), (second, more, more_marks) in zip(spoken[0:10:2], spoken[1:10:2], strict=True):
        noise = random.normal(0, 3e-4, (3, 16_000)).astype(np.float32)
        clip = np.concatenate([noise[0], first, noise[1], second, noise[2]])
        starts = {place: mark_s + 1 for place, mark_s in marks.items()}
        later_s = 2 + len(first) / 16_000
        starts |= {place + len(text) + 1: mark_s + later_s for place, mark_s in more_marks.items()}
        joined.append((clip, f"{text} {more}", starts))
    return joined


@pytest.fixture(scope="module", params=["tiny", "base"])
def model(request: pytest.FixtureRequest) -> Whisper:
    return Whisper.load(str(request.getfixturevalue(f"whisper_{request.param}_dir")), "cpu")


@pytest.mark.slow
def test_words_start_where_espeak_says(model: Whisper, spoken: list[Spoken]) -> None:
    errors_s = np.abs(start_errors_s(model, spoken))
    assert errors_s.size > 180
    assert np.median(errors_s) <= 0.1
    assert np.quantile(errors_s, 0.95) <= 0.2


@pytest.mark.slow
def test_no_word_starts_in_a_pause(model: Whisper, with_pauses: list[Spoken]) -> None:
    assert np.quantile(np.abs(start_errors_s(model, with_pauses)), 0.95) <= 0.25


def test_times_are_those_of_openai_where_there_is_no_pause(random_whisper: Whisper) -> None:
    audio = np.random.default_rng(1).normal(0, 0.1, 478_400).astype(np.float32)  # 29.9 s: padded to 30 s by both
    text = 'One, two ("three") four.'
    (ours,) = random_whisper.word_times([audio], [text], ["de"])
    tokenizer = whisper.tokenizer.get_tokenizer(True, num_languages=99, language="de", task="transcribe")
    mel = log_mel_spectrogram(np.pad(audio, (0, 1600)))
    theirs = find_alignment(random_whisper.network, tokenizer, tokenizer.encode(" " + text), mel, 2990)
    merge_punctuations(theirs, '"(', '".,)')
    wanted = [(word.word.strip(), word.start, word.end) for word in theirs if word.word]
    assert [word for word, _, _ in wanted] == ["One,", "two", '("three")', "four."]
    assert [(time.word, round(time.start_s, 2), round(time.end_s, 2)) for time in ours] == wanted
    # The library leaves timestamps out of the softmax, which a trained network does by itself.
    assert ours[1].probability == pytest.approx(theirs[2].probability, rel=0.1)


def test_the_batch_and_its_order_do_not_matter(random_whisper: Whisper) -> None:
    random = np.random.default_rng(2)
    audio = [random.normal(0, 0.1, int(16_000 * s)).astype(np.float32) for s in (0.4, 7.3, 1.2, 2.9, 1.3)]
    texts, codes = ["One", "a b c d", "Hello there.", "早上好", "two words"], ["en", "fr", "en", "zh", None]
    together = random_whisper.word_times(audio, texts, codes)
    reverse = random_whisper.word_times(audio[::-1], texts[::-1], codes[::-1])[::-1]
    assert [[word[:3] for word in own] for own in together] == [[word[:3] for word in own] for own in reverse]
    assert [len(own) for own in together] == [1, 4, 2, 3, 2]
    for clip, own in zip(audio, together, strict=True):
        ends = [0.0, *(edge for word in own for edge in (word.start_s, word.end_s)), len(clip) / 16_000 + 0.02]
        assert ends == sorted(ends)


def test_nothing_in_nothing_out(random_whisper: Whisper) -> None:
    assert random_whisper.word_times([], [], []) == []
