"""A pipeline file as frozen models, and what pydantic finds wrong with one in the words of the file.

`Spec` is the shape of a pipeline file; what the steps' own parameters mean is resolved by `mmdata.pipeline`, which
knows the steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from mmdata.document import Document, Keys, nearest
from mmdata.errors import SpecError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Names = Annotated[
    list[str],
    BeforeValidator(lambda v: [v] if isinstance(v, str) else v, json_schema_input_type=str | list[str]),
]
"""A list of names, or one name alone."""
Location = Annotated[str, BeforeValidator(lambda v: os.fspath(v) if isinstance(v, os.PathLike) else v)]
"""A path of this machine, or a URL: `pathlib` would make one slash of two."""

# Kinds of error that are a line of their own, however many stand at one place.
_ONE_EACH = frozenset({"missing", "extra_forbidden", "value_error"})


class Frozen(BaseModel):
    """Base of every model that is read from a file: unknown keys are errors, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class ParameterError(ValueError):
    """Parameters of a step that are wrong: `problems` has for each the keys below the step and a sentence."""

    def __init__(self, problems: Sequence[tuple[Keys, str]]) -> None:
        """Keep every problem, so that one run shows them all."""
        self.problems = problems
        super().__init__("\n".join(message for _, message in problems))


class Call(Frozen):
    """One entry of a list of steps: the step's name and its parameters, not yet resolved."""

    step: str
    params: dict[str, Any]


class EngineSpec(Frozen):
    """How a build runs; nothing here changes what it produces, except where parts begin and end."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="processes that decode; auto is one a core"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="where models run: auto, cpu, cuda, cuda:1, mps"
    )
    part_samples: int = Field(256, ge=1, description="samples in a part, the unit of work and of resuming, on average")
    memory: ByteSize = Field(ByteSize(4_000_000_000), description="that deciding takes, about; more goes to the disk")
    max_failures_in_a_row: int = Field(
        200, ge=1, description="so many failed samples in a row, in the order of the inputs, stop the build"
    )


class FetchSpec(Frozen):
    """How what lies on the web is fetched. Only `as_of` changes what parts are called."""

    contact: str | None = Field(
        None, max_length=200, description="mail address or page of who fetches; stands in the user agent"
    )
    user_agent: str = Field(
        "mmdata", pattern=r"^[A-Za-z0-9_.-]+$", description="product name, which robots.txt may speak of"
    )
    connections: int = Field(128, ge=1, le=4096, description="requests under way at once, to all hosts")
    connections_per_host: int = Field(4, ge=1, le=256, description="requests under way at once to one host")
    bytes_in_flight: ByteSize = Field(ByteSize(256 << 20), description="of bodies in memory, in all")
    timeout_s: float = Field(60.0, gt=0, description="from the first byte sent to the last received, redirects apart")
    idle_s: float = Field(15.0, gt=0, description="without a byte, while connecting and while receiving")
    attempts: int = Field(3, ge=1, le=10, description="of one URL in a build, where a failure may pass")
    max_wait_s: float = Field(60.0, ge=0, description="longest wait that Retry-After may ask for within a build")
    max_redirects: int = Field(5, ge=0, le=20, description="each is checked like a URL of its own")
    robots: bool = Field(True, description="obey robots.txt, its crawl-delay included")
    opt_out: bool = Field(True, description="leave out what says noai, noimageai, noml or reserves its rights (TDM)")
    tdmrep: bool = Field(
        True, description="with opt_out, also obey what a host reserves in its /.well-known/tdmrep.json"
    )
    allow_private: list[str] = Field(
        default=[], description="hosts, or host:port, that may have private addresses: an intranet's"
    )
    as_of: date | None = Field(
        None, description="a later date asks all servers again; what has not changed is not sent again"
    )
    downloads: Literal["keep", "discard"] = Field(
        "keep", description="keep: another way to ingest fetches nothing; discard: once ingested, only the facts stay"
    )

    @field_validator("contact")
    @classmethod
    def _fits_into_a_header(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.isprintable()):
            raise ValueError("a contact stands in a header: letters of ASCII, no line breaks")
        return value


class Spec(Frozen):
    """A pipeline file. Each list holds steps, `- name: {parameters}`, or `- name` where the defaults do."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="names the build and its default folder")
    seed: int = Field(0, ge=0, description="seed of splits, of the order of samples and of augmentation")
    sources: list[Call] = Field(min_length=1, description="where samples come from")
    ingest: list[Call] = Field(default=[], description="how each modality is read; one entry a modality")
    align: list[Call] = Field(default=[], description="what scores the agreement of modalities")
    measure: list[Call] = Field(default=[], description="what is measured of single members, for rules and the catalog")
    augment: list[Call] = Field(default=[], description="what makes children of samples")
    curate: list[Call] = Field(default=[], description="what decides, in SQL: duplicates, rules, splits")
    write: list[Call] = Field(default=[], description="what is written; a WebDataset where nothing is said")
    fetch: FetchSpec = Field(default=FetchSpec(), description="how what lies on the web is fetched")
    engine: EngineSpec = Field(default=EngineSpec(), description="how the build runs")


STEP_LISTS = ("sources", "ingest", "align", "measure", "augment", "curate", "write")


def parse_spec(document: Document) -> Spec:
    """The document as a `Spec`. Raises SpecError with every problem found."""
    value = document.value
    if not isinstance(value, dict):
        raise SpecError([document.problem((), "a pipeline is a mapping with at least `name:` and `sources:`")])
    problems: list[str] = []
    shaped = dict(value)
    for block in STEP_LISTS:
        if block in shaped:
            shaped[block] = list(_calls(document, block, shaped[block], problems))
    try:
        spec = Spec.model_validate(shaped)
    except ValidationError as error:
        problems += explain(document, (), Spec, error)
    if problems:
        raise SpecError(problems)
    return spec


def explain(document: Document, prefix: Keys, model: type[BaseModel], error: ValidationError) -> list[str]:
    """A pydantic error as lines with place, value, nearest name and fix."""
    found: dict[tuple[Keys, str, str], list[str]] = {}
    for detail in error.errors():
        location, message, given = _explain_one(document, prefix, model, detail)
        alone = message if detail["type"] in _ONE_EACH else ""
        found.setdefault((location, given, alone), []).append(message)
    # A value that may be of several types fails each of them: one line, not one for each type.
    return [document.problem(keys, " or ".join(messages) + given) for (keys, given, _), messages in found.items()]


def _explain_one(
    document: Document, prefix: Keys, model: type[BaseModel], detail: ErrorDetails
) -> tuple[Keys, str, str]:
    """Where, what is wrong, and what stands there."""
    location = _real_keys(document, prefix, detail["loc"])
    name = str(detail["loc"][-1]) if detail["loc"] else ""
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, detail["loc"][:-1])
        return location, f"unknown key '{name}'{nearest(name, known)}", ""
    if detail["type"] == "missing":
        return location, f"the key '{name}' is missing", ""
    message = "must be a mapping" if detail["type"] == "model_type" else detail["msg"]
    message = (message[0].lower() + message[1:]).removeprefix("value error, ")
    given = detail.get("input")
    silent = detail["type"] == "value_error" or isinstance(given, dict | list)
    return location, message, "" if silent else f", not {given!r}"


def _real_keys(document: Document, prefix: Keys, location: Keys) -> Keys:
    """Drop the parts of pydantic's location that are names of union members or missing, not keys of the file."""
    keys, value = prefix, document.value
    for part in prefix:
        value = value[part] if _has(value, part) else None
    for part in location:
        if _has(value, part):
            keys, value = (*keys, part), value[part]
    return keys


def _has(value: Any, part: str | int) -> bool:
    return part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))


def _fields_at(model: Any, location: Keys) -> list[str]:
    """Keys that the model that stands at `location` below `model` knows."""
    among = [model]
    for part in location:
        if part in (fields := _by_key(model)):
            among = list(_models_in(fields[part].annotation))
        # Of a union pydantic says which model was meant, by its tag: the name of the class.
        meant = [one for one in among if one.__name__ == part]
        if meant or among:
            model = (meant or among)[0]
    return list(_by_key(model))


def _by_key(model: Any) -> dict[str, FieldInfo]:
    """The fields of a model as a file names them."""
    return {field.alias or name: field for name, field in getattr(model, "model_fields", {}).items()}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _calls(document: Document, block: str, entries: Any, problems: list[str]) -> Iterator[Any]:
    if not isinstance(entries, list):
        problems.append(document.problem((block,), "must be a list of steps: start each with '- '"))
        return
    for index, entry in enumerate(entries):
        if isinstance(entry, str):
            yield {"step": entry, "params": {}}
        elif isinstance(entry, dict) and len(entry) == 1:
            (name, params), *_ = entry.items()
            if params is not None and not isinstance(params, dict):
                problems.append(document.problem((block, index, name), "parameters must be a mapping"))
            else:
                yield {"step": str(name), "params": params or {}}
        else:
            message = "a step is one name with its parameters below it, indented: `- name: {...}`"
            problems.append(document.problem((block, index), message))
