"""Readers that others wrote read the shards as they are, all samples, also those that lack a member."""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import io
import json
import os
import sys
import tarfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmdata.demo.scenes import write_scenes

# webdataset leaves tars open for the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
SCENES = 40
SAMPLES_PER_SHARD = 9
BYTES_PER_SHARD = 1 << 18


@dataclass(frozen=True)
class Built:
    """A data set and the files it was made of: by key, field and payload."""

    shards: Path
    files: dict[str, dict[str, bytes]]
    keys: dict[str, str]

    def tars(self, split: str = "*") -> list[str]:
        return [str(path) for path in sorted(self.shards.glob(f"{split}-*.tar"))]

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.shards / "manifest.json").read_text())

    def samples(self, split: str) -> set[str]:
        """Keys in a split, by the tars themselves."""
        found = set()
        for path in self.tars(split):
            with tarfile.open(path) as tar:
                found |= {self.keys[name.split(".")[0]] for name in tar.getnames()}
        return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, build_once) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("readers")
    media = folder / "media"
    write_scenes(media, SCENES, seed=9, side_px=48, sound="tones")
    for number in range(SCENES):
        stem = media / f"{number:05d}"
        if number % 4 == 3:
            stem.with_suffix(".wav").unlink()
        if number % 3:
            (media / f"{number:05d}_fr.txt").write_text("Une scène dessinée.")
        if number % 10 == 9:
            Image.open(stem.with_suffix(".png")).save(stem.with_suffix(".jpg"))
            stem.with_suffix(".png").unlink()
    members = {
        "image": ["{stem}.png", "{stem}.jpg"],
        "caption": {"path": "{stem}.txt", "lang": "en"},
        "caption_{lang}": {"path": "{stem}_{lang}.txt", "langs": ["fr"]},
        "sound": {"path": "{stem}.wav", "required": False},
    }
    cli = build_once(
        folder,
        sources=[{"files": {"name": "scenes", "root": "media", "members": members}}],
        curate=[{"splits": {"shares": {"train": 0.8, "val": 0.2}}}],
        write=[{"webdataset": {"samples_per_shard": SAMPLES_PER_SHARD, "bytes_per_shard": BYTES_PER_SHARD}}],
    )
    keys = {row["sample_id"]: row["key"] for row in cli.query("SELECT sample_id, key FROM samples WHERE fate = 'kept'")}
    return Built(folder / "out" / "shards", expected(media), keys)


def expected(media: Path) -> dict[str, dict[str, bytes]]:
    files: dict[str, dict[str, bytes]] = {}
    for path in media.iterdir():
        stem, french, _ = path.stem.partition("_fr")
        data = path.read_bytes()
        field = "caption_fr.txt" if french else path.suffix[1:]
        files.setdefault(stem, {})[field] = data.strip() if path.suffix == ".txt" else data
    return files


def test_the_manifest_and_the_indexes_say_what_the_tars_hold(built):
    manifest = built.manifest
    listed = {shard["path"]: shard for split in manifest["splits"].values() for shard in split["shards"]}
    assert set(listed) == {Path(path).name for path in built.tars()}
    assert sum(split["samples"] for split in manifest["splits"].values()) == SCENES
    members: dict[str, int] = {}
    for path in map(Path, built.tars()):
        data, about = path.read_bytes(), listed[path.name]
        assert (len(data), hashlib.sha256(data).hexdigest()) == (about["bytes"], about["sha256"])
        assert len(data) <= BYTES_PER_SHARD + 1024 or about["samples"] == 1
        assert 1 <= about["samples"] <= SAMPLES_PER_SHARD
        with tarfile.open(path) as tar:
            in_tar = {member.name: (member.offset_data, member.size) for member in tar}
        index = pq.read_table(path.with_suffix(".index.parquet")).to_pylist()
        assert {f"{row['sample_id']}.{row['field']}": (row["offset"], row["bytes"]) for row in index} == in_tar
        assert len({row["sample_id"] for row in index}) == about["samples"]
        for row in index:
            payload = data[row["offset"] : row["offset"] + row["bytes"]]
            assert hashlib.sha256(payload).hexdigest() == row["sha256"]
            if row["field"] != "json":
                assert payload == built.files[built.keys[row["sample_id"]]][row["field"]]
                members[row["name"]] = members.get(row["name"], 0) + 1
    assert members == {name: sum(member["samples"].values()) for name, member in manifest["members"].items()}
    assert manifest["members"]["image"]["fields"] == ["jpg", "png"]
    assert members == {"image": 40, "caption": 40, "caption_fr": 26, "sound": 30}


def test_every_shard_but_the_last_of_a_split_is_full(built):
    for split in built.manifest["splits"].values():
        shards = split["shards"]
        for shard, following in pairwise(shards):
            with tarfile.open(built.shards / following["path"]) as tar:
                first = tar.next().name.split(".")[0]
            with tarfile.open(built.shards / following["path"]) as tar:
                more = sum(512 + -(-m.size // 512) * 512 for m in tar if m.name.startswith(first))
            assert shard["samples"] == SAMPLES_PER_SHARD or shard["bytes"] - 1024 + more > BYTES_PER_SHARD


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_reads_them(built, split):
    wds = pytest.importorskip("webdataset")
    read = list(wds.WebDataset(built.tars(split), shardshuffle=False, empty_check=False).decode("pil"))
    assert {built.keys[sample["__key__"]] for sample in read} == built.samples(split)
    assert len(read) == built.manifest["splits"][split]["samples"]
    for sample in read:
        files = built.files[built.keys[sample["__key__"]]]
        assert {name for name in sample if not name.startswith("__")} == {*files, "json"}
        picture = sample.get("png") or sample["jpg"]
        assert picture.size == (48, 48)
        assert sample["txt"] == files["txt"].decode()
        assert sample.get("wav") == files.get("wav")
        assert sample.get("caption_fr.txt") == ("Une scène dessinée." if "caption_fr.txt" in files else None)
        assert sample["json"]["key"] == built.keys[sample["__key__"]]
        assert sample["json"]["members"]["image"]["width"] == 48


def test_open_clip_reads_them_without_being_told_how_many(built, monkeypatch):
    data = pytest.importorskip("open_clip_train.data")
    # open_clip 3.3 asks for webdataset before 1.0, which marked the end of a shard by nothing.
    monkeypatch.setattr(data, "tar_file_expander", functools.partial(data.tar_file_expander, eof_value=None))
    arguments = argparse.Namespace(
        train_data=f"{built.shards}/train-{{000000..{len(built.tars('train')) - 1:06d}}}.tar",
        val_data=f"{built.shards}/val-{{000000..{len(built.tars('val')) - 1:06d}}}.tar",
        train_num_samples=None,
        val_num_samples=None,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=1,
        workers=0,
        world_size=1,
        seed=0,
    )
    texts: list[str] = []

    def tokens(text: str) -> list[str]:
        texts.append(text)
        return [text]

    for split in ("train", "val"):
        texts.clear()
        info = data.get_wds_dataset(arguments, lambda image: image.size, is_train=split == "train", tokenizer=tokens)
        batches = list(info.dataloader)
        keys = built.samples(split)
        if split == "train":
            assert info.dataloader.num_samples == len(keys)
        assert len(batches) == len(keys)
        assert sorted(texts) == sorted(built.files[key]["txt"].decode() for key in keys)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What readers leave open is closed here, not in a test of something else."""
    yield
    gc.collect()


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = pytest.importorskip("datasets")
    found.disable_progress_bars()
    try:
        import torchcodec.encoders  # noqa: F401
    except (ImportError, RuntimeError):
        # It is asked for before any sound is stored, and takes no part where the sound is there as bytes.
        stub = types.ModuleType("torchcodec.encoders")
        stub.AudioEncoder = None
        monkeypatch.setitem(sys.modules, "torchcodec.encoders", stub)
        monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    return found


@pytest.mark.parametrize("how", ["webdataset", "folder"])
def test_hf_datasets_reads_them(built, datasets, tmp_path, how):
    cache = str(tmp_path / "cache")
    if how == "folder":
        found = datasets.load_dataset(str(built.shards), cache_dir=cache)
    else:
        files = {split: built.tars(split) for split in ("train", "val")}
        found = datasets.load_dataset("webdataset", data_files=files, cache_dir=cache)
    assert {name: len(split) for name, split in found.items()} == {
        name: split["samples"] for name, split in built.manifest["splits"].items()
    }
    for name, split in found.items():
        if "wav" in split.features:
            assert isinstance(split.features["wav"], datasets.Audio)
            split = split.cast_column("wav", datasets.Audio(decode=False))  # noqa: PLW2901 - decoding takes torchcodec
        seen = set()
        for row in split:
            key = built.keys[row["__key__"]]
            files = built.files[key]
            seen.add(key)
            # Without the card HF knows only the fields of the first five samples: what others have, it leaves out.
            picture = row.get("png") or row.get("jpg")
            assert (picture and picture.size) == (None if how == "webdataset" and "jpg" in files else (48, 48))
            assert row["txt"] == files["txt"].decode()
            assert row.get("caption_fr.txt") == (
                files["caption_fr.txt"].decode() if "caption_fr.txt" in files else None
            )
            assert (row["wav"] or {}).get("bytes") == files.get("wav")
            assert (row["json"]["key"], row["json"]["sample_id"]) == (key, row["__key__"])
            assert row["json"].get("parent_id") is None
        assert seen == built.samples(name)


def test_a_sample_can_be_read_by_its_place_alone(built):
    """What an index is for: one seek, no walk through the tar."""
    shard = Path(built.tars("train")[0])
    rows = pq.read_table(shard.with_suffix(".index.parquet")).to_pylist()
    row = next(row for row in rows if row["name"] == "image")
    with shard.open("rb") as file:
        file.seek(row["offset"])
        assert Image.open(io.BytesIO(file.read(row["bytes"]))).size == (48, 48)
    assert os.path.getsize(shard) > row["offset"] + row["bytes"]
