"""A small finished build, made step by step in this process: nine scenes of coloured squares, two of them bad."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mmdata.engine import children, decide, ingest, work
from mmdata.plan import Plan, plan_to_build
from mmdata.store import catalog, shards
from mmdata.store.selection import read_shard_plans

SPEC = """name: squares
sources:
  - files:
      root: media
      members:
        image: "{stem}.png"
        caption: {path: "{stem}.txt", lang: en}
        note: {path: "{stem}.note.txt", required: false}
augment:
  - joint: {name: flip, apply: [HorizontalFlip]}
curate:
  - duplicates: {of: [image, caption]}
  - rules: {keep: {wide: image.width >= 8}}
  - splits: {shares: {train: 0.5, val: 0.5}}
write:
  - webdataset: {samples_per_shard: 3}
engine: {part_samples: 4}
"""
Build = Callable[..., Plan]


def draw(media: Path) -> None:
    media.mkdir()
    for n in range(8):
        Image.new("RGB", (4 if n == 3 else 16, 8), (30 * n, 0, 0)).save(media / f"s{n}.png")
        (media / f"s{n}.txt").write_text(f"square {n}" if n != 5 else "square on the left, alright")
    (media / "s8.png").write_bytes((media / "s0.png").read_bytes())
    (media / "s8.txt").write_text("square 0")
    (media / "s1.png").write_bytes(b"none")
    (media / "s2.txt").unlink()
    (media / "s4.note.txt").write_text("noted")


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Build into a folder as the engine does, without its processes."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "media")
    (tmp_path / "p.yaml").write_text(SPEC)

    def run(output: Path, *overrides: str, upto: str = "write") -> Plan:
        with plan_to_build(Path("p.yaml"), overrides, output) as plan:
            pipeline = plan.pipeline
            names = plan.selection, plan.gathering
            build = catalog.Build("squares", *names, plan.base_parts(), plan.score_parts(), [], [])
            catalog.describe_build(output, build)
            assert plan.listing is not None
            for chunk in plan.chunks:
                base = plan.part("ingest", chunk.fingerprint)
                ingest.ingest_part(ingest.Slice.of(plan, chunk), pipeline.ingest, base, {})
                for step in pipeline.augment:
                    out = plan.part(step.label, plan.child(step, chunk.fingerprint))
                    children.augment_part(step, pipeline.spec.seed, children.Known(base, {}, ()), out, {})
            if upto == "ingest":
                return plan
            for function in (decide.gather, decide.decide):
                function(plan, output / "scratch", 1_000_000_000)
                shutil.rmtree(output / "scratch")
            plans = read_shard_plans(plan.decided)
            for shard in plans:
                work.write_one(output, plan.gathered, plan.decided, shard)
            members = {name: (declared.modality, declared.lang) for name, declared in pipeline.members.items()}
            shards.write_manifest(output, "squares", plan.selection, plans, members, {})
            return plan

    return run
