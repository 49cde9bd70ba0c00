"""`clip` of mmdata: what its aligner does with each sample, preparation and scoring, in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_peers.clip_data import read_pairs
from align_peers.serve import serve


def load(settings: dict[str, Any]) -> Callable[[], list[float]]:
    """Give a pass over all pairs, 64 samples a batch as in a build."""
    import torch

    from mmdata.sample import Member, Sample
    from mmdata.steps.align.clip import Clip

    torch.set_num_threads(settings["threads"])
    step = Clip(model=settings["model"], pretrained=settings["checkpoint"])
    scorer = step.load(settings["device"])
    pairs = read_pairs(Path(settings["listing"]))

    def sample(index: int) -> Sample:
        image = Member("image", "image", "image/jpeg", "jpg", Path(pairs[index]["image"]).read_bytes())
        text = Member("caption", "text", "text/plain", "txt", pairs[index]["text"].encode())
        return Sample(str(index), "bench", str(index), {"image": image, "caption": text})

    def make_pass() -> list[float]:
        scores: list[float] = []
        for start in range(0, len(pairs), step.batch_samples):
            rows = range(start, min(start + step.batch_samples, len(pairs)))
            items = [step.prepare(scorer.recipe, sample(row), step.edges()) for row in rows]
            scores += [_only_score(found) for found in scorer.score(items)]
        return scores

    return make_pass


def _only_score(found: Any) -> float:
    """The score of the one edge; an aligner answers with scores, or with a `Found` that holds them."""
    return float(next(iter(getattr(found, "scores", found))).score)


if __name__ == "__main__":
    serve(load)
