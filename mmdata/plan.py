"""Spec to Plan: resolve the steps, check what can be checked without a model, name every part by its fingerprint.

Nothing heavy is imported here: a plan is made in well under a second, so that a mistake costs a second and not a night.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import ValidationError

from mmdata import spec as specs
from mmdata.errors import PlanError, WeightsError
from mmdata.sample import Modality, sample_id
from mmdata.spec import Document, Keys, Spec, nearest
from mmdata.steps import registry
from mmdata.steps.base import Align, Augment, Curate, Declared, Fitted, Ingest, Input, Ref, Source, Step, Write
from mmdata.store import sql
from mmdata.store.curation import Columns, Curation, explained
from mmdata.store.files import SCRATCH_MARK

# Raise it when parts are laid out differently: nothing made before is then taken for done.
_FORMAT: Final = 2
_RESERVED = frozenset(
    {"sample_id", "source", "key", "parent_id", "variant", "attributes", "match", "parent", "part", "group_id"}
)
# A member's name stands in the names of tar entries, beside an id of 32 characters, and in SQL.
_MEMBER_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file with every name resolved.

    Attributes:
        spec: the file.
        sources: what names the inputs.
        ingest: for each modality how it is read.
        align: the aligners, in order.
        augment: what makes children.
        curate: what decides, in order.
        write: what is written.
        members: every member a sample can have, those that aligners make included.
    """

    spec: Spec
    sources: tuple[Source, ...]
    ingest: dict[Modality, Ingest]
    align: tuple[Align, ...]
    augment: tuple[Augment, ...]
    curate: tuple[Curate, ...]
    write: Write
    members: dict[str, Declared]

    @property
    def columns(self) -> Columns:
        """What rules can speak of."""
        members = {name: declared.modality for name, declared in self.members.items()}
        return Columns(members, {step.label: {e.name: step.measures() for e in step.edges()} for step in self.align})


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
    return document, _Resolver(document, specs.parse_spec(document)).pipeline()


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


class _Resolver:
    """Turns names into steps, collecting every problem before it gives up."""

    def __init__(self, document: Document, spec: Spec) -> None:
        self.document = document
        self.spec = spec
        self.problems: list[str] = []

    def pipeline(self) -> Pipeline:
        """Raises PlanError."""
        steps = {block: self._steps(block) for block in specs.STEP_LISTS}
        self._give_up_if_wrong()
        sources = tuple(step for _, step in steps["sources"] if isinstance(step, Source))
        members = self._members(steps)
        ingest = self._ingest(steps["ingest"])
        written = [step for _, step in steps["write"] if isinstance(step, Write)] or [_default("write", "webdataset")]
        self._check_labels(steps, members)
        self._check_reads(steps, members)
        self._check_findings(steps)
        pipeline = Pipeline(
            self.spec,
            sources,
            ingest,
            tuple(step for _, step in steps["align"] if isinstance(step, Align)),
            tuple(step for _, step in steps["augment"] if isinstance(step, Augment)),
            tuple(step for _, step in steps["curate"] if isinstance(step, Curate)),
            written[0],
            members,
        )
        self._check_weights(steps["align"])
        self._give_up_if_wrong()
        self._check_sql(pipeline.columns, steps["curate"])
        self._give_up_if_wrong()
        return pipeline

    def _give_up_if_wrong(self) -> None:
        if self.problems:
            raise PlanError(self.problems)

    def _problem(self, keys: Keys, message: str) -> None:
        self.problems.append(self.document.problem(keys, message))

    def _steps(self, block: str) -> list[tuple[Keys, Step]]:
        found = []
        for index, call in enumerate(getattr(self.spec, block)):
            keys: Keys = (block, index, call.step)
            step_class = registry.find(block, call.step)
            if step_class is None:
                hint = _belongs_elsewhere(block, call.step) or nearest(call.step, registry.known(block))
                self._problem(keys, f"unknown step '{call.step}'{hint}")
                continue
            try:
                found.append((keys, step_class.model_validate(call.params)))
            except ValidationError as error:
                self.problems += specs.explain(self.document, keys, step_class, error)
        if block == "write" and len(found) > 1:
            self._problem(found[1][0], "a build writes one dataset; give the second a pipeline of its own")
        return found

    def _members(self, steps: dict[str, list[tuple[Keys, Step]]]) -> dict[str, Declared]:
        members: dict[str, Declared] = {}
        for keys, step in [*steps["sources"], *steps["align"], *steps["augment"]]:
            for name, declared in _offered(step).items():
                if not _MEMBER_NAME.fullmatch(name):
                    fix = "use up to 40 lower case letters, digits and '_'"
                    self._problem(keys, f"a member cannot be called '{name}': it names files and columns; {fix}")
                before = members.setdefault(name, declared)
                if before.modality != declared.modality:
                    self._problem(keys, f"the member '{name}' is {declared.modality} here, {before.modality} above")
        return members

    def _ingest(self, steps: list[tuple[Keys, Step]]) -> dict[Modality, Ingest]:
        found: dict[Modality, Ingest] = {}
        for keys, step in steps:
            if isinstance(step, Ingest):
                if step.modality in found:
                    self._problem(keys, f"how to read {step.modality} stands twice; remove one")
                found[step.modality] = step
        for name in registry.OWN["ingest"]:
            step = _default("ingest", name)
            found.setdefault(step.modality, step)
        return found

    def _check_labels(self, steps: dict[str, list[tuple[Keys, Step]]], members: dict[str, Declared]) -> None:
        for block in ("sources", "align", "augment"):
            seen: set[str] = set()
            for keys, step in steps[block]:
                label = str(getattr(step, "label", step.step))
                if label in seen:
                    fix = "remove one" if block == "augment" else "give one a `name:` of its own"
                    self._problem(keys, f"a step above is called '{label}' too; {fix}")
                if block == "align" and (label in members or label in _RESERVED or not label.isidentifier()):
                    self._problem(keys, f"an aligner cannot be called '{label}': rules could not tell it from a column")
                seen.add(label)
        for name in members.keys() & _RESERVED:
            self._problem(("sources",), f"a member cannot be called '{name}': that is a column of the catalog")

    def _check_reads(self, steps: dict[str, list[tuple[Keys, Step]]], members: dict[str, Declared]) -> None:
        for keys, step in [*steps["align"], *steps["augment"], *steps["write"]]:
            for name, modality in step.reads().items():
                if name not in members:
                    self._problem(keys, f"no source declares the member '{name}'{nearest(name, members)}")
                elif modality and members[name].modality != modality:
                    self._problem(keys, f"'{name}' is {members[name].modality}, but {step.step} needs {modality} there")

    def _check_findings(self, steps: dict[str, list[tuple[Keys, Step]]]) -> None:
        labels = [step.label for _, step in steps["align"] if isinstance(step, Align)]
        for keys, step in steps["augment"]:
            for label in step.findings() if isinstance(step, Augment) else ():
                if label not in labels:
                    self._problem(keys, f"no aligner is called '{label}'{nearest(label, labels)}")

    def _check_weights(self, steps: list[tuple[Keys, Step]]) -> None:
        for keys, step in steps:
            if isinstance(step, Align):
                if step.reference and not Path(step.reference).is_file():
                    fix = "give decided/<...>/calibrations.parquet of another build"
                    self._problem((*keys, "reference"), f"{step.reference} is not there; {fix}")
                try:
                    step.weights()
                except WeightsError as error:
                    self._problem((*keys, "model"), str(error))

    def _check_sql(self, columns: Columns, steps: list[tuple[Keys, Step]]) -> None:
        curation = Curation.empty(columns)
        for keys, step in steps:
            if isinstance(step, Curate):
                try:
                    step.check(curation)
                except (ValueError, sql.Error) as error:
                    self._problem(keys, explained(error, columns) if isinstance(error, sql.Error) else str(error))


def _offered(step: Step) -> dict[str, Declared]:
    if isinstance(step, Source):
        return step.members()
    return step.new_members() if isinstance(step, Align | Augment) else {}


def _default(block: str, name: str) -> Any:
    step_class = registry.find(block, name)
    if step_class is None:
        raise KeyError(name)
    return step_class()


def _belongs_elsewhere(block: str, name: str) -> str:
    homes = [other for other in specs.STEP_LISTS if other != block and name in registry.OWN[other]]
    return f"; '{name}' belongs under `{homes[0]}:`" if homes else ""


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
