"""One loader of benchmarks/train.py in a process of its own: `loaders.py NAME FOLDER WORKERS`, a line of JSON.

All read the same pictures in random order, a batch of 64 at a time, out of their own formats; decoding is one function.
Peers need torch, Pillow and themselves, and nothing of mmdata.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIDE_PX = 224
BATCH = 64
Sample = tuple[Any, Any]


def decoded(jpeg: bytes, caption: bytes) -> Sample:
    """Pixels of 224 px and text, alike for all."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        pixels = image.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    return np.asarray(pixels).transpose(2, 0, 1).copy(), caption.decode()


def raw(jpeg: bytes, caption: bytes) -> Sample:
    """As it is."""
    return jpeg, caption


def listed(items: list[Sample]) -> list[Sample]:
    """A batch: nothing is stacked, so that loaders are compared, not collation."""
    return items


def samples_of(folder: Path) -> Iterator[tuple[bytes, bytes]]:
    """All pictures and captions, for those that write formats of their own."""
    for shard in sorted((folder / "shards").glob("train-*.tar")):
        with tarfile.open(shard) as tar:
            files = [(info.name, tar.extractfile(info).read()) for info in tar]
        for at in range(0, len(files), 3):
            yield files[at + 1][1], files[at + 2][1]


def ours(folder: Path, workers: int, decode: Callable[..., Sample]) -> Iterable[Any]:
    """mmdata: by offset out of the tars, in the order that training has."""
    from torch.utils.data import DataLoader, Dataset

    from mmdata.train.manifest import open_folder
    from mmdata.train.order import Endless, Mix, StepSampler
    from mmdata.train.shards import ShardReader, index_split

    index = index_split(open_folder(folder / "shards"), "train", ["image", "caption"])

    class Samples(Dataset):
        def __init__(self) -> None:
            self.reader = ShardReader(index, 1 << 26)

        def __getitem__(self, pick: Any) -> Sample:
            return decode(self.reader.read(pick.row, "image"), self.reader.read(pick.row, "caption"))

    batch = min(BATCH, len(index))
    order = StepSampler(Mix([Endless(len(index), batch, 0)], [1.0], 0), batch, range(len(index) // batch))
    return DataLoader(Samples(), batch_sampler=order, num_workers=workers, collate_fn=listed)


def webdataset_loader(folder: Path, workers: int, decode: Callable[..., Sample]) -> Iterable[Any]:
    """Webdataset: shards in turn, a buffer of 1,000 for the order, as open_clip sets it up."""
    import webdataset

    shards = [str(path) for path in sorted((folder / "shards").glob("train-*.tar"))]
    split = [webdataset.split_by_worker] if workers else []
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(shards),
        *split,
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(1000, initial=200, rng=random.Random(0)),
        webdataset.map(lambda sample: decode(sample["jpg"], sample["txt"])),
        webdataset.batched(BATCH, collation_fn=listed),
    )
    return webdataset.WebLoader(pipeline, batch_size=None, num_workers=workers)


def litdata_loader(folder: Path, workers: int, decode: Callable[..., Sample]) -> Iterable[Any]:
    """Litdata: its binary chunks of 64 MB, shuffled."""
    import litdata
    from litdata.streaming.writer import BinaryWriter

    out = folder / "litdata"
    if not out.exists():
        out.mkdir()
        writer = BinaryWriter(str(out), chunk_bytes="64MB")
        for number, (jpeg, caption) in enumerate(samples_of(folder)):
            writer[number] = {"jpg": jpeg, "txt": caption}
        writer.done()
        writer.merge()

    class Decoded(litdata.StreamingDataset):
        def __getitem__(self, index: Any) -> Sample:
            sample = super().__getitem__(index)
            # Views of its chunk, which cannot leave the process.
            return decode(bytes(sample["jpg"]), bytes(sample["txt"]))

    dataset = Decoded(str(out), shuffle=True, seed=0)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=listed)


def streaming_loader(folder: Path, workers: int, decode: Callable[..., Sample]) -> Iterable[Any]:
    """mosaicml-streaming: MDS shards of 64 MB, shuffled."""
    import streaming
    from torch.utils.data import DataLoader

    out = folder / "mds"
    if not out.exists():
        columns = {"jpg": "bytes", "txt": "bytes"}
        with streaming.MDSWriter(out=str(out), columns=columns, size_limit=1 << 26) as writer:
            for jpeg, caption in samples_of(folder):
                writer.write({"jpg": jpeg, "txt": caption})
    streaming.base.util.clean_stale_shared_memory()

    class Decoded(streaming.StreamingDataset):
        def __getitem__(self, index: Any) -> Sample:
            sample = super().__getitem__(index)
            return decode(sample["jpg"], sample["txt"])

    dataset = Decoded(local=str(out), shuffle=True, batch_size=BATCH, shuffle_seed=0)
    return DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=listed)


LOADERS = {
    "mmdata": ours,
    "webdataset": webdataset_loader,
    "litdata": litdata_loader,
    "streaming": streaming_loader,
}


def cpu_s() -> float:
    """CPU-seconds of this process and of the workers that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def rate(loader: Callable[..., Iterable[Any]], folder: Path, workers: int, decode: Callable[..., Sample]) -> Any:
    """Samples a second and a CPU-second over one epoch, the start of its workers included."""
    batches = loader(folder, workers, decode)
    began, spent = time.perf_counter(), cpu_s()
    seen = sum(len(batch) for batch in batches)
    del batches
    wall_s = time.perf_counter() - began
    return {"per_s": round(seen / wall_s), "per_cpu_s": round(seen / (cpu_s() - spent)), "samples": seen}


def main() -> None:
    """Run and print."""
    name, folder, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    torch.set_num_threads(1)
    found = {}
    # The first pass warms the page cache and writes the peers' formats.
    rate(LOADERS[name], folder, 0, raw)
    for kind, decode in (("raw", raw), ("decoded", decoded)):
        for count in (0, workers):
            found[f"{kind}_{count}_workers"] = rate(LOADERS[name], folder, count, decode)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
