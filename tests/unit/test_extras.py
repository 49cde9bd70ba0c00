"""Extras: what each brings, and that a step whose extra is not installed is told at its place."""

from __future__ import annotations

import pickle
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from only_extras.sitecustomize import installed_with, normal
from packaging.requirements import Requirement

from mmdata import extras
from mmdata.errors import MissingExtraError, PlanError, SampleError, SpecError
from mmdata.plan import make_plan
from mmdata.steps import registry

NAMED = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
COLLECTIONS = {"all", "bench", "dev"}


def test_every_extra_is_known():
    assert set(extras.MODULES) == set(NAMED) - COLLECTIONS
    needed = {extra for steps in registry.all_steps().values() for step in steps.values() for extra in step.extras}
    assert needed <= set(extras.MODULES)


@pytest.mark.parametrize("extra", sorted(extras.MODULES))
def test_an_extra_brings_the_modules_that_are_asked_for_and_each_package_it_names_is(extra):
    packages = {normal(package) for package in extras.MODULES[extra].values()}
    direct = {normal(one.name) for one in map(Requirement, NAMED[extra])} - {"mmdata"}
    assert direct <= packages
    assert packages <= installed_with(frozenset({extra}))


@pytest.mark.parametrize(
    ("module", "package"),
    sorted({pair for extra in set(extras.MODULES) - {"wandb"} for pair in extras.MODULES[extra].items()}),
)
def test_a_module_is_of_its_package(module, package):
    assert find_spec(module) is not None
    assert normal(package) in map(normal, metadata.packages_distributions()[module])


@pytest.mark.parametrize(
    ("blocks", "place", "step", "missing"),
    [
        ("align:\n  - clip: {model: ViT-B-32}", "5:5 align[0].clip", "clip", ("torch", "clip")),
        ("measure: [picture, pdq: {of: image}]", "4:20 measure[1].pdq", "pdq", ("faiss-cpu", "near")),
        ("ingest: [text: {mask: [email]}]", "4:10 ingest[0].text", "text", ("phonenumbers", "personal")),
        ("augment: [joint: {apply: [NoOp]}]", "4:11 augment[0].joint", "joint", ("albumentations", "augment")),
    ],
)
def test_a_missing_extra_is_told_where_it_is_needed(tmp_path, monkeypatch, blocks, place, step, missing):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(b"")
    source = 'sources:\n  - files: {root: media, members: {image: "{stem}.png", caption: {path: "{stem}.txt"}}}\n'
    (tmp_path / "p.yaml").write_text(f"name: x\n{source}{blocks}\n")
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(PlanError) as error:
        make_plan(Path("p.yaml"))
    assert error.value.problems == [f"p.yaml:{place}: '{step}' needs {missing[0]}: pip install 'mmdata[{missing[1]}]'"]


@pytest.mark.parametrize(
    "error", [MissingExtraError("x", "faiss-cpu", "near"), SampleError("bad_image", "not one"), SpecError(["a", "b"])]
)
def test_errors_come_back_from_workers_as_they_were(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
