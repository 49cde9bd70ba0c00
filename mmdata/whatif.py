"""What other rules would keep: the decisions of a build made again by other rules, over the rows it gathered.

Nothing of the build is changed. Rules are those of a pipeline file, by the same code; so are splits, quotas and all
else that decides.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from mmdata.document import Document, Keys, apply_override, nearest
from mmdata.engine.decide import Decisions, decide_over, read_unknown, sql_memory
from mmdata.errors import MmdataError, SpecError
from mmdata.pipeline import Pipeline, resolve
from mmdata.spec import parse_spec
from mmdata.steps.curate.clusters import Clusters
from mmdata.steps.curate.expressions import check_number, written
from mmdata.steps.curate.rules import Rules, Test
from mmdata.store import sql
from mmdata.store.curation import Curation, explained_value
from mmdata.store.sql import identifier, parquet
from mmdata.store.versions import Kept, open_version

_QUANTILES: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_SHOWN_CHARS: Final = 80


@dataclass(frozen=True)
class Asked:
    """What is to be different.

    Attributes:
        rules: `name: expression`, or YAML of a rule's mapping; one of that name is replaced, another is added.
        without: names of rules that are left out.
        overrides: other changes of what decides, as `--set` takes them.
        curves: SQL of numbers whose distribution is wanted.
        examples: samples on each side of a rule's threshold.
    """

    rules: Sequence[str] = ()
    without: Sequence[str] = ()
    overrides: Sequence[str] = ()
    curves: Sequence[str] = ()
    examples: int = 3


@dataclass(frozen=True)
class Answer:
    """What would be. `now` is what the build decided.

    Attributes:
        title: the version that was asked about.
        kept: samples, now and then.
        came: samples that are kept then and not now.
        went: samples that are kept now and not then.
        splits: (split, now, then).
        rules: a row for each step and rule that drops, now or then: (step, rule, now, then, alone); `alone` is how many
            it would drop if it were the only one, None for what is no rule of the step `rules`.
        borders: samples on both sides of the threshold of each rule asked about.
        curves: by expression, (quantile, value, kept) where `kept` counts samples at least as high; of finite values.
        unknown: what the curation then speaks of and no sample has (`mmdata.steps.curate.unknown`).
    """

    title: str
    kept: tuple[int, int]
    came: int
    went: int
    splits: list[tuple[str, int, int]]
    rules: list[tuple[str, str, int, int, int | None]]
    borders: list[Border]
    curves: dict[str, list[tuple[float, float, int]]]
    unknown: list[dict[str, Any]]


@dataclass(frozen=True)
class Border:
    """A sample near a rule's threshold.

    Attributes:
        rule: its name.
        kept: whether it passes.
        value: what was compared.
        threshold: what with.
        sample_id: of the sample.
        key: what its source calls it.
        text: the first text member it has.
    """

    rule: str
    kept: bool
    value: float
    threshold: float
    sample_id: str
    key: str
    text: str


def what_if(build: str, asked: Asked) -> Answer:
    """Decide again. Raises SpecError for rules that are wrong, MmdataError where the build is not there."""
    kept = open_version(build)
    pipeline = _pipeline(kept, asked)
    gathered = kept.build / "gathered" / kept.version.gathering
    if not (gathered / "gathered.json").exists():
        raise MmdataError(f"{kept.title}: what it was decided over is gone; ask about the current one, {kept.build}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "then"
        folder.mkdir()
        what = Decisions(
            pipeline.columns, pipeline.spec.seed, kept.version.inputs, pipeline.augment, pipeline.curate, pipeline.write
        )
        decide_over(gathered, what, folder, Path(scratch), int(pipeline.spec.engine.memory))
        with _opened(pipeline, gathered, Path(scratch)) as curation:
            names = {_parsed(rule, _known(kept.version.spec))[0] for rule in asked.rules}
            alone = dict(_alone(curation, pipeline))
            borders = [border for name in sorted(names) for border in _borders(curation, pipeline, name, asked)]
            curves = {expression: _curve(curation, expression) for expression in asked.curves}
        return _compared(kept, folder, alone, borders, curves)


@contextmanager
def _opened(pipeline: Pipeline, gathered: Path, scratch: Path) -> Iterator[Curation]:
    memory = sql_memory(int(pipeline.spec.engine.memory))
    curation = Curation.open(pipeline.columns, pipeline.spec.seed, gathered, scratch, memory)
    try:
        for step in pipeline.curate:
            # They were found while deciding; rules and curves may speak of them.
            if isinstance(step, Clusters):
                step.apply(curation)
        yield curation
    finally:
        curation.connection.close()


# --- the file, with other rules -------------------------------------------------------------------------------------


def _pipeline(kept: Kept, asked: Asked) -> Pipeline:
    spec = copy.deepcopy(kept.version.spec)
    document = Document(Path(kept.title), spec, dict.fromkeys(_paths(spec)))
    before = _what_is_made(document.value)
    for text in asked.overrides:
        apply_override(document, text)
    if _what_is_made(document.value) != before:
        fix = "change the pipeline file and build"
        raise SpecError(["--set: only what decides (curate, write) can be asked about without building; " + fix])
    for name in asked.without:
        _remove_rule(document.value, name)
    for rule in asked.rules:
        name, value = _parsed(rule, _known(kept.version.spec))
        document.overridden[_put_rule(document.value, name, value)] = f"--rule {rule}"
    return resolve(document, parse_spec(document), to_run=False)


def _paths(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    """That of every value inside."""
    yield keys
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from _paths(one, (*keys, key))


def _what_is_made(spec: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy({key: value for key, value in spec.items() if key not in {"curate", "write", "engine"}})


def _parsed(rule: str, known: Sequence[str]) -> tuple[str, Any]:
    """`name: expression`; what stands behind is YAML where it is a mapping, else SQL as it stands.

    A name is a word, or one that a rule of the file has.
    """
    name, colon, text = (part.strip() for part in rule.partition(":"))
    for one in sorted(known, key=len):
        if rule.strip().startswith(f"{one}:"):
            name, text = one, rule.strip().removeprefix(f"{one}:").strip()
    if not (colon and text and (name.isidentifier() or name in known)):
        fix = "write it as 'name: expression', for example 'sharp: picture.image.sharpness >= 0.1'"
        raise SpecError([f"--rule {rule}: {fix}"])
    if not text.startswith("{"):
        return name, text
    try:
        return name, yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        fix = "in a mapping, SQL with brackets, braces or commas stands in quotes"
        raise SpecError([f"--rule {rule}: not YAML: {problem}; {fix}"]) from None


def _rule_steps(spec: dict[str, Any]) -> dict[Keys, dict[str, Any]]:
    """The `keep` of each step of rules, by its place in the file."""
    steps = enumerate(spec.get("curate") or [])
    return {
        ("curate", number, "rules", "keep"): step["rules"]["keep"]
        for number, step in steps
        if isinstance(step, dict) and "rules" in step
    }


def _known(spec: dict[str, Any]) -> list[str]:
    return [rule for keep in _rule_steps(spec).values() for rule in keep]


def _put_rule(spec: dict[str, Any], name: str, rule: Any) -> Keys:
    """Replace the rule of that name, or add it; gives its place."""
    steps = _rule_steps(spec)
    if not steps:
        # Before all else that decides: quotas and splits are of what the rules leave. Rules may speak of clusters.
        curate = spec.get("curate") or []
        first = next((n for n, step in enumerate(curate) if not _is_of_clusters(step)), len(curate))
        spec["curate"] = [*curate[:first], {"rules": {"keep": {}}}, *curate[first:]]
        steps = _rule_steps(spec)
    place = next((place for place, keep in steps.items() if name in keep), list(steps)[-1])
    steps[place][name] = rule
    return (*place, name)


def _remove_rule(spec: dict[str, Any], name: str) -> None:
    known = _known(spec)
    if name not in known:
        raise SpecError([f"--without {name}: there is no such rule{nearest(name, known)}"])
    for keep in _rule_steps(spec).values():
        keep.pop(name, None)
    spec["curate"] = [step for step in spec["curate"] if not (isinstance(step, dict) and _is_empty(step))]


def _is_of_clusters(step: Any) -> bool:
    return isinstance(step, dict) and Clusters.step in step


def _is_empty(step: dict[str, Any]) -> bool:
    return "rules" in step and not step["rules"]["keep"]


# --- what it comes to -----------------------------------------------------------------------------------------------


def _tests(curation: Curation, pipeline: Pipeline) -> Iterator[tuple[str, Test]]:
    """Each test of each rule, with the rule's name.

    Here they meet all samples, also those that a step before would have dropped, or the rest of the rule: where a value
    cannot be what a rule takes it for, the test has no answer. A quantile over such values is left out.
    """
    rules = [item for step in pipeline.curate if isinstance(step, Rules) for item in step.rules.items()]
    for number, (name, rule) in enumerate(rules):
        with suppress(sql.Error):
            # Not by its name, which may have any letters.
            for test in rule.tests(curation, f"whatif {number}"):
                yield name, replace(test, fails=f"TRY({test.fails})", value=f"TRY({test.value})")


def _alone(curation: Curation, pipeline: Pipeline) -> Iterator[tuple[str, int]]:
    found: dict[str, list[Test]] = {}
    for name, test in _tests(curation, pipeline):
        found.setdefault(name, []).append(test)
    for name, tests in found.items():
        fails = " OR ".join(f"coalesce(({test.fails}), false)" for test in tests)
        joins = "\n".join(dict.fromkeys(test.join for test in tests))
        query = f"SELECT count(*) FROM undecided AS candidates {joins} WHERE {fails}"
        yield name, curation.one(query)


def _borders(curation: Curation, pipeline: Pipeline, rule: str, asked: Asked) -> Iterator[Border]:
    texts = [f"{identifier(name)}.text" for name, kind in curation.columns.members.items() if kind == "text"]
    text = f"coalesce({', '.join(texts)}, '')" if texts else "''"
    for name, test in _tests(curation, pipeline):
        if name != rule or test.threshold == "NULL":
            continue
        for kept in (True, False):
            side = f"NOT coalesce(({test.fails}), false)" if kept else f"({test.fails})"
            rows = curation.connection.execute(
                f"""SELECT CAST({test.value} AS DOUBLE) AS "#value", CAST({test.threshold} AS DOUBLE) AS "#threshold",
                sample_id, key, left({text}, {_SHOWN_CHARS}) FROM undecided AS candidates {test.join}
                WHERE ({side}) AND ({test.value}) IS NOT NULL AND parent_id IS NULL
                ORDER BY abs("#value" - "#threshold"), sample_id LIMIT {int(asked.examples)}"""
            ).fetchall()
            yield from (Border(rule, kept, *row) for row in rows)


def _curve(curation: Curation, expression: str) -> list[tuple[float, float, int]]:
    try:
        check_number(curation, expression)
    except ValueError as error:
        raise SpecError([f"--curve {expression}: {error}"]) from None
    value = f"CAST(({written(curation, expression)}) AS DOUBLE)"
    # Names that no member can have.
    rows = f'SELECT {value} AS "#value" FROM undecided AS candidates WHERE parent_id IS NULL AND "#value" IS NOT NULL'
    finite = f'SELECT quantile_disc("#value", {list(_QUANTILES)}) FROM ({rows}) WHERE isfinite("#value")'
    try:
        values = curation.one(finite) or []
        return [
            (share, bound, curation.one(f'SELECT count(*) FROM ({rows}) WHERE "#value" >= {bound!r}'))
            for share, bound in zip(_QUANTILES, values, strict=False)
        ]
    except sql.Error as error:
        raise SpecError([f"--curve {expression}: {explained_value(error, curation.columns)}"]) from None


def _compared(
    kept: Kept,
    then: Path,
    alone: dict[str, int],
    borders: list[Border],
    curves: dict[str, list[tuple[float, float, int]]],
) -> Answer:
    connection = sql.connect()

    def rows(query: str) -> list[tuple[Any, ...]]:
        return connection.execute(query).fetchall()

    for name, folder in (("now", kept.folder), ("later", then)):
        fates, places = (parquet([folder / f"{table}.parquet"]) for table in ("fates", "places"))
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {fates} f LEFT JOIN {places} p USING (sample_id)")
    ((was, will, came, went),) = rows(
        """SELECT count(*) FILTER (n.fate = 'kept'), count(*) FILTER (l.fate = 'kept'),
        count(*) FILTER (l.fate = 'kept' AND n.fate <> 'kept'), count(*) FILTER (l.fate <> 'kept' AND n.fate = 'kept')
        FROM now n JOIN later l USING (sample_id)"""
    )
    counted = "SELECT {0}, count(*) AS samples FROM {1} WHERE fate {2} 'kept' GROUP BY ALL"
    joined = "SELECT {0}, coalesce(n.samples, 0), coalesce(l.samples, 0) FROM ({1}) n FULL JOIN ({2}) l USING ({0}) "
    splits = rows(joined.format("split", *(counted.format("split", t, "=") for t in ("now", "later"))) + "ORDER BY ALL")
    by_rule = joined.format("step, rule", *(counted.format("step, rule", t, "<>") for t in ("now", "later")))
    rules = [
        (step, rule, before, after, alone.get(rule) if step == "rules" else None)
        for step, rule, before, after in rows(by_rule + "ORDER BY 4 DESC, step, rule")
    ]
    connection.close()
    unknown = read_unknown(then)
    return Answer(kept.title, (was, will), came, went, splits, rules, borders, curves, unknown)
