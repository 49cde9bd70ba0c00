"""Curation over small tables: who is dropped, by which value, and where everyone else goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from candidates import Row, decided, fates, loaded

from mmdata.errors import FatalError, LedgerError
from mmdata.sample import sample_id
from mmdata.steps.curate.duplicates import Duplicates
from mmdata.steps.curate.rules import Rules
from mmdata.store.selection import decide_fates

# --- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "dropped"),
    [
        ("image.width >= 8", {"small": (4.0, 8.0, "(image.width >= 8)")}),
        ("8 <= image.width", {"small": (4.0, 8.0, "(8 <= image.width)")}),
        ("image.width > 4", {"small": (4.0, 4.0, "(image.width > 4)")}),
        ("clip.image_caption.score >= 0.25", {"small": (0.125, 0.25, "(clip.image_caption.score >= 0.25)")}),
        ("clip.image_caption.score >= -0.5 AND image.width < 9", {"large": (10.0, 9.0, "(image.width < 9)")}),
        ("least(image.width, image.height) >= 8", {"small": (4.0, 8.0, '(least(image.width, image.height) >= 8)')}),
        ("image.width >= caption.chars", {"small": (None, None, "(image.width >= caption.chars)")}),
        ("caption.text LIKE '%cat'", {"small": (None, None, "(caption.\"text\" ~~ '%cat')")}),
        ("image IS NOT NULL", {"none": (None, None, "(image IS NOT NULL)")}),
        ("NOT (image.width < 8)", {"small": (None, None, "(NOT (image.width < 8))")}),
        ("image.width >= 8 -- wide enough", {"small": (4.0, 8.0, "(image.width >= 8)")}),
        ("attributes['voice'] = 'anna'", {"small": (None, None, "(attributes['voice'] = 'anna')")}),
        ("image.width BETWEEN 5 AND 20", {"small": (4.0, 5.0, "(image.width >= 5)")}),
        ("image.width BETWEEN 1 AND 9 AND key <> 'x'", {"large": (10.0, 9.0, "(image.width <= 9)")}),
        ("image.width BETWEEN NULL AND 9", {"large": (10.0, 9.0, "(image.width <= 9)")}),
        ("image.width NOT BETWEEN 1 AND 9", {"small": (None, None, "(NOT (image.width BETWEEN 1 AND 9))")}),
    ],
)  # fmt: skip
def test_a_rule_drops_with_the_value_and_the_threshold(
    tmp_path: Path, rule: str, dropped: dict[str, tuple[Any, ...]]
) -> None:
    rows = [
        Row("large", "cat", 10, 0.5, attributes={"voice": "anna"}),
        Row("small", "a long dog", 4, 0.125, attributes={"voice": "bert"}),
        Row("none", "a cat", None),
    ]
    expected = {key: ("dropped", "named", *values) for key, values in dropped.items()}
    assert decided(tmp_path, rows, Rules(keep={"named": rule})) == expected


def test_the_first_rule_that_is_false_drops(tmp_path: Path) -> None:
    rows = [Row("a", "x y", 4), Row("b", "x", 4), Row("c", "x", 10)]
    rules = Rules(keep={"wide": "image.width >= 8", "long": "caption.words >= 2"})
    assert {key: fate[1] for key, fate in decided(tmp_path, rows, rules).items()} == {
        "a": "wide",
        "b": "wide",
        "c": "long",
    }


def test_and_is_judged_part_by_part_so_that_the_value_is_that_of_the_part(tmp_path: Path) -> None:
    rows = [Row("a", "x", 4), Row("b", "x", 10)]
    rules = Rules(keep={"both": "image.width >= 8 AND (caption.words >= 2 AND image.height >= 1)"})
    assert decided(tmp_path, rows, rules) == {
        "a": ("dropped", "both", 4.0, 8.0, "(image.width >= 8)"),
        "b": ("dropped", "both", 1.0, 2.0, "(caption.words >= 2)"),
    }


def test_null_passes(tmp_path: Path) -> None:
    rows = [Row("a", None, None, None)]
    rules = Rules(
        keep={"w": "image.width >= 8", "s": "clip.image_caption.score >= 0.9", "n": "NULL", "t": "caption.words > 9"}
    )
    assert decided(tmp_path, rows, rules) == {}


def test_a_child_is_held_against_its_parent(tmp_path: Path) -> None:
    rows = [
        Row("a", score=0.5),
        Row("a", score=0.45, parent="a"),
        Row("b", score=0.5),
        Row("b", score=0.25, parent="b"),
    ]
    rules = Rules(keep={"fits": "clip.image_caption.score >= parent.clip.image_caption.score - 0.1"})
    assert list(decided(tmp_path, rows, rules)) == ["b'"]


def test_a_rule_that_meets_a_value_it_cannot_take_is_named(tmp_path: Path) -> None:
    curation = loaded(tmp_path, [Row("a", "cat")])
    with pytest.raises(FatalError, match=r"rule 'number': Conversion Error: .*cat"):
        Rules(keep={"number": "CAST(caption.text AS INTEGER) > 3"}).apply(curation)


def test_a_rule_reads_no_file_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/s.txt").write_text("s")
    curation = loaded(tmp_path / "scratch", [Row("a")])
    rule = f"(SELECT count(*) FROM read_text('{tmp_path}/secret/s.txt')) = 0"
    with pytest.raises(FatalError, match="rule 'spy': Permission Error"):
        Rules(keep={"spy": rule}).apply(curation)
    with pytest.raises(ValueError, match="rule 'spy': looks at other samples"):
        Rules(keep={"spy": rule}).check(curation)


def test_quotes_in_rules_and_names_are_no_sql(tmp_path: Path) -> None:
    rows = [Row("a", "it's")]
    rule = {"it's": "caption.text <> 'it''s'"}
    assert decided(tmp_path, rows, Rules(keep=rule)) == {
        "a": ("dropped", "it's", None, None, "(caption.\"text\" != 'it''s')")
    }


# --- duplicates -----------------------------------------------------------------------------------------------------


def test_of_equal_samples_the_first_key_stays_and_the_others_say_of_which(tmp_path: Path) -> None:
    rows = [Row("c"), Row("a"), Row("b"), Row("d", "a dog"), Row("e", side=11)]
    first = sample_id("s", "a")
    assert decided(tmp_path, rows, Duplicates(of=["image", "caption"])) == {
        "b": ("duplicate", "image+caption", None, None, first),
        "c": ("duplicate", "image+caption", None, None, first),
    }


def test_the_best_stays_in_the_order_given(tmp_path: Path) -> None:
    rows = [Row("a", side=10), Row("b", side=30), Row("c", side=20)]
    found = decided(tmp_path, rows, Duplicates(of=["caption"], best="image.width DESC"))
    assert {key: fate[4] for key, fate in found.items()} == dict.fromkeys("ac", sample_id("s", "b"))


def test_samples_that_lack_a_member_and_children_are_not_judged(tmp_path: Path) -> None:
    rows = [Row("a"), Row("a", parent="a"), Row("b", side=None), Row("c", side=None)]
    assert decided(tmp_path, rows, Duplicates(of=["image", "caption"])) == {}


def test_who_was_dropped_before_is_nobodys_original(tmp_path: Path) -> None:
    rows = [Row("a", score=0.1), Row("b", score=0.9), Row("c", score=0.9)]
    steps = Rules(keep={"fits": "clip.image_caption.score > 0.5"}), Duplicates(of=["caption"])
    found = decided(tmp_path, rows, *steps)
    assert (found["a"][0], found["c"][0], found["c"][4]) == ("dropped", "duplicate", sample_id("s", "b"))


# --- the ledger -----------------------------------------------------------------------------------------------------


def test_everyone_ends_with_one_fate_children_with_their_parents(tmp_path: Path) -> None:
    rows = [
        Row("bad", failed="bad_image"),
        Row("kept"),
        Row("kept", parent="kept"),
        Row("out", side=4),
        Row("out", parent="out"),
        Row("vetoed", side=12),
        Row("vetoed", parent="vetoed", failed="ambiguous_side"),
        Row("twin", "twin"),
        Row("twin2", "twin"),
    ]
    curation = loaded(tmp_path, rows)
    Rules(keep={"wide": "image.width >= 8 OR parent_id IS NOT NULL"}).apply(curation)
    Duplicates(of=["caption"]).apply(loaded(tmp_path / "x", rows))
    decide_fates(curation, 6)
    assert {key: (fate[0], fate[1], fate[4]) for key, fate in fates(curation, rows).items()} == {
        "bad": ("failed", "bad_image", "because"),
        "kept": ("kept", None, None),
        "kept'": ("kept", None, None),
        "out": ("dropped", "wide", "((image.width >= 8) OR (parent_id IS NOT NULL))"),
        "out'": ("dropped", "parent_not_kept", "dropped"),
        "vetoed": ("kept", None, None),
        "vetoed'": ("dropped", "ambiguous_side", "because"),
        "twin": ("kept", None, None),
        "twin2": ("kept", None, None),
    }
    assert {split for (split,) in curation.connection.execute("SELECT split FROM places").fetchall()} == {"train"}


def test_a_ledger_that_does_not_add_up_stops_the_build(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="the ledger does not add up: 3 inputs, 2 of them taken in; 2 samples"):
        decide_fates(loaded(tmp_path / "a", [Row("a"), Row("b")]), 3)
    twice = loaded(tmp_path / "b", [Row("a")])
    twice.connection.execute(
        f"INSERT INTO fates VALUES ('{sample_id('s', 'a')}', 'dropped', 'x', 'y', NULL, NULL, NULL)"
    )
    twice.connection.execute("INSERT INTO fates SELECT * FROM fates")
    with pytest.raises(LedgerError, match="2 fates for 1 samples"):
        decide_fates(twice, 1)
