from __future__ import annotations

from collections import Counter

import pytest

from mmdata.engine.events import StepProgress, describe


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ({"bad_image": 2, "too_long": 1}, "3 failed (bad_image 2, too_long 1)"),
        ({"a": 5, "b": 4, "c": 3, "d": 2, "e": 1}, "15 failed (a 5, b 4, c 3, other 3)"),
    ],
)
def test_reasons_that_are_told_add_up_to_what_failed(reasons: dict[str, int], expected: str):
    step = StepProgress("ingest", "parts", 2, 1, 0, failed=sum(reasons.values()), reasons=Counter(reasons))
    assert describe(step) == f"ingest      1/2 parts  {expected}"
