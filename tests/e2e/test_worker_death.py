"""Steps of another package, found by entry point, that crash: one sample is out, or the build stops and says why."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

PLUGIN = '''
import os
import signal
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from mmdata.errors import SampleError
from mmdata.models.weights import Weights
from mmdata.sample import Member
from mmdata.steps.base import Align, Augment, Ingest
from mmdata.steps.exchange import Edge, Found, Score
from mmdata.steps.ingest.image import Image


def harm(how, data):
    if b"POISON" in data:
        if how == "signal":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif how == "exit":
            os._exit(0)
        elif how == "bug":
            return {}["no such key"]
        elif how == "bad":
            raise SampleError("bad_image", "the plugin does not like it")


class Fragile(Image):
    """Reads images, until one kills it."""

    step: ClassVar[str] = "fragile"
    how: str = "signal"

    def decode(self, ref, data):
        """The member."""
        harm(self.how, data)
        return super().decode(ref, data)


class Twin(Augment):
    """A child that is equal to its parent."""

    step: ClassVar[str] = "twin"
    how: str = "signal"

    def make(self, sample, seed, others):
        """The child."""
        from dataclasses import replace

        from mmdata.sample import child_id

        harm(self.how, sample.members["image"].data)
        child = child_id(sample.sample_id, "twin")
        yield replace(sample, sample_id=child, parent_id=sample.sample_id, variant="twin")


class Judge(Align):
    """Scores the length of the caption."""

    step: ClassVar[str] = "judge"
    modalities: ClassVar = ("image", "text")
    batch_samples: ClassVar[int] = 8
    how: str = "signal"
    where: str = "prepare"

    def edges(self):
        """One."""
        return [Edge("image", "caption")]

    def weights(self):
        """None."""
        return Weights("judge")

    def load(self, device):
        """Itself."""
        return Scores(self)

    def prepare(self, recipe, sample, edges):
        """The caption's length."""
        if self.where == "prepare":
            harm(self.how, sample.members["image"].data)
        return sample.members["image"].data, len(sample.members["caption"].text)


class Scores:
    """The model."""

    recipe = None

    def __init__(self, judge):
        self.judge = judge

    def score(self, items):
        """Lengths."""
        for data, _ in items:
            if self.judge.where == "score":
                harm(self.judge.how, data)
        return [Found([Score("image_caption", float(length))]) for _, length in items]
'''
POINTS = "[mmdata.steps]\nfragile = fragile_steps:Fragile\ntwin = fragile_steps:Twin\njudge = fragile_steps:Judge\n"
DIED = "the process that worked on it died (a crash, out of memory, or a picture that takes too long)"
SAMPLES = 40
POISONED = "p17"


def png(number: int, *, poison: bool = False) -> bytes:
    buffer = io.BytesIO()
    if poison:
        # In pixels that are stored as they are: what is no pixel is cut out.
        Image.frombytes("L", (8, 8), b"POISON%02d" % number * 8).save(buffer, "BMP")
    else:
        Image.new("RGB", (8, 8), (number, 5 * number, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def fragile(cli):
    """A package installed beside mmdata, and `p00` to `p39`, of which the 17th is poisoned."""
    package = cli.folder / "site"
    info = package / "fragile_steps-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "fragile_steps.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile-steps\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    cli.env["PYTHONPATH"] = str(package)
    add(cli, SAMPLES, poisoned={POISONED})
    return cli


def add(cli, count: int, poisoned: set[str], prefix: str = "p") -> None:
    for number in range(count):
        stem = f"{prefix}{number:02d}"
        (cli.folder / "media" / f"{stem}.png").write_bytes(png(number, poison=stem in poisoned))
        (cli.folder / "media" / f"{stem}.txt").write_text(f"Colour {number}.")


def fates(cli, condition: str = "parent_id IS NULL") -> dict[str, tuple[Any, ...]]:
    rows = cli.query(f"SELECT s.key, f.* FROM fates f JOIN samples s USING (sample_id) WHERE {condition}")
    return {row["key"]: (row["fate"], row["step"], row["rule"], row["detail"]) for row in rows}


def all_kept_but(**bad: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    return {f"p{n:02d}": ("kept", None, None, None) for n in range(SAMPLES)} | bad


def no_part_speaks_of_a_trial(cli) -> None:
    assert cli.query("SELECT count(*) AS n FROM fates WHERE detail = 'left out'") == [{"n": 0}]
    assert not list((cli.folder / "out").rglob("*trial*"))
    cli.wait_for_no_process()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["signal", "exit"])
def test_a_sample_that_kills_its_reader_is_out_alone(fragile, how):
    fragile.spec(ingest=[{"fragile": {"how": how}}])
    fragile.build()
    assert fates(fragile) == all_kept_but(p17=("failed", "ingest", "worker_died", DIED))
    no_part_speaks_of_a_trial(fragile)


@pytest.mark.slow
def test_two_killers_in_one_part_are_both_found(fragile):
    add(fragile, 19, poisoned={POISONED, "p18"})
    fragile.spec(ingest=["fragile"], engine={"workers": 2, "part_samples": 200})
    fragile.build()
    died = ("failed", "ingest", "worker_died", DIED)
    assert fates(fragile) == all_kept_but(p17=died, p18=died)


@pytest.mark.slow
def test_a_sample_that_kills_an_augmenter_has_no_child(fragile):
    fragile.spec(augment=["twin"])
    fragile.build()
    assert fates(fragile) == all_kept_but()
    children = fates(fragile, "parent_id IS NOT NULL")
    assert children.pop(POISONED) == ("dropped", "twin", "worker_died", DIED)
    kept = ("kept", None, None, None)
    assert set(children.values()) == {kept}
    assert len(children) == SAMPLES - 1
    no_part_speaks_of_a_trial(fragile)


@pytest.mark.slow
def test_a_sample_that_kills_what_prepares_it_for_a_model_is_out_alone(fragile):
    # Failed inputs stand in the same part before it: a row's number is not the number of a good sample.
    for number in range(0, 16, 2):
        (fragile.folder / "media" / f"p{number:02d}.png").write_bytes(b"")
    fragile.spec(align=["judge"], engine={"workers": 2, "part_samples": 200})
    fragile.build()
    found = fates(fragile)
    empty = {key for key, fate in found.items() if fate[2] == "empty_file"}
    assert empty == {f"p{number:02d}" for number in range(0, 16, 2)}
    assert found.pop(POISONED) == ("failed", "judge", "worker_died", DIED)
    assert {fate for key, fate in found.items() if key not in empty} == {("kept", None, None, None)}
    scores = fragile.query("SELECT score, text FROM scores JOIN members USING (sample_id) WHERE name = 'caption'")
    assert len(scores) == SAMPLES - len(empty) - 1
    assert all(row["score"] == len(row["text"]) for row in scores)


def test_a_model_that_dies_stops_the_build(fragile):
    fragile.spec(align=[{"judge": {"where": "score"}}])
    said = fragile.build(code=1).stderr
    assert "mmdata: the process that holds the model died; is there enough memory for it?" in said
    assert "Traceback" not in said
    fragile.wait_for_no_process()


@pytest.mark.parametrize(
    "blocks",
    [
        {"ingest": [{"fragile": {"how": "bug"}}]},
        {"augment": [{"twin": {"how": "bug"}}]},
        {"align": [{"judge": {"how": "bug"}}]},
        {"align": [{"judge": {"how": "bug", "where": "score"}}]},
    ],
    ids=["ingest", "augment", "prepare", "score"],
)
def test_a_programming_error_stops_the_build_and_is_shown(fragile, blocks):
    fragile.spec(**blocks)
    said = fragile.build(code=1).stderr
    assert "KeyError: 'no such key'" in said
    assert "fragile_steps.py" in said, "the traceback leads to the line"
    fragile.wait_for_no_process()
    (run,) = fragile.query("SELECT status FROM runs")
    assert run["status"].startswith("failed: ")


@pytest.mark.slow
def test_many_failures_in_a_row_stop_the_build_and_say_what_they_share(fragile):
    add(fragile, 30, poisoned={f"q{n:02d}" for n in range(30)}, prefix="q")
    fragile.spec(
        ingest=[{"fragile": {"how": "bad"}}],
        engine={"workers": 1, "part_samples": 8, "max_failures_in_a_row": 20},
    )
    said = fragile.build(code=1).stderr
    assert "mmdata: 20 inputs in a row failed, all of them bad_image; the last: " in said
    assert "the plugin does not like it. If that is how the data is, raise engine.max_failures_in_a_row" in said
    fragile.build("--set", "engine.max_failures_in_a_row=31")
    (count,) = fragile.query("SELECT count(*) AS failed FROM fates WHERE rule = 'bad_image'")
    assert count == {"failed": 31}
