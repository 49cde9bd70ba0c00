from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmdata.errors import SampleError, TrainError
from mmdata.train.config import DataConfig
from mmdata.train.dataset import open_split
from mmdata.train.manifest import open_folder
from mmdata.train.shards import ShardReader, index_split

FIRST = {"png": b"picture", "txt": b"one", "tone.ogg": b"sound"}
SECOND = {"txt": b"two", "extra.bin": b"never read"}
THIRD = {"png": b"p3", "txt": b""}


def test_members_are_found_by_offset(write_shards: Callable[..., Path]):
    folder = open_folder(write_shards({"train": [[FIRST, SECOND], [THIRD]]}))
    index = index_split(folder, "train", ["image", "caption", "tone"])
    assert [index.place(row) for row in range(3)] == ["train-000000.tar", "train-000000.tar", "train-000001.tar"]
    assert index.has("image").tolist() == [True, False, True]
    assert index.has("caption").tolist() == [True, True, False]
    reader = ShardReader(index, 100)
    assert [reader.read(0, name) for name in ("image", "caption", "tone")] == [b"picture", b"one", b"sound"]
    assert reader.read(2, "image") == b"p3"
    assert reader.read(0, "image", at_most=3) == b"pic"
    assert (reader.key(1), reader.key(2)) == ("key-1", "key-1000")
    assert pickle.loads(pickle.dumps(reader)).read(1, "caption") == b"two"


def test_a_set_may_lack_the_members_that_another_has(write_shards: Callable[..., Path]):
    folder = open_folder(write_shards({"train": [[FIRST, SECOND]]}))
    index = index_split(folder, "train", ["caption", "speech"])
    assert index.has("caption").tolist() == [True, True]
    assert index.has("speech").tolist() == [False, False]


def test_a_sample_of_one_modality_is_left_out_and_counted(write_shards: Callable[..., Path]):
    folder = open_folder(write_shards({"train": [[FIRST, SECOND, THIRD, FIRST]]}))
    data = DataConfig(shards="", modalities={"text": ["caption"], "image": ["image"]})
    split = open_split(folder, "train", data)
    assert (len(split.index), split.skipped) == (2, 2)
    assert split.index.id(1) != split.index.id(0)
    several = DataConfig(shards="", modalities={"text": ["caption"], "audio": ["tone", "image"]})
    assert open_split(folder, "train", several).skipped == 2


def test_a_member_over_the_limit_is_not_read(write_shards: Callable[..., Path]):
    folder = open_folder(write_shards({"train": [[FIRST]]}))
    reader = ShardReader(index_split(folder, "train", ["image"]), member_max_bytes=6)
    with pytest.raises(SampleError, match="7 bytes, at most 6 are read"):
        reader.read(0, "image")


def test_open_files_are_bounded(write_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmdata.train.places._MAX_OPEN", 2)
    folder = open_folder(write_shards({"train": [[{"txt": bytes([65 + n])}] for n in range(5)]}))
    reader = ShardReader(index_split(folder, "train", ["caption"]), 100)
    assert [reader.read(row, "caption") for row in [*range(5), 0]] == [b"A", b"B", b"C", b"D", b"E", b"A"]
    assert len(folder.place._open) == 2


def test_shards_that_disagree_with_the_manifest_stop_the_start(write_shards: Callable[..., Path]):
    path = write_shards({"train": [[FIRST, SECOND]]})
    manifest = json.loads((path / "manifest.json").read_text())
    shard = manifest["splits"]["train"]["shards"][0]

    def error() -> str:
        (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(TrainError) as caught:
            index_split(open_folder(path), "train", ["image"])
        return str(caught.value)

    shard["samples"] = 3
    assert "train-000000.tar: holds 2 samples, the manifest says 3" in error()
    shard["bytes"] += 1
    assert "train-000000.tar: has 10240 bytes, the manifest says 10241" in error()
    shard["path"] = "../secret.tar"
    assert "'../secret.tar' is not a plain file name" in error()
    shard["path"] = "gone.tar"
    assert "gone.tar: cannot be read" in error()
    manifest["splits"] = {}
    assert 'manifest.json: no samples: its build kept none; why: mmdata query BUILD "SELECT' in error()
    manifest["version"] = 9
    assert "no manifest of shards of version 1: version" in error()


def test_a_split_whose_shards_were_taken_out_has_no_samples(write_shards: Callable[..., Path]):
    shards = write_shards({"train": [[FIRST]]})
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"] = []
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainError, match="the split 'train' has no samples; build one"):
        open_folder(shards).split("train")


def test_a_missing_split_or_folder_names_the_nearest(write_shards: Callable[..., Path], tmp_path: Path):
    folder = open_folder(write_shards({"train": [[FIRST]]}))
    with pytest.raises(TrainError, match="no split 'trian'; did you mean 'train'"):
        folder.split("trian")
    with pytest.raises(TrainError, match=r"manifest.json: cannot be read: No such file.*build it first"):
        open_folder(tmp_path / "nothing")


def write_raw(path, entries):
    with tarfile.open(path / "train-000000.tar", "w") as tar:
        for name, data, kind in entries:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))
    manifest = json.loads((path / "manifest.json").read_text())
    shard = manifest["splits"]["train"]["shards"][0]
    shard["bytes"] = (path / "train-000000.tar").stat().st_size
    (path / "manifest.json").write_text(json.dumps(manifest))
    return open_folder(path)


def test_links_are_passed_over(write_shards: Callable[..., Path]):
    path = write_shards({"train": [[FIRST]]})
    folder = write_raw(path, [("a.txt", b"", tarfile.SYMTYPE), ("b.png", b"x", tarfile.REGTYPE)])
    index = index_split(folder, "train", ["caption", "image"])
    assert (len(index), index.has("caption").tolist(), index.has("image").tolist()) == (1, [False], [True])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt", "b.txt", "a.png"], "the files of sample a do not stand together"),
        (["a.txt", "a.txt"], "sample a has two files for one member, the second is 'a.txt'"),
    ],
)
def test_a_torn_order_is_an_error(write_shards: Callable[..., Path], names, message):
    folder = write_raw(write_shards({"train": [[FIRST]]}), [(name, b"x", tarfile.REGTYPE) for name in names])
    with pytest.raises(TrainError, match=message):
        index_split(folder, "train", ["caption", "image"])


def test_damaged_headers_end_in_an_error(write_shards: Callable[..., Path]):
    path = write_shards({"train": [[FIRST, FIRST, FIRST]]})
    shard = path / "train-000000.tar"
    whole = shard.read_bytes()
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 40):
            damaged[at] = rng.integers(0, 256)
        shard.write_bytes(damaged)
        try:
            index = index_split(open_folder(path), "train", ["image", "caption", "tone"])
            assert (index.offset_NF + index.size_NF).max() <= len(whole)
        except TrainError:
            errors += 1
    assert errors > 50


def test_a_size_that_leads_out_of_the_tar_is_an_error(write_shards: Callable[..., Path]):
    path = write_shards({"train": [[FIRST]]})
    shard = path / "train-000000.tar"
    with shard.open("r+b") as file, tarfile.open(shard) as tar:
        info = tar.getmembers()[-1]
        info.size = 1 << 30
        file.seek(info.offset)
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(TrainError, match="leads out of the tar; the file is damaged"):
        index_split(open_folder(path), "train", ["tone"])
