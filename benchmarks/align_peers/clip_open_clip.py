"""Plain batched open_clip: its own transform and tokenizer, texts in full context, 64 pairs a batch, float32."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_peers.clip_data import read_pairs
from align_peers.serve import serve

_BATCH = 64


def load(settings: dict[str, Any]) -> Callable[[], list[float]]:
    """Give a pass over all pairs."""
    import open_clip
    import torch

    torch.set_num_threads(settings["threads"])
    model, _, transform = open_clip.create_model_and_transforms(settings["model"], settings["checkpoint"])
    model = model.to(settings["device"]).eval()
    tokenizer = open_clip.get_tokenizer(settings["model"])
    pairs = read_pairs(Path(settings["listing"]))

    def score(batch: list[dict[str, str]]) -> list[float]:
        images = torch.stack([transform(_open(pair["image"])) for pair in batch]).to(settings["device"])
        image_emb_ND = model.encode_image(images, normalize=True)
        text_emb_ND = model.encode_text(
            tokenizer([pair["text"] for pair in batch]).to(settings["device"]), normalize=True
        )
        return [float(cosine) for cosine in (image_emb_ND * text_emb_ND).sum(-1)]

    def make_pass() -> list[float]:
        with torch.inference_mode():
            return [s for start in range(0, len(pairs), _BATCH) for s in score(pairs[start : start + _BATCH])]

    return make_pass


def _open(path: str) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(Path(path).read_bytes()))


if __name__ == "__main__":
    serve(load)
