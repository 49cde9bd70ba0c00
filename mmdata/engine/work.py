"""What worker processes do: each function maps files of one part to files of another, or to rows.

Functions here take and return only plain, picklable values; they know nothing of pools, of progress or of each other.
A `SampleError` becomes a row; any other exception leaves the function and stops the build.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from mmdata.errors import SampleError
from mmdata.plan import Plan, parse_line
from mmdata.sample import Failure, Member, Modality, Sample, child_id, sample_id
from mmdata.steps.base import Align, Augment, Ingest, Input, Ref, Score, Scorer
from mmdata.store import parts
from mmdata.store.curation import Curation
from mmdata.store.parts import SCORE_SCHEMA, BadMember, BasePartWriter, iter_samples, read_base_rows, write_table
from mmdata.store.selection import ShardPlan, decide_fates, write_decisions
from mmdata.store.shards import write_shard

# A member that is not there is a fact of the source, not a fault of the file.
_ABSENT = frozenset({"missing_member", "no_such_line"})


@dataclass
class Done:
    """What became of one piece of work.

    Attributes:
        samples: rows written, failures included.
        failures: (reason, detail) of those that failed, in the order of the part; None where a sample is good.
        cpu_s: processor seconds of the process that did it.
        rss_bytes: its resident memory when it ended.
    """

    samples: int
    failures: list[tuple[str, str] | None] = field(default_factory=list)
    cpu_s: float = 0.0
    rss_bytes: int = 0

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(failure is not None for failure in self.failures)

    def reasons(self) -> Counter[str]:
        """How often each reason."""
        return Counter(failure[0] for failure in self.failures if failure)


def measured(function: Any, *arguments: Any) -> Any:
    """Call a function of this module and note what it cost in a `Done`, where it returns one."""
    before = time.process_time()
    result = function(*arguments)
    if isinstance(result, Done):
        result.cpu_s = time.process_time() - before
        result.rss_bytes = psutil.Process().memory_info().rss
    return result


# --- ingest ---------------------------------------------------------------------------------------------------------


def ingest_part(
    source: str,
    how: Mapping[Modality, Ingest],
    listing: Path,
    span: tuple[int, int],
    out: Path,
    poison: Mapping[str, str],
) -> Done:
    """Take in the inputs of one chunk.

    Args:
        source: label of the source.
        how: how each modality is read.
        listing: the plan's listing.
        span: offset and length of the chunk's lines in it, bytes.
        out: the part to write.
        poison: keys that are known to kill a worker, and how.
    """
    done = Done(0)
    with BasePartWriter(out) as writer:
        for found in read_inputs(listing, span):
            sample = Sample(sample_id(source, found.key), source, found.key, {}, attributes=dict(found.attributes))
            try:
                if found.key in poison:
                    raise SampleError("worker_died", poison[found.key])
                members, bad = _take_in(found, how)
                writer.add(_with_members(sample, members), bad)
                done.failures.append(None)
            except SampleError as error:
                writer.add_failure(sample, Failure(sample.sample_id, "ingest", error.reason, str(error)))
                done.failures.append((error.reason, str(error)))
            done.samples += 1
    return done


def read_inputs(listing: Path, span: tuple[int, int]) -> Iterator[Input]:
    """The inputs of one chunk."""
    offset, length = span
    with listing.open("rb") as file:
        file.seek(offset)
        for line in file.read(length).splitlines():
            yield parse_line(line)


def _with_members(sample: Sample, members: list[Member]) -> Sample:
    sample.members.update({member.name: member for member in members})
    return sample


def _take_in(found: Input, how: Mapping[Modality, Ingest]) -> tuple[list[Member], list[BadMember]]:
    """The members of an input. A required one that cannot be read fails the sample, another is noted and left out."""
    if found.problem:
        raise SampleError(*found.problem)
    members, bad = [], []
    payloads: dict[str, bytes] = {}
    for ref in found.refs:
        try:
            ingest = how.get(ref.modality)
            if ingest is None:
                raise SampleError("no_reader", f"nothing reads the modality '{ref.modality}'")
            members.append(ingest.decode(ref, _payload(ref, ingest.max_bytes, payloads)))
        except SampleError as error:
            if ref.required:
                raise SampleError(error.reason, f"{ref.modality} '{ref.name}' ({ref.url or 'inline'}): {error}") from None
            if error.reason not in _ABSENT:
                bad.append(BadMember(ref.name, ref.modality, f"{error.reason}: {error}"))
    if not members:
        raise SampleError("no_members", "none of its members is there")
    return members, bad


def _payload(ref: Ref, max_bytes: int, payloads: dict[str, bytes]) -> bytes:
    if ref.version is None:
        raise SampleError("missing_member", "not there")
    if ref.text is not None:
        return ref.text.encode()
    url = str(ref.url)
    if url not in payloads:
        payloads[url] = _read(Path(url), max_bytes)
    return payloads[url]


def _read(path: Path, max_bytes: int) -> bytes:
    """A whole file, never more than the limit."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise SampleError("unreadable", f"cannot be read: {error}") from None
    if not data:
        raise SampleError("empty_file", "the file is empty")
    if len(data) > max_bytes:
        raise SampleError("too_large", f"more than max_bytes: {max_bytes}")
    return data


# --- align ----------------------------------------------------------------------------------------------------------


@dataclass
class Prepared:
    """A batch, decoded: items for the model, and why the other samples have none."""

    ids: list[str]
    items: list[Any]
    failures: list[Failure]
    cpu_s: float = 0.0


def prepare_batch(step: Align, recipe: Any, base: Path, rows: tuple[int, int], poison: Mapping[str, str]) -> Prepared:
    """Decode rows `rows[0]` to `rows[1]` of a base part for a model."""
    began = time.process_time()
    prepared = Prepared([], [], [])
    names = frozenset(name for edge in step.edges() for name in (edge.left, edge.right))
    for sample in iter_samples(base, read_base_rows(base, *rows), names):
        try:
            if sample.sample_id in poison:
                raise SampleError("worker_died", poison[sample.sample_id])
            item = step.prepare(recipe, sample)
        except SampleError as error:
            prepared.failures.append(Failure(sample.sample_id, step.label, error.reason, str(error)))
            continue
        if item is not None:
            prepared.ids.append(sample.sample_id)
            prepared.items.append(item)
    prepared.cpu_s = time.process_time() - began
    return prepared


_loaded: dict[str, Scorer] = {}


def load_scorer(step: Align, device: str) -> Any:
    """Load a model in this process, the one of its accelerator, and return what workers need to prepare for it."""
    key = step.model_dump_json()
    if key not in _loaded:
        _loaded[key] = step.load(device)
    return _loaded[key].recipe


def score_batch(step: Align, device: str, prepared: Prepared) -> tuple[list[dict[str, Any]], float, int]:
    """Score a batch in the model's process: rows, processor seconds, resident bytes."""
    began = time.process_time()
    load_scorer(step, device)
    rows = [_failure_row(step, failure) for failure in prepared.failures]
    if prepared.items:
        results = _loaded[step.model_dump_json()].score(prepared.items)
        for sample, result in zip(prepared.ids, results, strict=True):
            rows += _result_rows(step, sample, result)
    return rows, time.process_time() - began, psutil.Process().memory_info().rss


def _result_rows(step: Align, sample: str, result: list[Score] | SampleError) -> list[dict[str, Any]]:
    if isinstance(result, SampleError):
        return [_failure_row(step, Failure(sample, step.label, result.reason, str(result)))]
    return [_score_row(step, sample, score) for score in result]


def _score_row(step: Align, sample: str, score: Score) -> dict[str, Any]:
    new = score.new_text
    return {
        "sample_id": sample,
        "aligner": step.label,
        "edge": score.edge,
        "score": score.score,
        "measures": json.dumps(dict(score.measures), sort_keys=True) if score.measures else None,
        "new_name": new.name if new else None,
        "new_text": new.text if new else None,
        "new_lang": new.lang if new else None,
    }


def _failure_row(step: Align, failure: Failure) -> dict[str, Any]:
    return {
        "sample_id": failure.sample_id,
        "aligner": step.label,
        "reason": failure.reason,
        "detail": failure.detail,
    }


def commit_scores(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Write a score part. Rows come in the order of the base part, so equal work gives equal files."""
    write_table(out, pa.Table.from_pylist(list(rows), SCORE_SCHEMA))


# --- augment --------------------------------------------------------------------------------------------------------


def augment_part(step: Augment, seed: int, base: Path, out: Path, poison: Mapping[str, str]) -> Done:
    """Make the children of a base part. A veto is a row with its reason: the child was never made."""
    done = Done(0)
    rows = read_base_rows(base)
    names = frozenset(member["name"] for row in rows for member in row["members"])
    with BasePartWriter(out) as writer:
        for sample in iter_samples(base, rows, names):
            done.samples += 1
            done.failures.append(None)
            try:
                if sample.sample_id in poison:
                    raise SampleError("worker_died", poison[sample.sample_id])
                writer.add(step.make(sample, seed))
            except SampleError as error:
                child = child_id(sample.sample_id, step.step)
                writer.add_failure(
                    Sample(child, sample.source, sample.key, {}, sample.sample_id, step.step),
                    Failure(child, step.step, error.reason, str(error)),
                )
    return done


def rows_of(base: Path) -> tuple[int, list[str]]:
    """Rows of a base part and the ids of those that did not fail."""
    rows = parts.read_base_rows(base)
    return len(rows), [row["sample_id"] for row in rows if row["failed_step"] is None]


# --- curate and write -----------------------------------------------------------------------------------------------


def decide(plan: Plan, scratch: Path, memory: str) -> Done:
    """Run the curation over all parts and write the decisions. Raises LedgerError."""
    pipeline = plan.pipeline
    base = [plan.part(*part) for part in plan.base_parts()]
    scores = [plan.part(*part) for part in plan.score_parts()]
    scratch.mkdir(parents=True, exist_ok=True)
    curation = Curation.load(pipeline.columns, pipeline.spec.seed, base, scores, scratch, memory)
    for step in pipeline.curate:
        step.apply(curation)
    decide_fates(curation, plan.inputs)
    write = pipeline.write
    members = write.members or list(pipeline.members)
    limits = (write.samples_per_shard, int(write.bytes_per_shard))
    write_decisions(curation, scratch / "decided", plan.output, members, *limits)
    curation.connection.close()
    plan.decided.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(plan.decided, ignore_errors=True)
    (scratch / "decided").rename(plan.decided)
    return Done(plan.inputs)


def write_one(output: Path, decided: Path, plan: ShardPlan) -> Done:
    """Write one shard."""
    return Done(write_shard(output, decided, plan))
