"""The families of steps, each with its one method.

A step is a frozen pydantic model: its fields are the parameters of the YAML file, its docstring and field descriptions
are its documentation. Steps know no engine: they map a sample, a batch or a table, and the engine decides where.
Importing a step must be light (no torch): `mmdata plan` imports all that a file names.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mmdata.document import Keys
from mmdata.models.weights import Weights
from mmdata.sample import Member, Modality, Sample
from mmdata.spec import Frozen, Names
from mmdata.steps.exchange import Declared, Edge, FittedRows, Input, Keep, Pairs, Place, Ref, Scorer, Veto

if TYPE_CHECKING:
    import pyarrow as pa

    from mmdata.augment.policy import Others
    from mmdata.net.fetcher import Fetcher
    from mmdata.store.curation import Curation
    from mmdata.store.links import Fingerprints


class Step(Frozen):
    """Base of all steps."""

    step: ClassVar[str]
    """The name in YAML."""
    version: ClassVar[int] = 1
    """Goes into fingerprints: raise it when the same input no longer gives the same output."""
    extras: ClassVar[tuple[str, ...]] = ()
    """Extras of mmdata that it cannot run without."""

    def identity(self) -> dict[str, Any]:
        """All that decides what the step makes of an input: goes into fingerprints."""
        return {"step": self.step, "version": self.version, "params": self.model_dump(mode="json")}

    def needs(self) -> tuple[str, ...]:
        """Those extras, and those that its parameters need besides."""
        return self.extras

    @classmethod
    def choices(cls) -> Mapping[str, Sequence[str]]:
        """Names that its keys may have as values beyond what the schema says, by heading: for its manual."""
        return {}

    def reads(self) -> dict[str, Modality | None]:
        """Members it names and the modality each must have (None: any); a plan checks that they are declared."""
        return {}


class Source(Step):
    """Names the inputs; reads none of them."""

    name: str | None = None

    @property
    def label(self) -> str:
        """The source's name, which goes into every sample_id."""
        return self.name or self.step

    @property
    def scattered(self) -> bool:
        """Whether inputs are taken in the order of their ids: neighbours by URL share a host."""
        return False

    def texts_in_keys(self) -> list[str]:
        """Columns whose texts are members and name the inputs too: keys stand in shards as they are."""
        return []

    @abstractmethod
    def members(self) -> dict[str, Declared]:
        """Every member that a sample of this source can have, by name."""

    @abstractmethod
    def inputs(self) -> Iterator[Input]:
        """All inputs, sorted by key, streamed. Raises PlanError where the source is not there at all."""


class Discovered(Source):
    """A source whose inputs stand inside of files: workers look into each, once.

    Attributes:
        merges: whether inputs of one key are one, wherever they stand: a picture that several pages show. Else all but
            one of them have failed.
    """

    merges: ClassVar[bool] = False

    @abstractmethod
    def places(self, crawled: Path) -> Iterator[Place]:
        """The files, sorted by key. `crawled` is the folder of a `Crawled`. Raises PlanError where nothing is there."""

    @abstractmethod
    def look(self, place: Place, keep: Keep) -> Iterator[Input]:
        """The inputs of one file, in a worker. What is broken in it costs itself: an Input with a `problem`.

        Raises SampleError where nothing of the file can be read: that becomes one failed input, called as the place.
        """

    def inputs(self) -> Iterator[Input]:
        """Never asked for: the engine lists what `look` found."""
        raise NotImplementedError


class Crawled(Discovered):
    """A source that walks the web first; what it visits is recorded in files, which are its places."""

    @abstractmethod
    def crawl_identity(self) -> dict[str, Any]:
        """What decides which pages are visited: names the crawl's folder."""

    @abstractmethod
    async def crawl(self, fetcher: Fetcher, folder: Path, told: Callable[[int, int], None]) -> None:
        """Walk, and record in `folder`, until nothing is left; called again after a crash, it goes on.

        Args:
            fetcher: for every request.
            folder: of this crawl alone; it is there.
            told: to be called now and then with pages visited and pages known.
        """


class Ingest(Step):
    """Checks and measures payloads of one modality; the payload may be replaced (SVG becomes PNG)."""

    modality: ClassVar[Modality]
    most_cpu_s: ClassVar[float | None] = None
    """A payload that takes more ends its process, and is found like any that kills; None: it may take what it takes."""
    max_bytes: int

    @property
    def keeps_values(self) -> bool:
        """Whether what is decoded of a stored payload is what was decoded of the one that came."""
        return True

    @abstractmethod
    def decode(self, ref: Ref, data: bytes) -> Member:
        """The member. Raises SampleError."""

    def more_members(self, name: str) -> dict[str, Declared]:  # noqa: ARG002 - most have none
        """Members that a payload may have besides `name`, the one it is; none of them is required."""
        return {}

    def more(self, ref: Ref, data: bytes) -> Iterator[Member]:  # noqa: ARG002 - most have none
        """Those members. Raises SampleError, which costs these and not the sample."""
        return iter(())


class Align(Step):
    """Scores the agreement of modalities: workers prepare samples, the model's process scores batches of them."""

    modalities: ClassVar[tuple[Modality, Modality]]
    batch_samples: ClassVar[int] = 64
    name: str | None = None
    reference: str | None = Field(
        None, description="calibrations.parquet of another build, for percentiles where there are too few samples"
    )

    @property
    def label(self) -> str:
        """The aligner's name in rules and in the catalog."""
        return self.name or self.step

    @property
    def reference_file(self) -> Path | None:
        """Where `reference` lies."""
        return None if self.reference is None else Path(self.reference).expanduser()

    @abstractmethod
    def edges(self) -> list[Edge]:
        """The pairs of members it compares, left of `modalities[0]`, right of `modalities[1]`."""

    def reads(self) -> dict[str, Modality | None]:
        """The ends of its edges, less what it makes itself."""
        ends: dict[str, Modality | None] = {}
        for edge in self.edges():
            # The first use counts: a member on both sides has the wrong modality on one of them.
            ends.setdefault(edge.left, self.modalities[0])
            ends.setdefault(edge.right, self.modalities[1])
        return {name: kind for name, kind in ends.items() if name not in self.new_members()}

    def new_members(self) -> dict[str, Declared]:
        """Members that it makes where they are missing."""
        return {}

    def measures(self) -> dict[str, str]:
        """What rules see of each edge beside `score`, `percentile` and `match`: name and SQL type."""
        return {}

    @abstractmethod
    def weights(self) -> Weights:
        """The weights it will load, without loading them. Raises WeightsError."""

    def vector_space(self, member: str) -> str:  # noqa: ARG002 - an aligner of several models looks at it
        """What wrote a member's vectors: those of equal names can be compared with each other. Raises WeightsError."""
        return self.weights().identity

    @abstractmethod
    def load(self, device: str) -> Scorer:
        """Load the model."""

    @abstractmethod
    def prepare(self, recipe: Any, sample: Sample, edges: Sequence[Edge]) -> Any:
        """Decode one sample for the model, in a worker: no torch here. None where it has none of `edges`.

        `edges` are those of `self.edges()` that are wanted: a child's unchanged edges are not. Raises SampleError.
        """

    def identity(self) -> dict[str, Any]:
        """Parameters and the weights' content; where the weights lie does not matter."""
        mine = super().identity()
        mine["params"].pop("model", None)
        mine["params"].pop("reference", None)
        return {**mine, "weights": self.weights().identity}


class Fitted(Align):
    """An aligner that learns from the whole corpus: its `score` gives vectors only, `fit` scores all pairs of one edge.

    The fit runs once, when every part has its vectors.
    """

    only_fitting: ClassVar[frozenset[str]] = frozenset()
    """Parameters that `score` does not look at: when one changes, the fit runs again, on the vectors there are."""

    def identity(self) -> dict[str, Any]:
        """What decides the vectors."""
        mine = super().identity()
        return {**mine, "params": {k: v for k, v in mine["params"].items() if k not in self.only_fitting}}

    def fitting(self) -> dict[str, Any]:
        """What decides the fit, besides."""
        return self.model_dump(mode="json", include=set(self.only_fitting))

    @abstractmethod
    def fit(self, pairs: Pairs, seed: int, folder: Path) -> FittedRows:
        """Score every pair; what is worth keeping (a reusable aligner) goes into `folder`, which is there.

        Raises FatalError where there is too little to learn from.
        """


class Measure(Step):
    """Measures members one by one, in workers: typed columns for rules (`{label}.{member}.{column}`) and the catalog.

    A member that cannot be measured has no values, and the catalog says why; its sample is not out.
    """

    modality: ClassVar[Modality | None]
    """Of its members; None: any."""
    name: str | None = Field(None, description="its name in rules and in the catalog; default: the step's")
    of: Names = Field(min_length=1, description="members to measure")

    @property
    def label(self) -> str:
        """The measure's name in rules and in the catalog."""
        return self.name or self.step

    def reads(self) -> dict[str, Modality | None]:
        """What it measures; texts that aligners make are members too."""
        return dict.fromkeys(self.of, self.modality)

    @abstractmethod
    def columns(self) -> dict[str, str]:
        """Names and SQL types of the values, the same for each member."""

    def weights(self) -> Weights | None:
        """The weights it will load, without loading them; None: it has none. Raises WeightsError."""
        return None

    def load(self) -> Any:
        """What `measure` works with (a session, a language model): made once in each worker that measures."""
        return None

    @abstractmethod
    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:
        """The values, by column; those that are not there are NULL, as are NaNs. Raises SampleError."""

    def identity(self) -> dict[str, Any]:
        """Parameters and the weights' content; where the weights lie does not matter."""
        mine, weights = super().identity(), self.weights()
        if weights is None:
            return mine
        mine["params"].pop("model", None)
        return {**mine, "weights": weights.identity}


class Linked(Measure):
    """A measure that also looks at all originals together: which are close to each other, or to a reference set.

    Rules see `{label}.{member}.nearest`, the distance to the nearest other original, and `.in_reference`, that to the
    nearest item of a reference set; NULL where none is within reach.
    """

    only_linking: ClassVar[frozenset[str]] = frozenset()
    """Parameters that `measure` does not look at: when one changes, samples are linked anew, not measured."""

    def fingerprint(self) -> dict[str, str]:
        """Names and SQL types of what `measure` gives for `link` alone: no columns of rules."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What decides the fingerprints."""
        mine = super().identity()
        return {**mine, "params": {k: v for k, v in mine["params"].items() if k not in self.only_linking}}

    def linking(self) -> dict[str, Any]:
        """What decides the links, besides."""
        return self.model_dump(mode="json", include=set(self.only_linking))

    def vectors_of(self) -> str | None:
        """Label of the aligner whose embeddings it links by; then it measures nothing itself. None: its own columns."""
        return None

    def check_references(self) -> None:
        """Where it is to run: raises ValueError for what samples are held against and is not there."""

    def links_up_to(self) -> tuple[float, str] | None:
        """The largest distance of its links, and what a user does for more (raise `max_distance`); None: no limit."""
        return None

    @abstractmethod
    def link(self, found: Fingerprints, folder: Path) -> Iterator[pa.Table]:
        """Pairs that are close, once all parts are there: tables of `mmdata.store.links.LINKS`, in an order that stays.

        Args:
            found: what was measured; the originals of the build, never children.
            folder: for what does not fit in memory; it is there, and removed afterwards.
        """


class Augment(Step):
    """Makes children of a sample: all modalities change together or the child is not made."""

    replaces: ClassVar[bool] = False
    """Whether children stand for their parent, which then is no sample of its own: the segments of a recording."""

    @property
    def label(self) -> str:
        """Its name in variants (`{label}_{number}`), parts and the catalog."""
        return self.step

    @property
    def makes_children(self) -> bool:
        """Whether it makes any in a build; else only its policy travels with the shards."""
        return True

    def new_members(self) -> dict[str, Declared]:
        """Members that only children have."""
        return {}

    def findings(self) -> Sequence[str]:
        """Labels of the aligners whose measures it needs; they stand in `sample.found`."""
        return ()

    def most_match_loss(self) -> float | None:
        """A child whose `match` is by more than this below its parent's is dropped; None: none is."""
        return None

    def check(
        self, members: Mapping[str, Modality], ingest: Mapping[Modality, Ingest], aligners: Sequence[str]
    ) -> None:
        """Raises ParameterError where it cannot work in a pipeline of these members, aligners by their labels."""

    def policy_of_shards(self) -> dict[str, Any] | None:
        """What whoever reads the shards needs to make the same children, as JSON; None: nothing."""
        return None

    @abstractmethod
    def make(self, sample: Sample, seed: int, others: Others) -> Iterator[Sample | Veto]:
        """The children, each of which depends only on the sample and the seed, and on `others` where it mixes samples.

        A child that would not stay true is a veto with the reason. Raises SampleError where none can be made.
        """


class Curate(Step):
    """Decides in SQL. Steps run in the order of the file, each over the candidates that are still in."""

    def identity(self) -> dict[str, Any]:
        """Parameters in their order: the first of several rules is named, and shares lie side by side in theirs."""
        mine = super().identity()
        return {**mine, "params": json.dumps(mine["params"])}

    @abstractmethod
    def check(self, curation: Curation) -> None:
        """Bind the SQL against empty tables. Raises duckdb.Error, or ValueError with a sentence."""

    @abstractmethod
    def apply(self, curation: Curation) -> None:
        """Write fates, groups or splits."""

    def sql_texts(self) -> Iterator[tuple[Keys, str]]:
        """The SQL in its parameters, expressions and orders, each with its place below the step."""
        yield from ()

    def named_values(self) -> Iterator[tuple[Keys, str, str, Collection[str]]]:
        """Values that its parameters name: place below the step, SQL of what has them and of who is counted, values."""
        yield from ()

    def verify(self, curation: Curation) -> None:
        """Prove, when all is decided, what the step promises; of several of a kind the last. Raises LedgerError."""


class Write(Step):
    """What goes into the training set and how it is cut into shards."""

    members: list[str] | None
    embeddings: list[str]
    samples_per_shard: int
    bytes_per_shard: int
