"""Do all modalities of a sample belong together, and which one is foreign? Evidence of several edges, combined.

A sample of Q members is explained by which of them belong together: all; all but one; ...; none (each hypothesis is a
set of at least two members, or the empty one). Under a hypothesis an edge is matched where both of its ends are in the
set, else mismatched. Given the hypothesis edges are taken as independent, so that its likelihood, over that of "none",
is the product of f1 / f0 over its matched edges (an edge that is missing says nothing: 1). What the hypotheses' shares
are in the corpus is learnt from the ratios themselves (EM for the weights of a mixture of known densities: Dempster,
Laird & Rubin, J. R. Stat. Soc. B 39, 1977).

Dimensions: N samples, E edges, Q members, H hypotheses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]

# The subsets of more members would be thousands: of those only "all", "all but one" and "none" are told apart.
_MOST_MEMBERS = 6
_MOST_SAMPLES, _ROUNDS, _TOLERANCE = 50_000, 500, 1e-6
_ROWS = 65_536
_LOG_LIMIT = 50.0


def learn_shares(ratio_NE: npt.ArrayLike, edges: Sequence[tuple[str, str]]) -> Array:
    """How common each hypothesis is, [H], for `joint_match`; arguments and errors as there."""
    ratios_NE, members = _checked(ratio_NE, edges)
    return _shares(ratios_NE, _matched(members, edges, _hypotheses(len(members))))


def joint_match(
    ratio_NE: npt.ArrayLike, edges: Sequence[tuple[str, str]], share_H: Array | None = None
) -> tuple[Array, Array]:
    """Combine the edges of each sample.

    Args:
        ratio_NE: [N, E] f1 / f0 of each edge (`Calibration.ratio_N`), NaN where the sample lacks the edge.
        edges: [E] the two members of each.
        share_H: what `learn_shares` found in a larger set that these samples are of; None: learnt of these.

    Returns:
        match_N: [N] probability that all members that the sample has belong together, NaN where it has no edge.
        foreign_NQ: [N, Q] probability that a member belongs to no other (none of its edges is matched), members sorted
            by name; NaN where the sample has no edge of it. Of two members that disagree both are foreign.

    Raises:
        ValueError: shapes that do not fit each other, or an edge of a member with itself.
    """
    ratios_NE, members = _checked(ratio_NE, edges)
    in_HQ = _hypotheses(len(members))
    matched_HE = _matched(members, edges, in_HQ)
    incident_EQ = np.array([[member in edge for member in members] for edge in edges], bool).reshape(len(edges), -1)
    if share_H is None:
        share_H = _shares(ratios_NE, matched_HE)
    match_N, foreign_NQ = np.full(len(ratios_NE), np.nan), np.full((len(ratios_NE), len(members)), np.nan)
    for start in range(0, len(ratios_NE), _ROWS):
        part = slice(start, start + _ROWS)
        match_N[part], foreign_NQ[part] = _judge(ratios_NE[part], share_H, matched_HE, in_HQ, incident_EQ)
    return match_N, foreign_NQ


def _checked(ratio_NE: npt.ArrayLike, edges: Sequence[tuple[str, str]]) -> tuple[Array, list[str]]:
    """The ratios, and the members by name. Raises ValueError."""
    ratios_NE = np.asarray(ratio_NE, float)
    if ratios_NE.ndim != 2 or ratios_NE.shape[1] != len(edges):  # noqa: PLR2004 - rows and columns
        raise ValueError(f"ratios have shape {ratios_NE.shape}, need [N, {len(edges)}]")
    if any(left == right for left, right in edges):
        raise ValueError("an edge joins a member with itself")
    return ratios_NE, sorted({member for edge in edges for member in edge})


def _matched(members: Sequence[str], edges: Sequence[tuple[str, str]], in_HQ: Flags) -> Flags:
    """Which edges each hypothesis matches, [H, E]."""
    ends = [(members.index(left), members.index(right)) for left, right in edges]
    matched_HE = np.array([[held[left] and held[right] for left, right in ends] for held in in_HQ], bool)
    return matched_HE.reshape(len(in_HQ), len(edges))


def _hypotheses(members: int) -> Flags:
    """Which members belong together, [H, Q]: all first, none last."""
    sizes = range(members, 1, -1) if members <= _MOST_MEMBERS else (members, members - 1)
    sets = [held for size in sizes for held in combinations(range(members), size)]
    return np.array([[q in held for q in range(members)] for held in [*sets, ()]], bool)


def _posterior(ratio_NE: Array, share_H: Array, matched_HE: Flags) -> Array:
    """[N, H]; computed in logarithms."""
    with np.errstate(divide="ignore"):
        log_NE = np.clip(np.nan_to_num(np.log(ratio_NE), nan=0.0), -_LOG_LIMIT, _LOG_LIMIT)
    log_NH = log_NE @ matched_HE.T + np.log(share_H)
    weight_NH = np.exp(log_NH - log_NH.max(axis=1, keepdims=True))
    return np.asarray(weight_NH / weight_NH.sum(axis=1, keepdims=True))


def _shares(ratio_NE: Array, matched_HE: Flags) -> Array:
    """Shares of the hypotheses [H], by EM over evenly spaced samples that have an edge.

    One pseudo-sample each keeps them above 0. Hypotheses that match the same edges cannot be told apart: EM from
    equal shares leaves them equal.
    """
    known_NE = ratio_NE[~np.isnan(ratio_NE).all(axis=1)]
    chosen = np.unique(np.linspace(0, len(known_NE) - 1, min(len(known_NE), _MOST_SAMPLES)).astype(int))
    share_H = np.full(len(matched_HE), 1 / len(matched_HE))
    if not len(chosen):
        return share_H
    # Shares only scale columns: the likelihoods are computed once.
    likelihood_NH = _posterior(known_NE[chosen], share_H, matched_HE)
    for _ in range(_ROUNDS):
        joint_NH = likelihood_NH * share_H
        new_H = 1 + (joint_NH / joint_NH.sum(axis=1, keepdims=True)).sum(axis=0)
        new_H /= new_H.sum()
        moved = np.abs(new_H - share_H).max()
        share_H = new_H
        if moved < _TOLERANCE:
            break
    return share_H


def _judge(ratio_NE: Array, share_H: Array, matched_HE: Flags, in_HQ: Flags, incident_EQ: Flags) -> tuple[Array, Array]:
    """Match [N] and foreign members [N, Q], pattern by pattern of the edges that are there."""
    posterior_NH = _posterior(ratio_NE, share_H, matched_HE)
    there_NE = ~np.isnan(ratio_NE)
    match_N, foreign_NQ = np.full(len(ratio_NE), np.nan), np.full((len(ratio_NE), in_HQ.shape[1]), np.nan)
    patterns, pattern_N = np.unique(there_NE, axis=0, return_inverse=True)
    for number, there_E in enumerate(patterns):
        rows = np.flatnonzero(pattern_N.ravel() == number)
        if there_E.any():
            # Members that the sample lacks may be anything: what counts is the edges that are there.
            matched_H = matched_HE[:, there_E].all(axis=1)
            match_N[rows] = posterior_NH[np.ix_(rows, np.flatnonzero(matched_H))].sum(axis=1)
            # A member is not foreign where one of its edges is matched, though others may be out.
            edges_EQ = incident_EQ & there_E[:, None]
            held_HQ = (matched_HE.astype(int) @ edges_EQ.astype(int)) > 0
            present_Q = edges_EQ.any(axis=0)
            foreign_NQ[np.ix_(rows, np.flatnonzero(present_Q))] = (posterior_NH[rows] @ ~held_HQ)[:, present_Q]
    return np.clip(match_N, 0, 1), np.clip(foreign_NQ, 0, 1)
