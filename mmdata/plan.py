"""Pipeline to Plan: list the inputs, cut them into parts, name every part by its fingerprint.

Nothing heavy is imported here: a plan is made in well under a second, so that a mistake costs a second and not a night.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final

from mmdata import spec as specs
from mmdata.errors import PlanError
from mmdata.pipeline import Pipeline, resolve
from mmdata.sample import sample_id
from mmdata.spec import Document
from mmdata.steps.base import Align, Augment, Fitted, Input, Ref, Source, Step
from mmdata.store.files import SCRATCH_MARK

# Raise it when parts are laid out differently: nothing made before is then taken for done.
_FORMAT: Final = 2


@dataclass(frozen=True)
class Chunk:
    """The inputs of one part.

    Attributes:
        number: position in the plan, for people.
        source: index of the source.
        inputs: how many.
        fingerprint: of the base part that they become.
        offset: of the chunk's first line in the listing, bytes.
        length: of its lines, bytes.
    """

    number: int
    source: int
    inputs: int
    fingerprint: str
    offset: int
    length: int


@dataclass(frozen=True)
class Plan:
    """What a build will do, part by part."""

    pipeline: Pipeline
    output: Path
    chunks: tuple[Chunk, ...]
    listing: Path = Path()
    """Where the inputs stand, a line each, while a build runs; a plan that is only shown has none."""

    @cached_property
    def _identities(self) -> dict[str, dict[str, Any]]:
        # Asked for once a plan: that of weights reads files.
        steps: list[Step] = [*self.pipeline.align, *self.pipeline.augment, *self.pipeline.curate, self.pipeline.write]
        return {_key(step): step.identity() for step in steps}

    @property
    def inputs(self) -> int:
        """How many inputs the sources name."""
        return sum(chunk.inputs for chunk in self.chunks)

    def part(self, label: str, fingerprint: str) -> Path:
        """The Parquet of a part; its tar, if it has one, is beside it."""
        return self.output / "parts" / label / f"{fingerprint}.parquet"

    def base_parts(self) -> list[tuple[str, str]]:
        """(label, fingerprint) of all base parts: what was taken in, then the children."""
        taken_in = [("ingest", chunk.fingerprint) for chunk in self.chunks]
        children = [
            (step.step, self.child(step, chunk.fingerprint)) for step in self.pipeline.augment for chunk in self.chunks
        ]
        return taken_in + children

    def score_parts(self) -> list[tuple[str, str]]:
        """(label, fingerprint) of all score parts: of each base part, then of fits over all of them."""
        parts = [(step.label, self.scored(step, base)) for step in self.pipeline.align for _, base in self.base_parts()]
        return parts + [(step.label, self.fitted(step)) for step in self.pipeline.align if isinstance(step, Fitted)]

    def fitted(self, step: Fitted) -> str:
        """Fingerprint of what a fit over all parts of an aligner makes."""
        parts = [self.scored(step, base) for _, base in self.base_parts()]
        return _fingerprint("fit", parts, self.pipeline.spec.seed)

    def scored(self, step: Align, base: str) -> str:
        """Fingerprint of what an aligner makes of a base part, and of the texts that aligners before it made."""
        made = [self.scored(self._aligner(label), base) for label in self.makers(step)]
        return _fingerprint(self._identities[_key(step)], base, *([made] if made else []))

    def scores_of(self, label: str, base: str) -> Path:
        """The score part of an aligner for a base part."""
        return self.part(label, self.scored(self._aligner(label), base))

    def makers(self, step: Align) -> list[str]:
        """Labels of the aligners before `step` that may make a text it reads."""
        before = self.pipeline.align[: self.pipeline.align.index(step)]
        read = {name for edge in step.edges() for name in (edge.left, edge.right)} | set(step.reads())
        return [other.label for other in before if read & set(other.new_members())]

    def child(self, step: Augment, base: str) -> str:
        """Fingerprint of the children of a base part, and of what they need to know of their parents."""
        found = [self.scored(self._aligner(label), base) for label in step.findings()]
        return _fingerprint(self._identities[_key(step)], base, self.pipeline.spec.seed, *([found] if found else []))

    def _aligner(self, label: str) -> Align:
        return next(step for step in self.pipeline.align if step.label == label)

    @cached_property
    def selection(self) -> str:
        """Fingerprint of the decisions: of all parts and all that decides."""
        steps = [self._identities[_key(step)] for step in (*self.pipeline.curate, self.pipeline.write)]
        references = [Path(step.reference).read_bytes().hex() for step in self.pipeline.align if step.reference]
        return _fingerprint(self.base_parts(), self.score_parts(), steps, references, self.pipeline.spec.seed)

    @property
    def decided(self) -> Path:
        """Folder of the decisions: fates and selection."""
        return self.output / "decided" / self.selection

    def written(self) -> bool:
        """Whether the shards that are there are those of this plan."""
        try:
            manifest = json.loads((self.output / "shards" / "manifest.json").read_text(encoding="utf-8"))
            shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
            sizes = all((self.output / "shards" / s["path"]).stat().st_size == s["bytes"] for s in shards)
            return bool(manifest["fingerprint"] == self.selection and sizes)
        except (OSError, ValueError, KeyError):
            return False

    def done(self, parts: Sequence[tuple[str, str]]) -> int:
        """How many of these parts are there."""
        there = {label: _names(self.output / "parts" / label) for label in {label for label, _ in parts}}
        return sum(f"{fingerprint}.parquet" in there[label] for label, fingerprint in parts)


def make_plan(path: Path, overrides: Sequence[str] = (), output: Path | None = None) -> Plan:
    """Read, resolve and check a pipeline file, and list its inputs.

    Raises SpecError or PlanError with all problems found.
    """
    document, pipeline = _resolved(path, overrides)
    return Plan(pipeline, _folder(pipeline, output), _listed(document, pipeline, None))


@contextmanager
def plan_to_build(path: Path, overrides: Sequence[str] = (), output: Path | None = None) -> Iterator[Plan]:
    """`make_plan`, with the listing that workers read: it lies in the build folder until the block ends."""
    document, pipeline = _resolved(path, overrides)
    folder = _folder(pipeline, output)
    folder.mkdir(parents=True, exist_ok=True)
    # Of this process alone: a second build of the folder must not change what the first one reads.
    listing = folder / f"listing{SCRATCH_MARK}{os.getpid()}"
    try:
        with listing.open("wb") as file:
            chunks = _listed(document, pipeline, file)
        yield Plan(pipeline, folder, chunks, listing)
    finally:
        listing.unlink(missing_ok=True)


def _resolved(path: Path, overrides: Sequence[str]) -> tuple[Document, Pipeline]:
    document = specs.read_yaml(path, overrides)
    return document, resolve(document, specs.parse_spec(document))


def _folder(pipeline: Pipeline, output: Path | None) -> Path:
    return output or Path("builds") / pipeline.spec.name


def _listed(document: Document, pipeline: Pipeline, listing: BinaryIO | None) -> tuple[Chunk, ...]:
    try:
        chunks = tuple(_chunks(pipeline, listing))
    except PlanError as error:
        raise PlanError([document.problem(("sources",), problem) for problem in error.problems]) from None
    if not chunks:
        raise PlanError([document.problem(("sources",), "the sources name no inputs; look at root and the templates")])
    return chunks


def _chunks(pipeline: Pipeline, listing: BinaryIO | None) -> Iterator[Chunk]:
    number = offset = 0
    for index, source in enumerate(pipeline.sources):
        modalities = {declared.modality for declared in source.members().values()}
        how = [pipeline.ingest[m].identity() for m in sorted(modalities) if m in pipeline.ingest]
        prefix = _fingerprint(_FORMAT, source.label, source.identity(), how)
        for inputs in _cut(source, pipeline.spec.engine.part_samples):
            lines = b"".join(map(_line, inputs)) if listing is not None else b""
            if listing is not None:
                listing.write(lines)
            content = _fingerprint(prefix, [_content(found) for found in inputs])
            yield Chunk(number, index, len(inputs), content, offset, len(lines))
            number, offset = number + 1, offset + len(lines)


def _cut(source: Source, target: int) -> Iterator[list[Input]]:
    """Runs of inputs, cut where an input's own hash says so.

    Boundaries that depend on content stay where they are when inputs are added before them: a new file makes one or
    two parts new, not all that follow (as in content-defined chunking, Muthitacharoen et al. 2001).
    """
    run: list[Input] = []
    for found in source.inputs():
        run.append(found)
        cut_here = int(sample_id(source.label, found.key)[:8], 16) % max(target // 2, 1) == 0
        if (len(run) >= max(target // 2, 1) and cut_here) or len(run) >= 2 * target:
            yield run
            run = []
    if run:
        yield run


def _line(found: Input) -> bytes:
    refs = [vars(ref) for ref in found.refs]
    value = {"key": found.key, "refs": refs, "attributes": dict(found.attributes), "problem": found.problem}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"


def parse_line(line: bytes) -> Input:
    """An input as the listing holds it."""
    value = json.loads(line)
    refs = tuple(Ref(**ref) for ref in value["refs"])
    problem = tuple(value["problem"]) if value["problem"] else None
    return Input(value["key"], refs, value["attributes"], problem)


def _content(found: Input) -> list[Any]:
    refs = [(ref.name, ref.version, ref.lang, ref.line, os.path.basename(ref.url or "")) for ref in found.refs]
    return [found.key, refs, sorted(found.attributes.items()), found.problem]


def _key(step: Step) -> str:
    return f"{step.step} {step.model_dump_json()}"


def _fingerprint(*values: Any) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
