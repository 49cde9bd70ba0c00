"""A YAML file as plain values, with the place of every value.

`read_yaml` gives a `Document`: for every path in the values the line and column where they stand, so that whatever
finds a fault later (a type, an unknown name, a rule that does not parse) can say where it is.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from mmdata.errors import SpecError

Keys = tuple[str | int, ...]
# A spec comes from strangers too: aliases can make a small file expand without end.
_MAX_FILE_BYTES = 1 << 20
_MAX_VALUES = 100_000
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\})")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Override(str):
    """`path=value` that an option of its own stands for: faults speak of it as it was typed, `--replay 0.2`."""

    __slots__ = ("typed",)

    typed: str

    def __new__(cls, text: str, typed: str) -> Self:
        """`typed` as on the command line."""
        made = super().__new__(cls, text)
        made.typed = typed
        return made


@dataclass(frozen=True)
class Document:
    """A YAML file's values and where each of them stands.

    Attributes:
        path: the file.
        value: plain Python values.
        places: (line, column), counted from 1, of every value; a mapping's value stands where its key stands. None
            where the document is no file with lines.
        overridden: what options of the command line changed, by path, as they were typed.
    """

    path: Path
    value: Any
    places: Mapping[Keys, tuple[int, int] | None] = field(repr=False)
    overridden: dict[Keys, str] = field(default_factory=dict)

    def problem(self, keys: Keys, message: str) -> str:
        """`file:line:column path: message`, at the nearest enclosing value that has a place.

        What an option put there is spoken of as it was typed.
        """
        enclosing = [keys[:length] for length in range(len(keys), -1, -1)]
        for part in enclosing:
            if part in self.overridden:
                return f"{self.overridden[part]}: {message}"
        for part in enclosing:
            if part in self.places:
                place = "".join(f":{number}" for number in self.places[part] or ())
                return f"{self.path}{place} {dotted(keys)}: {message}".replace(" : ", " ")
            for longer, typed in self.overridden.items():
                if part and longer[: len(part)] == part:
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

    Raises SpecError for a file that cannot be read, is not YAML, has a key twice, uses a variable that is not set or
    empty, or for an override that leads nowhere.
    """
    document = _Reader(path).read() if path else Document(Path("settings"), {}, {})
    for override in overrides:
        apply_override(document, override)
    return document


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
            state = "is empty" if name in os.environ else "is not set"
            fix = f"set it, or write ${{{name}:-default}}"
            raise SpecError([self._at(node, f"the environment variable {name} {state}; {fix}")])
        return value

    def _at(self, node: yaml.Node, message: str) -> str:
        return f"{self.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1} {message}"


def _yaml_words(error: yaml.YAMLError) -> str:
    """What PyYAML found wrong, on one line."""
    words = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
    return str(words).splitlines()[0]


def apply_override(document: Document, override: str) -> None:
    """Change one value in place: `engine.workers=2`, `align.clip.model=...`, `sources.0.files.root=...`."""
    typed = override.typed if isinstance(override, Override) else f"--set {override}"
    path, equals, text = override.partition("=")
    if not equals:
        raise SpecError([f"{typed}: write it as path=value, for example engine.workers=2"])
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is one of yaml's two safe loaders
    except yaml.YAMLError as error:
        raise SpecError([f"{typed}: the value is not YAML: {_yaml_words(error)}"]) from None
    parent: Any = document.value
    keys: Keys = ()
    parts = path.split(".")
    for part in parts[:-1]:
        key = _step_into(parent, part, create=True)
        if key is None:
            raise SpecError([f"{typed}: there is no '{part}' here{nearest(part, _names(parent))}"])
        keys, parent = (*keys, *key), _follow(parent, key)
    last = _step_into(parent, parts[-1], create=True)
    if last is None:
        raise SpecError([f"{typed}: there is no '{parts[-1]}' here{nearest(parts[-1], _names(parent))}"])
    _follow(parent, last[:-1])[last[-1]] = value
    document.overridden[(*keys, *last)] = typed


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
