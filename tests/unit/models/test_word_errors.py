from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdata.models.word_errors import normalised, word_errors


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Don't  STOP, please!", "dont stop please"),
        ("It\u2019s 1,000.50 metres — twice, 3.", "its 1,000.50 metres twice 3"),
        ("well-known 'quotes'", "well known quotes"),
        ("Straße ﬁne", "strasse fine"),
        ("नमस्ते दुनिया।", "नमस्ते दुनिया"),
        ("...", ""),
    ],
)
def test_case_and_punctuation_do_not_count(text: str, wanted: str) -> None:
    assert normalised(text) == wanted


def test_errors_are_shares_of_the_reference() -> None:
    errors = word_errors("One, two, three, four.", "one two tree four five")
    assert errors is not None
    assert errors.wer == pytest.approx(2 / 4)
    assert errors.cer == pytest.approx(6 / len("one two three four"))  # the h, and " five"


def test_below_four_words_there_is_no_rate() -> None:
    assert word_errors("one two three", "one two three") is None
    assert word_errors("one - two - three", "one two three") is None
    assert word_errors("one two three four", "") == word_errors("one two three four", "...")


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing_and_a_text_equals_itself(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)
    errors = word_errors(text, text)
    assert errors is None or (errors.wer, errors.cer) == (0, 0)
