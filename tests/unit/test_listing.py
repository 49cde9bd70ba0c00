"""The listing: inputs of one key, of sources that find them in files."""

from __future__ import annotations

import pytest

from mmdata.listing import _sorted
from mmdata.steps.base import Discovered
from mmdata.steps.exchange import Input
from mmdata.steps.sources.huggingface import HuggingFace
from mmdata.steps.sources.video import Video
from mmdata.steps.sources.web import Web
from mmdata.steps.sources.webdataset import WebDataset

ROWS = [("b", "3"), ("a", "2"), ("b", "1"), ("b#2", "4"), ("b", "3")]


@pytest.mark.parametrize(
    "source",
    [
        HuggingFace.model_validate({"path": "parquet", "members": {"image": "image"}}),
        Video.model_validate({"files": "x.mp4"}),
        WebDataset.model_validate({"files": "x.tar", "members": {"image": "jpg"}}),
    ],
    ids=lambda source: str(source.step),
)
def test_rows_of_one_key_are_inputs_each_of_its_own(source: Discovered) -> None:
    found = list(_sorted(source, (Input(key, (), {"n": n}) for key, n in ROWS)))
    assert [(one.key, one.attributes["n"], one.problem) for one in found] == [
        ("a", "2", None),
        ("b", "1", None),
        ("b#2", "3", ("duplicate_key", "input 2 with the key 'b'")),
        ("b#3", "3", ("duplicate_key", "input 3 with the key 'b'")),
        ("b#2#2", "4", ("duplicate_key", "input 2 with the key 'b#2'")),
    ]


def test_a_picture_that_several_pages_show_is_one_input() -> None:
    source = Web.model_validate({"seeds": "http://x/"})
    found = list(_sorted(source, (Input(key, (), {"page": n}) for key, n in ROWS)))
    assert sorted((one.key, one.attributes["page"]) for one in found) == [("a", "2"), ("b", "1"), ("b#2", "4")]
    assert not any(one.problem for one in found)
