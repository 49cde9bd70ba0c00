"""Score how well the two ends of pairs agree, with nothing but the pairs: no pair is judged by what has seen it.

Features of frozen towers come in. Pairs are cut into folds; for each, heads and the weights of examples come from the
other folds alone. Mismatched pairs among them are found in rounds: what the rest does not support counts less in the
next. Nulls (a left with the right of another pair of the fold) go through the very same formula, so that a mismatched
pair and a null have one distribution, which calibration builds on.

Pairs come in an order that is theirs (sorted by id): folds and nulls follow from it and the seed.

Shapes: N pairs, F left features, E right features, M examples, K folds, S kinds of evidence, R nulls of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from mmdata.models.crossfit_aligner import PAIRS_A_PASS, Aligner, Block, FoldModel, judge
from mmdata.models.crossfit_bank import Bank, evidence, kernels, make_bank
from mmdata.models.crossfit_folds import assign_folds, cut_blocks, draw_partners, number_pairs, pick, to_local
from mmdata.models.crossfit_heads import Floats, Heads, Ints, Weighing, fit_heads, fit_space, fit_weighing

__all__ = ["Aligner", "Crossfit", "CrossfitConfig", "Examples", "Features", "FoldFit", "crossfit", "fit_fold"]

# The median null stands above half of the mismatched pairs and above hardly any matched one.
_MISMATCHED_BELOW_MEDIAN: Final = 0.5
# Nulls of each example while fitting: a weighing has seven coefficients.
_FIT_NULLS: Final = 3


class Each(Protocol):
    """`map`, or `Executor.map` of a process pool: what runs independent pieces of work."""

    def __call__(self, work: Callable[[Any], Any], pieces: Iterable[Any], /) -> Iterable[Any]:
        """Give the results in the order of the pieces."""
        ...


@dataclass(frozen=True)
class CrossfitConfig:
    """Settings, chosen on clip-art with 20 and 60 % of captions shuffled (seed 0); stamps were never looked at.

    Attributes:
        folds: K.
        seed: of folds, of the choice of examples, of nulls.
        rounds: passes over the examples; the first believes every pair.
        nulls: R.
        max_examples: M at most: bounds memory (two kernels of 1,024 x M at a time) and time (N x M).
        components: of each side's space, at most.
        left_whitening: power of the left components' standard deviation that is divided out.
        right_whitening: the same on the right.
        embed_dim: D, of the heads.
        ridge: of the heads, in units of mean variance.
    """

    folds: int = 5
    seed: int = 0
    rounds: int = 4
    nulls: int = 8
    max_examples: int = 20_000
    components: int = 256
    left_whitening: float = 0.25
    right_whitening: float = 0.0
    embed_dim: int = 128
    ridge: float = 3.0


@dataclass(frozen=True)
class Features:
    """Pairs as the towers see them.

    Attributes:
        left_NF: of any float type.
        right_NE: of any float type.
        left_id_N: equal where the lefts are the same (equal digests).
        right_id_N: equal where the rights are the same (equal texts).
        stratum_N: nulls stay within one (a language); None: all pairs are of one.
    """

    left_NF: npt.NDArray[np.floating]
    right_NE: npt.NDArray[np.floating]
    left_id_N: Ints
    right_id_N: Ints
    stratum_N: Ints | None = None

    def ids(self) -> Ints:
        """`left_id_N` and `right_id_N`, int64 `[2, N]`."""
        return np.stack([self.left_id_N, self.right_id_N])

    def strata(self) -> Ints:
        """`stratum_N`, zeros where it is None."""
        return np.zeros(len(self.left_NF), np.int64) if self.stratum_N is None else self.stratum_N


@dataclass(frozen=True)
class Examples:
    """What folds are fitted on and, in every round, judged by: the bank's pairs. Arrays have M rows.

    Attributes:
        bank: their places in both spaces.
        fold_M: the fold of each.
        block_M: pairs that are judged in one pass share one; each is of one fold and one stratum.
        partner_MR: nulls, as row numbers; `NO_PARTNER` where there is none.
        config: settings.
    """

    bank: Bank
    fold_M: Ints
    block_M: Ints
    partner_MR: Ints
    config: CrossfitConfig


@dataclass(frozen=True)
class FoldFit:
    """What one fold's examples look like to heads and examples of the other folds.

    Attributes:
        heads: fitted on the others, by their weights.
        observed_NS: evidence of the fold's own examples.
        null_NS: evidence of their nulls, one after another.
        rest_MS: kernel evidence of all examples with those of this fold left out: what the next weights come from.
    """

    heads: Heads
    observed_NS: Floats
    null_NS: Floats
    rest_MS: Floats


@dataclass(frozen=True)
class Crossfit:
    """Scores of all pairs, each out of fold, and what scores further ones.

    Attributes:
        fold_N: the fold of each pair.
        own_N: each pair's row among the examples, -1 where it is none.
        score_N: log of how much likelier the evidence is for an observed pair than for a null; higher agrees better.
        null_NR: the same for the left with the rights of `partner_NR`; NaN where there is no partner.
        partner_NR: row numbers; -1 where a pair's block holds none with another left and another right.
        match_prob_N: estimated chance that the pair matches.
        mismatched_share: estimated share of mismatched pairs.
        aligner: scores and embeds with any fold's model, or with that of all (`aligner.everyone`).
    """

    fold_N: Ints
    own_N: Ints
    score_N: Floats
    null_NR: Floats
    partner_NR: Ints
    match_prob_N: Floats
    mismatched_share: float
    aligner: Aligner


def can_hold_out(features: Features, config: CrossfitConfig) -> bool:
    """Whether there are pairs enough for `crossfit`: beside those of the commonest left, or right, two a fold."""
    ends_2G = np.unique(features.ids(), axis=1)
    return all(len(ids_G) - np.bincount(ids_G).max(initial=0) >= 2 * config.folds for ids_G in ends_2G)


def crossfit(features: Features, config: CrossfitConfig, each: Each = map) -> Crossfit:
    """Fit and score.

    Args:
        features: of different pairs, see `can_hold_out`; some hundred for scores that say anything.
        config: settings.
        each: runs the folds of a round; an executor's `map` runs them in parallel.

    Raises:
        ValueError: there are too few different pairs to hold any out, see `can_hold_out`.
    """
    if not can_hold_out(features, config):
        raise ValueError(f"too few different pairs for {config.folds} folds")
    ids_2N = features.ids()
    copy_N = number_pairs(ids_2N)
    fold_N = assign_folds(copy_N, config.folds, config.seed)
    block_N = cut_blocks(fold_N, features.strata(), config.seed, PAIRS_A_PASS)
    chosen_M, own_N = _choose_examples(copy_N, config)
    left_space = fit_space(features.left_NF[chosen_M], config.components, config.left_whitening)
    right_space = fit_space(features.right_NE[chosen_M], config.components, config.right_whitening, shift=False)
    bank = make_bank(left_space(features.left_NF[chosen_M]), right_space(features.right_NE[chosen_M]))
    partner_MR = draw_partners(block_N[chosen_M], ids_2N[:, chosen_M], _FIT_NULLS, config.seed)
    examples = Examples(bank, fold_N[chosen_M], block_N[chosen_M], partner_MR, config)
    aligner = Aligner(left_space, right_space, bank, _fit_models(examples, each))
    partner_NR = draw_partners(block_N, ids_2N, config.nulls, config.seed)
    score_N, null_NR = _score_all(aligner, features, (fold_N, block_N, own_N), partner_NR, each)
    share = mismatched_share(score_N, null_NR[np.isfinite(null_NR)])
    return Crossfit(fold_N, own_N, score_N, null_NR, partner_NR, match_prob(score_N, share), share, aligner)


def mismatched_share(score_N: Floats, null_N: Floats) -> float:
    """Estimate the share of mismatched pairs from where their scores lie against nulls: 0 to 1, somewhat too high."""
    if not len(null_N):
        return 0.0
    return float(min(1.0, (score_N < np.median(null_N)).mean() / _MISMATCHED_BELOW_MEDIAN))


def match_prob(score_N: Floats, share: float) -> Floats:
    """Chance that a pair matches, given its score (a log likelihood ratio against nulls), float32 `[N]`.

    `p(observed) = share * p(null) + (1 - share) * p(matched)`, solved for the last term's part (Elkan and Noto 2008).
    """
    prob_N: Floats = np.clip(1 - share * np.exp(-np.clip(score_N, -30, 30)), 0, 1).astype(np.float32)
    return prob_N


def fit_fold(examples: Examples, fold: int, weight_M: Floats) -> FoldFit:
    """Fit one fold's heads on the other folds and gather evidence of its own examples; needs no other fold's result.

    Args:
        examples: of all folds.
        fold: whose pairs are held out.
        weight_M: belief in each example, which no pair of the fold has had a part in.
    """
    bank, config = examples.bank, examples.config
    rest_M = np.append(np.where(examples.fold_M == fold, 0, weight_M), 0).astype(np.float32)
    heads = fit_heads(bank.left_MP, bank.right_MP, rest_M, config.embed_dim, config.ridge)
    whole_M = np.append(weight_M, 0).astype(np.float32)
    judged = [judge(bank, heads, whole_M, _block_of(examples, rows_N)) for rows_N in _blocks(examples, fold)]
    nulls = [null_NRS[np.isfinite(null_NRS).all(axis=-1)] for _, null_NRS in judged]
    observed_NS = np.concatenate([found_NS for found_NS, _ in judged])
    return FoldFit(heads, observed_NS, np.concatenate(nulls), _rest_evidence(bank, rest_M))


def _choose_examples(copy_N: Ints, config: CrossfitConfig) -> tuple[Ints, Ints]:
    """Rows of the examples, none the copy of another, and for each pair the example that it equals (-1: none)."""
    chosen_M = pick(copy_N, config.max_examples, config.seed)
    example_of = np.full(int(copy_N.max()) + 1, -1)
    example_of[copy_N[chosen_M]] = np.arange(len(chosen_M))
    return chosen_M, example_of[copy_N]


def _blocks(examples: Examples, fold: int) -> Iterator[Ints]:
    """Rows of the fold's examples, a pass each."""
    for block in np.unique(examples.block_M[examples.fold_M == fold]):
        yield np.flatnonzero(examples.block_M == block)


def _block_of(examples: Examples, rows_N: Ints) -> Block:
    local_NR = to_local(examples.partner_MR[rows_N], rows_N)
    return Block(examples.bank.left_MP[rows_N], examples.bank.right_MP[rows_N], rows_N, local_NR)


def _rest_evidence(bank: Bank, rest_M: Floats) -> Floats:
    found = []
    for rows_N in np.array_split(np.arange(len(rest_M) - 1), -(-len(rest_M) // PAIRS_A_PASS)):
        near = kernels(bank, bank.left_MP[rows_N], bank.right_MP[rows_N], rows_N)
        found.append(evidence(near, rest_M))
    return np.concatenate(found)


def _fit_models(examples: Examples, each: Each) -> tuple[FoldModel, ...]:
    """Rounds over the folds: what the other folds do not support counts less in the next."""
    folds, examples_count = examples.config.folds, len(examples.fold_M)
    weight_KM = np.ones((folds, examples_count), np.float32)
    fits = _run(examples, weight_KM, each)
    for _ in range(examples.config.rounds - 1):
        weight_KM = np.stack([_believe(examples, fits, fold) for fold in range(folds)])
        fits = _run(examples, weight_KM, each)
    models = [
        FoldModel(fits[fold].heads, np.append(weight_KM[fold], np.float32(0)), _weigh(fits, fold))
        for fold in range(folds)
    ]
    return (*models, _model_of_all(examples, fits))


def _run(examples: Examples, weight_KM: Floats, each: Each) -> list[FoldFit]:
    return list(each(partial(_fit_piece, examples), enumerate(weight_KM)))


def _fit_piece(examples: Examples, piece: tuple[int, Floats]) -> FoldFit:
    return fit_fold(examples, *piece)


def _weigh(fits: Sequence[FoldFit], fold: int | None, kinds: slice = slice(None)) -> Weighing:
    """A weighing of some kinds of evidence, fitted without the fold's (None: with all)."""
    others = [fit for index, fit in enumerate(fits) if index != fold]
    observed_NS = np.concatenate([fit.observed_NS[:, kinds] for fit in others])
    return fit_weighing(observed_NS, np.concatenate([fit.null_NS[:, kinds] for fit in others]))


# The heads saw the examples of other folds: only the kernels, which leave out what they judge, can tell of them.
_KERNELS_ONLY: Final = slice(0, -1)


def _believe(examples: Examples, fits: Sequence[FoldFit], fold: int) -> Floats:
    """Belief in each example, to judge the fold's pairs by: nothing of them enters."""
    weighing = _weigh(fits, fold, _KERNELS_ONLY)
    score_M = weighing(fits[fold].rest_MS)
    others = [fit for index, fit in enumerate(fits) if index != fold]
    null_N = weighing(np.concatenate([fit.null_NS[:, _KERNELS_ONLY] for fit in others]))
    return match_prob(score_M, mismatched_share(score_M[examples.fold_M != fold], null_N))


def _model_of_all(examples: Examples, fits: Sequence[FoldFit]) -> FoldModel:
    """For pairs that are none of these: every example counts, by its own out-of-fold score."""
    bank, config, weight_M = examples.bank, examples.config, np.zeros(len(examples.fold_M) + 1, np.float32)
    null_N = np.concatenate([_weigh(fits, fold)(fit.null_NS) for fold, fit in enumerate(fits)])
    score_M = np.empty(len(examples.fold_M), np.float32)
    for fold, fit in enumerate(fits):
        score_M[np.concatenate(list(_blocks(examples, fold)))] = _weigh(fits, fold)(fit.observed_NS)
    weight_M[:-1] = match_prob(score_M, mismatched_share(score_M, null_N))
    heads = fit_heads(bank.left_MP, bank.right_MP, weight_M, config.embed_dim, config.ridge)
    return FoldModel(heads, weight_M, _weigh(fits, None))


def _score_all(
    aligner: Aligner, features: Features, where: tuple[Ints, Ints, Ints], partner_NR: Ints, each: Each
) -> tuple[Floats, Floats]:
    """Score all pairs and their nulls, block by block."""
    fold_N, block_N, own_N = where
    order_N = np.argsort(block_N, kind="stable")
    blocks = np.split(order_N, np.flatnonzero(np.diff(block_N[order_N])) + 1)
    pieces = (
        (
            features.left_NF[rows_N],
            features.right_NE[rows_N],
            own_N[rows_N],
            to_local(partner_NR[rows_N], rows_N),
            int(fold_N[rows_N[0]]),
        )
        for rows_N in blocks
    )
    score_N, null_NR = np.empty(len(fold_N), np.float32), np.empty(partner_NR.shape, np.float32)
    for rows_N, (own_score_N, own_null_NR) in zip(blocks, each(partial(_score_piece, aligner), pieces), strict=True):
        score_N[rows_N], null_NR[rows_N] = own_score_N, own_null_NR
    return score_N, null_NR


def _score_piece(aligner: Aligner, piece: tuple[Any, Any, Ints, Ints, int]) -> tuple[Floats, Floats]:
    return aligner.score_with_nulls(*piece)
