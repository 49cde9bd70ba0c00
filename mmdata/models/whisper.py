"""How well speech and text agree, by Whisper: the text's likelihood given the speech, in one decoder pass.

Nothing is decoded: the text is given to the decoder (teacher forcing) and its tokens' log-likelihoods are read off.
From each the likelihood of the same text given silence is taken, so that a rare word counts no worse than a common one
(pointwise mutual information in nats a token).

The encoder sees a clip padded by `MARGIN_S`, not to 30 s. How far depends on the clip alone, never on its batch, so
that a score does not depend on what it is computed beside.

Shapes: B clips, T encoder frames (20 ms), M mel bands, S width of the model, L tokens of a row, N tokens to score,
V vocabulary, C samples of audio at 16 kHz.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmdata.errors import FatalError, SampleError
from mmdata.models import ctranslate2
from mmdata.models.device import Precision, multiplies_bf16, resolve_device
from mmdata.models.transcribe import FastTranscriber, Transcript, judged
from mmdata.models.whisper_network import (
    SAMPLE_RATE,
    AudioC,
    KeysValues,
    cast,
    decoder_states,
    encode,
    frames,
    keys_values,
    logits,
)
from mmdata.models.whisper_score import LogprobsN, SpeechScore, speech_score
from mmdata.models.whisper_text import Texts
from mmdata.models.whisper_weights import load_network, locate
from mmdata.models.word_times import WordTime, attention_logits, time_words

if TYPE_CHECKING:
    import torch
    from whisper.model import Whisper as Network

__all__ = ["MAX_AUDIO_S", "MIN_AUDIO_S", "SAMPLE_RATE", "SpeechScore", "Transcript", "Whisper", "WordTime", "locate"]

MAX_AUDIO_S = 30.0  # what Whisper was trained on (Radford et al. 2022, section 2.1)
MIN_AUDIO_S = 0.1
# Silence behind the clip. Matched against deranged text of 275 English prompts under tiny.en, AUC of the score:
# 0.9947 with none, 0.9977 with 0.5 s, 0.9987 with 1 s, 0.9991 with 2 s, 0.9999 padded to 30 s, at 6 times the time.
MARGIN_S = 1.0
# Padded lengths are multiples of this, and at least this share of the length: clips of like length share a batch.
_STEP_S = 0.5
_STEP_SHARE = 0.1
_FRAMES_A_PASS = {"cuda": 96_000}
_FRAMES_A_PASS_ELSEWHERE = 6_000  # 2 minutes of audio: a choice that bounds memory, not tuned
_LOGIT_ROWS_A_PASS = 512  # 512 x 51,865 float32: 106 MB
_PRIORS_KEPT = 100_000


class Whisper:
    """A Whisper network with batching; float16 on CUDA, bf16 on processors that multiply it, else float32."""

    def __init__(
        self, network: Network, device: torch.device, folder: Path | None = None, precision: Precision = "auto"
    ) -> None:
        """`folder`: the CTranslate2 folder that the network is from, if it is: faster-whisper transcribes with it."""
        import torch

        self.device = device
        self.network = network.to(device).eval()
        self._dtype = torch.float32
        if precision == "auto" and device.type == "cuda":
            # What Whisper was trained in, which is three bits finer than bf16, and which older devices multiply too.
            self._dtype = torch.float16
        elif precision == "auto" and multiplies_bf16(device):
            self._dtype = torch.bfloat16
        cast(self.network, self._dtype)
        self._priors: OrderedDict[tuple[str | int, ...], LogprobsN] = OrderedDict()
        self._silence: KeysValues | None = None
        self._texts = Texts(network)
        self._folder = folder
        self._fast: FastTranscriber | None = None

    @classmethod
    def load(cls, model: str, device: str = "auto", precision: Precision = "auto") -> Whisper:
        """Load what `locate` finds.

        Args:
            model: as in `locate`.
            device: as in `resolve_device`.
            precision: of weights and activations; `auto` is float16 on CUDA and bf16 where a processor
                `multiplies_bf16`, which moves scores by some hundredths of a nat.

        Raises:
            WeightsError: the weights are missing or damaged.
            MissingExtraError: openai-whisper is not installed.
            FatalError: the device is not there.
        """
        network = load_network(model)
        path = Path(model).expanduser()
        # Without its own tokenizer faster-whisper would fetch one.
        fast = ctranslate2.is_folder(path) and (path / "tokenizer.json").is_file()
        return cls(network, resolve_device(device), path if fast else None, precision)

    @property
    def languages(self) -> frozenset[str]:
        """Codes that the model was trained on; only `en` for an English-only model."""
        return self._texts.languages

    def check(self, audio_C: AudioC, text: str | None = None) -> None:
        """Raise SampleError where one clip, or one text, cannot be scored.

        Reasons: `audio_shape`, `audio_too_short`, `audio_too_long`, `audio_not_finite`, `text_empty`, `text_too_long`.
        """
        if audio_C.ndim != 1:
            raise SampleError("audio_shape", f"audio of shape {audio_C.shape}, needs one channel")
        duration_s = audio_C.size / SAMPLE_RATE
        if duration_s < MIN_AUDIO_S:
            raise SampleError("audio_too_short", f"{duration_s:.2f} s of audio, needs at least {MIN_AUDIO_S:.2f} s")
        if duration_s > MAX_AUDIO_S:
            raise SampleError("audio_too_long", f"{duration_s:.2f} s of audio, Whisper takes {MAX_AUDIO_S:.0f} s")
        if not np.isfinite(audio_C).all():
            raise SampleError("audio_not_finite", "the audio holds NaN or infinity")
        if text is not None:
            self._texts.encode(text)

    def score(
        self, audio: Sequence[AudioC], texts: Sequence[str], languages: Sequence[str | None]
    ) -> list[SpeechScore]:
        """Score each clip with its text.

        Args:
            audio: float32 [C] each, 16 kHz, mono, `MIN_AUDIO_S` to `MAX_AUDIO_S` long.
            texts: as written, with case and punctuation: Whisper was trained on such.
            languages: codes in `languages`; None is English for an English-only model, else detected.

        Raises:
            ValueError: an item that `check` would refuse, or lists of unequal length.
            FatalError: a language that the model does not know.
        """
        found = self.score_each(audio, [[text] for text in texts], languages)
        return [score for (score,) in found]

    def score_each(
        self, audio: Sequence[AudioC], texts: Sequence[Sequence[str]], languages: Sequence[str | None]
    ) -> list[list[SpeechScore]]:
        """Score each clip with each of its own texts, in one pass of the encoder: `[clip][text]`, else as `score`.

        Each clip needs a text at least.
        """
        import torch

        self._check_all(audio, languages, texts)
        tokens = [[self._texts.encode(text) for text in own] for own in texts]
        scores: dict[int, list[SpeechScore]] = {}
        with torch.inference_mode():
            for group in self._groups(audio, [len(own[0]) for own in tokens]):
                clips = [audio[i] for i in group]
                found = self._score_group(clips, [tokens[i] for i in group], [languages[i] for i in group])
                scores.update(zip(group, found, strict=True))
        return [scores[i] for i in range(len(audio))]

    def word_times(
        self, audio: Sequence[AudioC], texts: Sequence[str], languages: Sequence[str | None]
    ) -> list[list[WordTime]]:
        """When each word of a text is said in its clip; arguments and errors as of `score`.

        A path is found for any text: whether the words are said at all, their probabilities tell.
        """
        import torch

        self._check_all(audio, languages, [[text] for text in texts])
        tokens = [self._texts.encode(text) for text in texts]
        times: dict[int, list[WordTime]] = {}
        with torch.inference_mode():
            for group in self._groups(audio, [len(row) for row in tokens]):
                clips = [audio[i] for i in group]
                found = self._time_group(clips, [tokens[i] for i in group], [languages[i] for i in group])
                times.update(zip(group, found, strict=True))
        return [times[i] for i in range(len(audio))]

    def transcribe(self, audio: Sequence[AudioC], languages: Sequence[str | None]) -> list[Transcript]:
        """Transcribe each clip: by faster-whisper where the model is a CTranslate2 folder, else by openai-whisper.

        Raises:
            ValueError: an item that `check` would refuse, or lists of unequal length.
            FatalError: a language that the model does not know.
            MissingExtraError: a CTranslate2 folder without faster-whisper.
        """
        self._check_all(audio, languages)
        if self._folder is None:
            return self._transcribe_slowly(audio, languages)
        if self._fast is None:
            self._fast = FastTranscriber.load(self._folder, self.device)
        given = [code or (None if self.network.is_multilingual else "en") for code in languages]
        return self._fast.transcribe(audio, given)

    def _transcribe_slowly(self, audio: Sequence[AudioC], languages: Sequence[str | None]) -> list[Transcript]:
        """Decode each clip greedily, without timestamps, suppressing what openai-whisper suppresses.

        Clips are padded to 30 s here. On less the decoder does not find its end: of 37 English prompts under tiny.en,
        24 reached 100 tokens without one with 1 s of silence behind them, and 17 with 2 s.
        """
        import torch

        transcripts: dict[int, Transcript] = {}
        size = max(1, self._frames_a_pass // frames(MAX_AUDIO_S))
        with torch.inference_mode(), self._decodable():
            for start in range(0, len(audio), size):
                part = range(start, min(start + size, len(audio)))
                audio_BTS = encode(self.network, [audio[i] for i in part], MAX_AUDIO_S)
                codes = self._resolve([languages[i] for i in part], keys_values(self.network, audio_BTS))
                for code in sorted(set(codes)):
                    rows = [row for row, own in enumerate(codes) if own == code]
                    decoded = self._decode(audio_BTS[rows], code)
                    transcripts.update(zip([part[row] for row in rows], decoded, strict=True))
        return [transcripts[i] for i in range(len(audio))]

    @contextmanager
    def _decodable(self) -> Iterator[None]:
        """openai-whisper decodes in float16 or float32 alone; bf16 becomes float32 and back without loss."""
        import torch

        if self._dtype != torch.bfloat16:
            yield
            return
        cast(self.network, torch.float32)
        try:
            yield
        finally:
            cast(self.network, self._dtype)

    def _check_all(
        self, audio: Sequence[AudioC], languages: Sequence[str | None], texts: Sequence[Sequence[str]] | None = None
    ) -> None:
        if len(audio) != len(languages) or (texts is not None and len(texts) != len(audio)):
            raise ValueError(f"{len(audio)} clips, {len(languages)} languages, {texts and len(texts)} texts")
        unknown = {code for code in languages if code is not None} - self.languages
        if unknown:
            known = "only English" if not self.network.is_multilingual else f"{len(self.languages)} languages"
            raise FatalError(f"Whisper: this model knows {known}, not {', '.join(sorted(unknown))}")
        for index, clip in enumerate(audio):
            try:
                self.check(clip)
                for text in texts[index] if texts is not None else ():
                    self.check(clip, text)
            except SampleError as error:
                raise ValueError(f"item {index}: {error}") from error

    @property
    def _frames_a_pass(self) -> int:
        return _FRAMES_A_PASS.get(self.device.type, _FRAMES_A_PASS_ELSEWHERE)

    def _groups(self, audio: Sequence[AudioC], n_tokens: Sequence[int]) -> Iterator[list[int]]:
        """Indices of clips with one padded length, as many as a pass holds, texts of like length together."""
        lengths_s = [_padded_s(clip.size) for clip in audio]
        group: list[int] = []
        for index in sorted(range(len(audio)), key=lambda i: (lengths_s[i], n_tokens[i], i)):
            full = (len(group) + 1) * frames(lengths_s[index]) > self._frames_a_pass
            if group and (full or lengths_s[index] != lengths_s[group[0]]):
                yield group
                group = []
            group.append(index)
        if group:
            yield group

    def _score_group(
        self, clips: list[AudioC], texts: list[list[list[int]]], languages: list[str | None]
    ) -> list[list[SpeechScore]]:
        heard = keys_values(self.network, encode(self.network, clips, _padded_s(clips[0].size)))
        codes = self._resolve(languages, heard)
        no_speech = self._no_speech_probs(heard)
        scores: list[list[SpeechScore]] = [[] for _ in clips]
        # The n-th texts of all clips are one batch: keys and values are shared, not repeated.
        for turn in range(max(map(len, texts))):
            rows = [row for row, own in enumerate(texts) if turn < len(own)]
            given = heard if len(rows) == len(clips) else [(keys[rows], values[rows]) for keys, values in heard]
            batch, own_codes = [texts[row][turn] for row in rows], [codes[row] for row in rows]
            priors = self._silence_logprobs(own_codes, batch)
            likelihoods = self._teacher_forced(own_codes, batch, given)
            for row, code, text, heard_N, silence_N in zip(rows, own_codes, batch, likelihoods, priors, strict=True):
                words = self._texts.words(code, text[:-1])
                scores[row].append(speech_score(heard_N, silence_N, words, no_speech[row], code))
        return scores

    def _no_speech_probs(self, heard: KeysValues) -> list[float]:
        """Probability of `<|nospeech|>` right after the start token (openai-whisper `DecodingTask._main_loop`)."""
        import torch

        sot_B1 = torch.full((len(heard[0][0]), 1), self._texts.plain.sot, device=self.device)
        first_BV = logits(self.network, decoder_states(self.network, sot_B1, heard)[:, 0]).softmax(-1)
        found: list[float] = first_BV[:, self._texts.plain.no_speech].tolist()
        return found

    def _time_group(
        self, clips: list[AudioC], texts: list[list[int]], languages: list[str | None]
    ) -> list[list[WordTime]]:
        import torch

        heard = keys_values(self.network, encode(self.network, clips, _padded_s(clips[0].size)))
        codes = self._resolve(languages, heard)
        rows = [self._texts.prefix(code) + text for code, text in zip(codes, texts, strict=True)]
        queries: list[torch.Tensor] = []
        states_BLS = decoder_states(self.network, self._padded(rows), heard, queries)
        attention_BHLT = attention_logits(self.network, queries, [keys for keys, _ in heard])
        times = []
        for index, (clip, text, row) in enumerate(zip(clips, texts, rows, strict=True)):
            states_NS = states_BLS[index, len(row) - len(text) - 1 : len(row) - 1]
            logprobs = self._log_likelihood(states_NS, torch.tensor(text, device=self.device)).tolist()
            attention_HLT = attention_BHLT[index, :, : len(row), : frames(clip.size / SAMPLE_RATE)]
            times.append(time_words(self._texts.tokenizer(codes[index]), clip, text, attention_HLT, logprobs))
        return times

    def _padded(self, rows: list[list[int]]) -> torch.Tensor:
        """Rows of tokens [B, L], padded on the right, where a causal decoder does not look."""
        import torch

        tensors = [torch.tensor(row) for row in rows]
        padded_BL = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=self._texts.plain.eot)
        return padded_BL.to(self.device)

    def _silence_logprobs(self, languages: list[str], texts: list[list[int]]) -> list[LogprobsN]:
        """The texts' likelihoods given silence, each computed once while it is remembered."""
        keys: list[tuple[str | int, ...]] = [(code, *text) for code, text in zip(languages, texts, strict=True)]
        new = {key: row for row, key in enumerate(keys) if key not in self._priors}
        found = {key: self._priors[key] for key in keys if key in self._priors}
        if new:
            if self._silence is None:
                self._silence = keys_values(self.network, encode(self.network, [np.zeros(0, np.float32)], MAX_AUDIO_S))
            rows = list(new.values())
            logprobs = self._teacher_forced([languages[i] for i in rows], [texts[i] for i in rows], self._silence)
            found.update(zip(new, logprobs, strict=True))
        self._priors.update(found)
        while len(self._priors) > _PRIORS_KEPT:
            self._priors.popitem(last=False)
        return [found[key] for key in keys]

    def _teacher_forced(self, languages: list[str], texts: list[list[int]], heard: KeysValues) -> list[LogprobsN]:
        """Log-likelihood [N] of each text's tokens.

        Logits are computed only where a token of a text is predicted: at the places [prefix - 1, prefix + text - 1)
        of the row.
        """
        import torch

        prefixes = [self._texts.prefix(code) for code in languages]
        tokens_BL = self._padded([prefix + text[:-1] for prefix, text in zip(prefixes, texts, strict=True)])
        states_BLS = decoder_states(self.network, tokens_BL, heard)
        lengths = [len(text) for text in texts]
        wanted = [s[len(p) - 1 : len(p) - 1 + n] for s, p, n in zip(states_BLS, prefixes, lengths, strict=True)]
        targets_N = torch.tensor([token for text in texts for token in text], device=self.device)
        logprobs_N = self._log_likelihood(torch.cat(wanted), targets_N)
        return [part.numpy() for part in torch.split(logprobs_N, lengths)]

    def _log_likelihood(self, states_NS: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """Log-likelihoods [N] in float32 on the CPU, in blocks that bound the memory of the logits."""
        import torch

        size = _LOGIT_ROWS_A_PASS
        blocks = zip(torch.split(states_NS, size), torch.split(targets_N, size), strict=True)
        return torch.cat(
            [-torch.nn.functional.cross_entropy(logits(self.network, s), t, reduction="none") for s, t in blocks]
        ).cpu()

    def _resolve(self, languages: list[str | None], heard: KeysValues) -> list[str]:
        """Languages with each None detected (openai-whisper `detect_language`): the likeliest after the start."""
        import torch

        if not self.network.is_multilingual:
            return ["en"] * len(languages)
        if None not in languages:
            return [language for language in languages if language is not None]
        sot_B1 = torch.full((len(languages), 1), self._texts.plain.sot, device=self.device)
        logits_BV = logits(self.network, decoder_states(self.network, sot_B1, heard)[:, 0])
        best_B = logits_BV[:, list(self._texts.plain.all_language_tokens)].argmax(-1).tolist()
        codes = self._texts.plain.all_language_codes
        return [language or codes[best] for language, best in zip(languages, best_B, strict=True)]

    def _decode(self, audio_BTS: torch.Tensor, language: str) -> list[Transcript]:
        import torch
        from whisper.decoding import DecodingOptions, decode

        half = audio_BTS.dtype == torch.float16
        options = DecodingOptions(language=language, without_timestamps=True, fp16=half)
        return [
            judged(result.text, language, result.avg_logprob, result.no_speech_prob)
            for result in decode(self.network, audio_BTS, options)
        ]


def _padded_s(samples: int) -> float:
    """Length that a clip is padded to: a function of its own length only."""
    wanted_s = samples / SAMPLE_RATE + MARGIN_S
    step_s = _STEP_S * max(1, math.floor(wanted_s * _STEP_SHARE / _STEP_S))
    return min(MAX_AUDIO_S, math.ceil(wanted_s / step_s) * step_s)
