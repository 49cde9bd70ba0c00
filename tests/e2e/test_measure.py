"""Measures of another package, through the command line: values, reasons, links, rules over them, children, deaths."""

from __future__ import annotations

import pytest
from PIL import Image

PLUGIN = '''
import os
import signal
from typing import ClassVar

import pyarrow as pa

from mmdata.errors import SampleError
from mmdata.steps.base import Linked, Measure
from mmdata.store.links import LINKS


class Ruler(Measure):
    """Measures the first word."""

    step: ClassVar[str] = "ruler"
    modality: ClassVar = "text"

    def columns(self):
        """Of any type."""
        return {"first": "VARCHAR", "letters": "INTEGER", "shares": "FLOAT[]", "odd": "BOOLEAN", "none": "DOUBLE"}

    def load(self):
        """Says which process it is."""
        return os.getpid()

    def measure(self, tool, member):
        """The first word."""
        assert tool == os.getpid()
        if "killer" in member.text:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "silent" in member.text:
            raise SampleError("no_words", "it says nothing")
        first = member.text.split()[0]
        return {
            "first": first,
            "letters": len(first),
            "shares": [0.5, 1.25],
            "odd": len(first) % 2 == 1,
            "none": float("nan"),
        }


class Close(Linked):
    """Links pictures of nearly the same brightness."""

    step: ClassVar[str] = "close"
    modality: ClassVar = "image"
    reach: int = 3

    def columns(self):
        """The red of a pixel."""
        return {"red": "INTEGER"}

    def measure(self, tool, member):
        """The red of a pixel."""
        import io

        from PIL import Image

        return {"red": Image.open(io.BytesIO(member.data)).convert("RGB").getpixel((0, 0))[0]}

    def link(self, found, folder):
        """All pairs, and a reference item whose red is 200."""
        assert folder.is_dir()
        (member,) = self.of
        rows = pa.concat_tables(found.tables(member)).sort_by("sample_id").to_pylist()
        links = [
            {"sample_id": a["sample_id"], "other_id": b["sample_id"], "distance": abs(a["red"] - b["red"])}
            for n, a in enumerate(rows)
            for b in rows[n + 1 :]
        ]
        links += [
            {"sample_id": a["sample_id"], "other_id": "item", "distance": 200 - a["red"], "other_source": "eval"}
            for a in rows
            if a["red"] < 200
        ]
        links = [{"member": member, **link} for link in links if link["distance"] <= self.reach]
        yield pa.Table.from_pylist(links, LINKS)
'''
REDS = {"a": 10, "b": 12, "c": 15, "d": 100, "e": 198}
CAPTIONS = {"a": "one two", "b": "three four", "c": "silent", "d": "four", "e": "fifth one left"}


@pytest.fixture
def ruled(cli):
    """Five pictures with captions, and the package."""
    info = cli.folder / "site" / "ruler-1.0.dist-info"
    info.mkdir(parents=True)
    (cli.folder / "site" / "ruler.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ruler\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmdata.steps]\nruler = ruler:Ruler\nclose = ruler:Close\n")
    cli.env["PYTHONPATH"] = f"{cli.folder / 'site'}:{cli.env.get('PYTHONPATH', '')}"
    for stem, red in REDS.items():
        Image.new("RGB", (8, 8), (red, 0, 0)).save(cli.folder / "media" / f"{stem}.png")
        (cli.folder / "media" / f"{stem}.txt").write_text(CAPTIONS[stem])
    return cli


MEASURE = [{"ruler": {"of": "caption"}}, {"close": {"of": ["image"], "reach": 3}}]


def by_key(cli, query: str) -> dict[str, tuple[object, ...]]:
    return {row.pop("key"): tuple(row.values()) for row in cli.query(query)}


@pytest.mark.slow
def test_what_is_measured_is_there_for_rules_and_in_the_catalog(ruled):
    keep = {
        "says": "ruler.caption.letters <> 4",
        "alone": "close.image.nearest > 2",
        "unseen": "close.image.in_reference IS NULL",
        "typed": "ruler.caption.shares[2] = 1.25 AND ruler.caption.none IS NULL",
    }
    ruled.spec(measure=MEASURE, curate=[{"rules": {"keep": keep}}])
    ruled.build()
    assert by_key(ruled, "SELECT key, f.fate, rule, value, threshold FROM fates f JOIN samples USING (sample_id)") == {
        "a": ("dropped", "alone", 2, 2),
        "b": ("dropped", "alone", 2, 2),
        "c": ("kept", None, None, None),
        "d": ("dropped", "says", None, None),
        "e": ("dropped", "unseen", None, None),
    }
    measured = by_key(
        ruled,
        "SELECT key, edge, measures ->> '$.letters' AS n, reason, s.detail, score FROM scores s "
        "JOIN samples USING (sample_id) WHERE aligner = 'ruler'",
    )
    assert measured["a"] == ("caption", "3", None, None, None)
    assert measured["c"] == ("caption", None, "no_words", "it says nothing", None)
    links = "SELECT count(*) AS n, count(other_source) AS known, sum(distance) AS far, min(measure) AS m FROM links"
    # a-b, b-c (a and c are five apart), and e with the reference's item.
    assert ruled.query(links) == [{"n": 3, "known": 1, "far": 2 + 3 + 2, "m": "close"}]
    assert "nothing to do" in ruled.build().stdout


def test_a_plan_shows_it_and_names_what_is_wrong(ruled):
    ruled.spec(measure=MEASURE)
    rows = {line.split()[0]: line.split()[1:] for line in ruled.run("plan", "pipeline.yaml").stdout.splitlines()[2:]}
    assert rows["ruler"] == ["parts", "1", "0", "1"]
    assert rows["close"] == ["parts", "2", "0", "2"]
    wrong = [
        {"ruler": {"of": ["image"]}},
        {"ruler": {"of": ["captoin"], "name": "image"}},
        {"ruler": {"of": ["caption"], "name": "ruler"}},
        {"ruller": {"of": ["caption"]}},
    ]
    ruled.spec(measure=wrong[3:])
    assert "unknown step 'ruller'; did you mean 'ruler'?" in ruled.run("plan", "pipeline.yaml", code=2).stderr
    ruled.spec(measure=wrong[:3])
    said = ruled.run("plan", "pipeline.yaml", code=2).stderr
    assert "measure[0].ruler: 'image' is image, but ruler needs text there" in said
    assert "measure[1].ruler: no source declares the member 'captoin'; did you mean 'caption'?" in said
    assert "measure[1].ruler: a measure cannot be called 'image': rules could not tell it from a column" in said
    assert "measure[2].ruler: a step above is called 'ruler' too; give one a `name:` of its own" in said
    ruled.spec(measure=MEASURE, curate=[{"rules": {"keep": {"r": "ruler.caption.leters > 1"}}}])
    said = ruled.run("plan", "pipeline.yaml", code=2).stderr
    assert "did you mean 'letters'?" in said


@pytest.mark.slow
def test_children_are_measured_where_they_changed(ruled):
    keep = {"same": "ruler.caption.first = parent.ruler.caption.first"}
    ruled.spec(measure=MEASURE, augment=[{"joint": {"apply": ["HorizontalFlip"]}}], curate=[{"rules": {"keep": keep}}])
    ruled.build()
    rows = ruled.query(
        "SELECT s.key, s.parent_id IS NOT NULL AS child, aligner, c.reason, measures FROM scores c "
        "JOIN samples s USING (sample_id) ORDER BY ALL"
    )
    values = {(row["key"], row["aligner"], row["child"]): (row["reason"], row["measures"]) for row in rows}
    children = [key for key in REDS if (key, "close", True) in values]
    assert children
    for key in children:
        assert values[key, "close", True] == values[key, "close", False]
    # Children are no originals: nobody is linked to them.
    ids = "SELECT count(*) AS n FROM links JOIN samples USING (sample_id) WHERE parent_id IS NOT NULL"
    assert ruled.query(ids) == [{"n": 0}]


@pytest.mark.slow
def test_a_sample_that_kills_its_measurer_has_no_values_and_is_kept(ruled):
    (ruled.folder / "media" / "d.txt").write_text("a killer")
    ruled.spec(measure=MEASURE)
    ruled.build()
    rows = by_key(ruled, "SELECT key, fate, reason FROM scores JOIN samples USING (sample_id) WHERE aligner = 'ruler'")
    assert rows == {k: ("kept", {"d": "worker_died", "c": "no_words"}.get(k)) for k in REDS}
    ruled.wait_for_no_process()


@pytest.mark.slow
def test_only_what_changed_is_measured_and_linked_again(ruled):
    ruled.spec(measure=MEASURE)
    ruled.build()
    before = {p: p.stat().st_mtime_ns for p in (ruled.folder / "out" / "parts").rglob("*.parquet")}
    ruled.build("--set", "measure.close.reach=9")
    after = {p: p.stat().st_mtime_ns for p in (ruled.folder / "out" / "parts").rglob("*.parquet")}
    assert before.items() <= after.items()
    new = [p.parent.name for p in after.keys() - before.keys()]
    assert new == ["close", "close"]
