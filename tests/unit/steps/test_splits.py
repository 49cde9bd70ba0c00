"""Splits: what belongs together stays together, and where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from candidates import COLUMNS, Row, fates, loaded

from mmdata.errors import LedgerError
from mmdata.spec import ParameterError
from mmdata.steps.curate.splits import Splits
from mmdata.store.crossings import write_crossings, write_moved
from mmdata.store.curation import Curation
from mmdata.store.selection import decide_fates


def places(folder: Path, rows: list[Row], splits: Splits, *, seed: int = 0) -> dict[str, str]:
    curation = loaded(folder, rows, seed=seed)
    splits.check(curation)
    splits.apply(curation)
    found = dict(curation.connection.execute("SELECT sample_id, split FROM places").fetchall())
    return {row.key + ("'" if row.parent else ""): found[row.sample_id] for row in rows}


MANY = [Row(f"k{n}", f"c{n % 40}") for n in range(400)]


def test_a_sample_stays_in_its_split_when_others_come(tmp_path: Path) -> None:
    few = places(tmp_path / "few", MANY[::3], Splits())
    all_of_them = places(tmp_path / "all", MANY, Splits())
    assert few == {key: all_of_them[key] for key in few}
    assert set(all_of_them.values()) == {"train", "val"}


def test_shares_are_nearly_those_asked_for_and_the_seed_decides(tmp_path: Path) -> None:
    shares = Splits(shares={"train": 0.5, "val": 0.3, "test": 0.2})
    found = places(tmp_path / "0", MANY, shares)
    counts = {name: list(found.values()).count(name) / 400 for name in shares.shares}
    assert counts == pytest.approx({"train": 0.5, "val": 0.3, "test": 0.2}, abs=0.08)
    assert places(tmp_path / "1", MANY, shares, seed=1) != found


def test_a_group_never_straddles(tmp_path: Path) -> None:
    found = places(tmp_path, MANY, Splits(by="caption.text", shares={"train": 0.5, "val": 0.5}))
    by_caption: dict[str | None, set[str]] = {}
    for row in MANY:
        by_caption.setdefault(row.caption, set()).add(found[row.key])
    assert {len(splits) for splits in by_caption.values()} == {1}
    assert set(found.values()) == {"train", "val"}


def test_samples_without_a_group_are_groups_of_their_own(tmp_path: Path) -> None:
    rows = [Row(f"k{n}", None) for n in range(60)]
    found = places(tmp_path, rows, Splits(by="caption.text", shares={"train": 0.5, "val": 0.5}))
    assert set(found.values()) == {"train", "val"}


def test_a_share_of_nothing_gets_nothing_and_all_gets_all(tmp_path: Path) -> None:
    assert set(places(tmp_path, MANY, Splits(shares={"none": 0, "all": 1})).values()) == {"all"}


@pytest.mark.parametrize(
    ("augmented", "dropped"), [(None, "val"), (["val"], "train"), ([], "both"), (["train", "val"], "")]
)
def test_children_stay_with_their_parents_where_they_may_be(
    tmp_path: Path, augmented: list[str] | None, dropped: str
) -> None:
    rows = [row for n in range(40) for row in (Row(f"k{n}"), Row(f"k{n}", parent=f"k{n}"))]
    splits = Splits(shares={"train": 0.5, "val": 0.5}, augmented=augmented)
    curation = loaded(tmp_path, rows)
    splits.apply(curation)
    found = dict(curation.connection.execute("SELECT sample_id, split FROM places").fetchall())
    out = fates(curation, rows)
    for parent, child in zip(rows[::2], rows[1::2], strict=True):
        split = found[parent.sample_id]
        assert found[child.sample_id] == split
        assert (f"{child.key}'" in out) == (dropped in (split, "both"))
        assert parent.key not in out
    assert {fate[1] for fate in out.values()} <= {"augmented_only_in"}


HALVES = {"train": 0.5, "val": 0.5}


def linked(folder: Path, rows: list[Row], links: list[tuple[str, str, float]], splits: Splits) -> Curation:
    """Placed, with links of the measure `pdq` between the samples of two keys."""
    curation = loaded(folder, rows)
    ids = {row.key: row.sample_id for row in rows if not row.parent}
    for left, right, distance in links:
        a, b = sorted((ids[left], ids[right]))
        curation.connection.execute(f"INSERT INTO links VALUES ('pdq', 'image', '{a}', '{b}', {distance}, NULL)")
    splits.apply(curation)
    splits.verify(curation)
    return curation


def groups(curation: Curation, rows: list[Row]) -> list[str]:
    """Keys that are one group, each group as `a b c`."""
    names = {row.sample_id: row.key for row in rows}
    found: dict[str, list[str]] = {}
    for sample, group in curation.connection.execute("SELECT sample_id, group_id FROM places").fetchall():
        found.setdefault(group, []).append(names[sample])
    return sorted(" ".join(sorted(keys)) for keys in found.values())


def spoken(key: str, speaker: str | None, caption: str | None) -> Row:
    return Row(key, caption, attributes={} if speaker is None else {"speaker": speaker})


BY = ["attributes['speaker']", "caption.text"]


def test_keys_are_joined_by_way_of_each_other(tmp_path: Path) -> None:
    rows = [
        spoken("a", "ann", "cat"),
        spoken("b", "ann", "dog"),
        spoken("c", "bob", "dog"),  # with b by the caption, so with a
        spoken("d", None, "cat"),  # with a
        spoken("e", "cat", "owl"),  # a speaker is not a caption
        spoken("f", None, None),
        spoken("g", None, None),
    ]
    found = linked(tmp_path, rows, [], Splits(by=BY))
    assert groups(found, rows) == ["a b c d", "e", "f", "g"]


def test_links_join_groups_as_far_as_they_are_asked_for(tmp_path: Path) -> None:
    rows = [Row(f"k{n}", f"c{n // 2}") for n in range(8)]
    links = [("k0", "k2", 3.0), ("k4", "k6", 9.0)]
    asked: list[tuple[str, Splits, list[str]]] = [
        ("caption", Splits(by=["caption.text"]), ["k0 k1", "k2 k3", "k4 k5", "k6 k7"]),
        ("near", Splits(by=["caption.text"], links={"pdq": 5}), ["k0 k1 k2 k3", "k4 k5", "k6 k7"]),
        ("any", Splits(by=["caption.text"], links=["pdq"]), ["k0 k1 k2 k3", "k4 k5 k6 k7"]),
        ("id", Splits(links=["pdq"]), ["k0 k2", "k1", "k3", "k4 k6", "k5", "k7"]),
    ]
    for name, splits, expected in asked:
        assert groups(linked(tmp_path / name, rows, links, splits), rows) == expected


def test_one_key_is_the_group_whatever_else_there_could_be(tmp_path: Path) -> None:
    """Keys and links that join nothing change nothing: a group's name is a hash of its first key."""
    rows = [spoken(f"k{n}", f"s{n % 30}", f"c{n % 30}") for n in range(90)]
    alone = places(tmp_path / "alone", rows, Splits(by=BY[:1]))
    assert places(tmp_path / "both", rows, Splits(by=BY)) == alone


def test_a_group_stays_where_its_first_sample_was(tmp_path: Path) -> None:
    """Forty days of one sample each; on the next forty days each gets a neighbour with a speaker of its own."""
    days = [Row(f"k{n}", f"c{n % 40}", attributes={"speaker": f"s{n}", "day": f"2026-{n + 1000}"}) for n in range(80)]
    splits = Splits(by=BY, first="attributes['day']", shares=HALVES)
    before = places(tmp_path / "before", days[:40], splits)
    after = places(tmp_path / "after", days, splits)
    assert before == {key: after[key] for key in before}
    without = splits.model_copy(update={"first": None})
    old, new = places(tmp_path / "old", days[:40], without), places(tmp_path / "new", days, without)
    assert 0 < sum(old[key] != new[key] for key in old) < 20


def test_strata_have_the_shares_as_nearly_as_groups_allow(tmp_path: Path) -> None:
    rows = [Row(f"k{n}", f"c{n}", lang="en" if n < 100 else "fr" if n < 110 else "ru") for n in range(115)]
    found = places(tmp_path, rows, Splits(shares={"train": 0.8, "val": 0.2}, stratify=["caption.lang"]))
    counts = {lang: sum(found[r.key] == "val" for r in rows if r.lang == lang) for lang in ("en", "fr", "ru")}
    assert counts == {"en": 20, "fr": 2, "ru": 1}


def test_strata_of_several_expressions_are_told_apart(tmp_path: Path) -> None:
    def row(number: int, one: str | None, other: str | None) -> Row:
        said = {"one": one, "other": other}
        return Row(f"{one}-{other}-{number}", None, attributes={key: v for key, v in said.items() if v is not None})

    for pair in ((("x", "y/z"), ("x/y", "z")), ((None, "z"), ("", "z")), (("~", None), ("", "~n"))):
        rows = [row(number, *kind) for kind in pair for number in range(20)]
        splits = Splits(shares=HALVES, stratify=["attributes['one']", "attributes['other']"])
        for seed in range(3):
            found = places(tmp_path / f"{pair}-{seed}".replace("/", "_"), rows, splits, seed=seed)
            assert [sum(found[r.key] == "val" for r in rows[n : n + 20]) for n in (0, 20)] == [10, 10]


def test_strata_do_not_tear_groups(tmp_path: Path) -> None:
    rows = [Row(f"k{n}", f"c{n % 7}", lang="en" if n % 2 else "fr") for n in range(70)]
    splits = Splits(by=["caption.text"], shares=HALVES, stratify=["caption.lang"])
    found = places(tmp_path, rows, splits)
    assert all(found[row.key] == found[f"k{int(row.key[1:]) % 7}"] for row in rows)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("UPDATE places SET split = 'x' WHERE sample_id = '{a}'", "1 groups in two splits"),
        ("UPDATE places SET split = 'x', group_id = 'x' WHERE sample_id = '{a}'", "1 values of caption.text"),
        ("UPDATE places SET split = 'x', group_id = 'x' WHERE sample_id IN ('{a}', '{b}')", "1 links in two splits"),
        ("UPDATE places SET split = 'x', group_id = 'x' WHERE sample_id = '{child}'", "1 children in two splits"),
    ],
)
def test_a_leak_is_found_whatever_made_it(tmp_path: Path, change: str, expected: str) -> None:
    rows = [Row("a", "cat"), Row("b", "cat"), Row("c", "dog"), Row("d", "owl"), Row("d", "owl", parent="d")]
    splits = Splits(by=["caption.text"], links=["pdq"])
    curation = linked(tmp_path, rows, [("b", "c", 1.0)], splits)
    ids = {"a": rows[0].sample_id, "b": rows[1].sample_id, "child": rows[4].sample_id}
    curation.connection.execute(change.format(**ids))
    with pytest.raises(LedgerError, match=f"splits leak: {expected}"):
        splits.verify(curation)


def test_what_lies_in_two_splits_is_counted(tmp_path: Path) -> None:
    rows = [Row("a", "cat", 1), Row("b", "cat", 2), Row("c", "cat", 3), Row("d", "dog", 4), Row("e", "dog", 5)]
    curation = linked(tmp_path, rows, [("a", "d", 1.0), ("a", "e", 1.0), ("b", "c", 1.0)], Splits(links=[]))
    decide_fates(curation, 5)
    halves = {row.sample_id: "val" if row.key in "ad" else "train" for row in rows}
    for sample, split in halves.items():
        curation.connection.execute(f"UPDATE placed SET split = '{split}' WHERE sample_id = '{sample}'")
    curation.connection.execute(f"DELETE FROM placed WHERE sample_id = '{rows[1].sample_id}'")
    write_crossings(curation, tmp_path)
    found = curation.connection.execute(f"SELECT * FROM read_parquet('{tmp_path}/crossings.parquet')").fetchall()
    assert found == [
        ("caption.sha256", "train", "val", 2, 2),
        ("caption.sha256", "val", "train", 2, 2),
        ("image.sha256", "train", "val", 0, 2),
        ("image.sha256", "val", "train", 0, 2),
        ("pdq.image", "train", "val", 1, 2),
        ("pdq.image", "val", "train", 1, 2),
    ]


def test_who_moved_since_the_build_before_is_told(tmp_path: Path) -> None:
    rows = [Row("a"), Row("b")]
    first = loaded(tmp_path / "x", rows)
    decide_fates(first, 2)
    for name in ("fates", "places"):
        first.connection.execute(f"COPY {name} TO '{tmp_path}/x/{name}.parquet'")
    again = loaded(tmp_path / "y", rows)
    decide_fates(again, 2)
    again.connection.execute(f"UPDATE places SET split = 'val' WHERE sample_id = '{rows[1].sample_id}'")
    moved = f"SELECT * FROM read_parquet('{tmp_path}/y/moved.parquet')"
    write_moved(again, tmp_path / "y", None)
    assert again.connection.execute(moved).fetchall() == []
    write_moved(again, tmp_path / "y", tmp_path / "x")
    assert again.connection.execute(moved).fetchall() == [(rows[1].sample_id, "train", "val")]


@pytest.mark.parametrize(
    ("parameters", "place", "message"),
    [
        ({"by": "caption.txet"}, "by", "did you mean 'text'?"),
        ({"by": ["key", "random()"]}, "by", "random() gives something else each time"),
        ({"first": "max(key)"}, "first", "aggregates"),
        ({"stratify": ["caption.lnag"]}, "stratify", "did you mean 'lang'?"),
        ({"links": ["pqd"]}, "links", "no measure 'pqd' links samples; under `measure:` stands none that does"),
        ({"augmented": ["vla"]}, "augmented", "no split 'vla'; did you mean 'val'?"),
    ],
)
def test_a_plan_says_what_is_wrong_with_splits(parameters: dict[str, object], place: str, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        Splits.model_validate(parameters).check(Curation.empty(COLUMNS))
    ((keys, said),) = error.value.problems
    assert keys == (place,)
    assert message in said


def test_a_distance_that_the_measure_does_not_link_is_refused_at_its_place() -> None:
    limits = {"pdq": (31, "raise `max_distance`"), "own": None}
    curation = Curation.empty(replace(COLUMNS, linked=limits))
    with pytest.raises(ParameterError) as error:
        Splits(links={"pdq": 60, "own": 60}).check(curation)
    message = "60 is too far: 'pdq' links samples up to 31; raise `max_distance` of the measure for more"
    assert error.value.problems == [(("links", "pdq"), message)]
    Splits(links={"pdq": 31, "own": 60}).check(curation)
    Splits(links=["pdq"]).check(curation)
