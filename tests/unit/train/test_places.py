"""Shards of an object store: the same samples as from a folder, by range or by way of a bounded cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.errors import SampleError, TrainError
from mmdata.train.config import load_config
from mmdata.train.data import open_sets
from mmdata.train.growth import all_sets
from mmdata.train.manifest import open_folder
from mmdata.train.places import RemotePlace
from mmdata.train.run import train
from mmdata.train.shards import ShardReader, index_split

URL = "memory://bucket/shards"


@pytest.fixture
def bucket(shape_shards: Path) -> Iterator[Path]:
    """The shards in a store of this process; the first with its index beside it."""
    system = fsspec.filesystem("memory")
    reader = index_split(open_folder(shape_shards), "train", ["image", "caption", "tone"])
    columns = {"png": 1, "txt": 2, "tone.ogg": 3, "json": 0}
    rows = [
        {"sample_id": reader.id(row), "field": field, "offset": int(reader.offset_NF[row, column]),
         "bytes": int(reader.size_NF[row, column])}
        for row in range(12) for field, column in columns.items() if reader.offset_NF[row, column] >= 0
    ]  # fmt: skip
    rows.sort(key=lambda row: row["offset"])
    pq.write_table(pa.Table.from_pylist(rows), shape_shards / "train-000000.index.parquet")
    system.put(str(shape_shards) + "/", "bucket/shards/", recursive=True)
    yield shape_shards
    system.rm("bucket", recursive=True)


def test_an_index_and_ranges_of_a_store_give_what_the_folder_gives(bucket: Path):
    members = ["image", "caption", "tone"]
    here, there = (index_split(open_folder(where), "train", members) for where in (bucket, URL))
    for name in ("shard_N", "place_N", "ids_N", "offset_NF", "size_NF"):
        assert np.array_equal(getattr(here, name), getattr(there, name)), name
    readers = [ShardReader(index, 1 << 20) for index in (here, there)]
    assert readers[0].read(17, "caption") == readers[1].read(17, "caption")
    assert readers[0].record(3) == readers[1].record(3)
    fsspec.filesystem("memory").rm("bucket/shards/train-000001.tar")
    with pytest.raises(SampleError, match="its shard cannot be read"):
        readers[1].read(17, "caption")


@pytest.mark.slow
def test_a_training_from_a_store_is_the_same(bucket: Path, write_config: Callable[..., Path], tmp_path: Path):
    losses = []
    for where in (str(bucket), URL):
        result = train(write_config(bucket), [f"data.shards={where}", "steps=2", "optim.warmup=1"],
                       tmp_path / where.replace("/", "_"), lambda _: None)  # fmt: skip
        losses.append(result["metrics"])
    assert losses[0] == losses[1]


def test_whole_shards_are_kept_only_where_they_fit(bucket: Path, write_config: Callable[..., Path], tmp_path: Path):
    def places(gib: float) -> list[RemotePlace]:
        path = write_config(bucket)
        config = load_config(path, [f"data.shards={URL}", f"data.cache_dir={tmp_path}/cache", f"data.cache_gib={gib}"])
        (one,) = open_sets(config, all_sets(config))
        assert one.train is not None
        ShardReader(one.train.index, 1 << 20).read(0, "image")
        place = one.train.index.place_of_shards
        assert isinstance(place, RemotePlace)
        return [place]

    assert places(1e-6)[0].cache is None
    assert not (tmp_path / "cache").exists()
    assert places(1.0)[0].cache is not None
    (folder,) = (tmp_path / "cache").iterdir()
    assert [file.name for file in folder.iterdir()] == ["train-000000.tar"]
    assert (folder / "train-000000.tar").read_bytes() == (bucket / "train-000000.tar").read_bytes()


def test_a_url_of_an_unknown_kind_is_named():
    with pytest.raises(TrainError, match=r"gopher2://x: .*[Pp]rotocol"):
        open_folder("gopher2://x")


def test_a_client_s_own_error_is_a_line(bucket: Path, monkeypatch: pytest.MonkeyPatch):
    """S3 without credentials ended in botocore's traceback."""

    class NoCredentialsError(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    index = index_split(open_folder(URL), "train", ["image"])
    monkeypatch.setattr(fsspec.filesystem("memory"), "cat_file", refuse, raising=False)
    with pytest.raises(TrainError, match=r"manifest\.json: cannot be read: NoCredentialsError: Unable to locate"):
        open_folder(URL)
    with pytest.raises(SampleError, match="its shard cannot be read: NoCredentialsError"):
        ShardReader(index, 1 << 20).read(0, "image")
