"""One evaluation of one run: opens it once, embeds a split once, and has a method for each task."""

from __future__ import annotations

import functools
from itertools import combinations
from pathlib import Path
from typing import Any

from mmdata.train.evaluate.config import EvalConfig, Task
from mmdata.train.evaluate.consistency import consistency
from mmdata.train.evaluate.features import Features, Opened, batches, embed_all, open_data, open_run, subsets
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
        }.get(task, False)

    @functools.cached_property
    def held_out(self) -> Opened:
        """The split that is measured on."""
        return open_data(self.run, self.split)

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
