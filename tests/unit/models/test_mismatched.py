from __future__ import annotations

import numpy as np
import pytest
import torch
import whisper
from hypothesis import given
from hypothesis import strategies as st
from whisper.model import ModelDimensions

from mmdata.models.mismatched import other_texts
from mmdata.models.whisper import Whisper
from mmdata.models.whisper_score import speech_score

WORDS = st.sampled_from(["One", "one ", "ONE", "two", "three", "vier", "Straße", "STRASSE", "fünf"])
LANGUAGES = st.sampled_from(["en", "de", None])


MEDIA = st.sampled_from(["a", "b", "c", "d"])
SAMPLES = st.lists(st.tuples(WORDS, LANGUAGES, MEDIA), max_size=12)
Samples = list[tuple[str, str | None, str]]


def partners(samples: Samples, count: int) -> list[list[str]]:
    texts, languages, media = [[sample[i] for sample in samples] for i in range(3)]
    return [[texts[place] for place in places] for places in other_texts(texts, languages, media, count)]


def key(text: str) -> str:
    return text.strip().casefold()


@given(SAMPLES, st.integers(0, 3))
def test_other_texts_are_other_texts_of_the_language_and_of_other_media(samples: Samples, count: int) -> None:
    found = partners(samples, count)
    assert len(found) == len(samples)
    for (_, language, medium), others in zip(samples, found, strict=True):
        own = {key(text) for text, _, beside in samples if beside == medium}
        there = {key(text) for text, code, _ in samples if code == language} - own
        keys = [key(other) for other in others]
        assert len(keys) == len(set(keys)) == min(count, len(there))
        assert set(keys) <= there


@given(SAMPLES.flatmap(lambda p: st.tuples(st.just(p), st.permutations(p))))
def test_the_order_of_the_texts_does_not_matter(lists: tuple[Samples, Samples]) -> None:
    found = [{(*sample, *own) for sample, own in zip(samples, partners(samples, 1), strict=True)} for samples in lists]
    assert found[0] == found[1]


def test_neighbours_in_a_list_seldom_meet() -> None:
    found = other_texts([f"take {n}" for n in range(200)], ["en"] * 200, [str(n) for n in range(200)], 1)
    assert sum(abs(place - n) == 1 for n, (place,) in enumerate(found)) < 10
    assert len({place for (place,) in found}) == 200  # a circle: each is used once


def test_word_and_end_are_read_off_the_tokens() -> None:
    heard = np.log(np.array([0.5, 0.25, 0.1, 0.8, 0.5, 0.25], np.float32))  # Hel lo , there . end
    silence = np.log(np.array([0.5, 0.25, 0.9, 0.1, 0.5, 0.25], np.float32))
    words = [(2, True), (1, False), (1, True), (1, False)]
    score = speech_score(heard, silence, words, 0.5, "en")
    assert score.weakest_word_logprob == pytest.approx(0)  # "Hello" gains nothing; the comma, which loses, is no word
    assert score.end_logprob == pytest.approx(np.log(0.5 * 0.25))
    assert score.score == pytest.approx((np.log(0.1 / 0.9) + np.log(8)) / 6)
    bare = speech_score(heard[[2, 5]], silence[[2, 5]], [(1, False)], 0.5, "en")
    assert bare.weakest_word_logprob == pytest.approx(np.log(0.1 / 0.9))
    assert bare.end_logprob == pytest.approx(np.log(0.1 * 0.25))


def test_several_texts_of_a_clip_score_as_each_alone() -> None:
    torch.manual_seed(0)
    network = whisper.model.Whisper(ModelDimensions(80, 1500, 64, 2, 2, 51865, 448, 64, 2, 2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    model = Whisper(network, torch.device("cpu"))
    random = np.random.default_rng(0)
    audio = [random.normal(0, 0.1, int(16_000 * s)).astype(np.float32) for s in (1.2, 0.4, 1.3)]
    texts = [["One, two.", "three"], ["four"], ["A rather longer text", "five", "six"]]
    codes = ["en", "de", None]
    for index, own in enumerate(model.score_each(audio, texts, codes)):
        assert len(own) == len(texts[index])
        for text, score in zip(texts[index], own, strict=True):
            (alone,) = model.score([audio[index]], [text], [codes[index]])
            assert score.score == pytest.approx(alone.score, abs=1e-3)
            assert score.weakest_word_logprob == pytest.approx(alone.weakest_word_logprob, abs=5e-3)
            assert score.end_logprob == pytest.approx(alone.end_logprob, abs=5e-3)
            assert (score.tokens, score.language) == (alone.tokens, alone.language)
