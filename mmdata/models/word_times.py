"""When each word of a text is said, by the attention of Whisper's decoder to the speech.

The text is given to the decoder (teacher forcing); the cross-attention heads that follow the speech in time are read
and a monotonic path is laid through them by dynamic time warping, as openai-whisper's `timing.find_alignment` does,
whose functions are used. Two things differ: the encoder sees the clip, not 30 s, and rows are computed in batches.
The path gives every frame to some token, pauses too, so a word that begins in a pause is moved to the pause's end.

Shapes: B rows, H alignment heads, L tokens of a row, N tokens of a text and the end token, T encoder frames (20 ms),
S width of the model, C samples of audio at 16 kHz.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from mmdata.errors import WeightsError
from mmdata.models.whisper_network import FRAME_C, SAMPLE_RATE, AudioC

if TYPE_CHECKING:
    import torch
    from whisper.model import Whisper as Network
    from whisper.timing import WordTiming
    from whisper.tokenizer import Tokenizer

# openai-whisper `timing.find_alignment` and `timing.add_word_timestamps`.
_MEDIAN_FRAMES = 7
_PREPENDED = "\"'“¿([{-"
_APPENDED = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 (full-width marks on purpose)
FRAME_S = FRAME_C / SAMPLE_RATE
# A frame this far below the clip's loudest is a pause. On espeak-ng's speech with pauses of faint noise it takes the
# 95 % quantile of the error of word starts from 0.29 to 0.21 s (tiny.en) and from 0.46 to 0.15 s (base); 30 to 50 are
# alike (tests/unit/models/test_word_times.py).
_PAUSE_DB = 40.0


class WordTime(NamedTuple):
    """One word of a text in its clip.

    Attributes:
        word: as written, with the punctuation that clings to it, without spaces around.
        start_s: from the clip's beginning, in steps of 0.02 s.
        end_s: likewise; never before `start_s`, never after the clip's end.
        probability: mean probability of its tokens given the speech and the words before.
    """

    word: str
    start_s: float
    end_s: float
    probability: float


def time_words(
    tokenizer: Tokenizer, audio_C: AudioC, tokens: list[int], attention_HLT: torch.Tensor, logprobs: list[float]
) -> list[WordTime]:
    """Times of the words of one text.

    Args:
        tokenizer: of the text's language, which says where words end.
        audio_C: the clip, without padding.
        tokens: of the text, the end token last.
        attention_HLT: logits of the alignment heads at every place of the row, which ends with `tokens`; T covers the
            clip alone.
        logprobs: log-likelihood of each of `tokens`.
    """
    from whisper.timing import WordTiming, merge_punctuations

    words, word_tokens = tokenizer.split_to_word_tokens(tokens[:-1])
    edges = np.concatenate([[0], np.cumsum([len(own) for own in word_tokens])])
    times_s = _token_starts(attention_HLT, len(tokens))[edges] * FRAME_S
    timings = [
        WordTiming(word, own, start_s, end_s, float(np.exp(logprobs[i:j]).mean()))
        for word, own, (start_s, end_s), (i, j) in zip(
            words, word_tokens, pairwise(times_s.tolist()), pairwise(edges.tolist()), strict=True
        )
    ]
    merge_punctuations(timings, _PREPENDED, _APPENDED)
    heard_T = _heard(audio_C)
    return [_without_pauses(timing, heard_T) for timing in timings if timing.word.strip()]


def alignment_heads(network: Network) -> list[tuple[int, int]]:
    """Give [layer, head] of the cross-attention heads that follow the speech; by default all of the upper half.

    Raises WeightsError where the weights name a head that the network has not.
    """
    pairs = network.alignment_heads.coalesce().indices().T.tolist()
    if not pairs:
        raise WeightsError("the Whisper weights name no alignment heads: word times need some")
    return [(layer, head) for layer, head in pairs]


def attention_logits(network: Network, queries: list[torch.Tensor], keys: list[torch.Tensor]) -> torch.Tensor:
    """Logits [B, H, L, T] in float32 of the alignment heads' attention.

    As openai-whisper's `MultiHeadAttention.qkv_attention` computes them, of queries [B, L, S] and keys [B, T, S] of
    each decoder layer.
    """
    import torch

    n_head = network.dims.n_text_head
    width = network.dims.n_text_state // n_head
    found = []
    for layer, head in alignment_heads(network):
        part = slice(head * width, (head + 1) * width)
        query_BLS, key_BTS = queries[layer][..., part].float(), keys[layer][..., part].float()
        found.append(query_BLS @ key_BTS.transpose(-1, -2) * width**-0.5)
    return torch.stack(found, dim=1)


def _token_starts(attention_HLT: torch.Tensor, n_tokens: int) -> npt.NDArray[np.int64]:
    """Frame [N] at which the path reaches each token (openai-whisper `timing.find_alignment`)."""
    import torch
    from whisper.timing import dtw

    weights_HLT = attention_HLT.softmax(dim=-1)
    std_H1T, mean_H1T = torch.std_mean(weights_HLT, dim=-2, keepdim=True, unbiased=False)
    filtered_HLT = _median((weights_HLT - mean_H1T) / std_H1T.clamp_min(1e-9))
    # A token is looked for where the one before it is read: that place predicts it.
    matrix_NT = filtered_HLT.mean(dim=0)[-n_tokens - 1 : -1]
    # On CUDA openai-whisper would compile a kernel, for which a machine needs a compiler.
    tokens, frames = dtw(-matrix_NT.cpu())
    jumps = np.concatenate([[True], np.diff(tokens) > 0])
    starts_N: npt.NDArray[np.int64] = frames[jumps]
    return starts_N


def _median(rows_HLT: torch.Tensor) -> torch.Tensor:
    """Median of each place and its neighbours in time, on any device (openai-whisper `timing.median_filter`)."""
    import torch

    side = _MEDIAN_FRAMES // 2
    if rows_HLT.shape[-1] <= side:
        return rows_HLT
    padded_HLT = torch.nn.functional.pad(rows_HLT, (side, side), mode="reflect")
    sorted_HLTK = padded_HLT.unfold(-1, _MEDIAN_FRAMES, 1).sort().values
    return sorted_HLTK[..., side]


def _heard(audio_C: AudioC) -> npt.NDArray[np.bool_]:
    """Whether each frame [T] of the clip is louder than a pause."""
    padded_C = np.pad(audio_C, (0, -audio_C.size % FRAME_C))
    power_T = np.square(padded_C.reshape(-1, FRAME_C), dtype=np.float64).mean(axis=1)
    heard_T: npt.NDArray[np.bool_] = power_T > power_T.max() * 10 ** (-_PAUSE_DB / 10)
    return heard_T


def _without_pauses(timing: WordTiming, heard_T: npt.NDArray[np.bool_]) -> WordTime:
    """Cut the pauses off both ends of a word; where all of it is pause it stays as it is."""
    start, end = round(timing.start / FRAME_S), min(round(timing.end / FRAME_S), heard_T.size)
    loud = np.flatnonzero(heard_T[start:end])
    if loud.size:
        start, end = start + int(loud[0]), start + int(loud[-1]) + 1
    return WordTime(timing.word.strip(), start * FRAME_S, end * FRAME_S, timing.probability)
