"""Transcripts of clips, and which of them not to believe.

CTranslate2 folders are decoded by faster-whisper, the rest by openai-whisper (`models.whisper`). Silence is cut off, or
refused, before decoding (Silero VAD); what was decoded is refused where it is what Whisper writes when nobody speaks.

Shapes: C samples of audio at 16 kHz.
"""

from __future__ import annotations

import re
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models.whisper_network import SAMPLE_RATE, AudioC

if TYPE_CHECKING:
    import torch
    from faster_whisper import BatchedInferencePipeline

# Defaults of openai-whisper's `transcribe`: compression_ratio_threshold, logprob_threshold, no_speech_threshold.
_MAX_COMPRESSION = 2.4
_MIN_AVG_LOGPROB = -1.0
_MAX_NO_SPEECH_PROB = 0.6
# A phrase of up to so many words, said so often in a row, in most of a text of at least so many words: a loop.
_LOOP_WORDS, _LOOP_TIMES, _LOOP_SHARE, _LOOP_TEXT_WORDS = 8, 4, 0.5, 8
# openai-whisper's beam for its command line and faster-whisper's default.
_BEAMS = 5
_CLIPS_A_PASS = {"cuda": 32}
_CLIPS_A_PASS_ELSEWHERE = 8
_PAD_S = 0.4  # kept around speech: faster-whisper `VadOptions.speech_pad_ms`


@dataclass(frozen=True)
class Transcript:
    """What Whisper hears in one clip.

    Attributes:
        text: stripped; "" where nothing was decoded.
        language: code as given or detected; None where nobody speaks and none was given.
        avg_logprob: mean log-likelihood in nats of the decoded tokens, the end token counted; None: not decoded.
        no_speech_prob: probability of Whisper's `<|nospeech|>` right after the start; None: not decoded.
        rejected: why the text is not to be believed: `no_speech` (none by VAD, or by Whisper's own measures),
            `no_words`, `known_phrase`, `loop`.
    """

    text: str
    language: str | None
    avg_logprob: float | None
    no_speech_prob: float | None
    rejected: str | None


def judged(text: str, language: str, avg_logprob: float, no_speech_prob: float) -> Transcript:
    """Make the transcript, with the reason to reject it if there is one."""
    text = text.strip()
    why = rejection(text, avg_logprob, no_speech_prob)
    return Transcript(text, language, float(avg_logprob), float(no_speech_prob), why)


def rejection(text: str, avg_logprob: float, no_speech_prob: float) -> str | None:
    """Why a decoded text is not to be believed, as `Transcript.rejected`; None where it is."""
    bare = _bare(text)
    if not any(map(str.isalnum, bare)):
        return "no_words"
    unsure, unvoiced = avg_logprob < _MIN_AVG_LOGPROB, no_speech_prob > _MAX_NO_SPEECH_PROB
    if unsure and unvoiced:
        return "no_speech"
    phrases = _phrases()
    if phrases["credits"].search(bare) or phrases["farewells"].fullmatch(bare):
        return "known_phrase"
    if (unsure or unvoiced) and phrases["doubtful"].fullmatch(bare):
        return "known_phrase"
    return "loop" if _compression(text) > _MAX_COMPRESSION or _loops(bare.split()) else None


def speech_span(audio_C: AudioC) -> AudioC | None:
    """The clip from its first speech to its last with 0.4 s around, None without speech (Silero VAD).

    Raises MissingExtraError without faster-whisper, which brings the network.
    """
    try:
        from faster_whisper.vad import VadOptions, get_speech_timestamps
    except ImportError as error:
        raise _missing() from error
    spans = get_speech_timestamps(audio_C, VadOptions(speech_pad_ms=round(_PAD_S * 1000)))
    return audio_C[spans[0]["start"] : spans[-1]["end"]] if spans else None


class FastTranscriber:
    """faster-whisper on a CTranslate2 folder; int8 on CPUs, float16 on CUDA."""

    def __init__(self, pipeline: BatchedInferencePipeline, clips_a_pass: int) -> None:
        self.pipeline = pipeline
        self.clips_a_pass = clips_a_pass

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> FastTranscriber:
        """Load `folder`, with as many threads as torch has.

        Raises:
            MissingExtraError: faster-whisper is not installed.
            WeightsError: CTranslate2 cannot read the folder.
        """
        import torch

        try:
            from faster_whisper import BatchedInferencePipeline, WhisperModel
        except ImportError as error:
            raise _missing() from error
        cuda = device.type == "cuda"
        try:
            model = WhisperModel(
                str(folder),
                device="cuda" if cuda else "cpu",
                device_index=device.index or 0,
                compute_type="float16" if cuda else "int8",
                cpu_threads=torch.get_num_threads(),
                local_files_only=True,
            )
        except (RuntimeError, ValueError) as error:
            raise WeightsError(f"{folder}: CTranslate2 cannot load it: {error}") from error
        return cls(BatchedInferencePipeline(model), _CLIPS_A_PASS.get(device.type, _CLIPS_A_PASS_ELSEWHERE))

    def transcribe(self, audio: Sequence[AudioC], languages: Sequence[str | None]) -> list[Transcript]:
        """Transcribe clips of at most 30 s; a language None is detected."""
        spans = [speech_span(clip) for clip in audio]
        found: dict[int, Transcript] = {
            i: Transcript("", languages[i], None, None, "no_speech") for i, span in enumerate(spans) if span is None
        }
        voiced = {i: span for i, span in enumerate(spans) if span is not None}
        codes = {i: languages[i] or self._detect(span) for i, span in voiced.items()}
        for code in sorted(set(codes.values())):
            rows = [i for i in voiced if codes[i] == code]
            found.update(zip(rows, self._decode([voiced[i] for i in rows], code), strict=True))
        return [found[i] for i in range(len(audio))]

    def _detect(self, audio_C: AudioC) -> str:
        language: str = self.pipeline.model.detect_language(audio_C)[0]
        return language

    def _decode(self, clips: list[AudioC], language: str) -> list[Transcript]:
        """Decode clips of one language: laid end to end, each a chunk of its own to the batched pipeline."""
        ends = np.cumsum([clip.size for clip in clips]).tolist()
        starts = [0, *ends[:-1]]
        # Half a sample more, for the pipeline rounds down.
        chunks = [
            {"start": (start + 0.5) / SAMPLE_RATE, "end": (end + 0.5) / SAMPLE_RATE}
            for start, end in zip(starts, ends, strict=True)
        ]
        segments, _ = self.pipeline.transcribe(
            np.concatenate(clips),
            language=language,
            beam_size=_BEAMS,
            clip_timestamps=chunks,
            batch_size=self.clips_a_pass,
        )
        by_chunk: dict[int, list[Any]] = {}
        for segment in segments:
            by_chunk.setdefault(segment.seek, []).append(segment)
        # `seek` is the chunk's start in frames of 10 ms; no clip is shorter than ten of them.
        return [_joined(by_chunk.get(int(start / SAMPLE_RATE * 100), []), language) for start in starts]


def _joined(segments: list[Any], language: str) -> Transcript:
    if not segments:
        return Transcript("", language, None, None, "no_speech")
    text = " ".join(segment.text.strip() for segment in segments)
    # All segments of a chunk carry the chunk's own measures.
    return judged(text, language, segments[0].avg_logprob, segments[0].no_speech_prob)


@cache
def _phrases() -> dict[str, re.Pattern[str]]:
    lists = yaml.safe_load((Path(__file__).parent / "hallucinations.yaml").read_text(encoding="utf-8"))
    return {
        kind: re.compile("|".join(f"(?:{one})" for own in by_language.values() for one in own))
        for kind, by_language in lists.items()
    }


def _bare(text: str) -> str:
    """Lower case without punctuation at the ends of words, blanks single."""
    marks = string.punctuation + "…。、，！？¡¿«»“”„「」"  # noqa: RUF001 (full-width marks on purpose)
    return " ".join(word for raw in text.casefold().split() if (word := raw.strip(marks)))


def _compression(text: str) -> float:
    """Bytes of the text for one of its zlib stream (openai-whisper `utils.compression_ratio`)."""
    data = text.encode(errors="surrogatepass")
    return len(data) / len(zlib.compress(data))


def _loops(words: list[str]) -> bool:
    if len(words) < _LOOP_TEXT_WORDS:
        return False
    return any(_longest_loop(words, size) >= _LOOP_SHARE * len(words) for size in range(1, _LOOP_WORDS + 1))


def _longest_loop(words: list[str], size: int) -> int:
    """Words of the longest stretch that repeats a phrase of `size` words often enough, 0 without one."""
    longest = run = 0
    for place in range(size, len(words)):
        run = run + 1 if words[place] == words[place - size] else 0
        longest = max(longest, run)
    return longest + size if longest >= size * (_LOOP_TIMES - 1) else 0


def _missing() -> MissingExtraError:
    return MissingExtraError("transcribing", "faster-whisper", "whisper")
