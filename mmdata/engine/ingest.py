"""What worker processes do with inputs: take them in, and look into files that hold many.

As in `mmdata.engine.work`: files to files. A `SampleError` becomes a row.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmdata.engine.payloads import NotFetchedError, Payloads
from mmdata.engine.work import Done
from mmdata.errors import SampleError
from mmdata.listing import Chunk, input_line, parse_line
from mmdata.plan import Plan
from mmdata.sample import Failure, Member, Modality, Sample, sample_id
from mmdata.steps.base import Discovered, Ingest
from mmdata.steps.exchange import Input, Place, Ref
from mmdata.steps.sources.places import printable
from mmdata.store.found import FoundPartWriter
from mmdata.store.parts import BadMember, BasePartWriter, failed_fetches

# A member that is not there is a fact of the source, not a fault of the file.
_ABSENT = frozenset({"missing_member", "no_such_line"})


@dataclass(frozen=True)
class Slice:
    """The inputs of one chunk, where workers find them.

    Attributes:
        source: label of the source.
        listing: the plan's listing.
        offset: of the chunk's first line in it, bytes.
        length: of its lines, bytes.
        fetches: fetch parts that hold what the chunk has on the web, the latest first.
        retried: the base part whose failed fetches alone are meant; None: all.
    """

    source: str
    listing: Path
    offset: int
    length: int
    fetches: tuple[Path, ...] = ()
    retried: Path | None = None

    @classmethod
    def of(cls, plan: Plan, chunk: Chunk) -> Slice:
        """Of a chunk of a plan that is built."""
        assert plan.listing is not None
        fetches = tuple(plan.part("fetch", part) for part in chunk.fetched)
        retried = plan.part("ingest", chunk.retry_of) if chunk.retry_of else None
        label = plan.pipeline.sources[chunk.source].label
        return cls(label, plan.listing, chunk.offset, chunk.length, fetches, retried)

    def inputs(self) -> Iterator[Input]:
        """Read them."""
        wanted = failed_fetches(self.retried) if self.retried else None
        with self.listing.open("rb") as file:
            file.seek(self.offset)
            for line in file.read(self.length).splitlines():
                found = parse_line(line)
                if wanted is None or sample_id(self.source, found.key) in wanted:
                    yield found


def ingest_part(chunk: Slice, how: Mapping[Modality, Ingest], out: Path, poison: Mapping[str, str]) -> Done:
    """Take in the inputs of one chunk.

    Args:
        chunk: the inputs.
        how: how each modality is read.
        out: the part to write.
        poison: keys that are known to kill a worker, and how.
    """
    source = chunk.source
    done = Done(0)
    with BasePartWriter(out) as writer, Payloads(chunk.fetches) as payloads:
        for found in chunk.inputs():
            sample = Sample(sample_id(source, found.key), source, found.key, {}, attributes=dict(found.attributes))
            try:
                if found.key in poison:
                    raise SampleError("worker_died", poison[found.key])
                members, bad = _take_in(found, how, payloads)
                writer.add(_with_members(sample, members), bad)
                done.failures.append(None)
            except SampleError as error:
                step = "fetch" if isinstance(error, NotFetchedError) else "ingest"
                writer.add_failure(sample, Failure(sample.sample_id, step, error.reason, str(error)))
                done.failures.append((error.reason, str(error)))
            done.samples += 1
    return done


def look_into(source: Discovered, place: Place, out: Path) -> Done:
    """Find the inputs of one file."""
    done = Done(0)
    with FoundPartWriter(out) as writer:
        try:
            for found in source.look(place, writer.keep):
                writer.add(input_line(found))
                done.failures.append(found.problem)
        except SampleError as error:
            problem = (error.reason, f"{printable(place.path)}: {error}")
            writer.add(input_line(Input(place.key, (), {}, problem)))
            done.failures.append(problem)
    done.samples = len(done.failures)
    return done


def give_up(place: Place, why: str, out: Path) -> Done:
    """A file whose reading kills the worker becomes one failed input."""
    problem = ("worker_died", f"{printable(place.path)}: {why}")
    with FoundPartWriter(out) as writer:
        writer.add(input_line(Input(place.key, (), {}, problem)))
    return Done(1, [problem])


def _with_members(sample: Sample, members: list[Member]) -> Sample:
    sample.members.update({member.name: member for member in members})
    return sample


def _take_in(found: Input, how: Mapping[Modality, Ingest], payloads: Payloads) -> tuple[list[Member], list[BadMember]]:
    """The members of an input. A required one that cannot be read fails the sample, another is noted and left out."""
    if found.problem:
        raise SampleError(*found.problem)
    members: list[Member] = []
    bad: list[BadMember] = []
    payloads.forget()
    for ref in found.refs:
        try:
            ingest = how.get(ref.modality)
            if ingest is None:
                raise SampleError("no_reader", f"nothing reads the modality '{ref.modality}'")
            if ref.problem:
                raise SampleError(*ref.problem)
            data = payloads.of(ref, ingest.max_bytes)
            with _bounded(ingest.most_cpu_s):
                members.append(ingest.decode(ref, data))
            more, broken = _more(ingest, ref, data)
            members += more
            bad += broken
        except SampleError as error:
            if ref.required:
                kind = type(error)
                where = printable(ref.url or "inline")
                raise kind(error.reason, f"{ref.modality} '{ref.name}' ({where}): {error}") from None
            if ref.problem or error.reason not in _ABSENT:
                bad.append(BadMember(ref.name, ref.modality, f"{error.reason}: {error}"))
    if not members:
        raise SampleError("no_members", "none of its members is there")
    return members, bad


@contextmanager
def _bounded(cpu_s: float | None) -> Iterator[None]:
    """End this process where the block takes longer: no exception would get into a decoder's loop."""
    if cpu_s is not None:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _more(ingest: Ingest, ref: Ref, data: bytes) -> tuple[list[Member], list[BadMember]]:
    """What else a payload gives: frames of a picture that moves. What cannot be read of it is noted."""
    try:
        return list(ingest.more(ref, data)), []
    except SampleError as error:
        names = ingest.more_members(ref.name)
        return [], [BadMember(name, said.modality, f"{error.reason}: {error}") for name, said in names.items()]
