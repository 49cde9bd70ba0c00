"""What steps take and give: inputs and their members, pairs and their scores. Data without behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from mmdata.sample import Modality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmdata.errors import SampleError

    Floats = NDArray[np.float32]

OPTED_OUT: Final = "opted_out"
"""The problem of an input whose owner wants it kept out of training."""


@dataclass(frozen=True)
class Declared:
    """A member that a source declares: every sample of it has one if it is required."""

    modality: Modality
    required: bool
    lang: str | None = None


@dataclass(frozen=True)
class Ref:
    """Where one member of an input is.

    Attributes:
        name: of the member.
        modality: of the member.
        url: a path, or an http(s) URL; None where the text stands in `text`.
        text: the payload itself, for text that a table holds.
        lang: as the source says, None where it does not.
        line: for a text member out of a file of many lines: see `steps.sources.files`.
        span: offset and length of the payload in the file, bytes; None: the whole file.
        clip: beginning and end of the wanted piece of a recording, seconds; None: all of it.
        required: whether the sample is out without it.
        version: what changes when the content does (size and mtime, a digest of inline text); None where nothing is
            there.
        problem: why it cannot be read, reason and sentence, where the source found that out; else None.
    """

    name: str
    modality: Modality
    url: str | None = None
    text: str | None = None
    lang: str | None = None
    line: int | str | None = None
    required: bool = True
    version: str | None = None
    span: tuple[int, int] | None = None
    clip: tuple[float, float] | None = None
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class Input:
    """One thing that a source names; it ends with exactly one fate.

    Attributes:
        key: what the source calls it; unique in the source.
        refs: its members. A required one that is not there stands here too, without a version.
        attributes: columns carried along.
        problem: why it can be no sample (a row that cannot be read, say), else None.
    """

    key: str
    refs: tuple[Ref, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class Place:
    """A file that inputs stand in: an archive, a recording, a record of a crawl.

    Attributes:
        key: what the source calls it; unique in the source.
        path: the file.
        version: what changes when the content does.
    """

    key: str
    path: str
    version: str


class Keep(Protocol):
    """Stores a payload that cannot be read in its place again (it is compressed, say)."""

    def __call__(self, data: bytes) -> tuple[str, tuple[int, int]]:
        """The path of the file that holds it now, and its span there: `Ref.url` and `Ref.span`."""


@dataclass(frozen=True)
class NewText:
    """A text that an aligner made for a sample that had none: becomes a member."""

    name: str
    text: str
    lang: str | None


@dataclass(frozen=True)
class Score:
    """How well the two members of an edge agree.

    Attributes:
        edge: `{left}_{right}`, as rules name it.
        score: higher agrees better; the aligner's own scale. None where there was nothing to compare.
        measures: what else the aligner found, by name; those of `Align.measures` are columns of the edge.
        new_text: a text made on the way.
        null: scores of the same left member with right members of other samples, by the same formula: of the same
            language, never an equal text. Calibration is made of them, unless the aligner gives vectors.
    """

    edge: str
    score: float | None
    measures: Mapping[str, Any] = field(default_factory=dict)
    new_text: NewText | None = None
    null: Sequence[float] = ()


@dataclass(frozen=True)
class Found:
    """What an aligner finds in one sample.

    Attributes:
        scores: of its edges.
        vectors: float `[D]` for members, by name: kept as fp16, never computed twice. Where both ends of a scored edge
            have one of length 1, the score is their product, and calibration pairs them anew.
    """

    scores: Sequence[Score] = ()
    vectors: Mapping[str, Floats] = field(default_factory=dict)


class Scorer(Protocol):
    """A loaded model, living in the one process of its accelerator."""

    recipe: Any
    """What workers need to prepare samples; small, picklable."""

    def score(self, items: Sequence[Any]) -> Sequence[Found | SampleError]:
        """For each prepared item what was found, or why nothing was."""


@dataclass(frozen=True)
class Edge:
    """Two members that an aligner compares. `right` need not be there in every sample."""

    left: str
    right: str

    @property
    def name(self) -> str:
        """The edge as rules and the catalog name it."""
        return f"{self.left}_{self.right}"


@dataclass(frozen=True)
class FittedRows:
    """What a corpus-wide fit makes of all pairs of an edge: row n is sample `ids[n]`.

    Attributes:
        edge: that was fitted.
        ids: of the samples.
        score_N: higher agrees better, NaN where there is none.
        null_NR: the same for R deranged pairs a sample, NaN where there is none.
        strength_N: see `mmdata.models.two_groups.pair_strength`.
        null_strength_NR: the same of the deranged pairs.
        skipped: why there are no scores at all.
    """

    edge: str
    ids: Sequence[str]
    score_N: Floats
    null_NR: Floats
    strength_N: Floats
    null_strength_NR: Floats
    skipped: str | None = None


@dataclass(frozen=True)
class Pairs:
    """All pairs of an edge, for a fit: row n is one sample, originals before children.

    Attributes:
        edge: their edge.
        ids: of the samples.
        left_NF: features of the left member, as `Found.vectors` gave them.
        right_NE: features of the right member.
        left_id_N: equal where the left member has the same payload.
        right_id_N: equal where the right one has the same payload or the same words.
        lang_N: language of the right member, a small number.
        parent_N: row of the parent, -1 for originals.
    """

    edge: Edge
    ids: Sequence[str]
    left_NF: NDArray[np.floating[Any]]
    right_NE: NDArray[np.floating[Any]]
    left_id_N: NDArray[np.int64]
    right_id_N: NDArray[np.int64]
    lang_N: NDArray[np.int64]
    parent_N: NDArray[np.int64]


@dataclass(frozen=True)
class Veto:
    """A child that was not made, and why; `augmentation` as of a sample, where a policy tried."""

    variant: str
    reason: str
    detail: str
    augmentation: Mapping[str, Any] | None = None
