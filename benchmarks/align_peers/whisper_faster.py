"""faster-whisper's batched pipeline, greedy, int8, and the word error rate of what it hears.

Its batches are the pieces of one recording, so all clips are given as one, with the places of the clips: 16 a batch, no
voice detection.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_peers.serve import serve
from align_peers.speech_data import agreement, read_clips

_RATE = 16_000
_BATCH = 16


def load(settings: dict[str, Any]) -> Callable[[], list[float]]:
    """Give a pass over all clips; the same weights as ours, quantised by CTranslate2 while loading."""
    import numpy as np
    from faster_whisper import BatchedInferencePipeline, WhisperModel
    from whisper.normalizers import EnglishTextNormalizer

    device, kind = ("cuda", "float16") if settings["device"].startswith("cuda") else ("cpu", "int8")
    model = WhisperModel(settings["model"], device=device, compute_type=kind, cpu_threads=settings["threads"])
    pipeline = BatchedInferencePipeline(model)
    audio, texts = read_clips(Path(settings["listing"]))
    normalise = EnglishTextNormalizer()

    def make_pass() -> list[float]:
        ends = np.cumsum([len(clip) for clip in audio]) / _RATE
        spans = [{"start": end - len(clip) / _RATE, "end": end} for end, clip in zip(ends, audio, strict=True)]
        segments, _ = pipeline.transcribe(
            np.concatenate([*audio, np.zeros(_RATE, np.float32)]),
            language="en",
            beam_size=1,
            temperature=0.0,
            batch_size=_BATCH,
            clip_timestamps=spans,
            vad_filter=False,
            without_timestamps=True,
        )
        heard = [""] * len(audio)
        for segment in segments:
            row = int(np.searchsorted(ends, segment.start + 0.05))
            heard[row] += segment.text
        return [agreement(text, words, normalise) for text, words in zip(texts, heard, strict=True)]

    return make_pass


if __name__ == "__main__":
    serve(load)
