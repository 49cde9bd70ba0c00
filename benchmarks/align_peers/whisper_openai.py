"""openai-whisper, greedy, and the word error rate of what it hears.

`how` is `transcribe`, the function that its users call, clip by clip, or `decode`: its decoder given batches of 16
clips, the fastest that the package can.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_peers.serve import serve
from align_peers.speech_data import agreement, read_clips

_BATCH = 16


def load(settings: dict[str, Any]) -> Callable[[], list[float]]:
    """Give a pass over all clips; the same weights as ours, read from the same folder."""
    import torch
    from whisper.normalizers import EnglishTextNormalizer

    from mmdata.models.whisper_weights import load_network

    torch.set_num_threads(settings["threads"])
    network = load_network(settings["model"]).to(settings["device"])
    audio, texts = read_clips(Path(settings["listing"]))
    normalise = EnglishTextNormalizer()
    hear = _transcribe if settings["how"] == "transcribe" else _decode

    def make_pass() -> list[float]:
        heard = hear(network, audio)
        return [agreement(text, words, normalise) for text, words in zip(texts, heard, strict=True)]

    return make_pass


def _transcribe(network: Any, audio: list[Any]) -> list[str]:
    # One temperature: its fallback would decode doubtful clips up to six times.
    options = {"language": "en", "temperature": 0.0, "fp16": False, "condition_on_previous_text": False}
    return [network.transcribe(clip, **options)["text"] for clip in audio]


def _decode(network: Any, audio: list[Any]) -> list[str]:
    import torch
    from whisper.audio import log_mel_spectrogram, pad_or_trim
    from whisper.decoding import DecodingOptions, decode

    options = DecodingOptions(language="en", without_timestamps=True, fp16=False)
    heard: list[str] = []
    for start in range(0, len(audio), _BATCH):
        clips = [pad_or_trim(clip) for clip in audio[start : start + _BATCH]]
        mels = torch.stack([log_mel_spectrogram(clip, network.dims.n_mels) for clip in clips])
        heard += [result.text for result in decode(network, mels.to(network.device), options)]
    return heard


if __name__ == "__main__":
    serve(load)
