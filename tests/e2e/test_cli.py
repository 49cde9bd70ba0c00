"""What the commands say, where they say it, and with which exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from mmdata.demo.scenes import write_scenes

SCENES = 12
ROWS = "SELECT key, fate, length(key) AS n, NULL AS nothing FROM samples ORDER BY key"
FLIP = [{"joint": {"name": "flip", "apply": ["HorizontalFlip"]}}]
ODD_KEY = 'a "quoted", [red]key'


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, build_once):
    folder = tmp_path_factory.mktemp("cli")
    write_scenes(folder / "media", SCENES - 1, seed=1, side_px=32, audio=False)
    for extension in ("png", "txt"):
        (folder / "media" / f"{ODD_KEY}.{extension}").write_bytes(
            (folder / "media" / f"00000.{extension}").read_bytes()
        )
    return build_once(folder)


@pytest.fixture
def scenes(cli):
    write_scenes(cli.folder / "media", SCENES, seed=1, side_px=32, audio=False)
    return cli


def rows() -> list[tuple[str, str, int, None]]:
    keys = sorted([*(f"{n:05d}" for n in range(SCENES - 1)), ODD_KEY])
    return [(key, "kept", len(key), None) for key in keys]


def test_query_as_json(built):
    said = json.loads(built.run("query", "out", ROWS, "--format", "json").stdout)
    assert [tuple(row.values()) for row in said] == rows()
    assert list(said[0]) == ["key", "fate", "n", "nothing"]


def test_a_query_may_begin_with_a_comment(built):
    said = built.run("query", "out", f"-- all of them\n{ROWS}", "--format", "json").stdout
    assert len(json.loads(said)) == SCENES
    misspelt = built.run("query", "out", ROWS, "--fromat", "json", code=2)
    assert "unexpected extra arguments (--fromat json)" in misspelt.stderr


def test_query_as_csv_to_a_file_and_to_standard_output(built):
    said = built.run("query", "out", ROWS, "--format", "csv").stdout
    assert built.run("query", "out", ROWS, "--format", "csv", "--out", "rows.csv").stdout == ""
    for text in (said, (built.folder / "rows.csv").read_text()):
        found = list(csv.reader(io.StringIO(text)))
        assert found == [["key", "fate", "n", "nothing"], *([key, fate, str(n), ""] for key, fate, n, _ in rows())]


def test_query_as_a_table_shows_markup_as_it_is(built):
    said = built.run("query", "out", ROWS).stdout
    assert ODD_KEY in said
    assert f"{SCENES} rows" in said
    assert "\x1b" not in said


def test_query_as_parquet_to_a_file_and_to_standard_output(built):
    assert built.run("query", "out", ROWS + ";", "--format", "parquet", "--out", "rows.parquet").stdout == ""
    command = [sys.executable, "-m", "mmdata", "query", "out", ROWS, "--format", "parquet"]
    sent = subprocess.run(command, cwd=built.folder, capture_output=True, check=True).stdout
    for source in (built.folder / "rows.parquet", io.BytesIO(sent)):
        found = pq.read_table(source).to_pylist()
        assert [tuple(row.values()) for row in found] == rows()


@pytest.mark.parametrize("shape", ["table", "parquet"])
def test_a_query_that_does_not_bind_is_one_line_of_ours(built, shape):
    said = built.run("query", "out", "SELECT no_such FROM samples", "--format", shape, code=1).stderr
    assert said.startswith("mmdata: Binder Error")
    assert "no_such" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("shape", ["csv", "parquet"])
def test_a_file_that_cannot_be_written_is_named(built, shape):
    arguments = ("SELECT 1", "--format", shape, "--out", "none/rows")
    assert "none/rows: cannot be written: No such file" in built.run("query", "out", *arguments, code=1).stderr
    assert built.run("query", "out", " -- ?", code=1).stderr.startswith("mmdata: no query; for example: SELECT")


@pytest.mark.parametrize("statement", ["DROP VIEW samples", "CREATE TABLE t (a INT)", "DELETE FROM shards"])
def test_a_query_changes_nothing(built, statement):
    assert "read-only" in built.run("query", "out", statement, code=1).stderr.lower()
    assert len(built.query("SELECT * FROM samples")) == SCENES


def test_a_folder_without_a_build_is_said_to_be_none(cli):
    assert "media: no build here" in cli.run("query", "media", "SELECT 1", code=1).stderr
    assert os.listdir(cli.folder / "media") == []
    assert "does not exist" in cli.run("query", "nowhere", "SELECT 1", code=2).stderr


def test_a_removed_or_moved_catalog_is_made_anew(scenes):
    scenes.spec()
    scenes.build()
    (scenes.folder / "out" / "catalog.duckdb").unlink()
    assert len(scenes.query("SELECT * FROM fates")) == SCENES
    (scenes.folder / "out").rename(scenes.folder / "elsewhere")
    assert len(scenes.query("SELECT * FROM fates", "elsewhere")) == SCENES


@pytest.mark.slow
def test_queries_while_a_build_runs(cli):
    write_scenes(cli.folder / "media", 150, seed=2, side_px=200, audio=False)
    cli.spec(engine={"workers": 1, "part_samples": 8}, augment=FLIP)
    process = cli.start("build", "pipeline.yaml", "--output", "out")
    while not (cli.folder / "out" / "catalog.duckdb").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    answers = []
    while process.poll() is None:
        answers.append(cli.query("SELECT status, (SELECT count(*) FROM samples) AS n FROM runs"))
    out, err = process.communicate()
    assert process.returncode == 0, f"{out}\n{err}"
    assert len(answers) > 1
    assert answers[0][0]["status"] == "running"
    assert [answer[0]["n"] for answer in answers] == sorted(answer[0]["n"] for answer in answers)
    assert cli.query("SELECT status, (SELECT count(*) FROM samples) AS n FROM runs") == [{"status": "done", "n": 300}]


@pytest.mark.slow
def test_build_as_json_is_lines_of_json_that_end_with_the_fates(scenes):
    (scenes.folder / "media" / "bad.png").write_bytes(b"")
    (scenes.folder / "media" / "bad.txt").write_text("Bad.")
    scenes.spec(augment=FLIP)
    said = scenes.build("--json")
    assert said.stderr == ""
    events = [json.loads(line) for line in said.stdout.splitlines()]
    last = events.pop()
    assert last["event"] == "done"
    assert last["fates"] == {"kept": SCENES, "failed": 1}
    assert (last["inputs"], last["failures"]) == (SCENES + 1, {"empty_file": 1})
    assert [row["operator"] for row in last["operators"]] == ["HorizontalFlip"]
    assert sum(last["children"].values()) == SCENES
    assert sum(last["splits"].values()) == SCENES + last["children"]["kept"]
    assert {event["event"] for event in events} == {"progress"}
    final = {event["step"]: (event["done"], event["total"]) for event in events}
    assert list(final) == ["ingest", "flip", "gather", "curate", "write"]
    assert all(done == total > 0 for done, total in final.values())
    assert next(event for event in reversed(events) if event["step"] == "ingest")["reasons"] == {"empty_file": 1}
    again = [json.loads(line) for line in scenes.build("--json").stdout.splitlines()]
    assert [event["event"] for event in again] == ["done"]
    assert again[0]["fates"] == last["fates"]


def test_without_a_terminal_progress_is_plain_lines_on_standard_error(scenes):
    scenes.spec()
    said = scenes.build()
    assert "\x1b" not in said.stderr + said.stdout
    assert [line.split()[0] for line in said.stderr.splitlines()] == ["ingest", "gather", "curate", "write"]
    assert f"{SCENES} samples" in said.stderr.splitlines()[0]
    assert said.stdout.splitlines()[1] == f"{SCENES} inputs = {SCENES} kept"


def test_a_build_that_keeps_nothing_says_why(scenes):
    for path in (scenes.folder / "media").glob("*.png"):
        path.write_bytes(b"")
    scenes.spec()
    said = scenes.build().stdout.splitlines()[-1]
    asked = 'why: mmdata query out "SELECT key, sentence FROM explained"'
    assert said == f"shards: none, for no sample is kept; failed: empty_file {SCENES}; {asked}"


def test_where_nothing_can_be_written_is_told(built):
    (built.folder / "file").write_text("")
    said = built.run("report", "out", "--out", "media", code=1)
    assert said.stderr == "mmdata: media: cannot be written: Is a directory\n"
    no_folder = "mmdata: file: cannot be made a folder: File exists; name another\n"
    assert built.run("demo-data", "file", code=1).stderr == no_folder


def test_too_little_memory_to_decide_is_told(scenes):
    scenes.spec(engine={"workers": 1, "memory": "1MB"})
    said = scenes.build(code=1).stderr.splitlines()[-1]
    assert said.startswith("mmdata: gather: Out of Memory Error: ")
    assert said.endswith("; engine.memory is 1000000: set more")


@pytest.mark.slow
def test_a_split_that_gets_no_sample_is_named(scenes):
    scenes.spec(curate=[{"splits": {"by": "source", "shares": {"train": 0.5, "val": 0.5}}}])
    said = scenes.build().stdout.splitlines()
    (kept,) = scenes.query("SELECT DISTINCT split FROM shards")
    (empty,) = {"train", "val"} - {kept["split"]}
    assert said[-2].startswith(f"splits: no sample is in {empty}; a share is of the groups"), said
    scenes.spec(curate=[{"splits": {"shares": {"train": 0.5, "val": 0.5}}}])
    assert "splits: no sample is in" not in scenes.build().stdout


def test_on_a_terminal_it_draws_and_keeps_standard_output_clean(scenes):
    scenes.spec()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mmdata", "build", "pipeline.yaml", "--output", "out"]
    env = {**scenes.env, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=scenes.folder, env=env, stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    drawn = b""
    try:
        while block := os.read(ours, 4096):
            drawn += block
    except OSError:  # the other end is closed
        pass
    out, _ = process.communicate()
    os.close(ours)
    assert process.returncode == 0, drawn.decode()
    assert b"\x1b[" in drawn
    assert b"ingest" in drawn
    assert b"\x1b" not in out
    assert f"{SCENES} inputs = {SCENES} kept" in out.decode()


@pytest.mark.slow
def test_plan_shows_what_is_done_and_writes_nothing(scenes):
    scenes.spec(augment=FLIP)
    before = json.loads(scenes.run("plan", "pipeline.yaml", "--output", "out", "--json").stdout)
    assert before["inputs"] == SCENES
    assert {step["step"]: step["done"] for step in before["steps"]} == dict.fromkeys(
        ("ingest", "flip", "gather", "curate", "write"), 0
    )
    assert not (scenes.folder / "out").exists()
    scenes.build()
    after = json.loads(scenes.run("plan", "pipeline.yaml", "--output", "out", "--json").stdout)
    assert all(step["done"] == step["total"] > 0 for step in after["steps"])


WRONG = {
    "key": ("sources:", "sorces:", ":2:1 sorces: unknown key 'sorces'; did you mean 'sources'?"),
    "step": ("- splits", "- split", "pipeline.yaml:14:5 curate[0].split: unknown step 'split'; did you mean 'splits'?"),
    "value": ("workers: 2", "workers: many", "engine.workers"),
    "member": (
        "apply: [HorizontalFlip]",
        "apply: [HorizontalFlip], spoken: {picture: [caption]}",
        "no source declares the member 'picture'",
    ),
    "rule": ("- splits", "- rules: {keep: {wide: image.widht > 1}}", "did you mean 'width'?"),
    "yaml": ("name: e2e", "name: [e2e", "not YAML"),
    "root": ("root: media", "root: nowhere", "the folder nowhere is not there"),
    "nothing": ("{stem}.png", "{stem}.tiff", "the sources name no inputs"),
}
SPEC = """\
name: e2e
sources:
  - files:
      root: media
      members:
        image: "{stem}.png"
        caption:
          path: "{stem}.txt"
          lang: en
augment: [joint: {name: flip, apply: [HorizontalFlip]}]
engine:
  workers: 2
curate:
  - splits
"""


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("command", ["plan", "build"])
def test_a_wrong_spec_is_exit_code_2_and_leaves_nothing(scenes, command, fault):
    right, wrong, message = WRONG[fault]
    if fault == "nothing":
        for path in (scenes.folder / "media").iterdir():
            path.unlink()
    assert right in SPEC
    (scenes.folder / "pipeline.yaml").write_text(SPEC.replace(right, wrong))
    before = sorted(path for path in scenes.folder.rglob("*"))
    said = scenes.run(command, "pipeline.yaml", "--output", "out", code=2)
    assert said.stdout == ""
    assert "Traceback" not in said.stderr
    assert message in said.stderr
    assert said.stderr.startswith("pipeline.yaml")
    left = [path for path in scenes.folder.rglob("*") if path not in before]
    # The folder itself may be there: the inputs are listed in it before they are known to be none.
    assert left in ([], [scenes.folder / "out"])
    if command == "plan":
        assert left == []


def test_a_wrong_option_and_a_missing_file_are_exit_code_2(cli):
    assert "No such option" in cli.run("build", "pipeline.yaml", "--outptu", "x", code=2).stderr
    assert "missing.yaml: cannot be read" in cli.run("build", "missing.yaml", code=2).stderr
    cli.spec()
    assert "--set nonsense" in cli.run("build", "pipeline.yaml", "--set", "nonsense", code=2).stderr
    assert not (cli.folder / "builds").exists()


@pytest.mark.slow
def test_a_duplicate_of_what_a_rule_then_drops_is_told(scenes):
    (scenes.folder / "media" / "twin.png").write_bytes((scenes.folder / "media" / "00000.png").read_bytes())
    (scenes.folder / "media" / "twin.txt").write_text("the same again")
    steps = [{"duplicates": {"of": ["image"]}}, {"rules": {"keep": {"other": "key <> '00000'"}}}]
    scenes.spec(curate=steps)
    told = "duplicates: 1 gave way to a sample that a rule dropped; put `duplicates` after `rules`, and the best"
    assert told in scenes.build().stdout
    sentence = "SELECT sentence FROM explained WHERE key = 'twin'"
    assert scenes.query(sentence)[0]["sentence"].startswith("a duplicate of 00000 by image, which is out: other: ")
    scenes.spec(curate=steps[::-1])
    assert "gave way" not in scenes.build().stdout
    assert scenes.query(sentence) == []
    # Of who is one too many no twin is wanted either.
    scenes.spec(curate=[steps[0], {"quota": {"by": ["key"], "most": {"00000": 0}}}])
    assert "gave way" not in scenes.build().stdout
    assert scenes.query(sentence)[0]["sentence"].startswith("a duplicate of 00000 by image, which is out: quota: ")
