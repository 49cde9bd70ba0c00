"""One evaluation of one run: opens it once, embeds a split once, and has a method for each task."""

from __future__ import annotations

import functools
from itertools import combinations
from pathlib import Path
from typing import Any

from mmdata.errors import TrainError
from mmdata.train.checkpoint import write_whole
from mmdata.train.evaluate.config import EvalConfig, Task
from mmdata.train.evaluate.consistency import consistency
from mmdata.train.evaluate.detector import REAL, assess, load_detector, probabilities, save_detector, show
from mmdata.train.evaluate.features import Features, Opened, batches, embed_all, open_data, open_run, subsets
from mmdata.train.evaluate.labels import labels_of, probe, zero_shot
from mmdata.train.evaluate.made import captions, images
from mmdata.train.evaluate.retrieval import missing, retrieval

# Fewer modalities leave nothing to be missing.
_MIN_TO_MISS = 3


class Bench:
    """What the tasks share; each thing is computed when the first task asks for it."""

    def __init__(self, folder: Path, config: EvalConfig) -> None:
        """Load the run. Raises TrainError where the folder holds none."""
        self.config = config
        self.run = open_run(folder, config)
        self.names = self.run.modalities
        self.split = self.run.config.data.val_split

    def has(self, task: Task) -> bool:
        """Whether there is something to measure; what is dear (the detector) has to be asked for."""
        return {
            "retrieval": True,
            "missing": len(self.names) >= _MIN_TO_MISS,
            "consistency": True,
            "zero_shot": self.config.labels is not None and "text" in self.names,
            "probe": self.config.labels is not None,
            "captions": "text" in self.run.model.decoders,
            "images": "image" in self.run.model.decoders and self.config.feature is not None,
        }.get(task, False)

    @functools.cached_property
    def held_out(self) -> Opened:
        """The split that is measured on."""
        return open_data(self.run, self.split)

    @property
    def learn_split(self) -> str:
        """The split that heads on the model learn from."""
        return self.config.learn_split or self.run.config.data.train_split

    @functools.cached_property
    def features(self) -> Features:
        """It after the model."""
        return embed_all(self.run, batches(self.run, self.held_out), subsets(len(self.names)))

    def counts(self) -> dict[str, int]:
        """Samples, and those that cannot be decoded."""
        return {"samples": len(self.features.row_N), "failed": len(self.features.failures)}

    def retrieval(self) -> dict[str, Any]:
        """See `retrieval`."""
        losses, names = self.run.config.losses(), self.names
        apart = [
            {left, right}
            for left, right in combinations(range(len(names)), 2)
            if all(loss.apart(names[left], names[right]) for loss in losses)
        ]
        return retrieval(self.features, names, self.config, apart)

    def missing(self) -> dict[str, Any]:
        """See `missing`."""
        return missing(self.features, self.names, self.config)

    def consistency(self) -> dict[str, Any]:
        """See `consistency`."""
        return consistency(self.features, self.names, self.config)

    def zero_shot(self) -> dict[str, Any]:
        """See `zero_shot`. Raises TrainError where the model reads no text."""
        if "text" not in self.names:
            raise TrainError("zero_shot tells classes by texts, and the model reads none")
        return zero_shot(self.run, self.features, self._labels(self.held_out, self.split), self.config)

    def probe(self) -> dict[str, Any]:
        """See `probe`."""
        name, config = self.learn_split, self.config
        train = open_data(self.run, name)
        source = batches(self.run, train, config.train_samples, config.seed)
        learnt = embed_all(self.run, source, [tuple(range(len(self.names)))])
        labels = self._labels(train, name), self._labels(self.held_out, self.split)
        return probe((learnt, self.features), labels, self.names)

    def captions(self) -> dict[str, Any]:
        """See `captions`."""
        self._check_decoder("text")
        return captions(self.run, batches(self.run, self.held_out), self.config)

    def images(self) -> dict[str, Any]:
        """See `images`."""
        from mmdata.train.model.pretrained import load_tower

        self._check_decoder("image")
        assert self.config.feature is not None
        network = load_tower(self.config.feature, self.run.model.limits)
        source = batches(self.run, self.held_out, self.config.image_samples, self.config.seed)
        return images(self.run, source, network, self.config)

    def _check_decoder(self, name: str) -> None:
        if name not in self.run.model.decoders:
            raise TrainError(f"{self.run.folder}: has no decoder of {name}; train one: model.decoders, and its loss")

    def _labels(self, opened: Opened, split: str) -> list[str | None]:
        assert self.config.labels is not None
        return labels_of(self.run, opened, split, self.config.labels)

    def detector(self) -> dict[str, Any]:
        """Train a detector, save it beside the model, and measure it: see `assess`."""
        run, config = self.run, self.config
        train = open_data(run, self.learn_split)
        learnt = show(run, batches(run, train, config.train_samples, config.seed), config.seed)
        held_out = batches(run, self.held_out, len(self.held_out.dataset), config.seed + 1)
        head, found = assess(learnt, show(run, held_out, config.seed + 1), config)
        save_detector(run.folder, head, self.names)
        return found

    def detect(self, path: Path) -> int:
        """Write `sample_id, probability` of the split by the run's detector; says how many. Raises TrainError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        head = load_detector(self.run.folder, self.names)
        real = show(self.run, batches(self.run, self.held_out), self.config.seed, forged=False)[REAL]
        ids = self.held_out.ids(real.row_N.tolist())
        columns = {"sample_id": pa.array(ids), "probability": pa.array(probabilities(head, real), pa.float32())}
        path.parent.mkdir(exist_ok=True)
        write_whole(path, lambda scratch: pq.write_table(pa.table(columns), scratch))
        return len(ids)
