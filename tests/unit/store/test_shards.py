"""From decisions to shards: what is in them, in which order, and when they count as written."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mmdata.engine import work
from mmdata.errors import FatalError
from mmdata.plan import Plan
from mmdata.store.selection import read_shard_plans
from mmdata.store.shards import index_path, is_written


def contents(output: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((output / "shards").iterdir())}


def samples(shard: Path) -> dict[str, dict[str, bytes]]:
    """By sample_id: field and payload, in the order of the tar."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as tar:
        for entry in tar:
            key, _, extension = entry.name.partition(".")
            found.setdefault(key, {})[extension] = tar.extractfile(entry).read()  # type: ignore[union-attr]
    return found


def manifest(output: Path) -> Any:
    return json.loads((output / "shards/manifest.json").read_text(encoding="utf-8"))


def test_a_sample_is_its_json_and_a_file_for_each_member(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out", "augment=[]", "curate.splits.shares={train: 1}")
    found = {
        json.loads(s["json"])["key"]: s for p in (tmp_path / "out/shards").glob("*.tar") for s in samples(p).values()
    }
    assert sorted(found) == ["s0", "s4", "s5", "s6", "s7"]
    assert {key: list(fields) for key, fields in found.items() if key in ("s0", "s4")} == {
        "s0": ["json", "png", "txt"],
        "s4": ["json", "png", "txt", "note.txt"],
    }
    assert found["s4"]["png"] == (tmp_path / "media/s4.png").read_bytes()
    about = json.loads(found["s4"]["json"])
    assert (about["source"], about["key"], about["members"]["note"]["field"]) == ("files", "s4", "note.txt")
    assert about["members"]["image"] == {
        "field": "png",
        "modality": "image",
        "mime": "image/png",
        "bytes": len(found["s4"]["png"]),
        "sha256": hashlib.sha256(found["s4"]["png"]).hexdigest(),
        "width": 16,
        "height": 8,
    }


def test_shards_keep_their_limits_and_the_manifest_counts_them(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out")
    about = manifest(tmp_path / "out")
    for name, split in about["splits"].items():
        counts = []
        for n, shard in enumerate(split["shards"]):
            path = tmp_path / "out/shards" / shard["path"]
            assert shard["path"] == f"{name}-{n:06d}.tar"
            assert (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) == (
                shard["bytes"],
                shard["sha256"],
            )
            counts.append(len(samples(path)))
            assert counts[-1] == shard["samples"] <= 3
        assert split["samples"] == sum(counts)
    assert about["members"]["image"]["fields"] == ["png"]
    assert sum(about["members"]["image"]["samples"].values()) == sum(s["samples"] for s in about["splits"].values())


def test_the_index_says_where_every_payload_is(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out")
    for shard in (tmp_path / "out/shards").glob("*.tar"):
        content = shard.read_bytes()
        rows = pq.read_table(index_path(shard)).to_pylist()
        payloads = {(r["sample_id"], r["field"]): content[r["offset"] : r["offset"] + r["bytes"]] for r in rows}
        assert payloads == {(key, field): data for key, s in samples(shard).items() for field, data in s.items()}
        assert all(hashlib.sha256(payloads[r["sample_id"], r["field"]]).hexdigest() == r["sha256"] for r in rows)


def test_children_stay_beside_their_parents_split(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out", "curate.splits.augmented=[train, val]")
    splits: dict[str, str] = {}
    parents = {}
    for shard in (tmp_path / "out/shards").glob("*.tar"):
        for key, fields in samples(shard).items():
            splits[key] = shard.name.split("-")[0]
            parents[key] = json.loads(fields["json"]).get("parent_id")
    children = {key: parent for key, parent in parents.items() if parent}
    assert len(children) == 5
    assert {key: splits[key] for key in children} == {key: splits[parent] for key, parent in children.items()}


def test_building_twice_gives_the_same_bytes_wherever_it_lies(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "one")
    build(tmp_path / "two" / "deeper")
    assert contents(tmp_path / "one") == contents(tmp_path / "two/deeper")
    assert len(contents(tmp_path / "one")) > 4


def test_the_order_is_shuffled_by_the_seed_alone(build: Any, tmp_path: Path) -> None:
    def order(name: str, *overrides: str) -> list[str]:
        build(tmp_path / name, "augment=[]", "curate.splits.shares={train: 1}", *overrides)
        return [key for n in range(2) for key in samples(tmp_path / name / f"shards/train-{n:06d}.tar")]

    first = order("a")
    assert len(first) == 5
    orders = [order(f"b{seed}", f"seed={seed}") for seed in (1, 2)]
    assert all(sorted(other) == sorted(first) for other in orders)
    assert any(other != first for other in orders)


def test_bytes_bound_a_shard_but_always_one_sample_fits(build: Any, tmp_path: Path) -> None:
    noise = tmp_path / "media"
    for n in (0, 4):
        from PIL import Image

        Image.frombytes("RGB", (200, 200), os.urandom(120_000)).save(noise / f"s{n}.png")
    build(
        tmp_path / "out", "write.webdataset={bytes_per_shard: 64KiB}", "augment=[]", "curate.splits.shares={train: 1}"
    )
    sizes = [(len(samples(p)), p.stat().st_size > 70_000) for p in sorted((tmp_path / "out/shards").glob("*.tar"))]
    assert Counter(sizes)[(1, True)] == 2
    assert all(count == 1 for count, large in sizes if large)


def test_members_to_write_may_be_chosen(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out", "write.webdataset.members=[caption]")
    fields = {tuple(s) for p in (tmp_path / "out/shards").glob("*.tar") for s in samples(p).values()}
    assert fields == {("json", "txt")}


def test_a_shard_counts_as_written_only_whole_and_for_its_selection(build: Any, tmp_path: Path) -> None:
    plan: Plan = build(tmp_path / "out")
    shards = tmp_path / "out/shards"
    first, *_ = read_shard_plans(plan.decided)
    assert is_written(shards, first)
    assert plan.written()
    content = (shards / first.path).read_bytes()
    (shards / first.path).write_bytes(content[:-1])
    assert not is_written(shards, first)
    assert not plan.written()
    (shards / first.path).write_bytes(content)
    index_path(shards / first.path).write_bytes(b"none")
    assert not is_written(shards, first)


def test_shards_that_are_no_longer_part_of_the_set_go(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "out")
    before = set(contents(tmp_path / "out"))
    build(tmp_path / "out", "write.webdataset.samples_per_shard=1000")
    after = {name for name in contents(tmp_path / "out") if name.endswith((".tar", ".index.parquet"))}
    assert after == {f"{s}-000000.{e}" for s in ("train", "val") for e in ("tar", "index.parquet")} < before


def test_a_part_that_was_changed_on_disk_stops_the_writing(build: Any, tmp_path: Path) -> None:
    plan: Plan = build(tmp_path / "out", "augment=[]")
    first, *_ = read_shard_plans(plan.decided)
    for tar in (tmp_path / "out/parts/ingest").glob("*.tar"):
        tar.write_bytes(tar.read_bytes().replace(b"square", b"circle"))
    with pytest.raises(FatalError, match=r"'caption' of [0-9a-f]{32} was changed on disk; delete the part"):
        work.write_one(tmp_path / "out", plan.gathered, plan.decided, first)


def test_the_card_names_every_split_and_field(build: Any, tmp_path: Path) -> None:
    import yaml

    build(tmp_path / "out")
    _, card, _ = (tmp_path / "out/shards/README.md").read_text(encoding="utf-8").split("---\n")
    about = yaml.safe_load(card)
    assert about["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": s, "path": f"{s}-*.tar"} for s in ("train", "val")],
        }
    ]
    fields = {feature["name"]: feature.get("dtype") for feature in about["dataset_info"]["features"]}
    assert {"png": "image", "txt": "string", "__key__": "string"}.items() <= fields.items()
    # The record is decoded by who reads it; as a string it would be Python's notation.
    (record,) = (feature["struct"] for feature in about["dataset_info"]["features"] if feature["name"] == "json")
    assert {"name": "key", "dtype": "string"} in record
