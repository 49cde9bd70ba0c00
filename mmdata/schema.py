"""JSON Schemas of the files that people write, generated from the models; editors complete and check by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmdata.spec import STEP_LISTS, Spec
from mmdata.steps import registry
from mmdata.steps.base import Step
from mmdata.train.config import TrainConfig
from mmdata.train.evaluate.config import EvalConfig

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def write_schemas(folder: Path, *, check: bool = False) -> list[Path]:
    """Write the schemas, or with `check` only compare; returns the files that were not as they should be."""
    stale = []
    for name, schema in (("pipeline", pipeline_schema()), ("train", train_schema()), ("eval", eval_schema())):
        path = folder / f"{name}.schema.json"
        text = json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not check:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    return stale


def pipeline_schema() -> dict[str, Any]:
    """Of a pipeline file: `Spec`, with each list holding exactly the steps of its family."""
    schema = Spec.model_json_schema()
    schema["$defs"].pop("Call", None)
    for block, steps in registry.all_steps().items():
        entries = [_entry(schema["$defs"], name, step) for name, step in steps.items()]
        schema["properties"][block]["items"] = {"anyOf": entries}
    for block in STEP_LISTS:
        schema["properties"][block].pop("default", None)
    return {"$schema": _DIALECT, **schema, "title": "mmdata pipeline"}


def train_schema() -> dict[str, Any]:
    """Of a training configuration."""
    return {"$schema": _DIALECT, **TrainConfig.model_json_schema(), "title": "mmdata training configuration"}


def eval_schema() -> dict[str, Any]:
    """Of an evaluation's settings."""
    return {"$schema": _DIALECT, **EvalConfig.model_json_schema(), "title": "mmdata evaluation"}


def _entry(shared: dict[str, Any], name: str, step: type[Step]) -> dict[str, Any]:
    """`- name: {parameters}`, or `- name` where no parameter is required; its models go to the shared ones."""
    params = step.model_json_schema()
    shared |= params.pop("$defs", {})
    shared[step.__name__] = params
    about = params.get("description", "")
    call = {
        "type": "object",
        "description": about,
        "properties": {name: {"$ref": f"#/$defs/{step.__name__}"}},
        "required": [name],
        "additionalProperties": False,
    }
    return call if params.get("required") else {"anyOf": [call, {"const": name, "description": about}]}
