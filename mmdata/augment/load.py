"""A policy as JSON: what a pipeline file says, what travels with the shards, what a child's record has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdata.augment.base import Sides
from mmdata.augment.policy import Entry, Others, Policy, nobody
from mmdata.augment.registry import operator
from mmdata.augment.view import Notes
from mmdata.sample import Sample


def load_policy(spec: Mapping[str, Any]) -> Policy:
    """A policy of `label`, `apply` (each with `op`, `params`, `p`), and what `Notes` has, by their names.

    Raises ValueError.
    """
    entries = [Entry(operator(one["op"], one["params"]), one["params"], one.get("p", 1.0)) for one in spec["apply"]]
    sides = {
        name: Sides(tuple(map(tuple, one.get("swap") or ())), tuple(one.get("negate") or ()))
        for name, one in (spec.get("sides") or {}).items()
    }
    notes = Notes(
        spec.get("boxes") or {},
        spec.get("times") or {},
        spec.get("spoken"),
        sides,
        spec.get("film_boxes") or {},
        frozenset(spec.get("written") or ()),
        spec.get("masks") or {},
        spec.get("heard") or {},
    )
    return Policy(spec["label"], entries, notes)


def replay(sample: Sample, spec: Mapping[str, Any], child: Mapping[str, Any], others: Others = nobody) -> Sample:
    """The child that a shard's JSON describes (`variant`, `augmentation`), from its parent: the same bytes.

    Args:
        sample: the parent.
        spec: the policy, for what it says of notes.
        child: the JSON of the child's sample.
        others: finds the other parent of a mixed child.

    Raises SampleError where an operator cannot be applied again, ValueError where one is unknown here.
    """
    record = child["augmentation"]
    policy = load_policy({**spec, "apply": record["applied"]})
    return policy.replay(sample, record, child["variant"], others)
