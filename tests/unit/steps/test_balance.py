"""Quotas, mixes and terms: who stays when there is too much of something."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from candidates import COLUMNS, Row, decided
from pydantic import ValidationError

from mmdata.spec import ParameterError
from mmdata.steps.base import Curate
from mmdata.steps.curate.mix import Mix
from mmdata.steps.curate.quota import Quota
from mmdata.steps.curate.terms import Terms
from mmdata.store.curation import Curation


def drawn(rows: list[Row]) -> list[str]:
    """Keys in the order of the draw."""
    return [row.key for row in sorted(rows, key=lambda row: hashlib.md5(f"0:draw:{row.sample_id}".encode()).digest())]


def by_lang(**counts: int) -> list[Row]:
    return [Row(f"{lang}{n}", lang=lang) for lang, count in counts.items() for n in range(count)]


def stay(rows: list[Row], found: dict[str, Any]) -> list[str]:
    return sorted(row.key for row in rows if row.key not in found and not row.parent)


# --- quota ------------------------------------------------------------------------------------------------------------


def test_a_quota_keeps_the_first_of_the_draw_and_says_the_place(tmp_path: Path) -> None:
    rows = by_lang(en=4, fr=2)
    found = decided(tmp_path, rows, Quota(by=["caption.lang"], most=2))
    english = drawn(rows[:4])
    assert found == {
        english[2]: ("dropped", "caption.lang", 3.0, 2.0, "caption.lang = en: 4 samples"),
        english[3]: ("dropped", "caption.lang", 4.0, 2.0, "caption.lang = en: 4 samples"),
    }


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        (Quota(by=["caption.lang"], most={"en": 1}), {"en": 1, "fr": 3, "ru": 2}),
        (Quota(by=["caption.lang"], most={"en": 1, "ru": 0}, others=2), {"en": 1, "fr": 2, "ru": 0}),
        (Quota(by=["caption.lang"], most={}, others=2), {"en": 2, "fr": 2, "ru": 2}),
        (Quota(by=["caption.lang", "source"], most=1), {"en": 1, "fr": 1, "ru": 1}),
        (Quota(by=["caption.lang"], most=9), {"en": 4, "fr": 3, "ru": 2}),
        (Quota(by=["caption.lang"], most=0, among="caption.lang = 'fr'"), {"en": 4, "fr": 0, "ru": 2}),
    ],
)
def test_quotas_of_some_values(tmp_path: Path, quota: Quota, expected: dict[str, int]) -> None:
    rows = by_lang(en=4, fr=3, ru=2)
    kept = stay(rows, decided(tmp_path, rows, quota))
    assert {lang: sum(key.startswith(lang) for key in kept) for lang in expected} == expected


def test_the_best_of_each_kind_stay(tmp_path: Path) -> None:
    rows = [Row(f"k{n}", side=n, lang="en" if n < 5 else "fr") for n in range(1, 9)]
    quota = Quota(by=["caption.lang"], most=2, best="image.width DESC -- the largest")
    assert stay(rows, decided(tmp_path, rows, quota)) == ["k3", "k4", "k7", "k8"]


def test_a_quota_counts_originals_and_who_has_a_value(tmp_path: Path) -> None:
    rows = [
        *by_lang(en=2),
        *(Row(row.key, parent=row.key) for row in by_lang(en=2)),
        Row("x", lang=None),
        Row("y", None),
    ]
    found = decided(tmp_path, rows, Quota(by=["caption.lang"], most=1))
    assert [key for key, fate in found.items() if fate[0] == "dropped"] == drawn(rows[:2])[1:]


def test_a_newcomer_takes_at_most_one_place(tmp_path: Path) -> None:
    rows = by_lang(en=40)
    quota = Quota(by=["caption.lang"], most=10)
    before = set(stay(rows[:-1], decided(tmp_path / "a", rows[:-1], quota)))
    after = set(stay(rows, decided(tmp_path / "b", rows, quota)))
    assert len(before) == len(after) == 10
    assert len(before - after) <= 1


# --- mix --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ({"en": 1, "fr": 1}, None, {"en": 20, "fr": 20, "ru": 0}),
        ({"en": 3, "fr": 1}, None, {"en": 60, "fr": 20, "ru": 0}),
        ({"en": 0.7, "fr": 0.2, "ru": 0.1}, None, {"en": 35, "fr": 10, "ru": 5}),
        ({"en": 0.7, "fr": 0.2, "ru": 0.1}, 20, {"en": 14, "fr": 4, "ru": 2}),
        ({"en": 0.1, "fr": 0.2, "ru": 0}, None, {"en": 10, "fr": 20, "ru": 0}),
        ({"en": 1, "fr": 1, "xx": 98}, None, {"en": 20, "fr": 20, "ru": 0}),  # of xx there is nothing
        ({"xx": 1}, None, {"en": 0, "fr": 0, "ru": 0}),
    ],
)
def test_a_mix_has_the_proportions_and_keeps_the_scarcest_whole(
    tmp_path: Path, weights: dict[str, float], total: int | None, expected: dict[str, int]
) -> None:
    rows = by_lang(en=60, fr=20, ru=5)
    kept = stay(rows, decided(tmp_path, rows, Mix(by="caption.lang", weights=weights, total=total)))
    assert {lang: sum(key.startswith(lang) for key in kept) for lang in expected} == expected


def test_a_mix_says_the_place_and_how_many_stay(tmp_path: Path) -> None:
    rows = [Row("a"), Row("b"), Row("c", source="web"), Row("d", lang=None)]
    found = decided(tmp_path, rows[:3], Mix(weights={"s": 1, "web": 1, "radio": 0}))
    assert found == {drawn(rows[:2])[1]: ("dropped", "source", 2.0, 1.0, "source = s")}
    null = decided(tmp_path / "null", rows, Mix(by="caption.lang", weights={"fr": 1}))
    assert sorted(null) == ["a", "b", "c"]


# --- terms ------------------------------------------------------------------------------------------------------------


def draw(row: Row) -> float:
    return int(hashlib.md5(f"0:terms:{row.sample_id}".encode()).hexdigest()[:8], 16) / 2**32


def said(*captions: str | None) -> list[Row]:
    return [Row(f"k{n}", caption) for n, caption in enumerate(captions)]


def test_a_sample_stays_with_the_probability_of_its_rarest_term(tmp_path: Path) -> None:
    rows = said(*["A dog."] * 40, *["a cat, a dog"] * 10, "a rare owl")
    found = decided(tmp_path, rows, Terms(of="caption.text", most=20, at_least=2))
    for row in rows[:40]:
        share = 20 / 50  # `dog` in 50, `a` in 51
        expected = ("dropped", "terms", pytest.approx(draw(row)), share, "dog: 50 samples")
        assert found.get(row.key) == (expected if draw(row) >= share else None)
    assert all(row.key not in found for row in rows[40:50])
    assert found.get("k50") is None or found["k50"][4] == "a: 51 samples"
    assert 8 <= 40 - len(found) <= 26


def test_terms_of_a_list_of_several_words(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("Red-car\nowl\n红色\n")
    rows = said("my red car", "a red, red car", "the car is red", "OWL!", "红色的猫", "色红", None)
    terms = Terms(of="caption.text", most=1, entries=[str(tmp_path / "terms.txt")], words=2)
    found = decided(tmp_path / "x", rows, terms)
    assert {key: fate[1] for key, fate in found.items() if fate[1] == "no_term"} == {"k2": "no_term", "k5": "no_term"}
    both = [row for row in rows[:2] if draw(row) >= 0.5]
    assert {key for key, fate in found.items() if fate[1] == "terms"} == {row.key for row in both}
    kept = decided(tmp_path / "y", rows, terms.model_copy(update={"unmatched": "keep"}))
    assert {fate[1] for fate in kept.values()} <= {"terms"}
    assert "k2" not in kept


def test_terms_longer_than_what_is_looked_for_are_refused_unless_it_is_said(tmp_path: Path) -> None:
    """No text would be found to have them, and who has no term is dropped."""
    curation = Curation.empty(COLUMNS)
    for content, told in (
        ("owl\nRed-car\n", "'red car' is 2 words, but terms of one word are looked for; say `words: 2`, or `words: 1`"),
        ("红色的猫狗\n", "'红 色 的 猫 狗' is 5 words, but terms of one word are looked for; say `words: 4`"),
        ("owl\n\n", None),
    ):
        (tmp_path / "terms.txt").write_text(content)
        terms = Terms(of="caption.text", most=1, entries=[str(tmp_path / "terms.txt")])
        if told is None:
            terms.check(curation)
            continue
        with pytest.raises(ParameterError) as error:
            terms.check(curation)
        assert error.value.problems[0][0] == ("entries",)
        assert error.value.problems[0][1].startswith(told)
        Terms.model_validate({**terms.model_dump(), "words": 1}).check(curation)


def test_rare_terms_of_the_captions_own_do_not_count(tmp_path: Path) -> None:
    rows = said(*[f"dog x{n}" for n in range(50)], "zzz")
    counted = decided(tmp_path / "a", rows, Terms(of="caption.text", most=5, at_least=2))
    assert {fate[4] for fate in counted.values()} == {"dog: 50 samples"}
    assert len(counted) > 30
    assert decided(tmp_path / "b", rows, Terms(of="caption.text", most=5, at_least=1)) == {}


# --- what a plan refuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "place", "message"),
    [
        (Quota(by=["caption.lnag"], most=1), ("by",), "did you mean 'lang'?"),
        (Quota(by=["uuid()"], most=1), ("by",), "uuid() gives something else each time"),
        (Quota(by=["key"], most=1, best="image.widht DESC"), ("best",), "did you mean 'width'?"),
        (Quota(by=["key"], most=1, best="random()"), ("best",), "random() gives something else each time"),
        (Quota(by=["key"], most=1, best="key LIMIT 1"), ("best",), "must be an order"),
        (Quota(by=["key"], most=1, among="key"), ("among",), "must be true or false"),
        (Mix(weights={"wbe": 1}), ("weights", "wbe"), "no source is called 'wbe'; did you mean 'web'?"),
        (Mix(weights={"web": 1, "s": 1}), ("weights",), "the source 'radio' has no weight"),
        (Mix(by="caption.lnag", weights={"en": 1}), ("by",), "did you mean 'lang'?"),
        (Terms(of="image.width", most=1), ("of",), "must be a text"),
        (Terms(of="caption.text", most=1, entries=["none.txt"]), ("entries",), "none.txt: cannot be read"),
    ],
)
def test_a_plan_says_what_is_wrong(step: Curate, place: tuple[str, ...], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        step.check(Curation.empty(COLUMNS))
    ((keys, sentence),) = error.value.problems
    assert keys == place
    assert message in sentence


@pytest.mark.parametrize(
    ("step", "parameters", "message"),
    [
        (Quota, {"by": ["a", "b"], "most": {"x": 1}}, "`most:` names values of one expression"),
        (Quota, {"by": "a", "most": 1, "others": 2}, "`others:` needs `most:` to name values"),
        (Quota, {"by": "a", "most": -1}, "greater than or equal to 0"),
        (Mix, {"weights": {"a": 0}}, "all weights are 0"),
        (Mix, {"weights": {"a": float("inf")}}, "finite number"),
        (Terms, {"of": "caption.text", "most": 0}, "greater than or equal to 1"),
    ],
)
def test_parameters_that_make_no_sense(step: type[Curate], parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        step.model_validate(parameters)
