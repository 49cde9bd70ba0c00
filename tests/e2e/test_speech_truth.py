"""How well the agreement of speech and text tells right transcripts from wrong ones, beside decoding and word errors.

Real prompts under Whisper tiny.en; the wrong transcripts are made here. AUC: the share of (right, wrong) pairs that a
measure puts in order.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from jiwer import wer
from sklearn.metrics import roc_auc_score
from whisper.decoding import DecodingOptions, decode

from mmdata.models.whisper import MAX_AUDIO_S, SpeechScore, Whisper
from mmdata.models.whisper_network import encode
from mmdata.models.word_errors import normalised

PROMPTS = 40  # 96 take five minutes of a busy core, for openai-whisper decodes each
SEED = 0
MARKS = ".,!?"
MEASURES: dict[str, Callable[[SpeechScore], float]] = {
    "score": lambda found: found.score,
    "logprob_per_token": lambda found: found.logprob_per_token,
    "weakest_word_logprob": lambda found: found.weakest_word_logprob,
    "end_logprob": lambda found: found.end_logprob,
}


@dataclass(frozen=True)
class Prompt:
    """A clip [C] at 16 kHz, its transcript, and wrong ones by what is wrong with them."""

    audio: np.ndarray
    text: str
    wrong: dict[str, str]


def clips(folder: Path) -> list[tuple[np.ndarray, str]]:
    """English prompts of at least 4 words, in an order drawn by lot."""
    with (folder / "prompts.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["text"].startswith(("[", "("))]
    found = []
    for place in np.random.default_rng(SEED).permutation(len(rows)):
        audio, rate = soundfile.read(folder / rows[place]["path"], dtype="float32")
        if len(audio) / rate <= MAX_AUDIO_S and len(rows[place]["text"].split()) >= 4:
            times = np.arange(0, len(audio), rate / 16_000)
            resampled = np.interp(times, np.arange(len(audio)), audio).astype(np.float32)
            found.append((resampled[: int(MAX_AUDIO_S * 16_000)], rows[place]["text"]))
    return found


def one_word_wrong(text: str, other: str, random: np.random.Generator) -> str:
    """One word replaced by one of another text, in the case and with the marks of the one that it replaces."""
    words = text.split()
    place = int(random.integers(len(words)))
    old = words[place].strip(MARKS)
    choice = [word.strip(MARKS) for word in other.split() if normalised(word) not in ("", normalised(old))]
    new = choice[int(random.integers(len(choice)))]
    marks = words[place][len(words[place].rstrip(MARKS)) :]
    words[place] = (new.capitalize() if old[:1].isupper() else new.lower()) + marks
    return " ".join(words)


def without_last_third(text: str) -> str:
    words = text.split()
    return " ".join(words[: -max(1, round(len(words) / 3))])


@pytest.fixture(scope="module")
def prompts(prompts_dir: Path) -> list[Prompt]:
    found, random = clips(prompts_dir)[:PROMPTS], np.random.default_rng(SEED)
    texts = [text for _, text in found]
    prompts = []
    for (audio, text), other in zip(found, texts[1:] + texts[:1], strict=True):
        cut = without_last_third(text)
        wrong = {"shuffled": other, "one word wrong": one_word_wrong(text, other, random), "truncated": cut}
        prompts.append(Prompt(audio, text, {**wrong, "truncated, with a full stop": cut.rstrip(MARKS) + "."}))
    return prompts


def decoded(model: Whisper, audio: list[np.ndarray]) -> list[str]:
    """openai-whisper's greedy decoding of the same weights."""
    texts = []
    with torch.inference_mode():
        for start in range(0, len(audio), 8):
            states = encode(model.network, audio[start : start + 8], MAX_AUDIO_S)
            options = DecodingOptions(language="en", without_timestamps=True, fp16=False)
            texts += [result.text for result in decode(model.network, states, options)]
    return texts


def auc(right: list[float], wrong: list[float]) -> float:
    return float(roc_auc_score([1] * len(right) + [0] * len(wrong), right + wrong))


@pytest.fixture(scope="module")
def aucs(prompts: list[Prompt], whisper_tiny_dir: Path) -> dict[str, dict[str, float]]:
    """By what is wrong with the transcripts, by measure; `1 - WER` is of what openai-whisper decodes."""
    model = Whisper.load(str(whisper_tiny_dir), "cpu")
    audio = [prompt.audio for prompt in prompts]
    texts = [[prompt.text, *prompt.wrong.values()] for prompt in prompts]
    scores = model.score_each(audio, texts, ["en"] * len(prompts))
    # openai-whisper decodes in float32 alone.
    exact = Whisper.load(str(whisper_tiny_dir), "cpu", precision="float32")
    heard = [normalised(text) for text in decoded(exact, audio)]
    agreements = [[-wer(normalised(t), text) for t in own] for own, text in zip(texts, heard, strict=True)]
    found: dict[str, dict[str, float]] = {}
    for place, kind in enumerate(prompts[0].wrong, start=1):
        found[kind] = {
            name: auc([measure(own[0]) for own in scores], [measure(own[place]) for own in scores])
            for name, measure in MEASURES.items()
        }
        found[kind]["1 - WER"] = auc([own[0] for own in agreements], [own[place] for own in agreements])
    for kind, row in found.items():
        print(f"{kind:28}", *(f"{name} {value:.4f}" for name, value in row.items()))  # noqa: T201 (figures to read)
    return found


@pytest.mark.slow
def test_another_prompt_s_text_scores_lower(aucs: dict[str, dict[str, float]]) -> None:
    assert aucs["shuffled"]["score"] >= 0.99
    assert aucs["shuffled"]["score"] >= aucs["shuffled"]["1 - WER"] - 0.02


@pytest.mark.slow
def test_one_wrong_word_shows_in_the_weakest_word(aucs: dict[str, dict[str, float]]) -> None:
    found = aucs["one word wrong"]
    assert found["weakest_word_logprob"] >= 0.96
    assert found["weakest_word_logprob"] > found["score"] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "truncated, with a full stop"])
def test_words_left_out_at_the_end_show_in_the_end(aucs: dict[str, dict[str, float]], kind: str) -> None:
    assert aucs[kind]["end_logprob"] >= 0.95
