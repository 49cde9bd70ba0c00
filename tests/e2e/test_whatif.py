"""`mmdata whatif` and `mmdata diff` over builds of texts: what they say is what a build does."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

WORDS = 40
SOURCE = {"files": {"name": "texts", "root": "media", "members": {"text": "{stem}.txt"}}}
CURATE = [
    {"rules": {"keep": {"enough": "text.words >= 5", "not_seven": "text.words <> 7"}}},
    {"splits": {"shares": {"train": 0.8, "val": 0.2}}},
]


def write_texts(media: Path, counts: range) -> None:
    for count in counts:
        (media / f"{count:03}.txt").write_text(" ".join(f"w{count}x{n}" for n in range(count)))


@pytest.fixture(scope="module")
def texts(build_once, tmp_path_factory):
    """Texts of 1 to 40 words, built: those with fewer than five and with seven are dropped. Not to be changed."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "media").mkdir()
    write_texts(folder / "media", range(1, WORDS + 1))
    return build_once(folder, sources=[SOURCE], curate=CURATE)


@pytest.fixture
def own(texts, cli):
    """The same, of this test alone."""
    for name in ("media", "out", "pipeline.yaml"):
        source, target = texts.folder / name, cli.folder / name
        shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else shutil.copy2(source, target)
    return cli


def asked(cli, *arguments: str) -> dict:
    return json.loads(cli.run("whatif", "out", *arguments, "--json").stdout)


def kept(cli, output: str = "out") -> set[str]:
    return {row["key"] for row in cli.query("SELECT key FROM samples WHERE fate = 'kept'", output)}


@pytest.mark.slow
def test_it_says_what_a_build_with_that_rule_keeps(texts):
    for threshold in (1, 12, 40):
        answer = asked(texts, "--rule", f"enough: text.words >= {threshold}")
        texts.build("--set", f"curate.rules.keep.enough=text.words >= {threshold}", output=f"out{threshold}")
        then, now = kept(texts, f"out{threshold}"), kept(texts)
        assert answer["kept"] == [len(now), len(then)]
        assert (answer["came"], answer["went"]) == (len(then - now), len(now - then))
        splits = texts.query(
            "SELECT split, count(*) AS n FROM samples WHERE fate = 'kept' GROUP BY 1", f"out{threshold}"
        )
        assert {name: count for name, _, count in answer["splits"] if count} == {r["split"]: r["n"] for r in splits}


def test_rules_are_counted_in_their_order_and_alone_with_samples_at_the_border(texts):
    answer = asked(texts, "--rule", "short: text.words <= 8", "--examples", "2")
    assert sorted(answer["rules"]) == [
        ["rules", "enough", 4, 4, 4],
        ["rules", "not_seven", 1, 1, 1],
        ["rules", "short", 0, 32, 32],
    ]
    assert [(b["kept"], b["value"], b["threshold"], b["key"]) for b in answer["borders"]] == [
        (True, 8, 8, "008"),
        (True, 7, 8, "007"),
        (False, 9, 8, "009"),
        (False, 10, 8, "010"),
    ]
    assert answer["borders"][1]["text"] == "w7x0 w7x1 w7x2 w7x3 w7x4 w7x5 w7x6"


@pytest.mark.slow
def test_rules_and_shares_keep_the_order_of_the_file(own):
    """Who fails several rules is dropped by the first; shares lie side by side in their order."""
    rules = {"keep": {"second_letter": "text.words >= 9", "a_first": "text.words >= 5"}}
    splits = {"shares": {"train": 0.5, "val": 0.2, "held": 0.3}}
    own.spec(sources=[SOURCE], curate=[{"rules": rules}, {"splits": splits}])
    own.build()
    answer = asked(own)
    assert answer["rules"] == [["rules", "second_letter", 8, 8, 8]]
    assert [(now, then) for _, now, then in answer["splits"]] == [(now, now) for _, now, _ in answer["splits"]]
    own.build("--set", "curate.splits.shares={held: 0.3, val: 0.2, train: 0.5}")
    changed = own.run("diff", "out@2", "out").stdout
    assert "order of curate.splits.shares" in changed
    assert "moved" in changed


@pytest.mark.slow
def test_members_and_rules_may_be_called_anything(cli):
    lines = [{"id": f"{n}", "text": "w " * n} for n in range(1, 9)]
    (cli.folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    members = {"value": {"text": "text"}, "threshold": {"text": "id"}}
    table = {"table": {"file": "rows.jsonl", "key": "id", "members": members}}
    keep = {'half of "all"': {"top": 0.5, "by": "value.words"}, "few: 1": "value.words < 8"}
    cli.spec(sources=[table], curate=[{"rules": {"keep": keep}}])
    cli.build()
    answer = asked(cli, "--rule", "few: 1: value.words < 6", "--curve", "value.words", "--examples", "1")
    assert sorted(answer["rules"]) == [["rules", "few: 1", 1, 3, 3], ["rules", 'half of "all"', 4, 4, 4]]
    assert [(b["kept"], b["value"], b["threshold"]) for b in answer["borders"]] == [(True, 5, 6), (False, 6, 6)]
    assert answer["curves"]["value.words"][0] == [0.0, 1.0, 8]


def test_a_quantile_a_rule_left_out_and_a_curve(texts):
    answer = asked(texts, "--rule", "half: {top: 0.5, by: text.words}", "--without", "enough", "--curve", "text.words")
    # The rules of a step judge all who come into it: half of forty, and one of those has not seven words.
    assert answer["kept"] == [35, 20]
    assert answer["curves"]["text.words"][0] == [0.0, 1.0, 40]
    assert answer["curves"]["text.words"][-1] == [1.0, 40.0, 1]
    assert [bound for _, bound, _ in answer["curves"]["text.words"]] == sorted(
        bound for _, bound, _ in answer["curves"]["text.words"]
    )


def test_a_rule_is_asked_about_though_not_every_sample_has_a_value_that_it_takes(texts):
    """Alone it meets those that the rest of it, or a step before, keeps away: the fifth word of three is no number."""
    guarded = "text.words >= 5 AND substr(split_part(text.text, ' ', 5), 2, 1)::INTEGER >= 2"
    answer = asked(texts, "--rule", f"from_twenty: {guarded}", "--without", "enough", "--examples", "1")
    assert ["rules", "from_twenty", 0, 14, 14] in answer["rules"]  # 1 to 4 words, and 10 to 19
    assert [(b["kept"], b["value"], b["threshold"]) for b in answer["borders"]] == [
        (True, 5, 5),
        (False, 4, 5),
        (True, 2, 2),
        (False, 1, 2),
    ]


def test_a_curve_is_of_finite_numbers(texts):
    answer = asked(texts, "--curve", "1 / (text.words - 1)", "--curve", "-ln(text.words - 1)")
    # One text has infinitely many: no threshold, but more than any.
    assert answer["curves"]["1 / (text.words - 1)"][-1] == [1.0, 1.0, 2]
    assert answer["curves"]["-ln(text.words - 1)"][-1][2] == 2


def test_numbers_that_json_has_none_for_are_null(texts):
    answer = asked(texts, "--rule", "x: 1 / (text.words - 1) <= 1", "--examples", "9")
    assert [row["value"] for row in answer["borders"] if not row["kept"]] == [None]


def test_a_build_that_keeps_nothing_says_so(own):
    said = own.build("--set", "curate.rules.keep.enough=text.words < 0").stdout
    assert said.splitlines()[-1].startswith("shards: none, for no sample is kept; why: mmdata query out ")


def test_a_build_that_did_not_come_to_its_end_is_told_with_what_was_decided_before(own):
    own.build("--set", "curate.rules.keep.enough=CAST(text.text AS INTEGER) > 3", code=1)
    for command in (["whatif", "out"], ["diff", "out@1", "out"]):
        said = own.run(*command, code=1).stderr
        assert said.endswith("the last build did not come to its end; what was decided before: out@1\n")
    own.run("report", "out")
    assert "<td>not decided yet</td>" in (own.folder / "out/report.html").read_text()


def test_nothing_of_the_build_changes(texts, layout, shard_digests):
    before = layout(texts.folder / "out"), shard_digests(texts.folder / "out")
    texts.run("whatif", "out", "--rule", "short: text.words <= 8", "--curve", "text.chars")
    assert (layout(texts.folder / "out"), shard_digests(texts.folder / "out")) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rule", "x: text.wrods > 3"], "--rule x: text.wrods > 3: rule 'x': "),
        (["--rule", "text.words > 3"], "write it as 'name: expression'"),
        (["--without", "enuogh"], "there is no such rule; did you mean 'enough'?"),
        (["--set", "seed=8"], "only what decides (curate, write) can be asked about"),
        (["--curve", "text.text"], "--curve text.text: must be a number"),
        (["--curve", "text.text::INTEGER"], "--curve text.text::INTEGER: Conversion Error: Could not convert string"),
        (["--rule", "x: {top: 0.3, by: [text.words}"], "but got '}'; in a mapping, SQL with brackets"),
        (["--examples", "-1"], "-1 is not in the range"),
    ],
)
def test_what_cannot_be_asked_is_said(texts, arguments, told):
    assert told in texts.run("whatif", "out", *arguments, code=2).stderr


@pytest.mark.slow
def test_versions_of_a_build_differ_by_who_came_went_and_moved_and_why(own):
    (own.folder / "media" / "040.txt").unlink()
    write_texts(own.folder / "media", range(41, 43))
    spec = own.spec(sources=[SOURCE], curate=[{"rules": {"keep": {"enough": "text.words >= 8"}}}, CURATE[1]])
    first = kept(own)
    own.run("build", spec.name, "--output", "out")
    rows = list(csv.DictReader(io.StringIO(own.run("diff", "out@1", "out", "--format", "csv").stdout)))
    found = {change: {row["key"] for row in rows if row["change"] == change} for change in {r["change"] for r in rows}}
    assert found["in"] == kept(own) - first == {"041", "042"}
    assert found["out"] == first - kept(own) == {"005", "006", "040"}
    assert found["other_fate"] == {"007"}
    why = {row["key"]: row["why"] for row in rows}
    assert why["005"] == "kept -> dropped by rules.enough (5, limit 8); the rule changed"
    assert why["007"] == "dropped by rules.not_seven -> dropped by rules.enough (7, limit 8); the rule changed"
    assert why["041"] == "no input -> kept"
    assert why["040"] == "kept -> no input"
    summary = own.run("diff", "out@1", "out@2").stdout
    assert "curate.rules.keep.enough" in summary
    assert '"text.words >= 8"' in summary
    assert "say how: --format" in own.run("diff", "out@1", "out@2", "--out", "rows.csv", code=2).stderr


@pytest.mark.slow
def test_a_rule_of_a_later_step_is_said_to_have_changed(own):
    def build(least: int) -> None:
        later = {"rules": {"keep": {"v1.1": f"text.words >= {least}"}}}
        own.run("build", own.spec(sources=[SOURCE], curate=[*CURATE, later]).name, "--output", "out")

    build(20)
    build(30)
    (row, *_) = json.loads(own.run("diff", "out@2", "out", "--format", "json").stdout)
    assert row["why"] == "kept -> dropped by rules.v1.1 (20, limit 30); the rule changed"


def test_other_splits_are_said_to_have_moved(own):
    own.build("--set", "curate.splits.shares={train: 0.2, val: 0.8}")
    rows = json.loads(own.run("diff", "out@1", "out", "--format", "json").stdout)
    assert rows
    assert {(row["change"], row["split_before"], row["split_after"]) for row in rows} == {("moved", "train", "val")}
    assert len(rows) == own.query("SELECT count(*) AS n FROM moved")[0]["n"]


@pytest.mark.slow
def test_the_same_build_again_is_no_other_version_and_ten_are_kept(own):
    own.build()
    assert "no version 2; it has 1" in own.run("diff", "out@2", "out", code=1).stderr
    for number in range(11):
        own.build("--set", f"curate.rules.keep.enough=text.words >= {number + 6}")
    folders = list((own.folder / "out" / "decided").iterdir())
    assert len(folders) == 10
    assert sum((folder / "selection.parquet").exists() for folder in folders) == 1
    assert "it has 3, 4, 5, 6, 7, 8, 9, 10, 11, 12" in own.run("diff", "out@2", "out", code=1).stderr


@pytest.mark.slow
def test_a_version_that_comes_back_is_decided_again(own, shard_digests):
    first = shard_digests(own.folder / "out")
    said = own.build("--set", "curate.rules.keep.enough=text.words >= 9").stdout
    assert said.splitlines()[0].endswith("; what is other: mmdata diff out@1 out@2")
    assert own.build().stdout.splitlines()[0].endswith("; what is other: mmdata diff out@2 out@3")
    assert shard_digests(own.folder / "out") == first
    assert own.run("diff", "out@2", "out").stdout.startswith("out@2 -> out@3")
    assert "out: no version 1; it has 2, 3, and out is 3" in own.run("diff", "out@1", "out", code=1).stderr
    assert json.loads(own.build("--json").stdout.splitlines()[-1])["version"] == "out@3"


@pytest.mark.slow
def test_it_needs_no_reference_set_and_names_the_rule_whose_list_is_gone(cli):
    """What samples were held against was found when the build was made; what a list names is asked again."""
    write_texts(cli.folder / "media", range(1, WORDS + 1))
    (cli.folder / "deny.txt").write_text("012\n")
    cli.spec(sources=[SOURCE], measure=[{"minhash": {"of": "text"}}])
    cli.build(output="known")
    rules = {"listed": {"deny": "deny.txt"}, "unknown": "minhash.text.in_reference IS NULL OR text.words > 30"}
    measure = [{"minhash": {"of": "text", "reference": "known"}}]
    cli.spec(sources=[SOURCE], measure=measure, curate=[{"rules": {"keep": rules}}])
    cli.build()
    shutil.rmtree(cli.folder / "known")
    assert asked(cli, "--without", "unknown")["kept"] == [10, 39]
    there = "known is not there; give the folder of a build, or a Parquet of fingerprints"
    said = cli.run("plan", "pipeline.yaml", "--output", "out", code=2).stderr
    assert said.splitlines() == [f"pipeline.yaml:14:5 measure[0].minhash.reference: {there}"]
    (cli.folder / "deny.txt").unlink()
    said = cli.run("whatif", "out", "--rule", "unknown: text.words > 3", code=2).stderr
    problem = f"rule 'listed': deny.txt: cannot be read: No such file or directory in {cli.folder}, where mmdata runs"
    assert said.splitlines() == [f"out@1 curate[0].rules.keep.listed: {problem}"]


@pytest.mark.slow
def test_an_attribute_that_no_sample_has_is_told_by_a_build_and_before_it(cli):
    """A plan cannot know which there are; misspelt it is NULL, which passes every rule and groups nothing."""
    lines = [{"text": f"words {n}", "score": n / 10, "speaker": f"s{n % 3}"} for n in range(10)]
    (cli.folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = {"table": {"file": "rows.jsonl", "members": {"text": {"text": "text"}}}}
    rules = {"rules": {"keep": {"good": "attributes['scroe']::DOUBLE >= 0.5"}}}
    mix = {"mix": {"by": "attributes['speaker']", "weights": {"s0": 1, "s1": 1, "s2": 1, "s22": 1}}}
    quota = {"quota": {"by": "attributes['scroe']", "most": 5}}
    # Two steps that say the same are told once.
    cli.spec(sources=[table], curate=[rules, quota, quota, mix, {"splits": {"by": "attributes['speakr']"}}])
    rows = [
        {"place": place, "name": name, "problem": f"{none} has {name}; did you mean '{nearest}'?"}
        for place, name, none, nearest in (
            ("rules.keep.good", "attributes['scroe']", "no sample", "score"),
            ("quota.by", "attributes['scroe']", "no sample", "score"),
            ("mix.weights", "attributes['speaker'] = 's22'", "of the samples that are left none", "s2"),
            ("splits.by", "attributes['speakr']", "no sample", "speaker"),
        )
    ]
    told = [f"{row['place']}: {row['problem']}" for row in rows]
    assert cli.build().stdout.splitlines()[2:6] == told
    again = cli.build("--json").stdout.splitlines()
    assert json.loads(again[-1])["unknown"] == rows, "also where there was nothing to do"
    good = "good: attributes['score']::DOUBLE >= 0.5"
    answer = asked(cli, "--rule", good)
    assert (answer["kept"], answer["unknown"]) == ([9, 3], rows[1:])
    said = cli.run("whatif", "out", "--rule", good, "--rule", "x: attributes['spaeker'] = ''").stdout.splitlines()
    assert "rules.keep.x: no sample has attributes['spaeker']; did you mean 'speaker'?" in said
