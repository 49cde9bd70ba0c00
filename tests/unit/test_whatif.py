"""Where a rule that is asked about is put."""

from __future__ import annotations

from typing import Any

import pytest

from mmdata.whatif import _put_rule

CLUSTERS: dict[str, Any] = {"clusters": {"of": "clip.image"}}


@pytest.mark.parametrize(
    ("curate", "place"),
    [
        (None, 0),
        (["splits"], 0),
        ([CLUSTERS, {"quota": {"by": "clusters.cluster", "most": 1}}], 1),
        ([CLUSTERS], 1),
        ([{"quota": {"by": "source", "most": 1}}, CLUSTERS], 0),
    ],
)
def test_the_first_rule_is_asked_before_all_that_decides_and_after_what_it_may_speak_of(
    curate: list[Any] | None, place: int
) -> None:
    spec = {"curate": curate}
    assert _put_rule(spec, "near", "clusters.distance < 0.5") == ("curate", place, "rules", "keep", "near")
    assert spec["curate"] == [
        *(curate or [])[:place],
        {"rules": {"keep": {"near": "clusters.distance < 0.5"}}},
        *(curate or [])[place:],
    ]
