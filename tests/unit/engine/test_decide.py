"""What is gathered depends on no rule, and on everything else; blocks are whole chunks."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.engine.decide import blocks, sql_memory
from mmdata.plan import Plan, make_plan
from mmdata.store.curation import Rows

SPEC = """name: t
sources:
  - files: {root: media, members: {image: "{stem}.png", caption: "{stem}.txt"}}
curate:
  - rules: {keep: {wide: image.width >= 8}}
"""


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "media").mkdir()
    for name in ("a.png", "a.txt"):
        (tmp_path / "media" / name).write_text("x")
    Path("p.yaml").write_text(SPEC)

    def plan(*overrides: str) -> Plan:
        return make_plan(Path("p.yaml"), overrides)

    return plan


@pytest.mark.parametrize(
    ("change", "gathers", "decides"),
    [
        ("curate.rules.keep.wide=image.width >= 9", False, True),
        ("write=[{webdataset: {samples_per_shard: 7}}]", False, True),
        ("engine.memory=1GB", False, False),
        ("seed=1", True, True),
        ("write=[{webdataset: {members: [caption]}}]", True, True),
        ("ingest=[{image: {max_bytes: 1000}}]", True, True),
    ],
)
def test_a_change_does_again_what_it_must(planned, change, gathers, decides):
    before, after = planned(), planned(change)
    assert (before.gathering != after.gathering, before.selection != after.selection) == (gathers, decides)


def test_blocks_are_whole_chunks_and_what_they_share_stands_once(tmp_path):
    chunks = []
    for number, rows in enumerate([3, 4, 1, 9, 2]):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"sample_id": ["x"] * rows}), path)
        chunks.append(Rows([path], [path.with_suffix(".scores"), Path("fit")]))
    found = [[path.stem for path in block.base] for block in blocks(chunks, 7)]
    assert found == [["0", "1"], ["2", "3"], ["4"]]
    (first, *_) = blocks(chunks, 7)
    assert [path.name for path in first.scores] == ["0.scores", "fit", "1.scores"]


def test_duckdb_gets_half():
    assert sql_memory(4_000_000_000) == "2000MB"
