"""What the sources name, in the order in which it is built, cut into chunks.

Inputs come sorted by key, so that boundaries stay where they are when a few are added. Those whose media lie on the web
come sorted by id, which scatters them: neighbours by URL are of one host, and a chunk of one host would be fetched no
faster than that host allows.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from mmdata.pipeline import Pipeline
from mmdata.sample import sample_id
from mmdata.steps.base import Crawled, Discovered, Source
from mmdata.steps.exchange import OPTED_OUT, Input, Place, Ref
from mmdata.steps.sources.repeats import Repeats
from mmdata.store.found import KEPT, iter_found

# Raise it when parts are laid out differently: nothing made before is then taken for done.
_FORMAT: Final = 5
_WEB: Final = ("http://", "https://")


@dataclass(frozen=True)
class Chunk:
    """The inputs of one part.

    Attributes:
        source: index of the source.
        inputs: how many; 0 for a retry, whose inputs were counted before.
        fingerprint: of the base part that they become.
        offset: of the chunk's first line in the listing, bytes.
        length: of its lines, bytes.
        fetched: fingerprints of the fetch parts that hold what lies on the web, the latest first; empty where nothing
            does.
        retry_of: fingerprint of the base part whose failed fetches this chunk tries again.
    """

    source: int
    inputs: int
    fingerprint: str
    offset: int
    length: int
    fetched: tuple[str, ...] = ()
    retry_of: str | None = None

    def retry(self) -> Chunk:
        """The chunk that tries again what could not be fetched."""
        fetched = (fingerprint("retry", self.fetched[0]), *self.fetched)
        own = fingerprint("retry", self.fingerprint)
        return replace(self, inputs=0, fingerprint=own, fetched=fetched, retry_of=self.fingerprint)


@dataclass(frozen=True)
class Looked:
    """One file that a source looks into, and what was or will be found there."""

    source: int
    place: Place
    fingerprint: str


def on_the_web(ref: Ref) -> bool:
    """Whether a payload has to be fetched."""
    return ref.url is not None and ref.version is not None and ref.url.startswith(_WEB)


def crawl_folder(output: Path, source: Crawled, as_of: str | None) -> Path:
    """Where a crawl records what it visits."""
    return output / "crawl" / f"{source.label}-{fingerprint(source.crawl_identity(), as_of)}"


def is_crawled(folder: Path) -> bool:
    """Whether a crawl has come to its end."""
    return (folder / "done.json").exists()


def iter_looked(pipeline: Pipeline, output: Path) -> Iterator[Looked]:
    """Every file that the sources look into; none of a crawl that has not ended. Raises PlanError."""
    for index, source in enumerate(pipeline.sources):
        if not isinstance(source, Discovered):
            continue
        folder = Path()
        if isinstance(source, Crawled):
            folder = crawl_folder(output, source, pipeline.as_of)
            if not is_crawled(folder):
                continue
        for place in source.places(folder):
            own = fingerprint("look", _FORMAT, source.label, source.identity(), place.key, place.version)
            yield Looked(index, place, own)


def iter_chunks(
    pipeline: Pipeline, looked: Iterable[Looked], part: Callable[[str, str], Path], listing: BinaryIO | None
) -> Iterator[Chunk]:
    """Cut all inputs into chunks.

    Args:
        pipeline: whose sources.
        looked: files that were looked into.
        part: the path of a part, by label and fingerprint.
        listing: where to write the inputs, a line each; None where only the chunks are wanted.
    """
    offset = 0
    found: dict[int, list[Path]] = {}
    for one in looked:
        found.setdefault(one.source, []).append(part("look", one.fingerprint))
    for index, source in enumerate(pipeline.sources):
        modalities = {declared.modality for declared in source.members().values()}
        how = [pipeline.ingest[m].identity() for m in sorted(modalities) if m in pipeline.ingest]
        prefix = fingerprint(_FORMAT, source.label, source.identity(), how)
        for inputs in _cut(source.label, _inputs(source, found.get(index, [])), pipeline.spec.engine.part_samples):
            lines = b"".join(map(input_line, inputs)) if listing is not None else b""
            if listing is not None:
                listing.write(lines)
            urls = sorted({str(ref.url) for one in inputs if not one.problem for ref in one.refs if on_the_web(ref)})
            asked = [pipeline.as_of] if urls else []
            content = fingerprint(prefix, [_content(one) for one in inputs], *asked)
            fetched = (fingerprint("fetch", _FORMAT, urls, pipeline.as_of),) if urls else ()
            yield Chunk(index, len(inputs), content, offset, len(lines), fetched)
            offset += len(lines)


def parse_line(line: bytes) -> Input:
    """An input as the listing holds it."""
    value = json.loads(line)
    refs = tuple(Ref(**{name: _pair(part) for name, part in ref.items()}) for ref in value["refs"])
    return Input(value["key"], refs, value["attributes"], _pair(value["problem"]))


def fingerprint(*values: Any) -> str:
    """20 hexadecimal digits of SHA-256 over the JSON of some values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _inputs(source: Source, found: list[Path]) -> Iterator[Input]:
    if isinstance(source, Discovered):
        return _sorted(source, (_at_home(one, path) for path in found for one in _found(path)))
    return _sorted(source, source.inputs()) if source.scattered else source.inputs()


def _found(path: Path) -> Iterator[Input]:
    return map(parse_line, iter_found(path))


def _at_home(found: Input, path: Path) -> Input:
    """Give kept payloads the place where they lie now: a build folder may be moved."""
    tar = str(path.with_suffix(".tar"))
    return replace(found, refs=tuple(replace(ref, url=tar) if ref.url == KEPT else ref for ref in found.refs))


_INSERT: Final = "INSERT INTO inputs VALUES (?, ?, ?)"
_APART: Final = ("CREATE TABLE inputs (place TEXT, rank INTEGER, line BLOB)", _INSERT)
_AS_ONE: Final = (
    "CREATE TABLE inputs (place TEXT PRIMARY KEY, rank INTEGER, line BLOB) WITHOUT ROWID",
    _INSERT + " ON CONFLICT (place) DO UPDATE SET (rank, line) = (excluded.rank, excluded.line) "
    "WHERE (excluded.rank, excluded.line) < (rank, line)",
)


def _sorted(source: Source, inputs: Iterator[Input]) -> Iterator[Input]:
    """In the order of their ids, or keys, by a database on disk; of one key that whose line comes first is first.

    Which of several pages that show a picture is named must not depend on the order of a crawl. An opt-out counts on
    whichever of them it stands; another problem is none where a page without it has the same.
    """
    table, insert = _AS_ONE if isinstance(source, Discovered) and source.merges else _APART
    repeats = Repeats("input")
    # Not `with`: that ends a transaction and leaves the file open.
    database = sqlite3.connect("")
    try:
        database.execute(table)
        rows = (
            (sample_id(source.label, i.key) if source.scattered else i.key, _rank(i), input_line(i)) for i in inputs
        )
        database.executemany(insert, rows)
        for (line,) in database.execute("SELECT line FROM inputs ORDER BY place, line"):
            yield repeats.told_apart(parse_line(line))
    finally:
        database.close()


def _rank(found: Input) -> int:
    reason = found.problem[0] if found.problem else None
    return {OPTED_OUT: 0, None: 1}.get(reason, 2)


def _cut(label: str, inputs: Iterator[Input], target: int) -> Iterator[list[Input]]:
    """Runs of inputs, cut where an input's own hash says so.

    Boundaries that depend on content stay where they are when inputs are added before them: a new file makes one or
    two parts new, not all that follow (as in content-defined chunking, Muthitacharoen et al. 2001).
    """
    run: list[Input] = []
    for found in inputs:
        run.append(found)
        # The end of the id: its beginning is what scattered inputs are sorted by.
        cut_here = int(sample_id(label, found.key)[-8:], 16) % max(target // 2, 1) == 0
        if (len(run) >= max(target // 2, 1) and cut_here) or len(run) >= 2 * target:
            yield run
            run = []
    if run:
        yield run


def input_line(found: Input) -> bytes:
    """An input as the listing holds it, with the line's end."""
    refs = [vars(ref) for ref in found.refs]
    value = {"key": found.key, "refs": refs, "attributes": dict(found.attributes), "problem": found.problem}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"


def _pair(value: Any) -> Any:
    """JSON knows no tuples."""
    return tuple(value) if isinstance(value, list) else value


def _content(found: Input) -> list[Any]:
    refs = [
        (ref.name, ref.version, ref.lang, ref.line, os.path.basename(ref.url or ""), ref.span, ref.clip)
        for ref in found.refs
    ]
    return [found.key, refs, sorted(found.attributes.items()), found.problem]
