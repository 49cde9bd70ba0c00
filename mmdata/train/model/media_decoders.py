"""What a flow's tokens stand for: patches of an image, spans of a log-mel spectrogram.

Shapes: N samples, S tokens, X numbers of a token, L mel bands, P frames of 10 ms, T samples in time at 16 kHz,
R frequency bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdata.train.model.flow import Flow
from mmdata.train.model.layers import unflatten
from mmdata.train.model.mel import BANDS, HOP, WINDOW, LogMel, mel_filters
from mmdata.train.model.patches import from_patches, to_patches, unit_pixels
from mmdata.train.model.sizes import AudioDecoderShape, ImageDecoderShape

_FRAMES_PER_S = 16_000 // HOP
# Griffin and Lim 1984; after so many rounds little changes.
_PHASE_ROUNDS = 32
# 16-bit sound, with some room, so that nothing is clipped.
_LOUDEST = 0.9 * 32767


class MediaDecoder(nn.Module):
    """A flow, and what its tokens stand for."""

    flow: Flow

    def tokens(self, values: Tensor, length_N: Tensor) -> Tensor:
        """The data that the flow learns to make, of the loader's values. Shape (N, S, X)."""
        raise NotImplementedError

    def media(self, token_NSX: Tensor) -> Tensor:
        """The loader's kind of values, of some tokens."""
        raise NotImplementedError


class ImageDecoder(MediaDecoder):
    """Square images in pixels."""

    def __init__(self, shape: ImageDecoderShape, context_width: int) -> None:
        """Of `shape.side_px`, whatever the size of the loader's."""
        super().__init__()
        self.side_px, self.patch_px = shape.side_px, shape.patch_px
        self.flow = Flow(shape, (shape.side_px // shape.patch_px) ** 2, 3 * shape.patch_px**2, context_width)

    def tokens(self, values: Tensor, _length_N: Tensor) -> Tensor:
        """Patches between -1 and 1, of uint8 pixels (N, 3, H, W)."""
        pixels = unit_pixels(values)
        if pixels.shape[-1] != self.side_px:
            pixels = functional.interpolate(pixels, (self.side_px,) * 2, mode="bilinear", antialias=True)
        return to_patches(pixels, self.patch_px)

    def media(self, token_NSX: Tensor) -> Tensor:
        """Pixels (N, 3, side, side), uint8."""
        return ((from_patches(token_NSX, self.patch_px) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class AudioDecoder(MediaDecoder):
    """Clips of one length as log-mel spectrograms; after a shorter clip comes silence."""

    def __init__(self, shape: AudioDecoderShape, context_width: int) -> None:
        """Of `shape.max_s` seconds."""
        super().__init__()
        self.span = shape.patch_frames
        count = math.ceil(shape.max_s * _FRAMES_PER_S / self.span)
        self.mel = LogMel()
        self.flow = Flow(shape, count, self.span * BANDS, context_width)

    def tokens(self, values: Tensor, length_N: Tensor) -> Tensor:
        """Spans of frames, of int16 sound (N, T)."""
        frames_NLP, mask_NP = self.mel(values, length_N)
        quietest_N11 = frames_NLP.masked_fill(~mask_NP[:, None], torch.inf).amin(dim=(1, 2), keepdim=True)
        frames_NLP = torch.where(mask_NP[:, None], frames_NLP, quietest_N11)
        wanted = self.flow.tokens * self.span
        short = max(0, wanted - frames_NLP.shape[2])
        padding_NLP = quietest_N11.expand(-1, BANDS, short)
        whole_NLP = torch.cat([frames_NLP[:, :, :wanted], padding_NLP], dim=2)
        return unflatten(whole_NLP, 2, (-1, self.span)).permute(0, 2, 1, 3).flatten(2)

    def frames(self, token_NSX: Tensor) -> Tensor:
        """Log-mel frames of tokens. Shape (N, L, P)."""
        return unflatten(token_NSX, 2, (BANDS, self.span)).permute(0, 2, 1, 3).flatten(2)

    def media(self, token_NSX: Tensor) -> Tensor:
        """Sound (N, T), int16: see `sound_of`."""
        return sound_of(self.frames(token_NSX))


@torch.no_grad()
def sound_of(frames_NLP: Tensor) -> Tensor:
    """Sound of log-mel frames; the phase is found by Griffin and Lim's way. Shape (N, T), int16.

    The loudness is that of the loudest moment, as the frames of `LogMel` are kept.
    """
    power_NLP = 10 ** (frames_NLP.float() * 4 - 4)
    inverse_RL = torch.linalg.pinv(mel_filters().double()).float().to(frames_NLP.device)
    magnitude_NRP = (inverse_RL @ power_NLP).clamp(min=0).sqrt()
    window = torch.hann_window(WINDOW, device=frames_NLP.device)
    phase_NRP = torch.ones_like(magnitude_NRP, dtype=torch.complex64)
    sound_NT = _istft(magnitude_NRP * phase_NRP, window)
    for _ in range(_PHASE_ROUNDS):
        spectrum_NRP = torch.stft(sound_NT, WINDOW, HOP, window=window, center=True, return_complex=True)
        sound_NT = _istft(magnitude_NRP * torch.exp(1j * spectrum_NRP.angle()), window)
    return (sound_NT * 32767).clamp(-_LOUDEST, _LOUDEST).to(torch.int16)


def _istft(spectrum_NRP: Tensor, window: Tensor) -> Tensor:
    return torch.istft(spectrum_NRP, WINDOW, HOP, window=window, center=True)
