"""`mmdata doc`: of every step and block all keys, and the nearest name for one that is not there."""

from __future__ import annotations

import re

import click
import pytest

from mmdata import manual
from mmdata.manual import overview, page_of
from mmdata.schema import eval_schema, pipeline_schema, train_schema
from mmdata.spec import Spec
from mmdata.steps import registry
from mmdata.steps.measure.picture import Picture

STEPS = [(block, name, step) for block, steps in registry.all_steps().items() for name, step in steps.items()]


@pytest.mark.parametrize(("block", "name", "step"), STEPS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_page_has_every_key_of_a_step_and_of_what_its_keys_hold(block, name, step):
    page = page_of(f"{block}.{name}")
    assert page.startswith(f"{block}:\n  - {name}:\n")
    schema = step.model_json_schema()
    for model in (schema, *schema.get("$defs", {}).values()):
        for key in model.get("properties", {}):
            assert f"\n  {key} " in page
    assert max(map(len, page.splitlines())) <= 100


@pytest.mark.parametrize("schema", [pipeline_schema, train_schema, eval_schema])
def test_every_key_that_people_write_has_a_description(schema):
    found = schema()
    for name, model in {"": found, **found["$defs"]}.items():
        assert all(value.get("description") for value in model.get("properties", {}).values()), name


def test_the_overview_names_every_step_and_every_key_of_a_pipeline():
    told = overview()
    assert all(f"\n  {name} " in told for _, name, _ in STEPS)
    assert all(f"\n{name} " in told for name in Spec.model_fields)
    assert "\n  files        Files of a folder that share a stem: `{stem}.png` + `{stem}.txt`" in told


def test_keys_are_told_with_what_may_stand_there():
    page = " ".join(page_of("clip").split())
    assert (
        "model an open_clip architecture (ViT-B-32), hub id (hf-hub:org/name) or local folder [text; required]" in page
    )
    assert (
        "frames frames of a video that are looked at, spread evenly over it [whole number >= 1 <= 64; default: 8]"
        in page
    )
    assert "Columns for rules (clip.EDGE.COLUMN): score FLOAT, percentile FLOAT, match FLOAT" in page
    files = " ".join(page_of("files").split())
    assert "[mapping to text or list of text or MemberFiles; required]" in files
    assert "MemberFiles: The files of one member" in files
    assert "[bytes, or 64MB; default: 50.0MiB]" in " ".join(page_of("ingest.image").split())


def test_columns_are_those_that_rules_see():
    page = " ".join(page_of("picture").split())
    for column, kind in Picture(of=["image"]).columns().items():
        assert f"{column} {kind}" in page
    assert "nearest DOUBLE, in_reference DOUBLE" in page_of("neighbours")
    assert "width INTEGER, height INTEGER" in page_of("ingest.image")


def test_a_policys_operators_are_listed():
    page = page_of("joint")
    assert "Operators (image):" in page
    assert all(name in page for name in ("HorizontalFlip", "PitchShift", "synonyms", "mixgen"))


def test_a_name_of_several_lists_gives_all_and_a_wrong_one_the_nearest():
    page = page_of("webdataset")
    assert "sources:\n  - webdataset:" in page
    assert "write:\n  - webdataset:" in page
    with pytest.raises(click.UsageError, match=r"nothing is called 'clp'; did you mean 'clip'\?"):
        page_of("clp")


def test_steps_of_other_packages_are_told_too(monkeypatch):
    class Mine(Picture):
        """My own measure. More of it."""

    def find(own, block, name):
        if name == "mine":
            return Mine if block == "measure" else None
        return own(block, name)

    own, known = registry.find, registry.known
    monkeypatch.setattr(manual.registry, "known", lambda block: [*known(block), "mine"])
    monkeypatch.setattr(manual.registry, "find", lambda block, name: find(own, block, name))
    assert re.search(r"\n  mine +My own measure\n", overview())
    assert page_of("mine").startswith("measure:\n  - mine:\n")
