"""What others stand on: names, the command line, schemas, and how little a plan loads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import yaml

import mmdata
from mmdata import errors
from mmdata.cli import cli
from mmdata.schema import pipeline_schema, write_schemas
from mmdata.spec import STEP_LISTS
from mmdata.steps import base, exchange, registry

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
TRAININGS = sorted((ROOT / "examples").glob("train_*.yaml"))
HEAVY = {"torch", "transformers", "open_clip", "whisper", "pyarrow", "pandas", "PIL", "av"}
# The share of a 0.5 s promise that is the machine's: the smallest of some runs is what the code itself takes.
RUNS = 5
# Half a second of a processor that does nothing else is 3.5 times what it takes to import what every plan needs. Other
# work beside it slows both alike.
YARDSTICK = ["-c", "import click, pydantic.main, pydantic.functional_validators, yaml, _duckdb"]
LIMIT_YARDSTICKS = 3.5


class Run(NamedTuple):
    """A finished process."""

    output: str
    modules: set[str]
    cpu_s: float


def run(*arguments: str, cwd: Path) -> Run:
    """`python -m mmdata` as a child."""
    return timed(["-m", "mmdata", *arguments], cwd)


def timed(arguments: list[str], cwd: Path) -> Run:
    """Python as a child: its output, the modules it imported, its processor seconds."""
    command = [sys.executable, "-X", "importtime", *arguments]
    # A file, which never fills up as a pipe does that nobody reads yet.
    with (cwd / "stderr").open("w+") as errors_file:
        with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=errors_file, text=True) as child:
            assert child.stdout is not None
            output = child.stdout.read()
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        errors_file.seek(0)
        errors_ = errors_file.read()
    assert child.returncode == 0, errors_[-2000:]
    modules = {line.rsplit("|", 1)[1].strip() for line in errors_.splitlines() if line.startswith("import time:")}
    return Run(output, modules, usage.ru_utime + usage.ru_stime)


def loaded(modules: set[str], names: set[str]) -> set[str]:
    return {name for name in names if any(m == name or m.startswith(f"{name}.") for m in modules)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a pipeline of every kind of step but those that need weights of a package."""
    (tmp_path / "media").mkdir()
    for n in range(50):
        for suffix in ("png", "txt", "wav"):
            (tmp_path / f"media/s{n}.{suffix}").write_text("x")
    model = tmp_path / "model"
    model.mkdir()
    (model / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": {}}))
    (model / "open_clip_model.safetensors").write_bytes(b"weights")
    members = {"image": "{stem}.png", "caption": "{stem}.txt", "speech": "{stem}.wav"}
    spec = {
        "name": "p",
        "sources": [{"files": {"root": "media", "members": members}}],
        "align": [{"clip": {"model": str(model)}}],
        "curate": [
            {"duplicates": {"of": ["image", "caption"]}},
            {"rules": {"keep": {"fits": "clip.image_caption.score >= 0.1"}}},
            "splits",
        ],
        "write": ["webdataset"],
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "light.yaml").write_text(yaml.safe_dump({**spec, "align": [], "curate": ["splits"]}))
    return tmp_path


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["plan", "--help"], ["build", "--help"]])
def test_help_loads_next_to_nothing(arguments: list[str], tmp_path: Path) -> None:
    found = run(*arguments, cwd=tmp_path)
    assert "mmdata.cli" in found.modules
    assert loaded(found.modules, HEAVY | {"numpy", "duckdb", "_duckdb", "pydantic"}) == set()


def test_a_plan_loads_no_model_library(project: Path) -> None:
    found = run("plan", "p.yaml", cwd=project)
    assert found.output.startswith("p: 50 inputs -> builds/p\n")
    assert {"mmdata.plan", "mmdata.models.clip_weights", "_duckdb"} <= found.modules
    assert loaded(found.modules, HEAVY | {"numpy"}) == set()
    assert not (project / "builds").exists()


def test_a_plan_checks_operators_without_torch(project: Path) -> None:
    added = "augment:\n  - joint: {apply: [HorizontalFlip, PitchShift, KeyboardAug], spoken: {}}\n"
    (project / "joint.yaml").write_text((project / "light.yaml").read_text() + added)
    found = run("plan", "joint.yaml", cwd=project)
    assert "joint" in found.output
    libraries = {"albumentations", "audiomentations", "nlpaug"}
    assert loaded(found.modules, libraries) == libraries
    # What is looked for in vain is in the list too, by its first name.
    assert loaded(found.modules, {"torch.nn", "transformers.utils"}) == set()


def test_a_plan_without_an_aligner_loads_no_numpy(project: Path) -> None:
    found = run("plan", "light.yaml", cwd=project)
    assert loaded(found.modules, HEAVY | {"numpy"}) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "p.yaml"], ["plan", "light.yaml", "--json"]])
def test_help_and_plan_take_less_than_half_a_second(arguments: list[str], project: Path) -> None:
    ours, yardstick = [], []
    for _ in range(RUNS):
        ours.append(run(*arguments, cwd=project).cpu_s)
        yardstick.append(timed(YARDSTICK, cwd=project).cpu_s)
    assert min(ours) < LIMIT_YARDSTICKS * min(yardstick)


def test_the_command_line_has_its_commands() -> None:
    assert sorted(cli.commands) == [
        "build", "clean", "demo-data", "diff", "doc", "eval", "export", "fetch", "plan", "query", "report", "schema",
        "train", "whatif",
    ]  # fmt: skip
    options = {name: {o for p in command.params for o in p.opts} for name, command in cli.commands.items()}
    assert options["plan"] == {"spec", "--output", "--set", "--json"}
    assert options["build"] == options["plan"] | {"--retry-failed"}
    assert options["clean"] == {"build_folder", "--fetched", "--yes"}
    assert options["query"] == {"build_folder", "query_text", "--format", "--out"}
    assert options["export"] == {"run_folder", "--format", "--int8", "--output"}
    assert options["train"] == {"config", "--set", "--output", "--continue", "--replay", "--add-modality"}


def test_the_readme_shows_the_commands_as_they_are(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"mmdata --help\n(.*?)```", readme, re.DOTALL)
    if shown is None:
        pytest.skip("the README does not show `mmdata --help`")
    assert run("--help", cwd=tmp_path).output.partition("Commands:")[2].strip() in shown[1]


def test_the_readme_names_only_commands_that_are_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^\$? ?mmdata ([a-z][a-z-]*)\b", readme)) <= set(cli.commands)


def test_exported_names() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", mmdata.__version__)
    assert {n for n, v in vars(errors).items() if isinstance(v, type)} >= {
        "MmdataError",
        "SpecError",
        "PlanError",
        "WeightsError",
        "MissingExtraError",
        "SampleError",
        "FatalError",
        "LedgerError",
    }
    families = {"Source", "Ingest", "Align", "Measure", "Augment", "Curate", "Write"}
    assert families | {"Step"} <= set(vars(base))
    assert {"Declared", "Ref", "Input", "Score", "Edge", "NewText"} <= set(vars(exchange))
    assert {cls.__name__ for cls in registry.FAMILIES.values()} == families
    assert tuple(registry.FAMILIES) == STEP_LISTS


def test_the_steps_that_pipelines_name() -> None:
    assert {block: sorted(names) for block, names in registry.OWN.items()} == {
        "sources": ["files", "huggingface", "table", "video", "warc", "web", "webdataset"],
        "ingest": ["audio", "image", "tensor", "text", "video"],
        "align": ["clap", "clip", "crossfit", "ocr", "reconcile", "regions", "tags", "timing", "whisper"],
        "measure": [
            "acoustics",
            "classifier",
            "content",
            "film",
            "minhash",
            "neighbours",
            "nsfw",
            "pdq",
            "personal",
            "picture",
            "soundprint",
            "voice",
            "wording",
            "writing",
        ],
        "augment": ["joint", "segments"],
        "curate": ["clusters", "duplicates", "mix", "quota", "rules", "splits", "terms"],
        "write": ["webdataset"],
    }


# --- schemas --------------------------------------------------------------------------------------------------------


def test_the_schemas_are_what_the_models_say() -> None:
    assert write_schemas(ROOT / "schemas", check=True) == []


def test_a_stale_schema_is_named_and_made_anew(tmp_path: Path) -> None:
    assert sorted(p.name for p in write_schemas(tmp_path)) == [
        "eval.schema.json", "pipeline.schema.json", "train.schema.json",
    ]  # fmt: skip
    assert write_schemas(tmp_path, check=True) == []
    (tmp_path / "train.schema.json").write_text("{}")
    assert write_schemas(tmp_path, check=True) == [tmp_path / "train.schema.json"]
    assert (tmp_path / "train.schema.json").read_text() == "{}"


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_every_pipeline_names_its_schema_and_is_valid_by_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=../schemas/pipeline.schema.json\n")
    jsonschema.validate(yaml.safe_load(text), json.loads((ROOT / "schemas/pipeline.schema.json").read_text()))


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.name)
def test_every_training_of_the_examples_reads_members_that_its_build_has(path: Path) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
    _, name, _ = data["shards"].split("/")
    pipeline = yaml.safe_load((ROOT / f"pipelines/{name}.yaml").read_text(encoding="utf-8"))
    (source,) = pipeline["sources"]
    members = set()
    for member, where in source["files"]["members"].items():
        langs = where.get("langs", []) if isinstance(where, dict) else []
        members |= {member.format(lang=lang) for lang in langs} or {member}
    wanted = {member for names in data["modalities"].values() for member in names}
    assert wanted <= members


GOOD: dict[str, Any] = {"name": "t", "sources": [{"files": {"root": "m", "members": {"image": "{stem}.png"}}}]}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"ingest": ["image", {"text": {"detect_language": False}}]},
        {"curate": ["splits", {"rules": {"keep": {"a": "true"}}}], "write": ["webdataset"]},
        {"augment": [{"joint": {"apply": ["HorizontalFlip", {"Rotate": {"limit": 3, "p": 0.5}}]}}]},
        {"engine": {"workers": "auto"}},
    ],
)
def test_the_schema_takes_what_a_pipeline_may_say(changed: dict[str, Any]) -> None:
    jsonschema.validate({**GOOD, **changed}, pipeline_schema())


@pytest.mark.parametrize(
    "changed",
    [
        {"sourcs": []},
        {"name": "a/b"},
        {"sources": []},
        {"sources": ["files"]},
        {"align": ["clip"]},
        {"align": [{"joint": {}}]},
        {"align": [{"clip": {"model": "x", "modle": "y"}}]},
        {"align": [{"clip": {"model": "x"}, "whisper": {"model": "x"}}]},
        {"curate": [{"rules": {"keep": {"a": 3}}}]},
        {"engine": {"part_samples": 0}},
    ],
)
def test_the_schema_refuses_what_a_plan_refuses(changed: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**GOOD, **changed}, pipeline_schema())
