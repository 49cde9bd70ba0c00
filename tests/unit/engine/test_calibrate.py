from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.build_text import _noise
from mmdata.engine.calibrate import CALIBRATIONS, fit_curves
from mmdata.models.two_groups import Curve, to_json
from mmdata.steps.align.clip import Clip
from mmdata.steps.align.whisper import Whisper
from mmdata.store import sql
from mmdata.store.parts import SCORE_SCHEMA

NO_CHILDREN = "SELECT NULL::VARCHAR AS sample_id, NULL::VARCHAR AS parent_id LIMIT 0"


def part(path: Path, aligner: str, edge: str, rows: list[dict[str, Any]]) -> Path:
    found = [{"sample_id": f"{n:032}", "aligner": aligner, "edge": edge, **row} for n, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(found, SCORE_SCHEMA), path)
    return path


def curve_to(percentile: float) -> str:
    return to_json(Curve((0.0, 1.0), (0.0, percentile)))


@pytest.mark.parametrize(("name", "percentile"), [(None, 0.5), ("other", 0.9), ("third", None)])
def test_a_reference_lends_each_aligner_its_own_curve(tmp_path, name, percentile):
    stored = [
        {"aligner": aligner, "edge": "image_caption", "curve": curve_to(p)}
        for aligner, p in (("clip", 0.5), ("other", 0.9))
    ]
    pq.write_table(pa.Table.from_pylist(stored, CALIBRATIONS), tmp_path / "stored.parquet")
    step = Clip(model="m", name=name, reference=str(tmp_path / "stored.parquet"))
    scores = part(tmp_path / "scores.parquet", step.label, "image_caption", [{"score": 1.0}])
    (fitted,) = fit_curves([step], NO_CHILDREN, {step.label: [scores]}, sql.connect()).fitted
    assert fitted.calibration.curve.percentile_K == (() if percentile is None else (0.0, percentile))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            ["too long", "unknown", "unknown"],
            "0 scores, needs at least 100 to calibrate; 3 not judged, most often: unknown",
        ),
        (["too long", None], "1 scores, needs at least 100 to calibrate; 1 not judged, most often: too long"),
        ([None], "1 scores, needs at least 100 to calibrate"),
    ],
)
def test_what_could_not_be_judged_is_told(tmp_path, rows, problem):
    step = Whisper(model="tiny.en")
    found = [{"score": 1.0} if why is None else {"measures": json.dumps({"skipped": why})} for why in rows]
    scores = part(tmp_path / "scores.parquet", "whisper", "speech_transcript", found)
    (fitted,) = fit_curves([step], NO_CHILDREN, {"whisper": [scores]}, sql.connect()).fitted
    assert fitted.summary()["problem"] == problem.format(few="needs at least 100 to calibrate")


def test_what_could_not_be_judged_is_told_of_calibrated_pairs_too(tmp_path):
    step, random = Whisper(model="tiny.en"), np.random.default_rng(0)
    found: list[dict[str, Any]] = [{"measures": json.dumps({"skipped": "unknown"})}]
    found += [
        {"score": s, "null": n.tolist()}
        for s, n in zip(random.normal(4, 1, 200), random.normal(0, 1, (200, 2)), strict=True)
    ]
    scores = part(tmp_path / "scores.parquet", "whisper", "speech_transcript", found)
    (fitted,) = fit_curves([step], NO_CHILDREN, {"whisper": [scores]}, sql.connect()).fitted
    told = _noise(fitted.summary())
    assert told.startswith("whisper.speech_transcript: 0 % of 200 pairs look mismatched (95 %: 0 to ")
    assert told.endswith(" %); 1 not judged, most often: unknown")
