"""Joint augmentation through the command line: the ledger, the report, both modes, mixing within a split."""

from __future__ import annotations

import io
import json
import math
import tarfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdata.augment.load import replay
from mmdata.demo.scenes import write_scenes
from mmdata.errors import TrainError
from mmdata.sample import Member, Sample
from mmdata.train.manifest import open_folder
from mmdata.train.online import online_augment
from mmdata.train.shards import index_split

SCENES = 24
SOURCE = {
    "files": {
        "name": "scenes",
        "root": "media",
        "members": {
            "image": "{stem}.png",
            "caption": {"path": "{stem}.txt", "lang": "en"},
            "sound": "{stem}.wav",
        },
    }
}
APPLY = [
    {"HorizontalFlip": {"p": 0.5}},
    {"ColorJitter": {"hue": [0.2, 0.3], "p": 0.5}},
    {"GaussNoise": {"p": 0.7}},
    {"speed": {"factor": [0.9, 1.1], "p": 0.7}},
    {"KeyboardAug": {"p": 0.5}},
]


@pytest.fixture
def scenes(cli):
    write_scenes(cli.folder / "media", SCENES, seed=3, side_px=48, sound="tones")
    return cli


def build(cli: Any, output: str, *, workers: int = 2, source: Any = SOURCE, **policy: Any) -> str:
    joint = {"apply": APPLY, "spoken": {}, **policy}
    cli.spec(
        sources=[source],
        augment=[{"joint": joint}],
        curate=[{"splits": {"shares": {"train": 0.8, "val": 0.2}}}],
        engine={"workers": workers, "part_samples": 8},
    )
    return str(cli.build(output=output).stdout)


def shard_samples(folder: Path, split: str = "train") -> dict[str, dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for entry in tar:
                name, _, ending = entry.name.partition(".")
                samples.setdefault(name, {})[ending] = tar.extractfile(entry).read()  # type: ignore[union-attr]
    return samples


def parent_of(files: dict[str, bytes]) -> Sample:
    record = json.loads(files["json"])
    members = {
        name: Member(
            name,
            about["modality"],
            about["mime"],
            about["field"].rpartition(".")[-1],
            files[about["field"]],
            about.get("lang"),
            {key: about[key] for key in ("width", "height", "duration_s", "sample_rate", "channels") if key in about},
        )
        for name, about in record["members"].items()
    }
    return Sample(record["sample_id"], record["source"], record["key"], members)


@pytest.mark.slow
def test_children_are_in_the_ledger_in_the_report_and_can_be_replayed(scenes):
    said = build(scenes, "out", children=3)
    rows = scenes.query("SELECT * FROM operators ORDER BY operator")
    assert [row["operator"] for row in rows] == sorted(next(iter(one)) for one in APPLY)
    assert all(row["made"] + row["vetoed"] > 0 and row["policy"] == "joint" for row in rows)
    named = {row["operator"]: row for row in rows}
    assert named["ColorJitter"]["made"] == 0  # every scene names its colours
    assert json.loads(json.dumps(named["ColorJitter"]["vetoes"])) == {"colour_named": named["ColorJitter"]["vetoed"]}
    assert f"joint: GaussNoise: made {named['GaussNoise']['made']}, vetoed 0, dropped" in said
    (counts,) = scenes.query(
        "SELECT count(*) FILTER (WHERE parent_id IS NULL) AS parents, count(*) FILTER (WHERE parent_id IS NOT NULL) AS "
        "children, count(*) FILTER (WHERE fate IS NULL) AS without FROM samples"
    )
    assert counts == {"parents": SCENES, "children": 3 * SCENES, "without": 0}
    policy = json.loads((scenes.folder / "out/shards/manifest.json").read_text())["augment"]["policies"][0]
    samples = shard_samples(scenes.folder / "out/shards")
    children = [json.loads(files["json"]) for files in samples.values() if b'"parent_id"' in files["json"]]
    assert len(children) > SCENES
    for record in children:
        parent = parent_of(samples[record["parent_id"]])
        again = replay(parent, policy, record)
        files = samples[record["sample_id"]]
        assert again.sample_id == record["sample_id"]
        assert {name: member.data for name, member in again.members.items()} == {
            name: files[about["field"]] for name, about in record["members"].items()
        }


@pytest.mark.slow
def test_the_number_of_workers_and_of_children_changes_no_child(scenes):
    build(scenes, "one", workers=1, children=2)
    build(scenes, "three", workers=3, children=2)
    one, three = (shard_samples(scenes.folder / name / "shards") for name in ("one", "three"))
    assert one == three


@pytest.mark.slow
def test_online_makes_the_children_that_a_build_would_have_made(scenes):
    build(scenes, "made", children=3)
    build(scenes, "online", mode="online")
    made = made_children(shard_samples(scenes.folder / "made/shards"))
    assert not any(b'"parent_id"' in f["json"] for f in shard_samples(scenes.folder / "online/shards").values())
    assert_online_is(scenes.folder / "online/shards", made, epochs=3)


def made_children(samples: dict[str, dict[str, bytes]]) -> dict[tuple[str, str], dict[str, bytes]]:
    """By parent and variant."""
    return {
        (record["parent_id"], record["variant"]): files
        for files in samples.values()
        if (record := json.loads(files["json"])).get("parent_id")
    }


def assert_online_is(shards: Path, made: dict[tuple[str, str], dict[str, bytes]], epochs: int = 1) -> None:
    """The loader makes exactly the children that a build made, byte for byte."""
    folder = open_folder(shards)
    index = index_split(folder, "train", list(folder.manifest.members))
    online = online_augment(folder, index, 1 << 20)
    assert online is not None
    seen = 0
    for row in range(len(index)):
        for epoch in range(epochs):
            child, files = online.child(epoch, row), made.get((index.id(row), f"joint_{epoch}"))
            assert (child is None) == (files is None)
            if child is not None and files is not None:
                about = json.loads(files["json"])["members"]
                assert child == {name: files[one["field"]] for name, one in about.items()}
                seen += 1
    assert seen == len(made) > 0


MIXERS = [{"mixgen": {"p": 0.6}}, {"cutmix": {"p": 0.8}}, {"mix_sounds": {"p": 0.8}}, {"GaussNoise": {"p": 0.3}}]


def say_no_colours(scenes: Any) -> None:
    """A blend has none of those that either caption tells."""
    for caption in (scenes.folder / "media").rglob("*.txt"):
        caption.write_text("some shapes")


@pytest.mark.slow
def test_online_mixes_the_partners_that_a_build_mixes_on_any_number_of_workers(scenes):
    say_no_colours(scenes)
    # A corner that few patches cover.
    for caption in (scenes.folder / "media").rglob("*.txt"):
        caption.with_suffix(".boxes").write_text('[{"box": [0, 0, 4, 4]}]')
    members = {**SOURCE["files"]["members"], "boxes": {"path": "{stem}.boxes", "modality": "text"}}
    source = {"files": {**SOURCE["files"], "members": members}}
    policy = {"apply": MIXERS, "boxes": {"image": "boxes"}, "children": 3}
    for output, workers in (("one", 1), ("three", 3)):
        build(scenes, output, source=source, workers=workers, **policy)
    build(scenes, "online", source=source, mode="online", **policy)
    samples = shard_samples(scenes.folder / "one/shards")
    assert samples == shard_samples(scenes.folder / "three/shards")
    made = made_children(samples)
    seen = [json.loads(files["json"])["augmentation"]["applied"] for files in made.values()]
    assert {one["op"] for applied in seen for one in applied} == {next(iter(op)) for op in MIXERS}
    (dropped,) = scenes.query("SELECT count(*) AS n FROM fates WHERE rule = 'mixes_splits'", "one")
    assert dropped["n"] > 0
    assert_online_is(scenes.folder / "online/shards", made, epochs=3)
    folder = scenes.folder / "online/shards"
    with ProcessPoolExecutor(3) as pool:
        by_workers = list(pool.map(partial(online_child, folder), range(2 * len(made) // 3)))
    assert by_workers == [online_child(folder, row) for row in range(2 * len(made) // 3)]
    assert any(by_workers)


def online_child(shards: Path, row: int) -> Any:
    folder = open_folder(shards)
    index = index_split(folder, "train", list(folder.manifest.members))
    online = online_augment(folder, index, 1 << 20)
    assert online is not None
    return online.child(1, row % len(index))


@pytest.mark.slow
def test_a_loader_without_the_list_of_partners_says_so(scenes):
    build(scenes, "out", mode="online", apply=["mixgen"])
    shards = scenes.folder / "out/shards"
    (shards / "partners.npy").unlink()
    with pytest.raises(TrainError, match=r"partners\.npy: who may be mixed cannot be read; build the shards again"):
        online_child(shards, 0)
    build(scenes, "out", mode="online", apply=["HorizontalFlip"])
    assert not (shards / "partners.npy").exists()


def test_what_is_mixed_of_two_splits_is_dropped(scenes):
    say_no_colours(scenes)
    build(scenes, "out", apply=["mixgen"], children=4)
    query = """SELECT c.fate, f.rule, p.split AS own, q.split AS other FROM samples c
        JOIN samples p ON p.sample_id = c.parent_id LEFT JOIN fates f ON f.sample_id = c.sample_id
        JOIN samples q ON q.sample_id = c.augmentation ->> '$.partner_id'"""
    rows = scenes.query(query)
    assert len(rows) == 4 * SCENES
    kept = [row for row in rows if row["fate"] == "kept"]
    assert kept
    assert all(row["own"] == row["other"] == "train" for row in kept)
    mixed = [row for row in rows if row["rule"] == "mixes_splits"]
    assert mixed
    assert all(row["own"] != row["other"] for row in mixed)


@pytest.mark.slow
def test_a_second_build_makes_nothing_and_a_new_policy_only_children(scenes):
    build(scenes, "out", children=1)
    assert "nothing to do" in build(scenes, "out", children=1)
    before = {path.name for path in (scenes.folder / "out/parts/ingest").iterdir()}
    assert "nothing to do" not in build(scenes, "out", children=2)
    assert {path.name for path in (scenes.folder / "out/parts/ingest").iterdir()} == before


@pytest.mark.slow
def test_sensors_are_taken_in_measured_augmented_written_and_made_again_online(cli):
    media = cli.folder / "media"
    for n in range(12):
        wave = "".join(f"{math.sin(t / (3 + n)):.4f},{math.cos(t / 5):.4f}\n" for t in range(100))
        (media / f"{n}.csv").write_text("ax,ay\n" + (wave if n != 3 else "1,2\n3\n"))
        (media / f"{n}.txt").write_text("walks and turns left" if n % 2 else "rests calmly")
    members = {"imu": {"path": "{stem}.csv", "modality": "tensor"}, "caption": {"path": "{stem}.txt", "lang": "en"}}
    blocks = {
        "sources": [{"files": {"name": "sensors", "root": "media", "members": members}}],
        "ingest": [{"tensor": {"dtype": "float32", "clocks": {"imu": {"rate_hz": 50}}}}],
        "curate": [{"rules": {"keep": {"short": "imu.duration_s <= 2 AND imu.shape[1] = 2 AND imu.max <= 9"}}}],
    }
    apply = [{"time_crop": {"min_s": 1, "max_s": 1.5, "clock": ["imu"]}}, "mirror_channels", "jitter"]
    joint = {"apply": apply, "sides": {"imu": {"negate": [0]}}, "heard": {"imu": []}}
    cli.spec(**blocks, augment=[{"joint": joint}])
    cli.build(output="out")
    about = "count(*) AS n, min(shape[2]) AS least, max(rate_hz) AS hz"
    (row,) = cli.query(f"SELECT {about} FROM members WHERE name = 'imu'")
    assert (row["n"], 50 <= row["least"] < 100, row["hz"]) == (22, True, 50.0)
    assert cli.query("SELECT rule FROM fates WHERE fate = 'failed'") == [{"rule": "bad_tensor"}]
    vetoes = {row["operator"]: row["vetoed"] for row in cli.query("SELECT * FROM operators")}
    assert vetoes == {"time_crop": 0, "mirror_channels": 0, "jitter": 6}  # six rest calmly
    samples = shard_samples(cli.folder / "out/shards")
    assert len(samples) == 22
    assert all(np.load(io.BytesIO(files["npy"]), allow_pickle=False).dtype == np.float32 for files in samples.values())
    turned = {files["txt"] for files in samples.values() if b'"parent_id"' in files["json"]}
    assert turned == {b"walks and turns right", b"rests calmly"}
    cli.spec(**blocks, augment=[{"joint": {**joint, "mode": "online"}}])
    cli.build(output="online")
    assert_online_is(cli.folder / "online/shards", made_children(samples))
