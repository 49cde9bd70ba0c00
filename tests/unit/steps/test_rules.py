"""Rules beyond one expression: quantiles, sources, lists; and what a plan refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from candidates import COLUMNS, Row, decided, loaded
from pydantic import ValidationError

from mmdata.sample import sample_id
from mmdata.steps.curate import expressions
from mmdata.steps.curate.expressions import STEADY
from mmdata.steps.curate.rules import Rules
from mmdata.store.curation import Curation


def rules(**keep: Any) -> Rules:
    return Rules.model_validate({"keep": keep})


def scored(*scores: float | None, **more: Any) -> list[Row]:
    return [Row(f"k{n}", score=score, **more) for n, score in enumerate(scores)]


def out(found: dict[str, tuple[Any, ...]]) -> str:
    return " ".join(sorted(found))


def test_texts_that_are_compared_are_no_numbers_in_the_ledger(tmp_path: Path) -> None:
    """'10' comes before '5': a value of 10 and a threshold of 5 would say that it was kept."""
    rows = [Row("a", side=10, attributes={"n": "10"}), Row("b", side=4, attributes={"n": "7"})]
    text, number = "attributes['n'] >= '5'", "image.width >= '5'"
    assert decided(tmp_path / "text", rows, rules(one=text)) == {
        "a": ("dropped", "one", None, None, "(attributes['n'] >= '5')")
    }
    assert decided(tmp_path / "number", rows, rules(one=number)) == {
        "b": ("dropped", "one", 4, 5, "(image.width >= '5')")
    }


# --- quantiles --------------------------------------------------------------------------------------------------------

BY = "clip.image_caption.score"


@pytest.mark.parametrize(
    ("share", "scores", "dropped"),
    [
        ({"top": 0.5}, [4, 3, 2, 1], "k2 k3"),
        ({"top": 0.3}, [4, 3, 2, 1], "k2 k3"),  # ceil(1.2) = 2 stay
        ({"top": 0.25}, [4, 3, 2, 1], "k1 k2 k3"),
        ({"top": 0.01}, [4, 3, 2, 1], "k1 k2 k3"),
        ({"top": 1}, [4, 3, 2, 1], ""),
        ({"bottom": 0.5}, [4, 3, 2, 1], "k0 k1"),
        ({"top": 0.25}, [3, 3, 2, 1], "k2 k3"),  # a tie is not cut
        ({"top": 0.5}, [1, 1, 1, 1], ""),
        ({"top": 0.5}, [2, None, 1, None], "k2"),  # NULL passes and does not count
        ({"top": 0.5}, [float("nan"), float("nan"), 2, 1], "k3"),  # nor does NaN, which DuckDB takes for the largest
        ({"top": 0.5}, [None, None], ""),
        ({"top": 0.5}, [], ""),
    ],
)
def test_a_quantile_keeps_the_share_that_it_says(
    tmp_path: Path, share: dict[str, float], scores: list[float | None], dropped: str
) -> None:
    assert out(decided(tmp_path, scored(*scores), rules(best={**share, "by": BY}))) == dropped


def test_a_share_is_reckoned_as_it_is_written(tmp_path: Path) -> None:
    """0.07 * 100 is 7.000000000000001 in binary fractions, whose ceiling would keep an eighth."""
    found = decided(tmp_path, scored(*range(100)), rules(best={"top": 0.07, "by": BY}))
    assert 100 - len(found) == 7


def test_a_quantile_drops_with_the_value_and_the_threshold(tmp_path: Path) -> None:
    found = decided(tmp_path, scored(0.75, 0.5, 0.25), rules(best={"top": 0.4, "by": BY, "within": "caption.lang"}))
    detail = "(clip.image_caption.score >= 0.5): top 0.4 of 3, caption.lang = en"
    assert found == {"k2": ("dropped", "best", 0.25, 0.5, detail)}


def test_a_quantile_within_groups_a_missing_value_is_a_group(tmp_path: Path) -> None:
    rows = [
        Row("a", score=9, lang="en"),
        Row("b", score=8, lang="en"),
        Row("c", score=2, lang="fr"),
        Row("d", score=1, lang="fr"),
        Row("e", score=0.5, lang=None),
        Row("f", score=0.25, lang=None),
        Row("g", score=0.125, lang="en", source="web"),
    ]
    best = {"top": 0.5, "by": BY, "within": ["caption.lang", "source"]}
    found = decided(tmp_path, rows, rules(best=best))
    assert out(found) == "b d f"
    assert found["f"][4] == '(clip.image_caption.score >= 0.5): top 0.5 of 2, caption.lang = NULL, "source" = s'


def test_children_meet_the_threshold_of_the_originals_and_do_not_move_it(tmp_path: Path) -> None:
    rows = [*scored(4, 3, 2, 1), *(Row(f"k{n}", score=0, parent=f"k{n}") for n in range(4))]
    assert out(decided(tmp_path, rows, rules(best={"top": 0.5, "by": BY}))) == "k0' k1' k2 k2' k3 k3'"
    among = rules(best={"top": 0.5, "by": BY, "among": "true"})
    assert out(decided(tmp_path / "all", rows, among)) == "k0' k1' k2' k3'"


def test_all_rules_of_a_step_judge_who_came_into_it(tmp_path: Path) -> None:
    """Else the quantile of the second rule would depend on the first, and on their order."""
    rows = [Row(f"k{n}", side=n + 1, score=n + 1) for n in range(4)]
    named = {"wide": "image.width >= 3", "best": {"top": 0.75, "by": BY}}
    first = decided(tmp_path / "a", rows, rules(**named))
    again = decided(tmp_path / "b", rows, rules(**dict(reversed(named.items()))))
    assert out(first) == out(again) == "k0 k1"
    assert [first["k0"][1], again["k0"][1]] == ["wide", "best"]


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "dropped"),
    [
        ({"sql": "image.width >= 8"}, "r s w"),
        ({"sql": "image.width >= 8", "only_for": "web"}, "w"),
        ({"sql": "image.width >= 8", "only_for": ["web", "s"], "not_for": "s"}, "w"),
        ({"sql": "image.width >= 8", "not_for": ["web", "radio"]}, "s"),
        ({"sql": "image.width >= 8", "by_source": {"web": "image.width >= 2"}}, "r s"),
        ({"sql": "image.width >= 8", "by_source": {"web": None}}, "r s"),
        ({"by_source": {"web": "image.width >= 8 AND caption.words > 0"}}, "w"),
        ({"sql": "image.width >= 2", "by_source": {"web": "image.width >= 8", "radio": "image.width >= 8"}}, "r w"),
        ({"top": 0.5, "by": "image.width", "only_for": "web"}, ""),
    ],
)
def test_sources_have_rules_of_their_own(tmp_path: Path, rule: dict[str, Any], dropped: str) -> None:
    rows = [Row("s", side=4), Row("w", side=4, source="web"), Row("r", side=4, source="radio")]
    assert out(decided(tmp_path, rows, rules(named=rule))) == dropped


# --- lists ------------------------------------------------------------------------------------------------------------


def url(address: str | None) -> dict[str, str]:
    return {} if address is None else {"url": address}


URLS = [
    Row("a", attributes=url("https://Example.org/x")),
    Row("b", attributes=url("http://user@img.example.org.:8080/y?u=//evil.com")),
    Row("c", attributes=url("https://notexample.org/")),
    Row("d", attributes=url("https://evil.com@good.net/#example.org")),
    Row("e", attributes=url(None)),
    Row("f", attributes=url("no url")),
]


@pytest.mark.parametrize(
    ("match", "lines", "denied", "allowed"),
    [
        ("domain", ["example.org"], "a b", "c d f"),
        ("domain", ["*.EXAMPLE.org", "", "https://good.net/page"], "a b d", "c f"),
        ("host", ["example.org", "good.net"], "a d", "b c f"),
        ("domain", ["evil.com"], "", "a b c d f"),
        ("exact", ["no url"], "f", "a b c d"),
    ],
)
def test_hosts_and_domains_of_urls(tmp_path: Path, match: str, lines: list[str], denied: str, allowed: str) -> None:
    (tmp_path / "hosts.txt").write_text("\n".join(lines))
    rule = {"of": "attributes['url']", "match": match}
    file = str(tmp_path / "hosts.txt")
    assert out(decided(tmp_path / "deny", URLS, rules(named={"deny": file, **rule}))) == denied
    assert out(decided(tmp_path / "allow", URLS, rules(named={"allow": file, **rule}))) == allowed


@pytest.mark.parametrize("listed", ["münchen.de", "XN--MNCHEN-3YA.de", "http://MÜNCHEN.de/", "*.mu\u0308nchen.de"])
def test_a_host_is_the_same_in_both_of_its_spellings(tmp_path: Path, listed: str) -> None:
    hosts = ("münchen.de", "www.xn--mnchen-3ya.de", "MU\u0308NCHEN.DE", "munchen.de", "xn--bcher-kva.de", "xn--.de")
    rows = [Row(f"{n}", attributes=url(f"https://{host}/x")) for n, host in enumerate(hosts)]
    (tmp_path / "hosts.txt").write_text(f"{listed}\nxn--.de\n")
    for match, denied in (("domain", "0 1 2 5"), ("host", "0 2 5")):
        rule = {"of": "attributes['url']", "match": match, "deny": str(tmp_path / "hosts.txt")}
        assert out(decided(tmp_path / match, rows, rules(named=rule))) == denied


def test_a_list_of_each_kind_of_file(tmp_path: Path) -> None:
    rows = [Row("a", "A cat"), Row("b", "a dog"), Row("c", "a bird"), Row("d", "a fish")]
    (tmp_path / "keys.txt").write_text("a\n \n# c\n")
    (tmp_path / "Texts.CSV").write_text('id,text\n1,"A\n DOG "\n')
    ids = pa.table({"id": [sample_id("s", "c")], "n": [1]})
    pq.write_table(ids, tmp_path / "ids.parquet")
    files = {name: str(tmp_path / name) for name in ("keys.txt", "Texts.CSV", "ids.parquet")}
    found = decided(
        tmp_path / "x",
        rows,
        rules(
            key={"deny": files["keys.txt"]},
            text={"deny": files["Texts.CSV"], "column": "text", "of": "caption.text", "match": "text"},
            id={"deny": [files["ids.parquet"]], "column": "id", "of": "sample_id"},
        ),
    )
    assert found == {
        "a": ("dropped", "key", None, None, "a in keys.txt"),
        "b": ("dropped", "text", None, None, "a dog in Texts.CSV"),
        "c": ("dropped", "id", None, None, f"{sample_id('s', 'c')} in ids.parquet"),
    }


def test_what_two_lists_name_is_dropped_once(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a\nb\n")
    (tmp_path / "two.txt").write_text("b\nb\nc\n")
    named = {"deny": [str(tmp_path / "one.txt"), str(tmp_path / "two.txt")]}
    curation = loaded(tmp_path / "x", [Row(key) for key in "abcd"])
    rules(named=named).apply(curation)
    dropped = curation.connection.execute("SELECT sample_id FROM fates").fetchall()
    assert sorted(dropped) == sorted((sample_id("s", key),) for key in "abc")


def test_a_list_that_changes_is_another_step(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("a\n")
    step = rules(named={"deny": str(tmp_path / "keys.txt")})
    before = step.identity()
    assert step.identity() == before
    (tmp_path / "keys.txt").write_text("b\n")
    assert step.identity() != before


# --- what a plan refuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("image.widht > 3", 'Could not find key "widht" in struct; did you mean \'width\'?'),
        ("imagee.width > 3", "did you mean 'image'?"),
        ("width > 3", "did you mean 'image.width'?"),
        ("caption.score > 3", "did you mean 'clip.image_caption.score'?"),
        ("lower(mime) = 'x'", "did you mean 'caption.mime' or 'image.mime'?"),
        ("image.width", "must be true or false, but is INTEGER; compare it: `image.width >= ...`"),
        ("caption.text >= 3", "Cannot compare values of type VARCHAR and type INTEGER_LITERAL"),
        ("sum(image.width) > 3", "WHERE clause cannot contain aggregates!"),
        ("row_number() OVER () > 3", "WHERE clause cannot contain window functions!"),
        ("(SELECT max(image.width) FROM candidates) > 3", "looks at other samples (a subquery)"),
        ("image.width IN (SELECT 1)", "looks at other samples (a subquery)"),
        ("random() < 0.5", "random() gives something else each time"),
        ("now() > TIMESTAMP '2026-01-01'", "now() gives something else each time"),
        ("current_date > DATE '2026-01-01'", "current_date() gives something else each time"),
        ("uuid() > 'a'", "uuid() gives something else each time"),
        ("len(list_filter([1], lambda x: x > random())) = 1", "random() gives something else each time"),
        ("ago(INTERVAL 1 DAY) IS NULL", "ago() gives something else each time"),
        ("age(TIMESTAMP '2026-01-01') IS NULL", "age() gives something else each time"),
        ("getvariable('x') = 1", "getvariable() gives something else each time"),
        ("image.width > ", "does not parse"),
        ("1, 2", "must be one SQL expression"),
        ("true; DROP TABLE fates", "does not parse"),
        ("COLUMNS('key') = 'a'", "must name its columns"),
        ({"sql": "image.width > 3", "only_for": "wbe"}, "no source is called 'wbe'; did you mean 'web'?"),
        ({"by_source": {"radoi": "true"}}, "no source is called 'radoi'; did you mean 'radio'?"),
        ({"by_source": {"web": "image.widht > 1"}}, "did you mean 'width'?"),
        ({"top": 0.3, "by": "caption.text"}, "must be a number, but `caption.text` is VARCHAR"),
        ({"top": 0.3, "by": "sample_id::UUID"}, "must be a number"),
        ({"top": 0.3, "by": "image.width", "within": "caption.lnag"}, "did you mean 'lang'?"),
        ({"top": 0.3, "by": "image.width", "among": "image.width"}, "must be true or false"),
        ({"deny": "none.txt"}, "none.txt: cannot be read: No such file or directory in {cwd}, where mmdata runs"),
        ({"deny": "list.doc"}, "list.doc: cannot tell the format"),
        ({"deny": "list.csv"}, "list.csv: has 2 columns; say which with `column:`, one of id, text"),
        ({"deny": "list.csv", "column": "txet"}, "list.csv: has no column 'txet'; did you mean 'text'?"),
        ({"deny": "broken.parquet"}, "broken.parquet: is no Parquet file"),
        ({"deny": "empty.csv"}, "empty.csv: is empty; the first line of a table names its columns"),
        ({"deny": "latin.txt"}, "latin.txt: is not UTF-8 (invalid continuation byte); save it as UTF-8"),
        ({"deny": "latin.csv", "column": "id"}, "latin.csv: is not UTF-8"),
        ({"deny": "list.csv", "column": "id", "of": "image.width"}, "must be a text, but `image.width` is INTEGER"),
    ],
)  # fmt: skip
def test_a_plan_says_what_is_wrong_with_a_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.csv").write_text("id,text\n1,a\n")
    Path("broken.parquet").write_text("no")
    Path("empty.csv").write_text("")
    Path("latin.txt").write_bytes("Zoë\n".encode("latin-1"))
    Path("latin.csv").write_bytes("id,text\n1,Zoë\n".encode("latin-1"))
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the sentence is what matters
        rules(named=rule).check(Curation.empty(COLUMNS))
    assert str(error.value).startswith("rule 'named': ")
    assert message.replace("{cwd}", str(tmp_path)) in str(error.value)
    assert "\n" not in str(error.value)


def test_functions_that_are_taken_for_steady_are() -> None:
    curation = Curation.empty(COLUMNS)
    found = curation.connection.execute("SELECT DISTINCT function_name FROM duckdb_functions()").fetchall()
    syntax = {"coalesce"}
    assert STEADY - syntax <= {name for (name,) in found}
    assert STEADY & expressions._unsteady(curation) == set()
    assert {"random", "now", "uuid", "ago", "current_setting"} <= expressions._unsteady(curation)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"top": 0, "by": "1"}, "greater than 0"),
        ({"top": 1.5, "by": "1"}, "less than or equal to 1"),
        ({"top": 0.5, "bottom": 0.5, "by": "1"}, "give one of `top:` and `bottom:`"),
        ({"top": 0.5}, "Field required"),
        ({"allow": "a.txt", "deny": "b.txt"}, "give one of `allow:` and `deny:`"),
        ({"not_for": "web"}, "a rule needs one of `sql:`, `by_source:`"),
        ({"top": 0.5, "by": "1", "wihtin": "key"}, "Extra inputs are not permitted"),
    ],
)
def test_a_rule_that_says_two_things_or_none(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("(", r"\(")):
        rules(named=rule)
