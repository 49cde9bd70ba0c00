"""What may stand in the files that people write, as text: every step, its keys, and what each means.

Read out of the JSON Schemas, as editors do: the docstring of a step and the descriptions of its fields are its manual.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click
from pydantic import BaseModel, ByteSize, TypeAdapter

from mmdata.document import nearest
from mmdata.sample import MEASURES
from mmdata.spec import STEP_LISTS, EngineSpec, FetchSpec, Spec
from mmdata.steps import registry
from mmdata.steps.base import Align, Ingest, Linked, Measure, Step
from mmdata.store.curation import JUDGED, LINKED
from mmdata.train.config import TrainConfig
from mmdata.train.evaluate.config import EvalConfig

_BYTES_PATTERN: Final = TypeAdapter(ByteSize).json_schema()["anyOf"][0]["pattern"]
_KINDS: Final = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "",
}
_OTHERS: Final[dict[str, type[BaseModel]]] = {
    "fetch": FetchSpec,
    "engine": EngineSpec,
    "train": TrainConfig,
    "eval": EvalConfig,
}
_FILES: Final = {"train": "mmdata train FILE\n", "eval": "mmdata eval RUN --config FILE\n"}


def overview() -> str:
    """Every step of every list in a line, and the other keys of a pipeline file."""
    page = click.HelpFormatter(width=_width())
    page.write("A pipeline file has these keys. `mmdata doc NAME` tells more of each name below.\n\n")
    fields = Spec.model_fields
    page.write_dl([(name, str(fields[name].description)) for name in fields if name not in STEP_LISTS])
    for block in STEP_LISTS:
        with page.section(f"{block} ({fields[block].description})"):
            page.write_dl([(name, _first_sentence(step)) for name, step in _steps(block).items()])
    with page.section("Other files"):
        page.write_dl([(name, _first_sentence(_OTHERS[name])) for name in _FILES])
    return page.getvalue().rstrip("\n")


def page_of(name: str) -> str:
    """All about one step, or one block: `clip`, `write.webdataset`, `fetch`. Of a name in several lists, all.

    Raises click.UsageError with the nearest right name.
    """
    found = _topics()
    wanted = [topic for topic in found if topic == name or topic.partition(".")[2] == name]
    if not wanted:
        raise click.UsageError(
            f"nothing is called '{name}'{nearest(name, {topic.rpartition('.')[2] for topic in found})}"
        )
    return "\n\n".join(_page(topic, found[topic]) for topic in wanted)


def _topics() -> dict[str, type[BaseModel]]:
    steps = {f"{block}.{name}": step for block in STEP_LISTS for name, step in _steps(block).items()}
    return {**_OTHERS, **steps}


def _steps(block: str) -> dict[str, type[Step]]:
    """Ours and those of other packages."""
    return {name: step for name in registry.known(block) if (step := registry.find(block, name))}


def _page(topic: str, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    page = click.HelpFormatter(width=_width())
    block, _, name = topic.partition(".")
    page.write(_FILES.get(topic) or f"{block}:\n" + (f"  - {name}:\n" if name else ""))
    defs = schema.get("$defs", {})
    _write_keys(page, "", schema, defs)
    for title in _nested(schema, defs):
        _write_keys(page, title, defs[title], defs)
    if issubclass(model, Step):
        if model.extras:
            page.write_paragraph()
            page.write(f"Needs: pip install 'mmdata[{','.join(model.extras)}]'\n")
        pattern, columns = _columns(model)
        told = {
            **model.choices(),
            f"Columns for rules ({pattern})": [f"{name} {kind}" for name, kind in columns.items()],
        }
        for heading, names in told.items():
            if names:
                with page.section(heading):
                    page.write_text(", ".join(names))
    return page.getvalue().rstrip("\n")


def _nested(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[str]:
    """Names of the models that a schema's keys hold, each once, in the order in which a reader meets them."""
    met: list[str] = []
    queue = [schema]
    while queue:
        for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(queue.pop(0).get("properties", {}))):
            if name not in met and "properties" in defs[name]:
                met.append(name)
                queue.append(defs[name])
                yield name


def _write_keys(page: click.HelpFormatter, title: str, schema: Mapping[str, Any], defs: Mapping[str, Any]) -> None:
    page.write_paragraph()
    if title:
        page.write(f"{title}:\n")
    page.indent()
    for paragraph in schema.get("description", "").split("\n\n"):
        page.write_text(" ".join(paragraph.split()))
        page.write_paragraph()
    required = schema.get("required", ())
    keys = sorted(schema["properties"].items(), key=lambda item: item[0] not in required)
    if keys:
        page.write_dl([(key, _about(value, defs, required=key in required)) for key, value in keys])
    page.dedent()


def _about(value: Mapping[str, Any], defs: Mapping[str, Any], *, required: bool) -> str:
    kind = _kind(value, defs)
    default = value.get("default")
    notes = [kind] if kind else []
    if required:
        notes.append("required")
    elif default is not None and default not in ([], {}) and not isinstance(default, dict):
        shown = ByteSize(default).human_readable() if _is_bytes(value) else json.dumps(default, ensure_ascii=False)
        notes.append(f"default: {shown}")
    return f"{value.get('description', '')}  [{'; '.join(notes)}]".strip()


def _kind(value: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """What may stand there, in words."""
    if _is_bytes(value):
        return "bytes, or 64MB"
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return name if "properties" in defs[name] else _kind(defs[name], defs)
    options = value.get("anyOf") or value.get("oneOf") or value.get("allOf")
    if options:
        return " or ".join(dict.fromkeys(filter(None, (_kind(option, defs) for option in options))))
    if "const" in value or "enum" in value:
        return " or ".join(map(str, value.get("enum", [value.get("const")])))
    if value.get("type") in ("array", "object"):
        return _collection(value, defs)
    return _KINDS.get(value.get("type", "null"), "") + _limits(value)


def _collection(value: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    name, items, link = {"array": ("list", "items", "of"), "object": ("mapping", "additionalProperties", "to")}[
        value["type"]
    ]
    each = value.get(items)
    kind = _kind(each, defs) if isinstance(each, dict) else ""
    return f"{name} {link} {kind}" if kind else name


def _limits(value: Mapping[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {value[name]:g}" for name, sign in signs.items() if name in value)


def _is_bytes(value: Mapping[str, Any]) -> bool:
    return any(option.get("pattern") == _BYTES_PATTERN for option in value.get("anyOf", ()))


def _columns(step: type[Step]) -> tuple[str, dict[str, str]]:
    """What rules see of what a step reads or finds, where nothing but its keys' defaults decides it."""
    if issubclass(step, Ingest):
        return "MEMBER.COLUMN", dict(MEASURES[step.modality])
    if issubclass(step, Align):
        return f"{step.step}.EDGE.COLUMN", {**JUDGED, **step.model_construct().measures()}
    if issubclass(step, Measure):
        missing = [key for key, field in step.model_fields.items() if field.is_required() and key != "of"]
        own = {} if missing else step.model_construct(of=["member"]).columns()
        return f"{step.step}.MEMBER.COLUMN", {**own, **(LINKED if issubclass(step, Linked) else {})}
    return "", {}


def _first_sentence(model: type[BaseModel]) -> str:
    text = " ".join((inspect.getdoc(model) or "").split())
    return re.sub(r"(?<!\.)\.$", "", re.split(r"\. (?=[A-Z`])", text, maxsplit=1)[0])


def _width() -> int:
    """Of the terminal, but no line longer than is read well."""
    return min(shutil.get_terminal_size().columns, 100)
