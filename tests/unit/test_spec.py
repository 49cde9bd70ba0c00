"""The YAML file: values, places, variables, overrides, and what is said of every fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmdata.document import Document, nearest, read_yaml
from mmdata.errors import SpecError
from mmdata.spec import parse_spec

GOOD = "name: t\nsources:\n  - files: {root: media}\n"


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Read text (or bytes) as `p.yaml`, from the folder it lies in."""
    monkeypatch.chdir(tmp_path)

    def run(content: str | bytes, *overrides: str) -> Document:
        Path("p.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_yaml(Path("p.yaml"), overrides)

    return run


@pytest.fixture
def problems(read: Any) -> Any:
    """The lines that are said of a file."""

    def run(content: str | bytes, *overrides: str) -> list[str]:
        with pytest.raises(SpecError) as caught:
            parse_spec(read(content, *overrides))
        assert str(caught.value) == "\n".join(caught.value.problems)
        return caught.value.problems

    return run


def test_a_good_file_is_read_with_its_defaults(read: Any) -> None:
    spec = parse_spec(read(GOOD + "curate:\n  - splits\n  - rules:\n"))
    assert (spec.name, spec.seed, spec.engine.workers, spec.engine.part_samples) == ("t", 0, "auto", 256)
    assert [(call.step, call.params) for call in spec.sources] == [("files", {"root": "media"})]
    assert [(call.step, call.params) for call in spec.curate] == [("splits", {}), ("rules", {})]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (GOOD + "sourcs: []\n", "p.yaml:4:1 sourcs: unknown key 'sourcs'; did you mean 'sources'?"),
        (
            GOOD + "zzz: 1\n",
            (
                "p.yaml:4:1 zzz: unknown key 'zzz'; known here: align, augment, curate, engine, fetch, ingest, "
                "measure, name, seed, sources, write"
            ),
        ),
        (GOOD + "engine: {wrkers: 2}\n", "p.yaml:4:10 engine.wrkers: unknown key 'wrkers'; did you mean 'workers'?"),
        (
            GOOD + "engine: {workers: many}\n",
            (
                "p.yaml:4:10 engine.workers: input should be a valid integer, unable to parse string as an integer "
                "or input should be 'auto', not 'many'"
            ),
        ),
        (
            GOOD + "engine:\n  part_samples: 0\n",
            "p.yaml:5:3 engine.part_samples: input should be greater than or equal to 1, not 0",
        ),
        (
            GOOD + "seed: 1.5\n",
            "p.yaml:4:1 seed: input should be a valid integer, got a number with a fractional part, not 1.5",
        ),
        ("sources:\n  - files\n", "p.yaml:1:1 the key 'name' is missing"),
        ("name: t\n", "p.yaml:1:1 the key 'sources' is missing"),
        ("name: t\nsources: []\n", "p.yaml:2:1 sources: list should have at least 1 item after validation, not 0"),
        (GOOD + "name: u\n", "p.yaml:4:1 the key 'name' stands here twice; remove one"),
        (GOOD + "align: {clip: {}}\n", "p.yaml:4:1 align: must be a list of steps: start each with '- '"),
        (GOOD + "align:\n  - clip: 3\n", "p.yaml:5:5 align[0].clip: parameters must be a mapping"),
        (
            GOOD + "align:\n  - clip: {}\n    whisper: {}\n",
            "p.yaml:5:5 align[0]: a step is one name with its parameters below it, indented: `- name: {...}`",
        ),
        ("- a\n", "p.yaml:1:1 a pipeline is a mapping with at least `name:` and `sources:`"),
        ("", "p.yaml:1:1 a pipeline is a mapping with at least `name:` and `sources:`"),
        ("a: [\n", "p.yaml:2:1 not YAML: did not find expected node content"),
        ("a: b: c\n", "p.yaml:1:5 not YAML: mapping values are not allowed in this context"),
        (
            "a: \x07\n",
            "p.yaml: not YAML: unacceptable character #x0007: control characters are not allowed",
        ),
        (
            "a: !!python/object:os.system x\n",
            (
                "p.yaml:1:4 not YAML: could not determine a constructor for the tag "
                "'tag:yaml.org,2002:python/object:os.system'"
            ),
        ),
        ("? [a]\n: b\n", "p.yaml:1:3 a key must be a plain name"),
        (b"name: \xff\n", "p.yaml: not UTF-8 at byte 6; save the file as UTF-8"),
        ("a: &a [*a]\n", "p.yaml:1:4 an alias inside its own anchor"),
        (b"#" * ((1 << 20) + 1), "p.yaml: larger than 1048576 bytes; this is no pipeline file"),
    ],
)
def test_a_fault_is_said_with_its_place(problems: Any, content: str | bytes, expected: str) -> None:
    assert problems(content) == [expected]


def test_several_faults_are_said_at_once(problems: Any) -> None:
    assert problems(GOOD + "seed: x\nengin: {}\nalign:\n  - clip: 3\n", "engine.device=[]") == [
        "p.yaml:7:5 align[0].clip: parameters must be a mapping",
        "p.yaml:4:1 seed: input should be a valid integer, unable to parse string as an integer, not 'x'",
        "--set engine.device=[]: input should be a valid string",
        "p.yaml:5:1 engin: unknown key 'engin'; did you mean 'engine'?",
    ]


def test_aliases_that_expand_without_end_are_refused(problems: Any) -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    bomb += "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert problems(bomb) == ["p.yaml: more than 100000 values (aliases expand); this is no pipeline file"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        read_yaml(tmp_path / "none.yaml")
    assert caught.value.problems == [f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory"]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${V}", 7),
        ("${V:-3}", 7),
        ("${UNSET:-3}", 3),
        ("'${UNSET:-3}'", "3"),
        ('"${V}"', "7"),
        ("${UNSET:-true}", True),
        ("${UNSET:-}", None),
        ("'${UNSET:-}'", ""),
        ("a/${V}/${UNSET:-b c}", "a/7/b c"),
        ("$$V costs $5", "$V costs $5"),
        ("${EMPTY:-x}", "x"),
        ("1${UNSET:-0}.5", 10.5),
    ],
)
def test_variables(read: Any, monkeypatch: pytest.MonkeyPatch, written: str, value: Any) -> None:
    monkeypatch.setenv("V", "7")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    found = read(f"a: {written}\n").value["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("value", "state"), [(None, "is not set"), ("", "is empty")])
def test_a_variable_that_is_not_set_or_is_empty(
    problems: Any, monkeypatch: pytest.MonkeyPatch, value: str | None, state: str
) -> None:
    monkeypatch.delenv("V", raising=False)
    if value is not None:
        monkeypatch.setenv("V", value)
    assert problems(GOOD + "seed: ${V}\n") == [
        f"p.yaml:4:7 the environment variable V {state}; set it, or write ${{V:-default}}"
    ]


def test_a_variable_cannot_bring_in_yaml(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V", "x\nname: u\n[a, b]")
    assert read("a: ${V}\n").value == {"a": "x\nname: u\n[a, b]"}


def test_merge_keys_and_anchors_may_be_overridden_without_standing_twice(read: Any) -> None:
    assert read("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n").value["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("name=x=y", ("name",), "x=y"),
        ("engine.workers=2", ("engine", "workers"), 2),
        ("engine={workers: 2}", ("engine",), {"workers": 2}),
        ("sources.files.root=elsewhere", ("sources", 0, "files", "root"), "elsewhere"),
        ("sources.0.files.root=elsewhere", ("sources", 0, "files", "root"), "elsewhere"),
        ("curate.splits.shares={train: 1}", ("curate", 1, "splits", "shares"), {"train": 1}),
        ("curate.1.splits.by=key", ("curate", 1, "splits", "by"), "key"),
        ("curate.duplicates.of=[a, b]", ("curate", 0, "duplicates", "of"), ["a", "b"]),
        ("seed=", ("seed",), None),
    ],
)
def test_set_changes_one_value(read: Any, override: str, keys: tuple[Any, ...], value: Any) -> None:
    found = read(GOOD + "curate:\n  - duplicates:\n  - splits\n", override).value
    for key in keys:
        found = found[key]
    assert found == value


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sed=3", "unknown key 'sed'; did you mean 'seed'?"),
        ("seed=-1", "input should be greater than or equal to 0, not -1"),
        (
            "engine.workers=0",
            "input should be greater than or equal to 1 or input should be 'auto', not 0",
        ),
        (
            "engine.device=gpu",
            "string should match pattern '^(auto|cpu|mps|cuda(:\\d+)?)$', not 'gpu'",
        ),
        ("engine.workers.x=2", "input should be a valid integer or input should be 'auto'"),
        ("sources.1.files.root=x", "there is no '1' here; known here: files"),
        ("sources.fils.root=x", "there is no 'fils' here; did you mean 'files'?"),
        ("name.x=1", "there is no 'x' here"),
        ("sources.\u00b2.x=1", "there is no '\u00b2' here; known here: files"),
        ("engine.workers", "write it as path=value, for example engine.workers=2"),
        ("engine.workers=[a", "the value is not YAML: did not find expected ',' or ']'"),
    ],
)
def test_set_that_leads_nowhere_is_named_as_it_was_typed(problems: Any, override: str, expected: str) -> None:
    assert problems(GOOD, override) == [f"--set {override}: {expected}"]


def test_a_fault_in_what_set_put_there_is_not_placed_in_the_file(problems: Any) -> None:
    (problem,) = problems(GOOD + "curate:\n  - rules: {keep: {a: b}}\n", "curate=[{rules: {}, splits: {}}]")
    assert problem.startswith("--set curate=[{rules: {}, splits: {}}]: a step is one name")


def test_a_later_set_wins(read: Any) -> None:
    assert read(GOOD, "seed=1", "seed=2").value["seed"] == 2


def test_nearest_suggests_only_what_is_near() -> None:
    assert nearest("modle", ["model", "name"]) == "; did you mean 'model'?"
    assert nearest("zzz", ["model", "name"]) == "; known here: model, name"
    assert nearest("zzz", []) == ""


def test_places_count_characters_from_one(read: Any) -> None:
    document = read("name: t\nengine:\n    workers: 2\ncurate:\n- splits\n")
    assert document.places[("name",)] == (1, 1)
    assert document.places[("engine", "workers")] == (3, 5)
    assert document.places[("curate", 0)] == (5, 3)
    assert document.problem(("engine", "none"), "m") == "p.yaml:2:1 engine.none: m"
