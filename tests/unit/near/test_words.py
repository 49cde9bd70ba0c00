from __future__ import annotations

import numpy as np
import pytest

from mmdata.near import words
from mmdata.near.pairs import joined
from mmdata.near.words import band_rows, pairs_within, plain, shingles, signature, similarity


def jaccard(left: str, right: str, chars: int = 3) -> float:
    one, other = (set(shingles(text, chars).tolist()) for text in (left, right))
    return len(one & other) / len(one | other)


def test_case_punctuation_width_and_blanks_do_not_count() -> None:
    assert plain("  A red-BALL, on\tthe  \uff27\uff32\uff21\uff33\uff33!! ") == "a red ball on the grass"
    assert plain("Straße") == plain("STRASSE")
    assert shingles("A red ball.", 3).tolist() == shingles("a  RED ball", 3).tolist()


@pytest.mark.parametrize(
    ("text", "chars", "count"),
    [("abcd", 3, 4), ("a", 3, 1), ("aaaa", 3, 3), ("", 3, 0), ("!?", 3, 0), ("红色的球", 5, 5), ("abc", 16, 1)],
)
def test_runs_of_characters_with_a_blank_around(text: str, chars: int, count: int) -> None:
    found = shingles(text, chars)
    assert len(found) == len(set(found.tolist())) == count


def test_chinese_is_shingled_by_two() -> None:
    assert jaccard("一只红色的小鸟", "一只红色的大鸟", 5) == pytest.approx(6 / 10)
    assert jaccard("a small red bird", "a small red bird too", 3) == pytest.approx(16 / 20)


def test_equal_functions_estimate_the_similarity() -> None:
    """Over 200 pairs of one true similarity: no bias, and the standard error of 128 functions of eight bits."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        shared, left, right = np.split(rng.integers(0, 1 << 63, 100, dtype=np.uint64), [60, 80])
        one, other = (signature(np.union1d(shared, own)) for own in (left, right))
        found.append(similarity(np.array([(one == other).sum()]))[0])
    assert np.mean(found) == pytest.approx(0.6, abs=0.012)
    assert np.std(found) == pytest.approx(np.sqrt(0.6 * 0.4 / 128), rel=0.25)


def test_nothing_in_common_is_no_similarity() -> None:
    one, other = (signature(np.arange(at, at + 50, dtype=np.uint64)) for at in (0, 1000))
    assert similarity(np.array([(one == other).sum()]))[0] < 0.03
    assert similarity(np.array([words.FUNCTIONS]))[0] == 1.0


def test_a_pair_at_the_limit_shares_a_band_with_the_probability_promised() -> None:
    for limit in (0.5, 0.7, 0.9):
        rows = band_rows(limit)
        assert 1 - (1 - limit**rows) ** (128 // rows) >= 0.98
        assert 1 - (1 - limit ** (rows + 1)) ** (128 // (rows + 1)) < 0.98


CAPTIONS = [
    "A small red bird sits on a branch",
    "A small red brid sits on a branch",
    "a SMALL red bird sits on a branch.",
    "Two dogs run along the beach",
    "Two dogs run along the sandy beach",
    "一只红色的小鸟站在树枝上面",
    "一只红色的小鸟站在树枝上",
    "Something else altogether",
]


def signed(texts: list[str]) -> np.ndarray:
    return np.stack([signature(shingles(text, 3)) for text in texts])


def test_edited_captions_are_paired_and_others_are_not() -> None:
    found = joined(pairs_within(signed(CAPTIONS), 0.35))
    assert set(zip(found.left_P.tolist(), found.right_P.tolist(), strict=True)) == {
        (0, 1),
        (0, 2),
        (1, 2),
        (3, 4),
        (5, 6),
    }
    apart = dict(zip(zip(found.left_P.tolist(), found.right_P.tolist(), strict=True), found.distance_P, strict=True))
    assert apart[0, 2] == 0.0
    assert apart[0, 1] == pytest.approx(1 - jaccard(CAPTIONS[0], CAPTIONS[1]), abs=0.1)


def test_of_two_sets_pairs_go_across() -> None:
    found = joined(pairs_within(signed(CAPTIONS[:4]), 0.35, signed(CAPTIONS[4:])))
    assert list(zip(found.left_P.tolist(), found.right_P.tolist(), strict=True)) == [(3, 0)]
    assert list(pairs_within(signed(CAPTIONS)[:0], 0.35)) == []


def test_of_a_crowd_each_is_compared_with_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_CROWD", 4)
    equal_NK = np.repeat(signed(CAPTIONS[:1]), 100, 0)
    found = joined(pairs_within(equal_NK, 0.3))
    assert len(found) == 4 * 100 - (1 + 2 + 3 + 4)
