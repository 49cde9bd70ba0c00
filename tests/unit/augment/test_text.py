"""Texts: what must stay stays, character for character; synonyms; seeds; which texts may change at all."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.augment import libraries
from mmdata.augment.base import Box, Change, Text, VetoError, View
from mmdata.augment.meaning import protected
from mmdata.augment.text import TextOperator, text_operator, text_operators
from mmdata.augment.wordnet import locate
from mmdata.errors import WeightsError

CAPTION = "Anna doesn't sit on the left of 3 small red houses near a big river while dogs play happily with balls"
NAMES = [name for name in text_operators() if name not in {"synonyms", "ContextualWordEmbsAug"}]


def view(text: str = CAPTION, lang: str | None = "en", phrase: str = "a big river") -> View:
    box = Box((0, 0, 1, 1), "caption", phrase)
    return View(texts={"caption": Text(text, lang)}, boxes={"image": (box,)})


def done(name: str, of: View | None = None, seed: int = 1, **params: object) -> Change:
    return text_operator(name, params)(of or view(), np.random.default_rng(seed))


def changed(change: Change) -> str:
    return change.view.texts["caption"].text


@pytest.fixture(scope="module")
def wordnet() -> Path:
    try:
        return locate(None)
    except WeightsError as error:
        pytest.skip(str(error))


def test_every_operator_is_in_the_table_or_left_out_with_its_reason() -> None:
    data = libraries.table("text_effects.yaml")
    word = libraries.without_torch("nlpaug.augmenter.word")
    char = libraries.without_torch("nlpaug.augmenter.char")
    theirs = {n for module in (word, char) for n in vars(module) if n.endswith("Aug")}
    assert theirs == {*data["word"], *data["char"], *data["left_out"]}


def kept_in_order(text: str, spans: list[tuple[int, int]], found: str) -> bool:
    at = 0
    for start, end in spans:
        at = found.find(text[start:end], at)
        if at < 0:
            return False
        at += end - start
    return True


@settings(max_examples=40)
@given(st.sampled_from(NAMES), st.integers(0, 2**31))
def test_what_must_stay_stays_character_for_character(name: str, seed: int) -> None:
    try:
        found = changed(done(name, seed=seed))
    except VetoError as veto:
        assert veto.reason in {"nothing_to_change", "says_more"}  # noqa: PT017
        return
    assert found != CAPTION
    assert kept_in_order(CAPTION, protected(CAPTION, "en", ["a big river"]), found)


def outcome(name: str, seed: int) -> str:
    try:
        change = done(name, seed=seed)
    except VetoError as veto:
        return veto.reason
    assert change.drawn == {"texts": {"caption": changed(change)}}
    return changed(change)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_text(name: str) -> None:
    first = [outcome(name, seed) for seed in range(6)]
    np.random.rand(4)
    assert [outcome(name, seed) for seed in range(6)] == first
    assert len(set(first)) > 1


def test_synonyms_by_wordnet_and_in_english_alone(wordnet: Path) -> None:
    assert changed(done("synonyms", view("a sofa", "EN_us", ""), rate=1.0)) in {"a couch", "a lounge"}
    caption = "Anna has no red sofa, but 3 cars, a dog, a bat and an airplane"
    found = {changed(done("synonyms", view(caption), seed=seed, rate=1.0)) for seed in range(8)}
    assert len(found) > 3
    for text in found:
        assert kept_in_order(caption, protected(caption, "en"), text)
    assert {word for text in found for word in re.split("[, ]+", text)} >= {"couch", "cars", "bat", "plane"}
    with pytest.raises(VetoError) as caught:
        done("synonyms", of=view("un chien court vite", "fr", ""))
    assert caught.value.reason == "unknown_language"


@pytest.mark.parametrize(
    "caption", ["a mouse near a crane", "a hot dog", "he wears a tie", "the correct answer", "dogs on sofas", "one key"]
)
def test_a_word_of_several_senses_has_no_synonym(wordnet: Path, caption: str) -> None:
    # "A computer mouse", "helium wears", "the right answer": false of the picture, or of its mirror image.
    with pytest.raises(VetoError) as caught:
        done("synonyms", of=view(caption, "en", ""), rate=1.0)
    assert caught.value.reason == "nothing_to_change"


def test_a_text_that_would_say_more_stays() -> None:
    operator = TextOperator("own", lambda text: text.replace("notable", "not able"), (), None)
    with pytest.raises(VetoError, match="own made 'a not able man'") as caught:
        operator(view("a notable man", "en", ""), np.random.default_rng(0))
    assert caught.value.reason == "says_more"


def test_what_a_library_cannot_do_is_a_veto_or_an_error_of_the_plan() -> None:
    def fails(text: str) -> str:
        raise ValueError(f"sample larger than population\n{text}")

    with pytest.raises(VetoError, match=r"own: sample larger than population$") as caught:
        TextOperator("own", fails, (), None)(view("a man", "en", ""), np.random.default_rng(0))
    assert caught.value.reason == "not_applicable"
    with pytest.raises(ValueError, match="RandomWordAug: no text can be changed with these parameters: NotImpl"):
        text_operator("RandomWordAug", {"action": "insert"})


def test_a_long_text_takes_no_longer_a_word() -> None:
    def least_s(sentences: int) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            assert len(protected("A cat on the left of Anna. " * sentences, "en")) == 2 * sentences
            times.append(time.process_time() - start)
        return min(times)

    # Eight times the text; it was 64 times the time.
    assert least_s(2400) < 24 * least_s(300)


def test_wordnet_that_is_not_there_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="apt-get install wordnet-base"):
        text_operator("synonyms", {"wordnet": str(tmp_path)})


def test_a_model_is_never_fetched() -> None:
    with pytest.raises(WeightsError, match="nothing is fetched"):
        text_operator("ContextualWordEmbsAug", {"model_path": "bert-base-uncased"})


def test_only_the_texts_that_are_named_change() -> None:
    two = View(texts={"caption": Text("dogs run along rivers", "en"), "title": Text("dogs run along rivers", "en")})
    change = done("KeyboardAug", of=two, texts=["title"])
    assert change.view.texts["caption"] == two.texts["caption"]
    assert change.view.texts["title"] != two.texts["title"]


def test_what_a_sound_says_stays() -> None:
    said = View(texts={"caption": Text("dogs run along rivers", "en")}, spoken={"speech": ("caption",)})
    with pytest.raises(VetoError) as caught:
        done("KeyboardAug", of=said)
    assert caught.value.reason == "spoken"


def test_a_language_that_is_not_known_stays_whole() -> None:
    with pytest.raises(VetoError) as caught:
        done("KeyboardAug", of=view("tre gatti corrono", "it", ""))
    assert caught.value.reason == "nothing_to_change"
