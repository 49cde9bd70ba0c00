"""The YAML file as frozen models, with the place of every value.

`read_yaml` gives a `Document`: plain values, and for every path in them the line and column where they stand, so that
whatever finds a fault later (a type, an unknown name, a rule that does not parse) can say where it is. `Spec` is the
shape of a pipeline file; what the steps' own parameters mean is resolved by `mmdata.pipeline`, which knows the steps.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from mmdata.errors import SpecError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Keys = tuple[str | int, ...]
Names = Annotated[
    list[str],
    BeforeValidator(lambda v: [v] if isinstance(v, str) else v, json_schema_input_type=str | list[str]),
]
"""A list of names, or one name alone."""
Location = Annotated[str, BeforeValidator(lambda v: os.fspath(v) if isinstance(v, os.PathLike) else v)]
"""A path of this machine, or a URL: `pathlib` would make one slash of two."""

# A spec comes from strangers too: aliases can make a small file expand without end.
_MAX_FILE_BYTES = 1 << 20
_MAX_VALUES = 100_000
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\})")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
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

    workers: int | Literal["auto"] = Field("auto", description="processes that decode; auto is one a core")
    device: str = Field("auto", description="where models run: auto, cpu, cuda, cuda:1, mps")
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


@dataclass(frozen=True)
class Document:
    """A YAML file's values and where each of them stands.

    Attributes:
        path: the file.
        value: plain Python values.
        places: (line, column), counted from 1, of every value; a mapping's value stands where its key stands.
        overridden: what options of the command line changed, by path, as they were typed.
    """

    path: Path
    value: Any
    places: dict[Keys, tuple[int, int]] = field(repr=False)
    overridden: dict[Keys, str] = field(default_factory=dict)

    def problem(self, keys: Keys, message: str) -> str:
        """`file:line:column path: message`, at the nearest enclosing value that has a place."""
        for length in range(len(keys), -1, -1):
            if keys[:length] in self.overridden:
                return f"{self.overridden[keys[:length]]}: {message}"
            if keys[:length] in self.places:
                line, column = self.places[keys[:length]]
                return f"{self.path}:{line}:{column} {dotted(keys)}: {message}".replace(" : ", " ")
            for longer, typed in self.overridden.items():
                if length and longer[:length] == keys[:length]:
                    return f"{typed}: {message}"
        return f"{self.path}: {message}"


def dotted(keys: Keys) -> str:
    """`align[0].clip.model`, without the inner names that only exist in our models."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'model'?`, else the list of what is known."""
    known = sorted(known)
    if close := closest(name, known):
        return f"; did you mean '{close}'?"
    return f"; known here: {', '.join(known)}" if known else ""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like another, None where none is like it."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)), None)


def read_yaml(path: Path | None, overrides: Sequence[str] = ()) -> Document:
    """Read a YAML file with `${NAME:-default}` filled in and `a.b=c` overrides applied; without a file, those alone.

    Raises SpecError for a file that cannot be read, is not YAML, has a key twice, uses an unset variable, or for an
    override that leads nowhere.
    """
    document = _Reader(path).read() if path else Document(Path("settings"), {}, {})
    for override in overrides:
        apply_override(document, override)
    return document


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


class _Reader:
    """Turns a YAML file into plain values, noting the place of each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[Keys, tuple[int, int]] = {}

    def read(self) -> Document:
        loader = _Loader(self._text())
        try:
            node = loader.get_single_node()
            value = None if node is None else self._value(loader, node, (), frozenset())
        except yaml.YAMLError as error:
            raise SpecError([self._yaml_problem(error)]) from None
        finally:
            loader.dispose()
        self.places.setdefault((), (1, 1))
        return Document(self.path, value, self.places)

    def _text(self) -> str:
        try:
            if self.path.stat().st_size > _MAX_FILE_BYTES:
                raise SpecError([f"{self.path}: larger than {_MAX_FILE_BYTES} bytes; this is no pipeline file"])
            return self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise SpecError([f"{self.path}: not UTF-8 at byte {error.start}; save the file as UTF-8"]) from None
        except OSError as error:
            raise SpecError([f"{self.path}: cannot be read: {error.strerror}"]) from None

    def _yaml_problem(self, error: yaml.YAMLError) -> str:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ":"
        return f"{self.path}{place} not YAML: {_yaml_words(error)}"

    def _value(self, loader: Any, node: yaml.Node, keys: Keys, above: frozenset[int]) -> Any:
        self.places.setdefault(keys, (node.start_mark.line + 1, node.start_mark.column + 1))
        if len(self.places) > _MAX_VALUES:
            raise SpecError([f"{self.path}: more than {_MAX_VALUES} values (aliases expand); this is no pipeline file"])
        if id(node) in above:
            raise SpecError([self._at(node, "an alias inside its own anchor")])
        above |= {id(node)}
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, keys, above)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(loader, item, (*keys, i), above) for i, item in enumerate(node.value)]
        return self._scalar(loader, node) if isinstance(node, yaml.ScalarNode) else None

    def _mapping(self, loader: Any, node: yaml.MappingNode, keys: Keys, above: frozenset[int]) -> dict[str, Any]:
        written = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise SpecError([self._at(key, "a key must be a plain name")])
            if key.value in result and written.count(key.value) > 1:
                raise SpecError([self._at(key, f"the key '{key.value}' stands here twice; remove one")])
            self.places[(*keys, key.value)] = (key.start_mark.line + 1, key.start_mark.column + 1)
            result[key.value] = self._value(loader, value, (*keys, key.value), above)
        return result

    def _scalar(self, loader: Any, node: yaml.ScalarNode) -> Any:
        if "$" in node.value:
            filled = _VARIABLE.sub(lambda match: self._variable(node, match), node.value)
            plain = not node.style  # None or '', by the loader; a quoted value stays text
            tag = loader.resolve(yaml.ScalarNode, filled, (plain, not plain))
            node = yaml.ScalarNode(tag, filled, node.start_mark, node.end_mark, style=node.style)
        return loader.construct_object(node)

    def _variable(self, node: yaml.Node, match: re.Match[str]) -> str:
        name, fallback = match.group(1), match.group(3)
        if name is None:
            return "$"
        value = os.environ.get(name) or fallback
        if value is None:
            fix = f"set it, or write ${{{name}:-default}}"
            raise SpecError([self._at(node, f"the environment variable {name} is not set; {fix}")])
        return value

    def _at(self, node: yaml.Node, message: str) -> str:
        return f"{self.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1} {message}"


def _yaml_words(error: yaml.YAMLError) -> str:
    """What PyYAML found wrong, on one line."""
    words = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
    return str(words).splitlines()[0]


def apply_override(document: Document, override: str) -> None:
    """Change one value in place: `engine.workers=2`, `align.clip.model=...`, `sources.0.files.root=...`."""
    path, equals, text = override.partition("=")
    if not equals:
        raise SpecError([f"--set {override}: write it as path=value, for example engine.workers=2"])
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is one of yaml's two safe loaders
    except yaml.YAMLError as error:
        raise SpecError([f"--set {override}: the value is not YAML: {_yaml_words(error)}"]) from None
    parent: Any = document.value
    keys: Keys = ()
    parts = path.split(".")
    for part in parts[:-1]:
        key = _step_into(parent, part, create=True)
        if key is None:
            raise SpecError([f"--set {override}: there is no '{part}' here{nearest(part, _names(parent))}"])
        keys, parent = (*keys, *key), _follow(parent, key)
    last = _step_into(parent, parts[-1], create=True)
    if last is None:
        raise SpecError([f"--set {override}: there is no '{parts[-1]}' here{nearest(parts[-1], _names(parent))}"])
    _follow(parent, last[:-1])[last[-1]] = value
    document.overridden[(*keys, *last)] = f"--set {override}"


def _step_into(parent: Any, part: str, *, create: bool) -> Keys | None:
    """The keys that lead from `parent` to what `part` names: a key, an index, or the step of that name in a list."""
    if isinstance(parent, dict):
        if parent.get(part) is None and create:
            parent.setdefault(part, {})
            parent[part] = {} if parent[part] is None else parent[part]
        return (part,)
    if isinstance(parent, list):
        if part.isdecimal() and int(part) < len(parent):
            index = int(part)
            if isinstance(parent[index], str):
                parent[index] = {parent[index]: {}}
            return (index,)
        for index, entry in enumerate(parent):
            if entry == part:
                parent[index] = {part: {}}
            if isinstance(parent[index], dict) and part in parent[index]:
                parent[index][part] = parent[index][part] or {}
                return (index, part)
    return None


def _follow(value: Any, keys: Keys) -> Any:
    for key in keys:
        value = value[key]
    return value


def _names(parent: Any) -> list[str]:
    entries = parent if isinstance(parent, list) else [parent]
    return [str(name) for entry in entries if isinstance(entry, dict) for name in entry]
