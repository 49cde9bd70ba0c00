"""`webdataset`: samples of tar files, as img2dataset, webdataset and mmdata itself write them; read in their place."""

from __future__ import annotations

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, ByteSize, Field, model_validator

from mmdata.errors import SampleError
from mmdata.sample import Modality
from mmdata.spec import Frozen, Names
from mmdata.steps.base import Discovered
from mmdata.steps.exchange import Declared, Input, Keep, Place, Ref
from mmdata.steps.sources.files import modality_of, modality_of_extension
from mmdata.steps.sources.places import file_places, printable, text_ref
from mmdata.store.remote import is_remote, opened

_MOST_JSON: Final = 1 << 20
_MOST_ATTRIBUTES: Final = 200
_MOST_TEXT: Final = 10_000
_MOST_FILES_A_SAMPLE: Final = 1000
# Of a header that says how long the next name is (GNU, PAX): the names themselves are short.
_MOST_NAME: Final = 4096
# What tarfile and what unpacks for it raise over bytes that are no tar; of headers within headers without end the last.
_BROKEN: Final = (
    *(tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError),
    RecursionError,
)


class TarMember(Frozen):
    """The files of one member in each sample, or a text of its JSON."""

    ext: list[str] = Field(default=[], description="extensions, the first that exists is taken: [jpg, png]")
    from_json: str | None = Field(
        None, alias="json", description="instead, a text in the sample's .json: caption, or meta.caption"
    )
    modality: Modality | None = Field(None, description="told by the extension where it is not given")
    required: bool = Field(True, description="whether a sample without it has failed")
    lang: str | None = Field(None, description="language of the text or speech; detected for text where not given")

    @model_validator(mode="after")
    def _one_place(self) -> TarMember:
        if bool(self.ext) == bool(self.from_json):
            raise ValueError("a member needs one of `ext:` and `json:`")
        return self


def _member(value: Any) -> Any:
    return {"ext": [value] if isinstance(value, str) else value} if isinstance(value, str | list) else value


class WebDataset(Discovered):
    """Samples of WebDataset tar files: files that share a name up to its first dot. Nothing is unpacked."""

    step: ClassVar[str] = "webdataset"
    name: str | None = Field(None, description="names the source in every sample_id; default: webdataset")
    files: Names = Field(
        min_length=1, description="tar files, patterns (*.tar), ranges ({000000..000099}.tar) or URLs of such"
    )
    parts: Annotated[
        dict[str, TarMember],
        BeforeValidator(
            lambda v: {name: _member(one) for name, one in v.items()} if isinstance(v, dict) else v,
            json_schema_input_type=dict[str, str | list[str] | TarMember],
        ),
    ] = Field(alias="members", min_length=1, description="by name: `image: [jpg, png]`, `caption: {json: caption}`")
    max_member_bytes: ByteSize = Field(ByteSize(1 << 30), description="larger files of a tar cost their sample")

    @model_validator(mode="after")
    def _kinds_are_known(self) -> WebDataset:
        for name, part in self.parts.items():
            if _kind(name, part) is None:
                raise ValueError(f"cannot tell the modality of '{name}'; add `modality:`")
        return self

    def identity(self) -> dict[str, Any]:
        """Where the files lie does not matter."""
        mine = super().identity()
        mine["params"].pop("files")
        return mine

    def members(self) -> dict[str, Declared]:
        """As they are declared."""
        return {name: Declared(_kind(name, p) or "tensor", p.required, p.lang) for name, p in self.parts.items()}

    def places(self, crawled: Path) -> Iterator[Place]:  # noqa: ARG002 - nothing was crawled
        """The tar files. Raises PlanError."""
        return file_places("webdataset", self.files)

    def look(self, place: Place, keep: Keep) -> Iterator[Input]:
        """The samples of one tar; what is packed as a whole, or lies elsewhere, is copied."""
        plain = place.key.endswith(".tar")
        with opened(place.path) as file:
            try:
                tar = tarfile.open(fileobj=file, mode="r:" if plain else "r:*", errorlevel=0)  # noqa: SIM115 - below
            except _BROKEN as error:
                raise SampleError("broken_tar", f"no tar that can be read: {error}") from None
            with tar:
                in_place = plain and not is_remote(place.path)
                yield from _Reader(self, tar, place, None if in_place else keep).samples()


@dataclass(frozen=True)
class _File:
    """A file of a tar.

    Attributes:
        name: in the tar.
        size: bytes.
        at: offset of its header.
        place: where it lies, path and span; None where nobody asks for it.
        version: what tells it from another.
        text: of a sample's JSON.
        problem: why it cannot be read, if so.
    """

    name: str
    size: int
    at: int
    version: str
    place: tuple[str, tuple[int, int]] | None = None
    text: bytes = b""
    problem: tuple[str, str] | None = None


class _Reader:
    """One tar: its samples, one after the other."""

    def __init__(self, source: WebDataset, tar: tarfile.TarFile, place: Place, keep: Keep | None) -> None:
        self.source = source
        self.tar = tar
        self.path = place.path
        self.name = place.key
        self.version = place.version
        self.keep = keep
        self.seen: set[str] = set()
        self.wanted = {ext.lower() for part in source.parts.values() for ext in part.ext}

    def samples(self) -> Iterator[Input]:
        key = ""
        files: dict[str, _File] = {}
        for number, (info, problem) in enumerate(_entries(self.tar)):
            if problem:
                reason, detail = problem
                yield Input(f"{self.name}/#{number}", (), {}, (reason, f"{printable(self.path)}: {detail}"))
                continue
            base, extension = _split(printable(info.name))
            known = files.get(extension.lower())
            # A name that comes again begins another sample of its key.
            if base != key or (known and known.name == info.name):
                yield from self._sample(key, files)
                key, files = base, {}
            if len(files) < _MOST_FILES_A_SAMPLE:
                files[extension.lower()] = self._file(info, extension.lower())
        yield from self._sample(key, files)

    def _file(self, info: tarfile.TarInfo, extension: str) -> _File:
        """Read as it is passed: what is packed would have to be unpacked from its beginning to come back to it."""
        # Where it is says nothing of what it is: a tar may be written anew with every size as it was.
        found = _File(info.name, info.size, info.offset, f"{self.version} {info.offset_data}-{info.size}")
        try:
            if extension == "json" and info.size <= _MOST_JSON:
                found = replace(found, text=self._bytes(info))
            if extension in self.wanted and info.size <= self.source.max_member_bytes:
                found = replace(found, place=self._place(info))
        except _BROKEN as error:
            words = f"{self.name}: '{printable(info.name)}' is cut off: {str(error) or type(error).__name__}"
            found = replace(found, problem=("broken_tar", words))
        return found

    def _place(self, info: tarfile.TarInfo) -> tuple[str, tuple[int, int]]:
        if self.keep is None:
            return self.path, (info.offset_data, info.size)
        return self.keep(self._bytes(info))

    def _bytes(self, info: tarfile.TarInfo) -> bytes:
        source = self.tar.extractfile(info)
        return source.read() if source else b""

    def _sample(self, key: str, files: Mapping[str, _File]) -> Iterator[Input]:
        if not files:
            return
        name, problem = key, None
        if key in self.seen:
            name = f"{key}#{next(iter(files.values())).at}"
            problem = ("duplicate_key", f"{self.name} has '{key}' more than once")
        self.seen.add(key)
        about, unread = self._about(files)
        parts = self.source.parts
        refs = [
            self._of_json(member, part, about, unread) if part.from_json else self._ref(member, part, files)
            for member, part in parts.items()
        ]
        used = {part.from_json for part in parts.values()}
        attributes = {
            _text(str(column)): _text(str(value)[:_MOST_TEXT])
            for column, value in list(about.items())[:_MOST_ATTRIBUTES]
            if column not in used and isinstance(value, str | int | float | bool)
        }
        problem = problem or next((file.problem for file in files.values() if file.problem), None)
        yield Input(f"{self.name}/{name}", tuple(refs), attributes, problem or self._too_large(files))

    def _too_large(self, files: Mapping[str, _File]) -> tuple[str, str] | None:
        for file in (_chosen(part, files) for part in self.source.parts.values() if part.required):
            if file and file.size > self.source.max_member_bytes:
                most = f"more than max_member_bytes: {self.source.max_member_bytes}"
                return "too_large", f"{self.name}: '{printable(file.name)}' has {file.size} bytes, {most}"
        return None

    def _about(self, files: Mapping[str, _File]) -> tuple[dict[str, Any], str | None]:
        """What a sample's JSON says, and why that cannot be read; nothing where it has none."""
        file = files.get("json")
        if file is None:
            return {}, None
        if file.size > _MOST_JSON:
            return {}, f"{self.name}: '{printable(file.name)}' has {file.size} bytes, more than {_MOST_JSON}"
        about = _object(file.text)
        return about or {}, None if about is not None else f"{self.name}: '{printable(file.name)}' is no JSON object"

    def _of_json(self, name: str, part: TarMember, about: Mapping[str, Any], unread: str | None) -> Ref:
        path = str(part.from_json)
        found = _at(about, path)
        text = _text(found) if isinstance(found, str) else None
        if unread is None and found is not None and text is None:
            unread = f"a value of type '{type(found).__name__}', no text"
        ref = text_ref(name, text, f"json '{path}'", required=part.required, lang=part.lang)
        return replace(ref, problem=("bad_json", unread)) if unread else ref

    def _ref(self, name: str, part: TarMember, files: Mapping[str, _File]) -> Ref:
        kind = _kind(name, part) or "tensor"
        file = _chosen(part, files)
        if file is None or file.place is None:
            missing = f"{self.name}: .{' or .'.join(part.ext)}"
            return Ref(name, kind, missing, None, part.lang, required=part.required)
        url, span = file.place
        return Ref(name, kind, url, None, part.lang, required=part.required, version=file.version, span=span)


def _object(text: bytes) -> dict[str, Any] | None:
    """A sample's JSON; None where it is no object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(value: str) -> str:
    """Half of a surrogate pair, as JSON can have, is no character."""
    return value.encode("utf-8", "ignore").decode()


def _entries(tar: tarfile.TarFile) -> Iterator[tuple[Any, tuple[str, str] | None]]:
    """Plain files, in order; what is none, and where the tar breaks off, with what is wrong."""
    while True:
        try:
            info = tar.next()
        except _BROKEN as error:
            yield None, ("broken_tar", f"broken after byte {tar.offset}: {str(error) or type(error).__name__}")
            return
        if info is None:
            if not _has_ended(tar):
                yield None, ("broken_tar", f"broken off after byte {tar.offset}")
            return
        if info.size < 0:  # its end is before its beginning, where it would be read again for ever
            yield info, ("broken_tar", f"'{printable(info.name)[:200]}' has {info.size} bytes")
            return
        # tarfile remembers every entry; a tar may have millions.
        vars(tar)["members"].clear()
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            yield info, ("no_file", f"'{printable(info.name)[:200]}' is no plain file")
        elif len(info.name) > _MOST_NAME:
            yield info, ("bad_name", f"a name of {len(info.name)} characters")
        else:
            yield info, None


def _has_ended(tar: tarfile.TarFile) -> bool:
    """Whether zeros say that it ends there; tarfile takes any end for one."""
    file = vars(tar)["fileobj"]
    file.seek(tar.offset)
    return bool(file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE))


def _split(name: str) -> tuple[str, str]:
    """Key and extension, as webdataset has them: up to the first dot of the last part of the name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension


def _chosen(part: TarMember, files: Mapping[str, _File]) -> _File | None:
    return next((files[ext.lower()] for ext in part.ext if ext.lower() in files), None)


def _at(about: Mapping[str, Any], path: str) -> Any:
    value: Any = about
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _kind(name: str, part: TarMember) -> Modality | None:
    if part.from_json:
        return "text"
    return part.modality or modality_of_extension(part.ext[0].rpartition(".")[2]) or modality_of(name, None)
