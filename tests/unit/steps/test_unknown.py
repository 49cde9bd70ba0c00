"""Attributes and values that no sample has: found in what curation says, and told."""

from __future__ import annotations

from pathlib import Path

import pytest
from candidates import COLUMNS, Row, loaded

from mmdata.engine.decide import read_unknown
from mmdata.steps.base import Curate
from mmdata.steps.curate.duplicates import Duplicates
from mmdata.steps.curate.expressions import attribute_keys
from mmdata.steps.curate.mix import Mix
from mmdata.steps.curate.quota import Quota
from mmdata.steps.curate.rules import Rules
from mmdata.steps.curate.splits import Splits
from mmdata.steps.curate.terms import Terms
from mmdata.steps.curate.unknown import told, unknown
from mmdata.store.curation import Curation

ROWS = [
    Row("a", attributes={"score": "1", "speaker": "x"}),
    Row("b", attributes={"only here": "1"}),
    Row("c", failed="because", attributes={"gone": "1"}),
]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("attributes['scroe']::DOUBLE >= 0.5 AND attributes['b'] IS NULL", ["scroe", "b"]),
        ("Candidates.ATTRIBUTES['a']", ["a"]),
        ("attributes.a", ["a"]),
        ("attributes['it''s'] DESC NULLS LAST, attributes['it''s'], key", ["it's"]),
        ("len(element_at(attributes, 'a')) + len(map_extract(attributes, 'b'))", ["a", "b"]),
        ("map_contains(attributes, 'a')", ["a"]),
        ("list_filter(['x'], lambda x: attributes['a'] = x)", ["a"]),
        ("CASE WHEN true THEN attributes['a'] ELSE 'attributes[''b'']' END -- attributes['c']", ["a"]),
        ("attributes[source || '_score']", []),
        ("attributes IS NULL OR key = 'attributes'", []),
        ("['a', 'b'][1]", []),
        ("caption.text", []),
    ],
)
def test_the_attributes_that_sql_names_are_found(text: str, keys: list[str]) -> None:
    curation = Curation.empty(COLUMNS)
    curation.connection.execute(f"EXPLAIN SELECT 1 FROM candidates ORDER BY {text}\n")
    assert attribute_keys(curation, text) == keys


@pytest.mark.parametrize(
    ("step", "places"),
    [
        (Rules(keep={"good": "attributes['x']::DOUBLE >= 0.5"}), "rules.keep.good"),
        (Rules.model_validate({"keep": {"good": {"by_source": {"s": "attributes['x'] = ''"}}}}), "rules.keep.good"),
        (Rules.model_validate({"keep": {"r": {"top": 0.5, "by": "attributes['x']::INT"}}}), "rules.keep.r"),
        (Rules.model_validate({"keep": {"r": {"top": 1, "by": "1", "within": "attributes['x']"}}}), "rules.keep.r"),
        (Rules.model_validate({"keep": {"r": {"top": 1, "by": "1", "among": "attributes['x'] = ''"}}}), "rules.keep.r"),
        (Rules.model_validate({"keep": {"r": {"deny": "l.txt", "of": "attributes['x']"}}}), "rules.keep.r"),
        (Splits(by=["key", "attributes['x']"]), "splits.by"),
        (Splits(first="attributes['x']", stratify=["attributes['x']"]), "splits.first splits.stratify"),
        (Quota(by=["attributes['x']"], most=1, best="attributes['x'] DESC"), "quota.by quota.best"),
        (Quota(by=["key"], most=1, among="attributes['x'] = ''"), "quota.among"),
        (Mix(by="attributes['x']", weights={"a": 1}, among="attributes['x'] = ''"), "mix.by mix.among"),
        (Terms(of="attributes['x']", most=1, among="attributes['x'] = ''"), "terms.of terms.among"),
        (Duplicates(of=["image", "attributes['x']"], best="attributes['x'], key"), "duplicates.of duplicates.best"),
    ],
)
def test_every_step_says_where_it_speaks_of_attributes(tmp_path: Path, step: Curate, places: str) -> None:
    found = unknown(loaded(tmp_path, ROWS), step)
    assert [row["place"] for row in found if row["name"] == "attributes['x']"] == places.split()


def test_what_no_sample_has_is_told_with_the_nearest_that_one_has(tmp_path: Path) -> None:
    keep = {
        "good": "attributes['scroe']::DOUBLE >= 0.5 AND attributes['score']::DOUBLE >= 0",
        "there": "attributes['only here'] IS NULL AND attributes['speaker'] <> 'y'",
        "failed": "attributes['gone'] IS NULL",
    }
    query = "SELECT DISTINCT unnest(map_keys(attributes)) FROM samples WHERE fate <> 'failed'"
    assert [told(row) for row in unknown(loaded(tmp_path, ROWS), Rules(keep=keep))] == [
        "rules.keep.good: no sample has attributes['scroe']; did you mean 'score'?",
        f"rules.keep.failed: no sample has attributes['gone']; to see what they have: mmdata query BUILD \"{query}\"",
    ]


def test_a_value_that_is_weighted_and_no_sample_has_is_told_with_those_there_are(tmp_path: Path) -> None:
    langs = ["en", "en", "en", "fr", "de", "fr", "it", "es", "pt", "nl", "sv"]
    rows = [Row(f"{n}", lang=lang, attributes={"set": lang.upper()}) for n, lang in enumerate(langs)]
    curation = loaded(tmp_path, rows)
    Rules(keep={"no_dutch": "caption.lang <> 'nl'"}).apply(curation)
    mix = Mix(by="attributes['set']", weights={"EN": 1, "FRE": 2, "Finnish": 1, "NL": 1, "XX": 0})
    there = "what there is: 'EN' (3), 'FR' (2), 'DE' (1), 'ES' (1), 'IT' (1) and 2 values more"
    left = "mix.weights: of the samples that are left none has attributes['set']"
    assert [told(row) for row in unknown(curation, mix)] == [
        f"{left} = 'FRE'; did you mean 'FR'?",
        f"{left} = 'Finnish'; {there}",
        f"{left} = 'NL'; {there}",
    ]
    quota = Quota(by=["caption.lang"], most={"eng": 1, "en": 0}, among="parent_id IS NOT NULL")
    problem = "of the samples that are left none has caption.lang = '{}'; none has any value"
    assert unknown(curation, quota) == [
        {"place": "quota.most", "name": f"caption.lang = '{lang}'", "problem": problem.format(lang)}
        for lang in ("eng", "en")
    ]
    assert unknown(curation, Quota(by=["caption.lang"], most=1)) == []


def test_where_all_samples_failed_nothing_is_told(tmp_path: Path) -> None:
    curation = loaded(tmp_path, ROWS[2:])
    assert unknown(curation, Rules(keep={"a": "attributes['x'] = ''"})) == []
    assert unknown(curation, Mix(weights={"s": 1})) == []


def test_decisions_of_an_older_mmdata_tell_nothing(tmp_path: Path) -> None:
    assert read_unknown(tmp_path) == []
