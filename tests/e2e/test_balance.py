"""`pipelines/balanced.yaml` on real prompts: a quantile, a quota, splits that do not leak, and what would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow
SPEC = Path(__file__).parents[2] / "pipelines" / "balanced.yaml"
FAMILY = "regexp_extract(s.key, '^[a-z]+')"
SPLIT_BY_ID = ("--set", "curate.splits.by=sample_id", "--set", "curate.splits.links=[]")


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory, prompts_dir: Path, build_once):
    return build_once(tmp_path_factory.mktemp("balanced"), **yaml.safe_load(SPEC.read_text()))


def test_a_quota_is_kept_and_a_quantile_is_what_it_says(balanced) -> None:
    families = balanced.query(
        f"SELECT {FAMILY} AS family, count(*) AS n, count(*) FILTER (WHERE fate = 'kept') AS kept "
        "FROM samples s GROUP BY 1 ORDER BY n DESC"
    )
    assert [row["kept"] for row in families if row["n"] > 70] == [40, 40]  # vm-, digits-
    assert max(row["kept"] for row in families) == 40
    places = balanced.query("SELECT value, threshold FROM fates WHERE step = 'quota' AND value <= threshold")
    assert places == []
    share = balanced.query(
        """SELECT count(*) AS all_of_them, count(*) FILTER (WHERE t.chars / a.duration_s >= q.threshold) AS best
        FROM members t JOIN members a USING (sample_id)
        CROSS JOIN (SELECT DISTINCT threshold FROM fates WHERE rule = 'not_drawn_out') q
        WHERE t.name = 'transcript' AND a.name = 'speech'"""
    )[0]
    # The highest 95 %, and who equals the last of them.
    assert 0.95 * share["all_of_them"] <= share["best"] <= 0.96 * share["all_of_them"]


def test_nothing_straddles_and_without_keys_it_would(balanced) -> None:
    straddling = """SELECT count(*) AS n FROM links l JOIN samples a USING (sample_id)
        JOIN samples b ON b.sample_id = l.other_id WHERE a.split <> b.split"""
    said = """SELECT count(*) AS n FROM (SELECT lower(text) FROM members JOIN samples USING (sample_id)
        WHERE name = 'transcript' GROUP BY 1 HAVING count(DISTINCT split) > 1)"""
    assert balanced.query("SELECT count(*) > 50 AS many FROM links") == [{"many": True}]
    assert balanced.query(straddling) == balanced.query(said) == [{"n": 0}]
    manifest = json.loads((balanced.folder / "out/shards/manifest.json").read_text())
    assert [row["samples"] for row in manifest["crossings"]] == [0] * 6

    again = balanced.build(*SPLIT_BY_ID).stdout
    assert "samples of val have a twin in train, by minhash.transcript" in again
    assert "samples moved to another split since the last build" in again
    assert balanced.query(straddling)[0]["n"] > 0
    assert balanced.query("SELECT count(*) > 0 AS some FROM moved WHERE split_before <> split") == [{"some": True}]
