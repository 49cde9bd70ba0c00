"""Log-mel spectrograms by plain torch.

Shapes: N clips, T samples in time at 16 kHz, P frames of 10 ms, R frequency bins, L = 80 mel bands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdata.train.model.layers import length_mask

# Whisper's front end (Radford et al. 2022, section 2.2): 25 ms windows every 10 ms, 80 bands.
WINDOW = 400
HOP = 160
BANDS = 80
_RATE_HZ = 16_000
_FLOOR = 1e-10


class LogMel(nn.Module):
    """Sound to log-mel frames. A clip's frames do not depend on how far it is padded."""

    window: Tensor
    filters_LR: Tensor

    def __init__(self) -> None:
        """No parameters; the constants move with the model and are not saved."""
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters_LR", mel_filters(), persistent=False)

    def forward(self, audio_NT: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """From int16 sound: frames (N, L, P), zero beyond each clip, and their mask (N, P)."""
        # Powers over many orders of magnitude: bf16 would round them away.
        with torch.autocast(audio_NT.device.type, enabled=False):
            return self._spectrum(audio_NT.to(torch.float32) / 32768, length_N)

    def _spectrum(self, sound: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        side = WINDOW // 2
        sound = nn.functional.pad(sound, (side, side + HOP))
        spectrum_NRP = torch.stft(sound, WINDOW, HOP, window=self.window, center=False, return_complex=True)
        return self.scaled(spectrum_NRP.real.square() + spectrum_NRP.imag.square(), length_N)

    def scaled(self, power_NRP: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
        """Frames and mask of a power spectrum."""
        log_NLP = (self.filters_LR @ power_NRP).clamp(min=_FLOOR).log10()
        # Whisper's scaling: 80 dB below the loudest at most, then about -1 to 1.
        log_NLP = torch.maximum(log_NLP, log_NLP.amax(dim=(1, 2), keepdim=True) - 8)
        mask_NP = length_mask((length_N + HOP - 1) // HOP, log_NLP.shape[-1])
        return (log_NLP + 4) / 4 * mask_NP[:, None], mask_NP


def mel_filters() -> Tensor:
    """Triangles, evenly spaced in mel, of unit height. Shape (L, R).

    mel = 2595 log10(1 + f / 700) (O'Shaughnessy 1987, as in the HTK Book).
    """
    top_mel = 2595 * torch.log10(torch.tensor(1 + _RATE_HZ / 2 / 700, dtype=torch.float64))
    edges_mel = torch.linspace(0, float(top_mel), BANDS + 2, dtype=torch.float64)
    edges_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    bins_hz = torch.linspace(0, _RATE_HZ / 2, WINDOW // 2 + 1, dtype=torch.float64)
    rise_LR = (bins_hz - edges_hz[:-2, None]) / (edges_hz[1:-1] - edges_hz[:-2])[:, None]
    fall_LR = (edges_hz[2:, None] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])[:, None]
    return torch.minimum(rise_LR, fall_LR).clamp(min=0).to(torch.float32)
