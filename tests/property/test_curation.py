"""Curation over random tables: nobody is lost, tightening never keeps more, order never matters, nothing straddles."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from candidates import Row, loaded
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.steps.base import Curate
from mmdata.steps.curate.mix import Mix
from mmdata.steps.curate.quota import Quota
from mmdata.steps.curate.rules import Rules
from mmdata.steps.curate.splits import Splits
from mmdata.store.curation import Curation
from mmdata.store.selection import decide_fates

pytestmark = pytest.mark.slow
# An example opens a database and writes two Parquet files: a tenth of a second.
FEW = settings(max_examples=15)
SCORE = "clip.image_caption.score"


@st.composite
def tables(draw: Any) -> list[Row]:
    """Samples that lack this and that, with equal values among them; some failed, some have children."""
    rows = []
    for number in range(draw(st.integers(0, 12))):
        score = draw(st.none() | st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, float("nan")]))
        row = Row(
            f"k{number}",
            draw(st.none() | st.sampled_from(["a", "a b", "a b c"])),
            draw(st.none() | st.integers(1, 4)),
            score,
            lang=draw(st.none() | st.sampled_from(["en", "fr"])),
            source=draw(st.sampled_from(["s", "web", "radio"])),
            failed=draw(st.sampled_from([None, None, None, "bad_image"])),
        )
        rows.append(row)
        if row.failed is None and draw(st.booleans()):
            rows.append(Row(row.key, row.caption, row.side, 0.1, parent=row.key, source=row.source, lang=row.lang))
    return rows


COMPARED = {"image.width": st.integers(0, 5), "caption.words": st.integers(0, 4), SCORE: st.floats(-1, 1)}


@st.composite
def tightened(draw: Any) -> tuple[Any, Any]:
    """A rule, and the same rule with a bound that fewer can meet."""
    column = draw(st.sampled_from(list(COMPARED)))
    low, high = sorted((draw(COMPARED[column]), draw(COMPARED[column])))
    share, less = sorted((draw(st.floats(0.01, 1)), draw(st.floats(0.01, 1))), reverse=True)
    within = draw(st.lists(st.sampled_from(["caption.lang", "source"]), unique=True))
    forms = [
        (f"{column} >= {low!r}", f"{column} >= {high!r}"),
        (f"{column} <= {high!r}", f"{column} <= {low!r}"),
        (f"{column} >= {low!r}", f"{column} >= {low!r} AND caption IS NOT NULL"),
        ({"top": share, "by": column, "within": within}, {"top": less, "by": column, "within": within}),
        ({"bottom": share, "by": column}, {"bottom": less, "by": column}),
        ({"sql": f"{column} > {low!r}", "only_for": "web"}, {"sql": f"{column} > {low!r}", "not_for": []}),
        ({"sql": f"{column} > {low!r}", "by_source": {"s": None}}, f"{column} > {low!r}"),
    ]
    chosen: tuple[Any, Any] = draw(st.sampled_from(forms))
    return chosen


def rules(*keep: Any) -> Rules:
    return Rules.model_validate({"keep": {f"r{n}": rule for n, rule in enumerate(keep)}})


def kept(rows: Sequence[Row], *steps: Curate) -> set[str]:
    """Ids of who is kept; the ledger is checked on the way."""
    with tempfile.TemporaryDirectory() as folder:
        curation = loaded(Path(folder), rows)
        for step in steps:
            step.check(curation)
            step.apply(curation)
        decide_fates(curation, sum(row.parent is None for row in rows))
        for step in steps:
            step.verify(curation)
        fates = curation.connection.execute("SELECT sample_id, fate FROM fates").fetchall()
        curation.connection.close()
    assert len(fates) == len(rows) == len({sample for sample, _ in fates})
    return {sample for sample, fate in fates if fate == "kept"}


@FEW
@given(tables(), st.lists(tightened(), min_size=1, max_size=4))
def test_tightening_a_rule_never_keeps_more(rows: list[Row], pairs: list[tuple[Any, Any]]) -> None:
    loose = [pair[0] for pair in pairs]
    assert kept(rows, rules(pairs[0][1], *loose[1:])) <= kept(rows, rules(*loose))


@FEW
@given(tables(), st.lists(tightened(), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_rules_never_changes_who_is_kept(
    rows: list[Row], pairs: list[tuple[Any, Any]], random: Any
) -> None:
    mine = [pair[0] for pair in pairs]
    other = random.sample(mine, len(mine))
    assert kept(rows, rules(*other)) == kept(rows, rules(*mine))


@FEW
@given(tables(), st.integers(0, 3), st.lists(st.sampled_from(["caption.lang", "source", "caption.text"]), min_size=1))
def test_quotas_are_never_exceeded_nor_left_empty(rows: list[Row], most: int, by: list[str]) -> None:
    stayed = kept(rows, Quota(by=by, most=most))
    fields = {"caption.lang": "lang", "source": "source", "caption.text": "caption"}
    there: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        kind = tuple(None if name != "source" and row.caption is None else getattr(row, fields[name]) for name in by)
        if row.parent is None and row.failed is None and None not in kind:
            there.setdefault(kind, []).append(row.sample_id)
    for samples in there.values():
        assert len(stayed.intersection(samples)) == min(most, len(samples))


WEIGHTS = st.fixed_dictionaries(dict.fromkeys(["s", "web", "radio"], st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0])))


@FEW
@given(tables(), WEIGHTS.filter(lambda weights: any(weights.values())))
def test_a_mix_is_as_large_as_its_proportions_allow(rows: list[Row], weights: dict[str, float]) -> None:
    stayed = kept(rows, Mix(weights=weights))
    alive = [row for row in rows if row.parent is None and row.failed is None]
    counts = {name: sum(row.sample_id in stayed for row in alive if row.source == name) for name in weights}
    there = {name: sum(row.source == name for row in alive) for name in weights}
    mixed = [name for name in weights if there[name] and weights[name]]
    assert all(counts[name] <= there[name] for name in weights)
    assert not mixed or any(counts[name] == there[name] for name in mixed)
    size = min((there[name] / weights[name] for name in mixed), default=0)
    assert all(abs(counts[name] - weights[name] * size) < 1 for name in mixed)
    assert all(counts[name] == 0 for name in weights if not weights[name])


# --- splits -----------------------------------------------------------------------------------------------------------

KEY = st.none() | st.sampled_from("abcdefg")
BY = ["attributes['speaker']", "caption.text"]
Graph = tuple[list[Row], list[tuple[int, int]]]


@st.composite
def graphs(draw: Any) -> Graph:
    """Samples with two keys, any of which may be missing, and links between them; in the order in which they came."""
    rows = []
    for number in range(draw(st.integers(2, 14))):
        speaker = draw(KEY)
        attributes = {"day": f"{number:03d}"} | ({} if speaker is None else {"speaker": speaker})
        rows.append(Row(f"k{number}", draw(KEY), attributes=attributes))
    ends = st.integers(0, len(rows) - 1)
    return rows, draw(st.lists(st.tuples(ends, ends).filter(lambda pair: pair[0] != pair[1]), max_size=4))


def placed(graph: Graph, splits: Splits) -> dict[str, tuple[str, str]]:
    """By key: the group and the split."""
    rows, links = graph
    with tempfile.TemporaryDirectory() as folder:
        curation: Curation = loaded(Path(folder), rows)
        for pair in links:
            a, b = sorted(rows[n].sample_id for n in pair)
            curation.connection.execute(f"INSERT INTO links VALUES ('pdq', 'image', '{a}', '{b}', 1, NULL)")
        splits.apply(curation)
        splits.verify(curation)
        found = curation.connection.execute("SELECT sample_id, group_id, split FROM places").fetchall()
        curation.connection.close()
    keys = {row.sample_id: row.key for row in rows}
    return {keys[sample]: (group, split) for sample, group, split in found}


def hanging_together(graph: Graph) -> list[set[str]]:
    """Groups by the plainest way: join what shares anything until nothing is left to join."""
    rows, links = graph
    groups = [{row.key} for row in rows]
    shares = [{row.key for row in rows if row.caption == text} for text in {row.caption for row in rows} - {None}]
    speakers = {row.attributes.get("speaker") for row in rows} - {None}
    shares += [{row.key for row in rows if row.attributes.get("speaker") == one} for one in speakers]
    shares += [{rows[a].key, rows[b].key} for a, b in links]
    for share in shares:
        touched = [group for group in groups if group & share]
        groups = [group for group in groups if not group & share] + [set().union(*touched)]
    return groups


@FEW
@given(graphs(), st.booleans())
def test_groups_are_what_hangs_together_and_never_straddle(graph: Graph, stratified: bool) -> None:
    stratify = ["caption.text"] if stratified else []
    splits = Splits(by=BY, links=["pdq"], shares={"a": 0.4, "b": 0.3, "c": 0.3}, stratify=stratify)
    found = placed(graph, splits)
    by_group: dict[str, set[str]] = {}
    for key, (group, _) in found.items():
        by_group.setdefault(group, set()).add(key)
    assert sorted(map(sorted, by_group.values())) == sorted(map(sorted, hanging_together(graph)))
    assert all(len({found[key][1] for key in group}) == 1 for group in by_group.values())


@FEW
@given(graphs(), st.data())
def test_samples_stay_where_they_were_unless_newcomers_join_their_groups(graph: Graph, data: Any) -> None:
    rows, links = graph
    count = data.draw(st.integers(1, len(rows) - 1))
    old: Graph = (rows[:count], [pair for pair in links if max(pair) < count])
    splits = Splits(by=BY, links=["pdq"], first="attributes['day']", shares={"a": 0.5, "b": 0.5})
    before, after = placed(old, splits), placed(graph, splits)
    was = hanging_together(old)
    for group in hanging_together(graph):
        inside = [one for one in was if one <= group]
        # Of the groups that were there, the one with the first day stays; with one alone nobody moves.
        first = min(inside, key=min, default=set())
        assert all(before[key] == after[key] for key in first)


@FEW
@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=14), st.data())
def test_with_one_key_nobody_ever_moves(speakers: list[str], data: Any) -> None:
    rows = [Row(f"k{n}", None, attributes={"speaker": speaker}) for n, speaker in enumerate(speakers)]
    splits = Splits(by=BY[:1], links=[], shares={"a": 0.5, "b": 0.5})
    count = data.draw(st.integers(1, len(rows)))
    after = placed((rows, []), splits)
    assert placed((rows[:count], []), splits) == {row.key: after[row.key] for row in rows[:count]}
