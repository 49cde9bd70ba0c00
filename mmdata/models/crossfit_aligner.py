"""What cross-fitting leaves: models of each fold and one of all pairs, that score and embed features.

Shapes: N pairs to score, M examples and a last row that stands for none, F left features, E right features,
P components of a space, D embedding size, S kinds of evidence, K folds, R nulls of a pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmdata.errors import WeightsError
from mmdata.models.crossfit_bank import WIDTHS, Bank, evidence, kernels, null_evidence
from mmdata.models.crossfit_folds import NO_PARTNER
from mmdata.models.crossfit_heads import Floats, Heads, Ints, Space, Weighing, unit_rows

CONFIG_NAME: Final = "crossfit.json"
TENSORS_NAME: Final = "crossfit.safetensors"
_FORMAT: Final = 1
# Bounds memory: kernels of so many pairs against all examples are held at a time.
PAIRS_A_PASS: Final = 1024


@dataclass(frozen=True)
class FoldModel:
    """What judges the pairs of one fold.

    Attributes:
        heads: fitted without them.
        weight_M: belief in each example, found without them; the last is 0.
        weighing: of the evidence, fitted without them.
    """

    heads: Heads
    weight_M: Floats
    weighing: Weighing


@dataclass(frozen=True)
class Block:
    """Pairs that are judged in one pass.

    Attributes:
        left_NP: rows of the left space.
        right_NP: rows of the right space.
        own_N: each pair's row among the examples, -1 for none.
        partner_NR: whose right each null has, as rows of this block; `NO_PARTNER` for none.
    """

    left_NP: Floats
    right_NP: Floats
    own_N: Ints
    partner_NR: Ints


def judge(bank: Bank, heads: Heads, weight_M: Floats, block: Block) -> tuple[Floats, Floats]:
    """Gather evidence for and against pairs and their nulls: S - 1 kernels, then the heads' cosine.

    Returns:
        `observed_NS` and `null_NRS`, float32; NaN where a null has no partner.
    """
    near = kernels(bank, block.left_NP, block.right_NP, block.own_N)
    left_ND, right_ND = heads.embed_left(block.left_NP), heads.embed_right(block.right_NP)
    observed_NS = np.column_stack([evidence(near, weight_M), (left_ND * right_ND).sum(axis=1)])
    null_NRS = np.full((*block.partner_NR.shape, observed_NS.shape[1]), np.nan, np.float32)
    for null, partner_N in enumerate(block.partner_NR.T):
        cosine_N = (left_ND * right_ND[partner_N]).sum(axis=1)
        found_NS = np.column_stack([null_evidence(near, weight_M, partner_N), cosine_N])
        there_N = partner_N != NO_PARTNER
        null_NRS[there_N, null] = found_NS[there_N]
    return observed_NS, null_NRS


@dataclass(frozen=True)
class Aligner:
    """Scores pairs of features, and embeds them.

    Attributes:
        left_space: of the left features.
        right_space: of the right features.
        bank: the examples.
        models: of fold 0 to K - 1, then the one of all pairs.
    """

    left_space: Space
    right_space: Space
    bank: Bank
    models: tuple[FoldModel, ...]

    @property
    def everyone(self) -> int:
        """The number of the model of all pairs, to be used as a fold."""
        return len(self.models) - 1

    def score(
        self,
        left_NF: npt.NDArray[np.floating],
        right_NE: npt.NDArray[np.floating],
        fold_N: Ints,
        own_N: Ints | None = None,
    ) -> Floats:
        """Score pairs of features, float32 `[N]`; each alone decides its score, whatever stands beside it.

        Args:
            left_NF: left features.
            right_NE: right features.
            fold_N: of what each pair was made of (a child: its parent's), `everyone` for what is new.
            own_N: row among the examples that is not to count: a child's parent; -1 or None: none.
        """
        own_N = np.full(len(left_NF), -1) if own_N is None else own_N
        score_N = np.empty(len(left_NF), np.float32)
        for rows_N in _passes(fold_N):
            block = self._block(left_NF[rows_N], right_NE[rows_N], own_N[rows_N])
            model = self.models[fold_N[rows_N[0]]]
            score_N[rows_N] = model.weighing(judge(self.bank, model.heads, model.weight_M, block)[0])
        return score_N

    def score_with_nulls(
        self,
        left_NF: npt.NDArray[np.floating],
        right_NE: npt.NDArray[np.floating],
        own_N: Ints,
        partner_NR: Ints,
        fold: int,
    ) -> tuple[Floats, Floats]:
        """Score pairs of one fold, all in one pass, and their nulls: float32 `[N]` and `[N, R]`.

        Args:
            left_NF: left features.
            right_NE: right features.
            own_N: as in `score`.
            partner_NR: whose right each null has, as rows of these arrays; -1: none, which scores NaN.
            fold: of all of them.
        """
        model = self.models[fold]
        block = Block(self.left_space(left_NF), self.right_space(right_NE), own_N, partner_NR)
        observed_NS, null_NRS = judge(self.bank, model.heads, model.weight_M, block)
        return model.weighing(observed_NS), model.weighing(null_NRS)

    def embed_left(self, left_NF: npt.NDArray[np.floating], fold_N: Ints) -> Floats:
        """Unit embeddings by each row's fold's heads, float32 `[N, D]`; folds do not share a space."""
        return self._embed(self.left_space(left_NF), [model.heads.left_PD for model in self.models], fold_N)

    def embed_right(self, right_NE: npt.NDArray[np.floating], fold_N: Ints) -> Floats:
        """Unit embeddings by each row's fold's heads, float32 `[N, D]`; folds do not share a space."""
        return self._embed(self.right_space(right_NE), [model.heads.right_PD for model in self.models], fold_N)

    def _block(self, left_NF: npt.NDArray[np.floating], right_NE: npt.NDArray[np.floating], own_N: Ints) -> Block:
        no_nulls_NR = np.empty((len(own_N), 0), np.int64)
        return Block(self.left_space(left_NF), self.right_space(right_NE), own_N, no_nulls_NR)

    def _embed(self, rows_NP: Floats, heads_KPD: list[Floats], fold_N: Ints) -> Floats:
        emb_ND = np.empty((len(rows_NP), heads_KPD[0].shape[1]), np.float32)
        for fold, head_PD in enumerate(heads_KPD):
            emb_ND[fold_N == fold] = unit_rows(rows_NP[fold_N == fold] @ head_PD)
        return emb_ND


def _passes(fold_N: Ints) -> Iterator[Ints]:
    for fold in np.unique(fold_N):
        rows_N = np.flatnonzero(fold_N == fold)
        yield from np.array_split(rows_N, -(-len(rows_N) // PAIRS_A_PASS))


def save_aligner(folder: Path, aligner: Aligner, about: Mapping[str, object]) -> None:
    """Write the aligner as safetensors, and what it is as JSON; examples in half precision.

    Args:
        folder: made where it is not there.
        aligner: to be written.
        about: JSON-able provenance: towers, settings, counts.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(aligner), folder / TENSORS_NAME)
    (folder / TENSORS_NAME).chmod(0o644)  # safetensors keeps it to its owner; a cache may be shared
    facts = {
        "format": _FORMAT,
        "widths": WIDTHS,
        "left_spread": aligner.bank.left_spread,
        "right_spread": aligner.bank.right_spread,
        "biases": [model.weighing.bias for model in aligner.models],
        "about": dict(about),
    }
    (folder / CONFIG_NAME).write_text(json.dumps(facts, indent=2) + "\n")


def _tensors(aligner: Aligner) -> dict[str, npt.NDArray[np.floating]]:
    shared = {
        "left.map": aligner.left_space.map_XP,
        "left.shift": aligner.left_space.shift_P,
        "right.map": aligner.right_space.map_XP,
        "right.shift": aligner.right_space.shift_P,
        "bank.left": aligner.bank.left_MP.astype(np.float16),
        "bank.right": aligner.bank.right_MP.astype(np.float16),
    }
    own = {
        f"{index}.{name}": tensor
        for index, model in enumerate(aligner.models)
        for name, tensor in (
            ("left", model.heads.left_PD),
            ("right", model.heads.right_PD),
            ("examples", model.weight_M),
            ("weighing", model.weighing.weight_S),
        )
    }
    return {name: np.ascontiguousarray(tensor) for name, tensor in {**shared, **own}.items()}


def load_aligner(folder: Path) -> Aligner:
    """Read what `save_aligner` wrote; scores are equal to about 1e-3, as examples are kept in half precision.

    Raises:
        WeightsError: something is missing, damaged or of another version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        facts = json.loads((folder / CONFIG_NAME).read_text())
        if facts["format"] != _FORMAT or facts["widths"] != [list(pair) for pair in WIDTHS]:
            raise WeightsError(f"{folder}: written by another version of mmdata; fit it again")
        tensors = load_file(folder / TENSORS_NAME)
        return _aligner(facts, tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsError(f"{folder} is no aligner that crossfit wrote: {error}") from error


def _aligner(facts: dict[str, Any], tensors: dict[str, Floats]) -> Aligner:
    models = tuple(
        FoldModel(
            Heads(tensors[f"{index}.left"], tensors[f"{index}.right"]),
            tensors[f"{index}.examples"],
            Weighing(tensors[f"{index}.weighing"], float(bias)),
        )
        for index, bias in enumerate(facts["biases"])
    )
    left_MP, right_MP = tensors["bank.left"].astype(np.float32), tensors["bank.right"].astype(np.float32)
    bank = Bank(left_MP, right_MP, float(facts["left_spread"]), float(facts["right_spread"]))
    left_space = Space(tensors["left.map"], tensors["left.shift"])
    return Aligner(left_space, Space(tensors["right.map"], tensors["right.shift"]), bank, models)
