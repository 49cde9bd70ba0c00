"""Data-Juicer's `image_text_similarity_filter`, its own class on its own dataset, one process, loaded before.

Runs under the Python of an environment that has py-data-juicer 1.6.0, aiohttp and transformers, and not mmdata.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_peers.serve import serve


def load(settings: dict[str, Any]) -> Callable[[], list[float]]:
    """Give a pass over all pairs; the first sample is scored while loading, so that the model is there."""
    import datasets
    import torch
    from data_juicer.core.data import NestedDataset
    from data_juicer.ops.filter.image_text_similarity_filter import ImageTextSimilarityFilter
    from data_juicer.utils.constant import Fields

    datasets.disable_caching()
    torch.set_num_threads(settings["threads"])
    # A range that keeps everything: the peer is the scoring, not the choice.
    op = ImageTextSimilarityFilter(hf_clip=settings["hf"], min_score=-1.0, max_score=1.0, num_proc=1)
    pairs = [json.loads(line) for line in Path(settings["listing"]).read_text(encoding="utf-8").splitlines()]
    rows = [{"text": f"<__dj__image> {pair['text']}", "images": [pair["image"]]} for pair in pairs]

    def score(some: list[dict[str, Any]]) -> list[float]:
        done = op.run(NestedDataset.from_list(some))
        return [float(stats["image_text_similarity"][0]) for stats in done[Fields.stats]]

    score(rows[:1])
    return lambda: score(rows)


if __name__ == "__main__":
    serve(load)
