from __future__ import annotations

import json
import pickle
import time
from collections.abc import Sequence
from pathlib import Path

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mmdata.errors import FatalError, WeightsError
from mmdata.models import word_alignment
from mmdata.models.reconcile import (
    SPELLING,
    Change,
    Copy,
    Texts,
    agreement,
    normalise,
    reconcile,
)
from mmdata.models.word_alignment import align_words
from mmdata.models.word_list import WordList, read_words, shipped_list
from mmdata.sample import Member, Sample
from mmdata.steps.align.reconcile import Reconcile
from mmdata.steps.exchange import Edge, NewText

LISTED = "the a to press please enter your number agent save say message door window red"
WORDS = WordList(tuple(LISTED.split()))
LINES = st.text("ab c.,A1é", max_size=30)


def silent(asked: Sequence[tuple[int, str]]) -> list[float]:
    return [0.0] * len(asked)


def likes(wanted: str, nats: float = 50.0) -> object:
    """Evidence that loses `nats` for each word that is not as in `wanted`."""

    def evidence(asked: Sequence[tuple[int, str]]) -> list[float]:
        return [-nats * round(jiwer.wer(normalise(wanted), normalise(text)) * len(wanted.split())) for _, text in asked]

    return evidence


def corrected(problem: Texts, evidence: object = silent, **kwargs: float) -> str:
    return reconcile([problem], evidence, **kwargs)[0].text  # type: ignore[arg-type]


def test_agreement_is_one_less_the_character_error_rate() -> None:
    one, other = "Press the pound key!", "press  teh pond key"
    cer = jiwer.cer(normalise(one), normalise(other))
    assert agreement(one, other) == pytest.approx(1 - cer)
    assert normalise(" “Press” the POUND key! … ") == "press the pound key"
    assert agreement("", "") == 1.0
    assert agreement("abc", "") == 0.0


@given(LINES, LINES)
def test_agreement_is_symmetric_and_bounded(one: str, other: str) -> None:
    assert agreement(one, other) == agreement(other, one)
    assert 0.0 <= agreement(one, other) <= 1.0
    assert agreement(one, one) == 1.0


def test_words_are_aligned_also_where_one_is_split_or_missing() -> None:
    one, other = "please l0gin to the conf erence now", "please log in to conference now"
    left, right = one.split(), other.split()
    pairs = [(" ".join(left[a]), " ".join(right[b])) for a, b in align_words(left, right)]
    assert pairs == [
        ("please", "please"),
        ("l0gin", "log in"),
        ("to", "to"),
        ("the", ""),
        ("conf erence", "conference"),
        ("now", "now"),
    ]


@given(st.lists(LINES.map(str.strip).filter(bool), max_size=6), st.lists(LINES.map(str.strip).filter(bool), max_size=6))
def test_slots_cover_both_texts_once_and_in_order(left: list[str], right: list[str]) -> None:
    slots = align_words(left, right)
    assert [word for a, _ in slots for word in left[a]] == left
    assert [word for _, b in slots for word in right[b]] == right


@given(st.data())
def test_slots_cover_long_texts_too(data: st.DataObject) -> None:
    left, right = (data.draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12)) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_alignment, "_MOST_CELLS", data.draw(st.integers(0, 20)))
        slots = align_words(left, right)
    assert [n for mine, _ in slots for n in range(mine.start, mine.stop)] == list(range(len(left)))
    assert [n for _, other in slots for n in range(other.start, other.stop)] == list(range(len(right)))


def test_ten_thousand_words_are_corrected_in_seconds() -> None:
    words = [f"w{n % 3001}" for n in range(10_000)]
    copies = [Copy(name, " ".join([*words[:5000], "saved", *words[5001:]])) for name in "ab"]
    words[5000] = "sav3d"
    began = time.process_time()
    (found,) = reconcile([Texts(" ".join(words), copies)], silent)
    assert [(change.word, change.was, change.now) for change in found.changes] == [(5000, "sav3d", "saved")]
    assert time.process_time() - began < 60


def test_a_listed_word_of_a_copy_replaces_what_is_no_word_and_keeps_the_punctuation() -> None:
    problem = Texts("Please 3nter your nvmber.", [Copy("ocr", "please enter your number")], WORDS)
    (found,) = reconcile([problem], silent)
    assert found.text == "Please enter your number."
    assert found.changes == (Change(1, "3nter", "enter", ("ocr",)), Change(3, "nvmber.", "number.", ("ocr",)))
    assert found.gain_nats > 8


@pytest.mark.parametrize(
    "other",
    [
        "please enter your nvmber",  # the copy is the one that is wrong
        "please enter our number",  # both are words (`our` in no list, and nearer than the margin)
        "open the red door",  # another text altogether
        "",
    ],
)
def test_a_clean_text_stays_as_it_is(other: str) -> None:
    problem = Texts("Please enter  your number.", [Copy("ocr", other)], WORDS)
    assert corrected(problem) == "Please enter  your number."


def test_a_word_in_no_list_yields_to_a_listed_one_unless_evidence_speaks_for_it() -> None:
    words = read_words(shipped_list("open_clip") or Path())
    wombat = Texts("the red wombat", [Copy("ocr", "the red combat")], words, evidence=True)
    assert corrected(wombat) == "the red combat"
    assert corrected(wombat, likes("the red wombat", 10.0)) == "the red wombat"


def test_two_copies_outvote_the_given_text_where_its_word_is_none() -> None:
    copies = [Copy("a", "the red door"), Copy("b", "the red door")]
    assert corrected(Texts("the red d00r", copies)) == "the red door"
    # One character of difference alone is not worth the margin: copies make the same mistakes.
    assert corrected(Texts("the red dour", copies)) == "the red dour"
    assert corrected(Texts("the red dour", copies), margin_nats=3.0) == "the red door"


def test_evidence_decides_between_words_and_what_the_model_heard_is_no_vote() -> None:
    heard = Texts("say your message", [Copy("whisper", "save your message", votes=False)], WORDS, evidence=True)
    assert corrected(heard) == "say your message"
    assert corrected(heard, likes("save your message")) == "save your message"
    assert corrected(heard, likes("say your message")) == "say your message"


def test_words_are_put_in_and_taken_out() -> None:
    missing = Texts("Please enter number.", [Copy("whisper", "please enter your number", votes=False)], None, True)
    assert corrected(missing, likes("please enter your number")) == "Please enter your number."
    extra = Texts("Please enter the your number. Now", [Copy("w", "please enter your number now", votes=False)])
    assert corrected(extra, likes("please enter your number now")) == "Please enter your number. Now"


def test_spelling_proposes_words_only_where_there_is_evidence() -> None:
    text = "Please entar your message"
    assert corrected(Texts(text, (), WORDS, evidence=False)) == text
    (found,) = reconcile([Texts(text, (), WORDS, True)], likes("please enter your message"))  # type: ignore[arg-type]
    assert found.text == "Please enter your message"
    assert found.changes[0].sources == (SPELLING,)
    assert corrected(Texts(text, (), WORDS, True)) == text


def test_speech_does_not_turn_figures_into_words() -> None:
    problem = Texts("press 3 to save", [Copy("whisper", "press three to save", votes=False)], WORDS, True)
    assert corrected(problem, likes("press three to save")) == "press 3 to save"


def test_capitals_of_a_mistake_are_not_kept() -> None:
    problem = Texts("Please enter yoMr Qumber.", [Copy("ocr", "please enter your number")], WORDS)
    assert corrected(problem) == "Please enter your number."


def test_winners_that_spoil_each_other_are_given_up_one_by_one() -> None:
    # Either change is worth having, both are not.
    values = {"the dor windo": 0.0, "the door windo": 30.0, "the dor window": 20.0, "the door window": 25.0}
    problem = Texts("the dor windo", [Copy("w", "the door window", votes=False)])
    assert corrected(problem, lambda asked: [values[text] for _, text in asked]) == "the door windo"


@settings(max_examples=60)
@given(LINES, st.lists(LINES, max_size=2), st.booleans())
def test_what_is_not_changed_is_byte_for_byte_the_given_text(text: str, others: list[str], listed: bool) -> None:
    problem = Texts(text, [Copy(str(n), other) for n, other in enumerate(others)], WORDS if listed else None, True)
    alone = reconcile([problem], silent)[0]
    assert (alone.text == text) or alone.changes
    # The same whatever it is reconciled beside.
    assert reconcile([Texts("a b"), problem], silent)[1] == alone


def test_words_look_like_words_by_their_letters() -> None:
    words = read_words(shipped_list("open_clip") or Path())
    assert words.cost_nats("kangaroo") == words.cost_nats("2026") == words.cost_nats("m") == 0.0
    assert 0 < words.cost_nats("wombat") < words.cost_nats("w0mbat")
    assert words.cost_nats("red-door") == 0.0
    assert "number" in words.neighbours("nvmber")


def test_word_lists_are_read_in_the_forms_that_libraries_ship(tmp_path: Path) -> None:
    english = read_words(shipped_list("whisper") or Path())
    assert {"the", "password", "conference"} <= set(english.ranked)
    assert english.ranks["the"] < english.ranks["conference"]
    (tmp_path / "words.txt").write_text("Un 90\ndeux 80\n\nun 1\n")
    assert read_words(tmp_path / "words.txt").ranked == ("un", "deux")
    with pytest.raises(FatalError, match="word list"):
        read_words(tmp_path / "none.txt")


def text_member(name: str, content: str, lang: str | None = "en") -> Member:
    return Member(name, "text", "text/plain", "txt", content.encode(), lang, {"text": content})


def sample(**texts: str) -> Sample:
    return Sample("0" * 32, "s", "k", {name: text_member(name, content) for name, content in texts.items()})


def step(tmp_path: Path, **parameters: object) -> Reconcile:
    (tmp_path / "words.txt").write_text("\n".join(WORDS.ranked))
    return Reconcile.model_validate({"words": str(tmp_path / "words.txt"), **parameters})


def test_the_step_scores_every_pair_and_makes_the_corrected_text(tmp_path: Path) -> None:
    aligner = step(tmp_path, texts=["alt", "ocr", "subtitle"], into="best")
    scorer = aligner.load("cpu")
    one = sample(alt="Please 3nter your number.", ocr="please enter your number")
    item = pickle.loads(pickle.dumps(aligner.prepare(scorer.recipe, one, aligner.edges())))
    (found,) = scorer.score([item])
    assert [score.edge for score in found.scores] == ["alt_best", "alt_ocr"]
    first, pair = found.scores
    assert first.new_text == NewText("best", "Please enter your number.", "en")
    assert json.loads(first.measures["provenance"]) == [{"word": 1, "was": "3nter", "now": "enter", "sources": ["ocr"]}]
    assert set(first.measures) == set(aligner.measures())
    assert first.measures["changed_words"] == 1
    assert pair.score == pytest.approx(1 - 1 / 24)
    assert pair.new_text is None


def test_the_step_leaves_texts_of_other_languages_out_and_needs_the_first(tmp_path: Path) -> None:
    aligner = step(tmp_path, texts=["alt", "ocr"], into="best")
    scorer = aligner.load("cpu")
    one = sample(alt="Please 3nter your number.")
    one.members["ocr"] = text_member("ocr", "please enter your number", "fr")
    (found,) = scorer.score([aligner.prepare(scorer.recipe, one, aligner.edges())])
    assert found.scores[0].measures["changed_words"] == 0
    assert aligner.prepare(scorer.recipe, sample(ocr="a"), aligner.edges()) is None
    assert aligner.prepare(scorer.recipe, one, []) is None


def test_the_step_reads_what_bears_on_the_text(tmp_path: Path) -> None:
    aligner = step(tmp_path, texts=["t"], into="best", speech="speech", whisper="m", image="image", clip="c")
    assert aligner.edges() == [Edge("t", "best")]
    assert aligner.reads() == {"t": "text", "speech": "audio", "image": "image"}
    assert list(aligner.new_members()) == ["best"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"texts": ["a"]},
        {"texts": ["a", "a"], "into": "b"},
        {"texts": ["a", "b"], "into": "b"},
        {"texts": ["a"], "into": "b", "speech": "s"},
        {"texts": ["a"], "into": "b", "clip": "c"},
        {"texts": []},
    ],
)
def test_the_step_refuses_what_makes_no_sense(parameters: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Reconcile.model_validate(parameters)


def test_the_word_list_is_part_of_the_identity(tmp_path: Path) -> None:
    one = step(tmp_path, texts=["a", "b"], into="c").identity()
    (tmp_path / "more.txt").write_text("other")
    other = Reconcile(texts=["a", "b"], into="c", words=str(tmp_path / "more.txt")).identity()
    assert one != other
    with pytest.raises(WeightsError, match="words"):
        Reconcile(texts=["a", "b"], into="c", words=str(tmp_path / "none.txt")).weights()
