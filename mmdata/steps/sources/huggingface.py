"""`huggingface`: rows of a data set of the `datasets` library, from the hub or from local files, streamed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field, model_validator

from mmdata.document import nearest
from mmdata.errors import PlanError, SampleError
from mmdata.sample import Modality
from mmdata.spec import Frozen, Names
from mmdata.steps.base import Discovered
from mmdata.steps.exchange import Declared, Input, Keep, Place, Ref
from mmdata.steps.sources.files import modality_of
from mmdata.steps.sources.places import text_ref, web_ref

_MOST_TEXT: Final = 10_000
# What attributes are made of: as a text, which for lists and objects of any length is none.
_PLAIN: Final = (str, int, float, bool, Decimal, date, time)
_MEDIA: Final = frozenset({"Image", "Audio", "Video"})


class Column(Frozen):
    """The column of one member."""

    column: str = Field(description="of the data set; its feature tells what it is")
    modality: Modality | None = Field(None, description="told by the member's name where it is not given")
    required: bool = Field(True, description="whether a row without it has failed")
    lang: str | None = Field(None, description="language of the text or speech; detected for text where not given")


class HuggingFace(Discovered):
    """Rows of a data set: Image, Audio and Video features as they are stored, texts, lists, and the rest as attributes.

    Lists and objects that are no members are left out. Code of a data set is never run.
    """

    step: ClassVar[str] = "huggingface"
    version: ClassVar[int] = 2
    extras: ClassVar[tuple[str, ...]] = ("huggingface",)
    name: str | None = Field(None, description="names the source in every sample_id; default: huggingface")
    path: str = Field(
        description="hub id, local folder, or a builder: parquet, imagefolder, audiofolder, webdataset, ..."
    )
    config: str | None = Field(None, description="configuration of the data set")
    split: str = Field("train", description="split of the data set")
    revision: str | None = Field(None, description="commit, tag or branch of the hub; default: main as it is now")
    data_files: Names = Field(default=[], description="files for a builder, or those of a folder to take")
    columns: Annotated[
        dict[str, Column],
        BeforeValidator(
            lambda v: (
                {n: {"column": c} if isinstance(c, str) else c for n, c in v.items()} if isinstance(v, dict) else v
            ),
            json_schema_input_type=dict[str, str | Column],
        ),
    ] = Field(alias="members", min_length=1, description="by name: `image: image`, `caption: text`")
    key: str | None = Field(None, description="column whose value names the row; default: its shard and number")

    @model_validator(mode="after")
    def _kinds_are_known(self) -> HuggingFace:
        for name, column in self.columns.items():
            if modality_of(name, column.modality) is None:
                raise ValueError(f"cannot tell the modality of '{name}'; add `modality:`")
        return self

    def members(self) -> dict[str, Declared]:
        """One a column."""
        return {name: Declared(_kind(name, c), c.required, c.lang) for name, c in self.columns.items()}

    def texts_in_keys(self) -> list[str]:
        """The column that names the rows, where it is a text of a member."""
        texts = {column.column for name, column in self.columns.items() if _kind(name, column) == "text"}
        return [self.key] if self.key in texts else []

    def places(self, crawled: Path) -> Iterator[Place]:  # noqa: ARG002 - nothing was crawled
        """The shards of the data set. Raises PlanError."""
        data, version = self._open()
        columns = list(data.features or {}) or data.column_names or []
        wanted = [column.column for column in self.columns.values()] + ([self.key] if self.key else [])
        missing = [f"huggingface {self.path}: no column '{n}'{nearest(n, columns)}" for n in wanted if n not in columns]
        if missing:
            raise PlanError(missing)
        shards = int(data.num_shards)
        for number in range(shards):
            yield Place(f"{number:06d}", f"{self.path} {number}/{shards}", f"{version} {number}/{shards}")

    def look(self, place: Place, keep: Keep) -> Iterator[Input]:
        """The rows of one shard."""
        data, _ = self._open()
        read = _Rows(self, data, keep)
        rows = iter(data.shard(int(data.num_shards), int(place.key)))
        number = 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001 - a reader of any format; what it raises ends the shard
                detail = f"{place.path}: after row {number}: {' '.join(str(error).split())[:300]}"
                yield Input(f"{place.key}/{number:08d}", (), {}, ("broken_shard", detail))
                return
            yield read.input(row, f"{place.key}/{number:08d}")
            number += 1

    def _open(self) -> tuple[Any, str]:
        """The data set, its media undecoded, and what changes when it does. Raises PlanError."""
        import datasets

        options = {"data_files": self.data_files} if self.data_files else {}
        try:
            data = datasets.load_dataset(
                self.path, self.config, split=self.split, revision=self.revision, streaming=True, **options
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise PlanError([f"huggingface: {self.path} cannot be opened: {reason}"]) from None
        for column, feature in dict(data.features or {}).items():
            if type(feature).__name__ in _MEDIA:
                data = data.cast_column(column, type(feature)(decode=False))
        return data, _version(data)


class _Rows:
    """Rows of a data set as inputs."""

    def __init__(self, source: HuggingFace, data: Any, keep: Keep) -> None:
        self.source = source
        self.keep = keep
        self.labels = {name: f for name, f in dict(data.features or {}).items() if type(f).__name__ == "ClassLabel"}
        self.files = frozenset(_files(data))

    def input(self, row: Mapping[str, Any], key: str) -> Input:
        values = {name: self._plain(name, value) for name, value in row.items()}
        problem = None
        refs = []
        for name, column in self.source.columns.items():
            try:
                refs.append(self._ref(name, column, values.get(column.column)))
            except SampleError as error:
                problem = (error.reason, f"column '{column.column}': {error}")
        used = {column.column for column in self.source.columns.values()}
        attributes = {
            str(name): str(value)[:_MOST_TEXT]
            for name, value in values.items()
            if name not in used and isinstance(value, _PLAIN)
        }
        own = values.get(self.source.key) if self.source.key else None
        return Input(key if own is None else str(own), tuple(refs), attributes, problem)

    def _plain(self, name: str, value: Any) -> Any:
        """A label is its name; -1, as unlabelled rows have it, is none."""
        if name not in self.labels or not isinstance(value, int):
            return value
        return self.labels[name].int2str(value) if 0 <= value < self.labels[name].num_classes else None

    def _ref(self, name: str, column: Column, value: Any) -> Ref:
        kind, where = _kind(name, column), f"column {column.column}"
        if isinstance(value, dict) and (value.get("bytes") is not None or value.get("path")):
            return self._media(name, column, value["bytes"] if value.get("bytes") else self._read(str(value["path"])))
        if isinstance(value, bytes):
            return self._media(name, column, value)
        if kind == "tensor" and isinstance(value, list):
            return self._media(name, column, json.dumps(value, default=str).encode())
        if kind == "text" and (value is None or isinstance(value, str)):
            return text_ref(name, value, where, required=column.required, lang=column.lang)
        if value is None:
            return Ref(name, kind, where, None, column.lang, required=column.required)
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            return web_ref(name, kind, value, required=column.required, lang=column.lang)
        raise SampleError("no_media", f"{type(value).__name__} is no {kind}")

    def _media(self, name: str, column: Column, data: bytes) -> Ref:
        path, span = self.keep(data)
        version = hashlib.sha256(data).hexdigest()[:16]
        kind = _kind(name, column)
        return Ref(name, kind, path, None, column.lang, required=column.required, version=version, span=span)

    def _read(self, path: str) -> bytes:
        """A file of the data set's own, perhaps inside of an archive; a row may name any."""
        from datasets.utils.file_utils import xopen

        if path.rpartition("::")[2] not in self.files:
            raise SampleError("path_outside", f"'{path[:200]}' is no file of the data set")
        try:
            with xopen(path, "rb") as file:
                return bytes(file.read())
        except (OSError, ValueError) as error:
            raise SampleError("unreadable", f"{path}: {error}") from None


def _kind(name: str, column: Column) -> Modality:
    return modality_of(name, column.modality) or "tensor"


def _files(data: Any) -> Iterator[str]:
    """The files that a data set is read from: what its reader was given, for the library has no public word for it."""
    return _texts(getattr(getattr(data, "_ex_iterable", None), "kwargs", {}))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ():
        yield from _texts(one)


def _version(data: Any) -> str:
    """Changes when a file does; a file of the hub has its commit in its name."""
    stamps = sorted({f"{path}:{_stamp(path)}" for path in _files(data)})
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]


def _stamp(path: str) -> str:
    try:
        stat = Path(path).stat()
    except OSError:
        return ""
    return f"{stat.st_size}-{stat.st_mtime_ns}"
