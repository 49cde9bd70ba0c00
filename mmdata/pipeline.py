"""A pipeline file with every name resolved to a step, and all that can be found wrong with it before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from mmdata import spec as specs
from mmdata.document import Document, Keys, nearest
from mmdata.errors import MissingExtraError, PlanError, WeightsError
from mmdata.extras import require
from mmdata.sample import Modality
from mmdata.spec import ParameterError, Spec
from mmdata.steps import registry
from mmdata.steps.base import Align, Augment, Crawled, Curate, Ingest, Linked, Measure, Source, Step, Write
from mmdata.steps.curate.splits import Splits
from mmdata.steps.exchange import Declared
from mmdata.store import sql
from mmdata.store.curation import LINKED, Columns, Curation, explained

_RESERVED = frozenset(
    {"sample_id", "source", "key", "parent_id", "variant", "attributes", "match", "parent", "part", "group_id"}
)
# Folders of `parts/` that are no step's.
_OWN_PARTS = frozenset({"ingest", "fetch", "look"})
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
        measure: what is measured of single members.
        augment: what makes children.
        policies: what travels with the shards, so that children can be made, or made again, elsewhere.
        curate: what decides, in order.
        write: what is written.
        members: every member a sample can have, those that aligners make included.
    """

    spec: Spec
    sources: tuple[Source, ...]
    ingest: dict[Modality, Ingest]
    align: tuple[Align, ...]
    measure: tuple[Measure, ...]
    augment: tuple[Augment, ...]
    policies: tuple[Mapping[str, Any], ...]
    curate: tuple[Curate, ...]
    write: Write
    members: dict[str, Declared]

    @property
    def columns(self) -> Columns:
        """What rules can speak of."""
        members = {name: declared.modality for name, declared in self.members.items()}
        return Columns(
            members,
            {step.label: {e.name: step.measures() for e in step.edges()} for step in self.align},
            {step.label: dict.fromkeys(step.of, _columns_of(step)) for step in self.measure},
            {step.label: step.links_up_to() for step in self.linked},
            tuple(source.label for source in self.sources),
        )

    @property
    def written_members(self) -> list[str]:
        """What goes into the shards."""
        return self.write.members or list(self.members)

    @property
    def linked(self) -> list[Linked]:
        """The measures that look at all samples together."""
        return [step for step in self.measure if isinstance(step, Linked)]

    @property
    def split_shares(self) -> dict[str, float]:
        """The share of the groups that each split is to have; none where nothing is split."""
        return {name: share for step in self.curate if isinstance(step, Splits) for name, share in step.shares.items()}

    @property
    def mixes_online(self) -> bool:
        """Whether a trainer's loader mixes samples, and must know which a build would have mixed."""
        return any(policy.get("mixes") and policy.get("mode") == "online" for policy in self.policies)

    @property
    def as_of(self) -> str | None:
        """The date that fetched parts are of."""
        return self.spec.fetch.as_of.isoformat() if self.spec.fetch.as_of else None

    @property
    def mapped(self) -> list[str]:
        """Labels of the steps that map parts to parts, in the order in which a sample meets them."""
        steps: list[Align | Measure | Augment] = [*self.align, *self.measure, *self.augment]
        return ["ingest", *(step.label for step in steps)]


def resolve(document: Document, spec: Spec, *, to_run: bool = True) -> Pipeline:
    """Find and check every step. Raises PlanError with all that is wrong, each at its place.

    Args:
        document: the file.
        spec: its values.
        to_run: whether steps are to run, so that their weights and reference sets must be there.
    """
    return _Resolver(document, spec).pipeline(to_run=to_run)


class _Resolver:
    """Turns names into steps, collecting every problem before it gives up."""

    def __init__(self, document: Document, spec: Spec) -> None:
        self.document = document
        self.spec = spec
        self.problems: list[str] = []

    def pipeline(self, *, to_run: bool) -> Pipeline:
        """Raises PlanError."""
        steps = {block: self._steps(block) for block in specs.STEP_LISTS}
        self._give_up_if_wrong()
        sources = tuple(step for _, step in steps["sources"] if isinstance(step, Source))
        ingest = self._ingest(steps["ingest"])
        members = self._members(steps, ingest)
        self._check_masked_keys(steps["sources"], ingest)
        written = [step for _, step in steps["write"] if isinstance(step, Write)] or [_default("write", "webdataset")]
        self._check_labels(steps, members)
        self._check_reads(steps, members)
        self._check_findings(steps)
        self._check_children(steps, members, ingest)
        self._check_embeddings(steps)
        pipeline = Pipeline(
            self.spec,
            sources,
            ingest,
            tuple(step for _, step in steps["align"] if isinstance(step, Align)),
            tuple(step for _, step in steps["measure"] if isinstance(step, Measure)),
            tuple(step for _, step in steps["augment"] if isinstance(step, Augment) and step.makes_children),
            _policies(step for _, step in steps["augment"]),
            tuple(step for _, step in steps["curate"] if isinstance(step, Curate)),
            written[0],
            members,
        )
        if to_run:
            self._check_contact(sources)
            # Without them some could not say which weights they have.
            if self._has_extras(steps):
                self._check_weights([*steps["align"], *steps["measure"]])
        self._give_up_if_wrong()
        self._check_sql(pipeline.columns, steps["curate"])
        self._give_up_if_wrong()
        return pipeline

    def _give_up_if_wrong(self) -> None:
        if self.problems:
            raise PlanError(self.problems)

    def _problem(self, keys: Keys, message: str) -> None:
        self.problems.append(self.document.problem(keys, message))

    def _parameters(self, keys: Keys, error: ParameterError) -> None:
        for below, message in error.problems:
            self._problem((*keys, *below), message)

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
            except MissingExtraError as error:
                self._problem(keys, str(error))
            except ValidationError as error:
                self.problems += specs.explain(self.document, keys, step_class, error)
        if block == "write" and len(found) > 1:
            self._problem(found[1][0], "a build writes one dataset; give the second a pipeline of its own")
        return found

    def _members(
        self, steps: dict[str, list[tuple[Keys, Step]]], ingest: Mapping[Modality, Ingest]
    ) -> dict[str, Declared]:
        members: dict[str, Declared] = {}
        for keys, step in [*steps["sources"], *steps["align"], *steps["augment"]]:
            for name, declared in _offered(step, ingest).items():
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

    def _check_masked_keys(self, sources: list[tuple[Keys, Step]], ingest: Mapping[Modality, Ingest]) -> None:
        """What is masked in a text must not stand in the sample's key."""
        if not getattr(ingest["text"], "mask", None):
            return
        for keys, source in sources:
            for column in source.texts_in_keys() if isinstance(source, Source) else ():
                fix = "give a `key:` column that holds no such text"
                self._problem(keys, f"'{column}' is masked as a text, but names the samples too, as it stands; {fix}")

    def _check_labels(self, steps: dict[str, list[tuple[Keys, Step]]], members: dict[str, Declared]) -> None:
        judging = [step.label for _, step in (*steps["align"], *steps["measure"]) if isinstance(step, Align | Measure)]
        for block in (("sources",), ("align", "measure"), ("augment",)):
            seen: set[str] = set()
            for keys, step in (found for name in block for found in steps[name]):
                label = str(getattr(step, "label", step.step))
                if label in seen:
                    fix = "give one a `name:` of its own" if "name" in type(step).model_fields else "remove one"
                    self._problem(keys, f"a step above is called '{label}' too; {fix}")
                if isinstance(step, Align | Measure):
                    self._check_name(keys, label, members)
                elif isinstance(step, Augment):
                    self._check_folder(keys, label, (*_OWN_PARTS, *judging))
                elif isinstance(step, Crawled):
                    self._check_folder(keys, label, ())
                seen.add(label)
        for name in members.keys() & _RESERVED:
            self._problem(("sources",), f"a member cannot be called '{name}': that is a column of the catalog")

    def _check_name(self, keys: Keys, label: str, members: dict[str, Declared]) -> None:
        kind = "an aligner" if keys[0] == "align" else "a measure"
        fix = "give it another `name:`"
        if label in members or label in _RESERVED or not label.isidentifier():
            self._problem(keys, f"{kind} cannot be called '{label}': rules could not tell it from a column; {fix}")
        if label in _OWN_PARTS:
            self._problem(keys, f"{kind} cannot be called '{label}': that is a folder of the build")

    def _check_folder(self, keys: Keys, label: str, others: Sequence[str]) -> None:
        """Of what makes children, and of crawls: their names are folders of the build."""
        if not re.fullmatch(r"[\w-][\w.-]*", label):
            fix = "its name is a folder's; use letters, digits, . _ and -"
            self._problem(keys, f"a step cannot be called '{label}': {fix}")
        elif label in others:
            self._problem(keys, f"a step cannot be called '{label}': that is another folder of the build")

    def _check_reads(self, steps: dict[str, list[tuple[Keys, Step]]], members: dict[str, Declared]) -> None:
        for keys, step in [*steps["align"], *steps["measure"], *steps["augment"], *steps["write"]]:
            for name, modality in step.reads().items():
                if name not in members:
                    why = f"no source declares the member '{name}'{_by_default(step, name)}{nearest(name, members)}"
                    self._problem(keys, why)
                elif modality and members[name].modality != modality:
                    self._problem(keys, f"'{name}' is {members[name].modality}, but {step.step} needs {modality} there")

    def _check_findings(self, steps: dict[str, list[tuple[Keys, Step]]]) -> None:
        labels = [step.label for _, step in steps["align"] if isinstance(step, Align)]
        for keys, step in steps["augment"]:
            for label in step.findings() if isinstance(step, Augment) else ():
                if label not in labels:
                    self._problem(keys, f"no aligner is called '{label}'{nearest(label, labels)}")
        for keys, step in steps["measure"]:
            source = step.vectors_of() if isinstance(step, Linked) else None
            if source is not None and source not in labels:
                self._problem(keys, f"no aligner is called '{source}'{nearest(source, labels)}")

    def _check_children(
        self,
        steps: dict[str, list[tuple[Keys, Step]]],
        members: dict[str, Declared],
        ingest: Mapping[Modality, Ingest],
    ) -> None:
        """Children are made of what was taken in: not of the children that stand for it."""
        kinds = {name: declared.modality for name, declared in members.items()}
        aligners = [step.label for _, step in steps["align"] if isinstance(step, Align) and step.edges()]
        for keys, step in steps["augment"]:
            if isinstance(step, Augment):
                try:
                    step.check(kinds, ingest, aligners)
                except ParameterError as error:
                    self._parameters(keys, error)
        made = [(keys, step) for keys, step in steps["augment"] if isinstance(step, Augment) and step.makes_children]
        replacing = next((step.label for _, step in made if step.replaces), None)
        for keys, step in made if replacing else ():
            if not step.replaces:
                fix = f"with `mode: online` the loader makes them of what '{replacing}' made"
                self._problem(keys, f"its children would be of the inputs that '{replacing}' replaces; {fix}")

    def _check_embeddings(self, steps: dict[str, list[tuple[Keys, Step]]]) -> None:
        """Vectors beside the shards are of members that an aligner looks at."""
        known = {
            f"{step.label}.{member}"
            for _, step in steps["align"]
            if isinstance(step, Align)
            for edge in step.edges()
            for member in (edge.left, edge.right)
        }
        for keys, step in steps["write"]:
            for number, name in enumerate(step.embeddings if isinstance(step, Write) else ()):
                if name not in known:
                    self._problem(
                        (*keys, "embeddings", number), f"no aligner and member '{name}'{nearest(name, known)}"
                    )

    def _check_contact(self, sources: tuple[Source, ...]) -> None:
        """Who walks through other people's sites says whom they can write to."""
        if self.spec.fetch.contact is None and any(isinstance(source, Crawled) for source in sources):
            fix = "fetch: {contact: mailto:you@example.org}"
            self._problem(("fetch",), f"a crawl says in each request who asks; add a mail address or a page: {fix}")

    def _has_extras(self, steps: dict[str, list[tuple[Keys, Step]]]) -> bool:
        before = len(self.problems)
        for keys, step in (found for block in steps.values() for found in block):
            try:
                for extra in step.needs():
                    require(f"'{step.step}'", extra)
            except MissingExtraError as error:
                self._problem(keys, str(error))
        return len(self.problems) == before

    def _check_weights(self, steps: list[tuple[Keys, Step]]) -> None:
        for keys, step in steps:
            if isinstance(step, Align | Measure):
                if isinstance(step, Align) and (problem := _problem_of_reference(step)):
                    self._problem((*keys, "reference"), f"{step.reference} {problem}")
                if isinstance(step, Linked):
                    self._check_references(keys, step)
                try:
                    step.weights()
                except WeightsError as error:
                    self._problem((*keys, "model"), str(error))

    def _check_references(self, keys: Keys, step: Linked) -> None:
        try:
            step.check_references()
        except ValueError as error:
            self._problem((*keys, "reference"), str(error))

    def _check_sql(self, columns: Columns, steps: list[tuple[Keys, Step]]) -> None:
        curation = Curation.empty(columns)
        for keys in [keys for keys, step in steps if isinstance(step, Splits)][1:]:
            self._problem(keys, "a `splits` above places the samples already; leave one")
        for keys, step in steps:
            if isinstance(step, Curate):
                try:
                    step.check(curation)
                except ParameterError as error:
                    self._parameters(keys, error)
                except (ValueError, sql.Error) as error:
                    self._problem(keys, explained(error, columns) if isinstance(error, sql.Error) else str(error))


def _problem_of_reference(step: Align) -> str | None:
    """What is wrong with the stored curves that an aligner names; None where nothing is."""
    fix = "give gathered/<...>/calibrations.parquet of another build"
    if step.reference_file is None:
        return None
    if not step.reference_file.is_file():
        return f"is not a file; {fix}"
    try:
        table = sql.parquet([step.reference_file])
        rows = sql.connect().execute(f"SELECT aligner, edge, curve FROM {table} ORDER BY ALL").fetchall()
    except sql.Error:
        return f"holds no calibrations; {fix}"
    known = {f"{aligner}.{edge}" for aligner, edge, _ in rows}
    if known.isdisjoint(f"{step.label}.{edge.name}" for edge in step.edges()):
        return f"knows {', '.join(sorted(known))}: nothing of '{step.label}'; 'name' it as that build does"
    return None


def _policies(steps: Iterable[Step]) -> tuple[Mapping[str, Any], ...]:
    found = (step.policy_of_shards() for step in steps if isinstance(step, Augment))
    return tuple(policy for policy in found if policy is not None)


def _columns_of(step: Measure) -> dict[str, str]:
    return step.columns() | (LINKED if isinstance(step, Linked) else {})


def _offered(step: Step, ingest: Mapping[Modality, Ingest]) -> dict[str, Declared]:
    if isinstance(step, Source):
        own = step.members()
        read = ((name, ingest.get(declared.modality)) for name, declared in own.items())
        return own | {n: more for name, how in read if how for n, more in how.more_members(name).items()}
    return step.new_members() if isinstance(step, Align | Augment) else {}


def _default(block: str, name: str) -> Any:
    step_class = registry.find(block, name)
    if step_class is None:
        raise KeyError(name)
    return step_class()


def _belongs_elsewhere(block: str, name: str) -> str:
    homes = [other for other in specs.STEP_LISTS if other != block and name in registry.OWN[other]]
    return f"; '{name}' belongs under `{homes[0]}:`" if homes else ""


def _by_default(step: Step, name: str) -> str:
    """Which key stands for a member that the pipeline file does not name."""
    for key, field in type(step).model_fields.items():
        if key not in step.model_fields_set and repr(name) in repr(field.get_default(call_default_factory=True)):
            return f" ('{key}' where nothing is said)"
    return ""
