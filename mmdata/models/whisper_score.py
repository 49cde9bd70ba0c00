"""What the likelihoods of a text's tokens say about its agreement with the speech.

Shapes: N tokens of a text, the end token last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LogprobsN = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SpeechScore:
    """Agreement of one clip with one text, in nats.

    The end token counts as a token of the text: a text that stops before the speech does is penalised for it.

    Attributes:
        logprob_per_token: mean log-likelihood of the text's tokens and the end token given the audio.
        silence_logprob_per_token: the same given 30 s of silence: what the text is worth to the language model alone.
        score: their difference; about 0 says that hearing the audio does not help to predict the text.
        tokens: tokens that the means are over, the end token among them.
        no_speech_prob: probability of Whisper's `<|nospeech|>` right after the start.
        weakest_word_logprob: of the word that fits the speech worst: the sum of its tokens' log-likelihoods given the
            audio (the chain rule), less the same given silence. Low where one word is wrong though the rest is right.
        end_logprob: log-likelihood of the end token and the punctuation before it given the audio and all the words:
            low where the speech goes on after them.
        language: of the transcript, as given or detected.
    """

    logprob_per_token: float
    silence_logprob_per_token: float
    score: float
    tokens: int
    no_speech_prob: float
    weakest_word_logprob: float
    end_logprob: float
    language: str


def speech_score(
    heard_N: LogprobsN, silence_N: LogprobsN, words: list[tuple[int, bool]], no_speech_prob: float, language: str
) -> SpeechScore:
    """Sum up the log-likelihoods of one text given the speech and given silence; `words` as of `Texts.words`."""
    heard, silence = float(heard_N.mean(dtype=np.float64)), float(silence_N.mean(dtype=np.float64))
    return SpeechScore(
        logprob_per_token=heard,
        silence_logprob_per_token=silence,
        score=heard - silence,
        tokens=len(heard_N),
        no_speech_prob=no_speech_prob,
        weakest_word_logprob=_weakest(heard_N.astype(np.float64) - silence_N, words),
        end_logprob=float(heard_N[-1 - _closing(words) :].sum(dtype=np.float64)),
        language=language,
    )


def _weakest(gain_N: npt.NDArray[np.float64], words: list[tuple[int, bool]]) -> float:
    """The least gain of a spoken word; of any where none is spoken."""
    counts, spoken = zip(*words, strict=True)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    by_word = np.add.reduceat(gain_N[:-1], starts)
    return float(by_word[list(spoken)].min() if any(spoken) else by_word.min())


def _closing(words: list[tuple[int, bool]]) -> int:
    """Tokens of punctuation that the text ends with."""
    count = 0
    for tokens, spoken in reversed(words):
        if spoken:
            break
        count += tokens
    return count
