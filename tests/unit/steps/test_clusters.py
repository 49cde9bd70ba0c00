"""Clusters: a column of the candidates that quotas and rules can use."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from candidates import COLUMNS, Row, fates, loaded

from mmdata import whatif
from mmdata.errors import FatalError
from mmdata.near.cells import fit_centres, nearest_centre
from mmdata.spec import ParameterError
from mmdata.steps.curate.clusters import Clusters
from mmdata.steps.curate.quota import Quota
from mmdata.steps.curate.rules import Rules
from mmdata.store.curation import SCORE_PARTS, Curation
from mmdata.store.parts import write_vectors

ROWS = [Row(f"k{n}", f"c{n}") for n in range(60)]
CLUSTERS = Clusters(of="clip.image", count=3)


def around(number: int) -> np.ndarray:
    """A vector of length 1 near one of three axes: 40 samples, 15, 5."""
    axis = 0 if number < 40 else 1 if number < 55 else 2
    vector_D = np.random.default_rng(number).normal(0, 0.05, 8)
    vector_D[axis] += 1
    return vector_D / np.linalg.norm(vector_D)


def embedded(folder: Path, rows: list[Row]) -> Curation:
    """With embeddings of the first 60 in two parts."""
    curation = loaded(folder, rows)
    for part, span in (("a", range(30)), ("b", range(30, 60))):
        write_vectors(folder / f"{part}.parquet", {"image": [(ROWS[n].sample_id, around(n)) for n in span]})
    named = {"clip": [f"{folder.name}/a.parquet", f"{folder.name}/b.parquet"]}
    (folder / "gathered" / SCORE_PARTS).write_text(json.dumps(named))
    return curation


def clusters(curation: Curation, rows: list[Row]) -> dict[str, int | None]:
    names = {row.sample_id: row.key + ("'" if row.parent else "") for row in rows}
    found = curation.connection.execute("SELECT sample_id, clusters.cluster FROM undecided").fetchall()
    return {names[sample]: cluster for sample, cluster in found}


def test_samples_get_the_cluster_of_their_embedding_and_children_their_parents(tmp_path: Path) -> None:
    rows = [*ROWS, Row("k0", "c0", parent="k0"), Row("none")]
    curation = embedded(tmp_path / "x", rows)
    CLUSTERS.apply(curation)
    found = clusters(curation, rows)
    kinds = [{found[f"k{n}"] for n in span} for span in (range(40), range(40, 55), range(55, 60))]
    assert sorted(kinds, key=str) == [{0}, {1}, {2}]
    assert found["k0'"] == found["k0"]
    assert found["none"] is None
    distance = curation.one(f"SELECT clusters.distance FROM candidates WHERE sample_id = '{ROWS[0].sample_id}'")
    assert 0 < distance < 0.1


def test_the_plans_check_leaves_the_connection_free_for_what_follows(tmp_path: Path) -> None:
    curation = embedded(tmp_path / "x", ROWS)
    assert curation.one("SELECT count(*) FROM candidates") == len(ROWS)
    CLUSTERS.apply(curation)
    assert len(clusters(curation, ROWS)) == len(ROWS)


def test_a_quota_by_cluster_and_a_rule_on_the_distance(tmp_path: Path) -> None:
    curation = embedded(tmp_path / "x", ROWS)
    for step in (CLUSTERS, Quota(by=["clusters.cluster"], most=10), Rules(keep={"far": "clusters.distance >= 0"})):
        step.apply(curation)
    out = fates(curation, ROWS)
    assert {fate[3] for fate in out.values()} == {10.0}
    kept = [n for n in range(60) if f"k{n}" not in out]
    assert [sum(n in span for n in kept) for span in (range(40), range(40, 55), range(55, 60))] == [10, 10, 5]


def test_whatif_sees_the_column(tmp_path: Path) -> None:
    build = embedded(tmp_path / "x", ROWS)
    CLUSTERS.apply(build)
    last = build.one("SELECT count(*) FROM candidates WHERE clusters.cluster = 2")
    near = Rules(keep={"near": "clusters.cluster <= 1"})
    spec = SimpleNamespace(seed=0, engine=SimpleNamespace(memory=1 << 30))
    pipeline: Any = SimpleNamespace(columns=COLUMNS, spec=spec, curate=[CLUSTERS, near])
    with whatif._opened(pipeline, tmp_path / "x" / "gathered", tmp_path / "scratch") as curation:
        assert dict(whatif._alone(curation, pipeline)) == {"near": last}
        assert whatif._curve(curation, "clusters.cluster")[-1] == (1.0, 2.0, last)


def test_it_is_fitted_once_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = embedded(tmp_path / "x", ROWS)
    CLUSTERS.apply(first)
    again = embedded(tmp_path / "y", list(reversed(ROWS)))
    CLUSTERS.apply(again)
    assert clusters(first, ROWS) == clusters(again, ROWS)
    monkeypatch.setattr(Clusters, "_cluster", None)
    kept = Curation.open(COLUMNS, 0, tmp_path / "x" / "gathered", tmp_path / "x", "1GB")
    CLUSTERS.apply(kept)
    assert clusters(kept, ROWS) == clusters(first, ROWS)
    other = Curation.open(COLUMNS, 1, tmp_path / "x" / "gathered", tmp_path / "x", "1GB")
    with pytest.raises(TypeError):  # another seed fits anew
        CLUSTERS.apply(other)


def test_a_sample_of_the_originals_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdata.near.cells.POINTS_PER_CENTRE", 10)
    curation = embedded(tmp_path / "x", ROWS)
    sampled_ND = CLUSTERS._sampled(curation, curation.score_parts("clip"))
    assert 18 <= len(sampled_ND) <= 42
    CLUSTERS.apply(curation)
    assert len(clusters(curation, ROWS)) == 60


def test_an_aligner_without_embeddings_stops_the_build(tmp_path: Path) -> None:
    curation = embedded(tmp_path / "x", ROWS)
    with pytest.raises(FatalError, match="keeps no embeddings of 'caption'"):
        Clusters(of="clip.caption").apply(curation)


@pytest.mark.parametrize(
    ("step", "place", "message"),
    [
        (Clusters(of="clpi.image"), "of", "no aligner is called 'clpi'; did you mean 'clip'?"),
        (Clusters(of="clip.imgae"), "of", "no member is called 'imgae'; did you mean 'image'?"),
        (Clusters(of="clip.image", name="clip"), "name", "the candidates have a column 'clip'"),
    ],
)
def test_a_plan_says_what_is_wrong_with_clusters(step: Clusters, place: str, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        step.check(Curation.empty(COLUMNS))
    ((keys, sentence),) = error.value.problems
    assert keys == (place,)
    assert message in sentence


def test_a_plan_binds_what_follows_to_the_column() -> None:
    curation = Curation.empty(COLUMNS)
    CLUSTERS.check(curation)
    Quota(by=["clusters.cluster"], most=1).check(curation)
    with pytest.raises(ParameterError, match="clutser"):
        Quota(by=["clusters.clutser"], most=1).check(curation)


def test_centres_are_the_same_on_any_number_of_threads() -> None:
    import faiss

    vector_ND = np.stack([around(n) for n in range(60)])
    threads = faiss.omp_get_max_threads()
    found = []
    for count in (1, 2):
        faiss.omp_set_num_threads(count)
        found.append(nearest_centre(vector_ND, fit_centres(vector_ND, 3, 0))[0].tolist())
    faiss.omp_set_num_threads(threads)
    assert found[0] == found[1]
