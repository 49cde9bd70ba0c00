"""openai-whisper's network on audio of any length, in the pieces that scoring needs.

openai-whisper's encoder takes 30 s only; with its position table cut it takes any length, and costs as much less. Its
decoder computes logits at every place of every row; here they are computed where they are wanted.

Shapes: B clips or rows, T encoder frames (20 ms), S width of the model, L tokens of a row, N places in rows,
V vocabulary, C samples of audio at 16 kHz.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from whisper.model import Whisper as Network

SAMPLE_RATE = 16_000
# A frame of the encoder is 20 ms: hop of 160 samples, halved by the second convolution (openai-whisper `audio.py`).
FRAME_C = 320

AudioC: TypeAlias = npt.NDArray[np.float32]
KeysValues: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"


def frames(duration_s: float) -> int:
    """Count the encoder frames that hold `duration_s` seconds."""
    return math.ceil(duration_s * SAMPLE_RATE / FRAME_C)


def cast(network: Network, dtype: torch.dtype) -> None:
    """Change what multiplies; openai-whisper's layer norms want float32 and would cast the rest anew."""
    from torch import nn

    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
            module.to(dtype)


def encode(network: Network, clips: list[AudioC], padded_s: float) -> torch.Tensor:
    """Encoder states [B, T, S] of clips [C] each, padded with zeros to `padded_s` seconds (at most 30).

    As openai-whisper's `AudioEncoder.forward`, with the position table cut.
    """
    import torch
    from torch.nn.functional import gelu
    from whisper.audio import log_mel_spectrogram

    length = frames(padded_s) * FRAME_C
    mels = [
        log_mel_spectrogram(np.pad(clip, (0, length - clip.size)), network.dims.n_mels, device=network.device)
        for clip in clips
    ]
    encoder, dtype = network.encoder, _dtype(network)
    hidden_BST = gelu(encoder.conv2(gelu(encoder.conv1(torch.stack(mels).to(dtype)))))
    hidden_BTS = hidden_BST.permute(0, 2, 1)
    hidden_BTS = (hidden_BTS + encoder.positional_embedding[: hidden_BTS.shape[1]]).to(dtype)
    for block in encoder.blocks:
        hidden_BTS = block(hidden_BTS)
    states_BTS: torch.Tensor = encoder.ln_post(hidden_BTS)
    return states_BTS


def keys_values(network: Network, audio_BTS: torch.Tensor) -> KeysValues:
    """Keys and values [B, T, S] of the cross-attention of each decoder layer."""
    return [(b.cross_attn.key(audio_BTS), b.cross_attn.value(audio_BTS)) for b in network.decoder.blocks]


def decoder_states(
    network: Network, tokens_BL: torch.Tensor, heard: KeysValues, queries: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """Decoder states [B, L, S] (openai-whisper `TextDecoder.forward`).

    `heard` may be of one clip for all rows. `queries` takes the cross-attention's queries [B, L, S] of each layer.
    """
    decoder = network.decoder
    hidden_BLS = decoder.token_embedding(tokens_BL) + decoder.positional_embedding[: tokens_BL.shape[1]]
    hidden_BLS = hidden_BLS.to(_dtype(network))
    for block, (keys, values) in zip(decoder.blocks, heard, strict=True):
        hidden_BLS = hidden_BLS + block.attn(block.attn_ln(hidden_BLS), mask=decoder.mask)[0]
        shape = (len(tokens_BL), -1, -1)
        query_BLS = block.cross_attn.query(block.cross_attn_ln(hidden_BLS))
        if queries is not None:
            queries.append(query_BLS)
        mixed_BLS, _ = block.cross_attn.qkv_attention(query_BLS, keys.expand(shape), values.expand(shape))
        hidden_BLS = hidden_BLS + block.cross_attn.out(mixed_BLS)
        hidden_BLS = hidden_BLS + block.mlp(block.mlp_ln(hidden_BLS))
    states_BLS: torch.Tensor = decoder.ln(hidden_BLS)
    return states_BLS


def logits(network: Network, states_NS: torch.Tensor) -> torch.Tensor:
    """Logits [N, V] in float32."""
    logits_NV: torch.Tensor = (states_NS @ network.decoder.token_embedding.weight.to(states_NS.dtype).T).float()
    return logits_NV


def _dtype(network: Network) -> torch.dtype:
    dtype: torch.dtype = network.decoder.token_embedding.weight.dtype
    return dtype
