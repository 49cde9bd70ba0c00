"""`whisper` of mmdata: the text's likelihood given the speech, in one pass of the decoder, 64 clips a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_peers.serve import serve
from align_peers.speech_data import read_clips

_BATCH = 64


def load(settings: dict[str, Any]) -> Callable[[], list[float]]:
    """Give a pass over all clips; what it remembers of texts is forgotten before each."""
    import torch

    from mmdata.models.whisper import Whisper

    torch.set_num_threads(settings["threads"])
    whisper = Whisper.load(settings["model"], settings["device"])
    audio, texts = read_clips(Path(settings["listing"]))

    def make_pass() -> list[float]:
        whisper._priors.clear()
        scores: list[float] = []
        for start in range(0, len(texts), _BATCH):
            part = slice(start, start + _BATCH)
            found = whisper.score(audio[part], texts[part], ["en"] * len(texts[part]))
            scores += [score.score for score in found]
        return scores

    return make_pass


if __name__ == "__main__":
    serve(load)
