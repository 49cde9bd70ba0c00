"""Duplicates by links and by columns: who goes, for whom, by which distance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from candidates import COLUMNS, Row, fates, loaded
from pydantic import ValidationError

from mmdata.sample import sample_id
from mmdata.spec import ParameterError
from mmdata.steps.curate.duplicates import Duplicates
from mmdata.steps.curate.rules import Rules
from mmdata.steps.curate.splits import Splits
from mmdata.store.curation import LINKED, Columns, Curation

Link = tuple[str, str, str, float]
LINKING: Columns = replace(
    COLUMNS,
    measures={"pdq": {"image": LINKED}, "minhash": {"caption": LINKED}, "content": {"image": {"digest": "VARCHAR"}}},
    linked={"pdq": (31, "raise `max_distance`"), "minhash": (0.3, "lower `min_similarity`")},
)
MEMBER = {"pdq": "image", "minhash": "caption"}


def id_of(key: str) -> str:
    return sample_id("s", key)


def with_links(folder: Path, rows: list[Row], *links: Link) -> Curation:
    """Links are (measure, key, key, distance); a key `val:7` is item 7 of a reference set."""
    curation = loaded(folder, rows)
    for measure, one, other, distance in links:
        source, _, item = other.rpartition(":")
        ends = (id_of(one), item) if source else sorted((id_of(one), id_of(other)))
        values = [measure, MEMBER[measure], *ends, distance, source or None]
        columns = "measure, member, sample_id, other_id, distance, other_source"
        curation.connection.execute(f"INSERT INTO links ({columns}) VALUES (?, ?, ?, ?, ?, ?)", values)
    return curation


def dropped(curation: Curation, rows: list[Row], step: Duplicates) -> dict[str, tuple[Any, ...]]:
    """Of each: rule, value, threshold, the key for which it goes."""
    step.apply(curation)
    keys = {id_of(row.key): row.key for row in rows}
    found = fates(curation, rows)
    return {key: (*fate[1:4], keys.get(fate[4], fate[4])) for key, fate in found.items() if fate[0] == "duplicate"}


ROWS = [Row("a", side=5), Row("b", side=30), Row("c", side=20), Row("d", side=10)]


def test_the_best_stays_and_the_fate_has_the_distance_and_the_limit(tmp_path: Path) -> None:
    curation = with_links(tmp_path, ROWS, ("pdq", "a", "b", 12), ("pdq", "c", "d", 32))
    step = Duplicates(near={"pdq.image": 31}, best="image.width DESC")
    assert dropped(curation, ROWS, step) == {"a": ("pdq.image", 12.0, 31.0, "b")}


def test_in_a_chain_who_is_not_linked_to_one_that_stays_stays(tmp_path: Path) -> None:
    chain = [("pdq", "b", "c", 9.0), ("pdq", "c", "d", 9.0), ("pdq", "d", "a", 9.0)]
    curation = with_links(tmp_path, ROWS, *chain)
    step = Duplicates(near={"pdq.image": 31}, best="image.width DESC")
    assert dropped(curation, ROWS, step) == {
        "c": ("pdq.image", 9.0, 31.0, "b"),
        "a": ("pdq.image", 9.0, 31.0, "d"),
    }


def test_any_method_makes_a_duplicate_and_equal_members_come_first(tmp_path: Path) -> None:
    rows = [Row("a", "one", 1), Row("b", "two", 1), Row("c", "three", 2), Row("d", "four", 3)]
    curation = with_links(tmp_path, rows, ("pdq", "a", "b", 3), ("minhash", "a", "c", 0.2), ("minhash", "b", "d", 0.1))
    step = Duplicates(of=["image"], near={"pdq.image": 31, "minhash.caption": 0.3})
    assert dropped(curation, rows, step) == {
        "b": ("image", None, None, "a"),
        "c": ("minhash.caption", 0.2, 0.3, "a"),
    }, "d stays: b, its twin, has gone for a"


def test_a_column_can_be_what_is_equal(tmp_path: Path) -> None:
    rows = [Row("a", "x", attributes={"photo": "7"}), Row("b", "y", attributes={"photo": "7"}), Row("c", "z")]
    curation = loaded(tmp_path, rows)
    step = Duplicates(of=["attributes['photo']"])
    step.check(curation)
    assert set(dropped(curation, rows, step)) == {"b"}


def test_who_has_gone_before_drops_nobody_but_stands_for_its_equals(tmp_path: Path) -> None:
    """Of three equals a is the first, which the others are linked with; a rule has dropped it."""
    curation = with_links(tmp_path, ROWS, ("pdq", "a", "b", 0), ("pdq", "a", "c", 0), ("pdq", "a", "d", 7))
    Rules(keep={"wide": "image.width >= 10"}).apply(curation)
    step = Duplicates(near={"pdq.image": 31}, best="image.width DESC")
    assert dropped(curation, ROWS, step) == {
        "c": ("pdq.image", 0.0, 31.0, "b"),
        "d": ("pdq.image", 7.0, 31.0, "b"),
    }


def test_what_a_reference_set_has_goes_and_the_item_is_named(tmp_path: Path) -> None:
    links = [
        ("pdq", "a", "val:v1", 4.0),
        ("pdq", "a", "test:t1", 3.0),
        ("pdq", "b", "val:v2", 32.0),
        ("pdq", "a", "c", 2.0),
    ]
    curation = with_links(tmp_path / "a", ROWS, *links)
    step = Duplicates(near={"pdq.image": 31})
    assert dropped(curation, ROWS, step) == {"a": ("pdq.image", 3.0, 31.0, "test: t1")}, "c has no twin any more"
    kept = with_links(tmp_path / "b", ROWS, *links)
    assert set(dropped(kept, ROWS, Duplicates(near={"pdq.image": 31}, reference="keep"))) == {"c"}


def test_a_second_step_goes_on_where_the_first_has_ended(tmp_path: Path) -> None:
    curation = with_links(tmp_path, ROWS, ("pdq", "a", "b", 1), ("minhash", "b", "c", 0.1))
    Duplicates(near={"pdq.image": 31}).apply(curation)
    assert set(dropped(curation, ROWS, Duplicates(near={"minhash.caption": 0.3}))) == {"b"}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"near": {"pqd.image": 31}}, "no measure links samples by 'pqd.image'; did you mean 'pdq.image'?"),
        ({"near": {"content.image": 0}}, "no measure links samples by 'content.image'; "),
        ({"of": ["imag"]}, "no member 'imag'; did you mean 'image'?"),
        ({"of": ["content.image.digets"]}, "Binder Error: Could not find key"),
        ({"best": "image.widht", "of": ["image"]}, "Binder Error: Could not find key"),
        ({"best": "random()", "of": ["image"]}, "random() gives something else each time"),
    ],
)
def test_an_unknown_name_is_said_with_the_nearest(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        Duplicates(**step).check(Curation.empty(LINKING))
    assert [(keys[0], said.startswith(message)) for keys, said in error.value.problems] == [(next(iter(step)), True)]


def test_a_distance_that_the_measure_does_not_link_is_refused_at_its_place() -> None:
    with pytest.raises(ParameterError) as error:
        Duplicates(near={"pdq.image": 31.5, "minhash.caption": 0.9}).check(Curation.empty(LINKING))
    more = "of the measure for more"
    assert error.value.problems == [
        (("near", "pdq.image"), f"31.5 is too far: 'pdq' links samples up to 31; raise `max_distance` {more}"),
        (
            ("near", "minhash.caption"),
            f"0.9 is too far: 'minhash' links samples up to 0.3; lower `min_similarity` {more}",
        ),
    ]
    boundless = replace(LINKING, linked={"pdq": None})
    Duplicates(near={"pdq.image": 60}).check(Curation.empty(boundless))


@pytest.mark.parametrize("distance", [-1.0, float("nan"), float("inf")])
def test_what_is_no_distance_is_refused(distance: float) -> None:
    for step in (lambda: Duplicates(near={"pdq.image": distance}), lambda: Splits(links={"pdq": distance})):
        with pytest.raises(ValidationError, match=r"greater than or equal to 0|finite"):
            step()


def test_where_nothing_links_the_step_that_would_is_named() -> None:
    with pytest.raises(ParameterError, match="`measure:` has no step that links"):
        Duplicates(near={"pdq.image": 31}).check(Curation.empty(COLUMNS))
    Duplicates(of=["content.image.digest"], near={"pdq.image": 3}).check(Curation.empty(LINKING))


def test_it_says_by_what() -> None:
    with pytest.raises(ValidationError, match="say by what"):
        Duplicates()
