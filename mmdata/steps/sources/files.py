"""`files`: a folder in which the members of a sample share a stem.

A path template names the files of a member: `{stem}.png` and `{stem}.txt` belong together where `{stem}` is the same.
`{stem}` may contain folders and is the sample's key; `{lang}` makes one member for each language listed. Where a file
fits several templates, the one with the most literal characters takes it. Extensions are told in any case: `a.PNG`.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from mmdata.errors import PlanError
from mmdata.sample import MODALITIES, Modality
from mmdata.spec import Frozen, Location, Names
from mmdata.steps.base import Source
from mmdata.steps.exchange import Declared, Input, Ref
from mmdata.steps.sources.places import printable
from mmdata.store.remote import is_remote, walk

_BY_EXTENSION: dict[str, Modality] = {
    **dict.fromkeys(["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "svg"], "image"),
    **dict.fromkeys(["txt", "caption", "srt", "vtt", "ass", "ssa"], "text"),
    **dict.fromkeys(["mp4", "mkv", "webm", "mov", "avi", "m4v", "mpg"], "video"),
    **dict.fromkeys(["npy", "npz", "safetensors"], "tensor"),
    **dict.fromkeys(["wav", "ogg", "oga", "opus", "flac", "mp3", "m4a", "aac", "aiff"], "audio"),
}
_OUTSIDE = "link outside root"
_NO_TEXT = "name is no text"
_HOLE = re.compile(r"\{(\w*)\}")
_PATTERNS = {"stem": r"(?P<stem>.+)", "lang": r"(?P<lang>[A-Za-z]{2,3}(?:[_@-][A-Za-z]+)?)"}


_BY_NAME: dict[str, Modality] = {
    **{name: name for name in MODALITIES},
    **dict.fromkeys(["photo", "picture"], "image"),
    **dict.fromkeys(["caption", "transcript", "title"], "text"),
    **dict.fromkeys(["speech", "sound", "music"], "audio"),
}


def modality_of(name: str, given: Modality | None) -> Modality | None:
    """The modality given, else what a member of this name usually is."""
    return given or _BY_NAME.get(name.partition("_")[0])


def modality_of_extension(extension: str) -> Modality | None:
    """The modality that files with an extension usually are of."""
    return _BY_EXTENSION.get(extension.lower())


class MemberFiles(Frozen):
    """The files of one member (of one for each language, where the path or the line has `{lang}`)."""

    path: Names = Field(
        min_length=1,
        description="path templates below root with {stem}, perhaps {lang}; the first that exists is taken",
    )
    modality: Modality | None = Field(None, description="told by the file extension where it is not given")
    required: bool = Field(True, description="whether a sample without it has failed; never for {lang}")
    lang: str | None = Field(None, description="language of the text or speech; detected for text where not given")
    line: int | str | None = Field(
        None, description="of a text file: the number of one line, or a template such as '{lang}.utf8={text}'"
    )
    langs: list[str] = Field(default=[], description="the languages to take, where the path or the line has {lang}")

    @model_validator(mode="after")
    def _holes_fit(self) -> MemberFiles:
        for path in self.path:
            holes = _HOLE.findall(path)
            if holes.count("stem") != 1 or set(holes) - set(_PATTERNS) or len(holes) != len(set(holes)):
                raise ValueError(f"the path '{path}' must have {{stem}} once, may have {{lang}} once, and nothing else")
            if path.startswith("/") or ".." in Path(path).parts:
                raise ValueError(f"the path '{path}' must stay below root")
        if isinstance(self.line, str) and "text" not in _HOLE.findall(self.line):
            raise ValueError(f"the line template '{self.line}' must have {{text}}")
        if self.by_lang != bool(self.langs):
            raise ValueError("`langs` lists the languages to take, and needs {lang} in the path or the line")
        if self.modality is None and self._told() is None:
            raise ValueError(f"cannot tell the modality of '{self.path[0]}'; add `modality:`")
        return self

    @property
    def by_lang(self) -> bool:
        """Whether this stands for one member a language."""
        return any("{lang}" in text for text in [*self.path, str(self.line)])

    @property
    def kind(self) -> Modality:
        """The modality, given or told by the extension."""
        return self.modality or self._told() or "tensor"

    def _told(self) -> Modality | None:
        return modality_of_extension(self.path[0].rpartition(".")[-1])


class Files(Source):
    """Files of a folder that share a stem: `{stem}.png` + `{stem}.txt` + ..."""

    step: ClassVar[str] = "files"
    name: str | None = Field(None, description="names the source in every sample_id; default: files")
    root: Location = Field(min_length=1, description="the folder, or its URL: s3://bucket/folder")
    files: Annotated[
        dict[str, MemberFiles],
        BeforeValidator(
            lambda v: (
                {k: {"path": m} if isinstance(m, str | list) else m for k, m in v.items()} if isinstance(v, dict) else v
            ),
            json_schema_input_type=dict[str, str | list[str] | MemberFiles],
        ),
    ] = Field(alias="members", min_length=1, description="by name; `caption_{lang}` where it is one for each language")

    @model_validator(mode="after")
    def _names_fit(self) -> Files:
        for name, member in self.files.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*(\{lang\})?", name):
                raise ValueError(f"the member name '{name}' must be lower case letters, digits and '_'")
            if name.endswith("{lang}") != member.by_lang:
                raise ValueError(f"the member '{name}' must end with {{lang}} exactly if its path or line has {{lang}}")
        return self

    def identity(self) -> dict[str, Any]:
        """Where the folder lies does not matter, only what is in it."""
        mine = super().identity()
        mine["params"].pop("root")
        return mine

    def members(self) -> dict[str, Declared]:
        """One a name, one a language where the name has `{lang}`."""
        found: dict[str, Declared] = {}
        for name, files in self.files.items():
            if files.by_lang:
                found |= {_named(name, lang): Declared(files.kind, False, lang) for lang in files.langs}
            else:
                found[name] = Declared(files.kind, files.required, files.lang)
        return found

    def inputs(self) -> Iterator[Input]:
        """Walk the folder; sort by stem in a database on disk, so that memory stays bounded."""
        root = self.root.rstrip("/") if is_remote(self.root) else str(Path(os.path.expanduser(self.root)))
        with closing(sqlite3.connect("")) as listing:
            listing.execute("CREATE TABLE files (stem TEXT, template INTEGER, lang TEXT, path TEXT, version TEXT)")
            listing.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?)", self._matches(root))
            rows = listing.execute("SELECT * FROM files ORDER BY stem, template, lang, path")
            slots = list(self._slots())
            for stem, group in groupby(rows, key=itemgetter(0)):
                yield _input(root, stem, slots, {(row[1], row[2]): row[3:] for row in group})

    def _matches(self, root: str) -> Iterator[tuple[str, int, str, str, str]]:
        """(stem, number of the template, language, path, version) of every file that a template takes."""
        templates = self._by_literal_length()
        # As it is written, else in any case: cameras write .JPG.
        patterns = [(_regex(one, any_case=case), index) for case in (False, True) for index, one in templates]
        wanted = {lang for files in self.files.values() for lang in files.langs}
        for path, version in walk("files", root) if is_remote(root) else _local(Path(root)):
            for pattern, index in patterns:
                if match := pattern.fullmatch(path):
                    lang = match.groupdict().get("lang")
                    # A file in a language that nobody asked for is no sample of its own, nor is it anything else.
                    if lang is None or lang in wanted:
                        yield match["stem"], index, lang or "", path, version
                    break

    def _templates(self) -> list[str]:
        return list(dict.fromkeys(path for files in self.files.values() for path in files.path))

    def _by_literal_length(self) -> list[tuple[int, str]]:
        return sorted(enumerate(self._templates()), key=lambda pair: -len(_HOLE.sub("", pair[1])))

    def _slots(self) -> Iterator[_Slot]:
        """What to look for in every input; worked out once."""
        number = {template: index for index, template in enumerate(self._templates())}
        for name, files in self.files.items():
            for lang in files.langs or [""]:
                yield _Slot(
                    name=_named(name, lang),
                    modality=files.kind,
                    lang=lang or files.lang,
                    line=files.line.replace("{lang}", lang) if isinstance(files.line, str) else files.line,
                    required=files.required and not files.by_lang,
                    keys=[(number[path], lang if "{lang}" in path else "") for path in files.path],
                    templates=files.path,
                )


@dataclass(frozen=True)
class _Slot:
    """One member that an input may have, and where: (number of the template, language) in order of preference."""

    name: str
    modality: Modality
    lang: str | None
    line: int | str | None
    required: bool
    keys: list[tuple[int, str]]
    templates: list[str]

    def missing(self, stem: str) -> str:
        """Where it should have been."""
        return " or ".join(template.replace("{stem}", stem) for template in self.templates)


def _input(root: str, stem: str, slots: list[_Slot], there: dict[tuple[int, str], tuple[str, str]]) -> Input:
    """An input and its refs; a required member stands there also where its file is missing."""
    refs = []
    for slot in slots:
        path, version = next((there[key] for key in slot.keys if key in there), (None, None))
        if path is not None or slot.required:
            url = slot.missing(stem) if path is None else f"{root}/{path}"
            refs.append(Ref(slot.name, slot.modality, url, None, slot.lang, slot.line, slot.required, version))
    return Input(stem, tuple(refs), problem=_problem(refs))


def _problem(refs: list[Ref]) -> tuple[str, str] | None:
    for ref in refs:
        if ref.version == _OUTSIDE:
            return "link_outside_root", f"{ref.url} is a link that leads out of root"
        if ref.version == _NO_TEXT:
            return "bad_name", f"the name of {ref.url} is not UTF-8"
    return None


def _named(name: str, lang: str) -> str:
    return name.replace("{lang}", lang.lower().replace("-", "_").replace("@", "_"))


def _regex(template: str, *, any_case: bool = False) -> re.Pattern[str]:
    """What paths of a template look like; with `any_case` the extension may be in capitals or not, as it comes."""
    *parts, last = _HOLE.split(template)
    before, dot, extension = last.rpartition(".")
    fixed = "".join(_PATTERNS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts))
    end = f"(?i:{re.escape(extension)})" if any_case and dot else re.escape(extension)
    return re.compile(f"{fixed}{re.escape(before + dot)}{end}", re.DOTALL)


def _local(root: Path) -> Iterator[tuple[str, str]]:
    """Path below `root` and version of every file. Raises PlanError."""
    if not root.is_dir():
        raise PlanError([f"files: the folder {root} is not there"])
    real_root = os.path.realpath(root) + os.sep
    try:
        for path, entry in _walk(root):
            shown = printable(path)
            yield shown, _version(entry, real_root) if shown == path else _NO_TEXT
    except OSError as error:
        raise PlanError([f"files: {printable(str(error.filename))} cannot be read: {error.strerror}"]) from None


def _walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Path and entry of every file below root; hidden ones left out, links to folders not followed."""
    stack = [""]
    while stack:
        folder = stack.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    stack.append(f"{path}/")
                elif entry.is_file():
                    yield path, entry


def _version(entry: os.DirEntry[str], real_root: str) -> str:
    # A folder may be a stranger's unpacked archive: a link in it must not bring in files from elsewhere.
    if entry.is_symlink() and not os.path.realpath(entry.path).startswith(real_root):
        return _OUTSIDE
    stat = entry.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"
