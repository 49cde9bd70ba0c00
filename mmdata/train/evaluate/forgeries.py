"""Forgeries of real samples, made out of a batch of them: swaps, shifts and splices.

Silence at the edges of sounds is cut off first, of real ones as of forged ones: else cut marks would give them away.

Shapes: N samples that have a modality, T samples in time at 16 kHz; images are (N, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mmdata.train.batch import Inputs

# Quieter than -40 dB below its peak, the edge of a sound is silence.
_SILENCE = 0.01
# A sound of which less is left stays as it is: 50 ms.
_MIN_SOUND = 800
# What is pasted in: of a sound its length, of an image its sides; and how far a sound is shifted.
_SPLICED_SOUND, _SPLICED_SIDE, _SHIFTED = (0.3, 0.6), (0.4, 0.7), (0.25, 0.75)

Forge = Callable[[Inputs, Tensor, np.random.Generator], Inputs]


def stripped(inputs: Inputs) -> Inputs:
    """Sounds without the silence at their edges."""
    sounds = [_stripped(values[:length]) for values, length in zip(inputs.values, inputs.length_N, strict=True)]
    return replace(inputs, **_padded(sounds))


def donors(inputs: Inputs, text_hash_B: Tensor) -> Tensor:
    """For each sample another one whose text differs, by its place in the inputs; -1: none. Shape (N,)."""
    hash_N, count = text_hash_B[inputs.row_N], len(inputs.row_N)
    donor_N = torch.full((count,), -1)
    place_N = torch.arange(count)
    for step in range(1, count):
        other_N = (place_N + step) % count
        differs_N = (hash_N == 0) | (hash_N != hash_N[other_N])
        donor_N = torch.where((donor_N < 0) & differs_N, other_N, donor_N)
    return donor_N


def swap(inputs: Inputs, donor_N: Tensor, _: np.random.Generator) -> Inputs:
    """The member is the other sample's."""
    return replace(inputs, values=inputs.values[donor_N], length_N=inputs.length_N[donor_N])


def shift_sound(inputs: Inputs, _: Tensor, rng: np.random.Generator) -> Inputs:
    """A sound begins somewhere in its middle, and its beginning follows on its end."""
    pairs = zip(inputs.values, inputs.length_N.tolist(), strict=True)
    return replace(inputs, **_padded([v[:size].roll(-int(size * rng.uniform(*_SHIFTED))) for v, size in pairs]))


def splice_sound(inputs: Inputs, donor_N: Tensor, rng: np.random.Generator) -> Inputs:
    """A piece of the other's sound takes the place of a piece, as loud as what was there."""
    sounds = []
    for row, donor in enumerate(donor_N.tolist()):
        sound_T, other_T = (inputs.values[at, : inputs.length_N[at]].clone() for at in (row, donor))
        sounds.append(sound_T)
        if not len(sound_T) or not len(other_T):
            continue
        size = max(1, int(len(sound_T) * rng.uniform(*_SPLICED_SOUND)))
        start = int(rng.integers(0, len(sound_T) - size + 1))
        piece_T = other_T.repeat(-(-size // len(other_T)))[:size].double()
        loud = _loudness(sound_T[start : start + size]) / max(1.0, _loudness(piece_T))
        sound_T[start : start + size] = (piece_T * loud).clamp(-32768, 32767).to(sound_T.dtype)
    return replace(inputs, **_padded(sounds))


def splice_image(inputs: Inputs, donor_N: Tensor, rng: np.random.Generator) -> Inputs:
    """A rectangle of the other's image lies where it lies there."""
    values = inputs.values.clone()
    height, width = values.shape[2:4]
    for row, donor in enumerate(donor_N.tolist()):
        tall, wide = (max(1, int(side * rng.uniform(*_SPLICED_SIDE))) for side in (height, width))
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        box = (slice(None), slice(top, top + tall), slice(left, left + wide))
        values[row][box] = inputs.values[donor][box]
    return replace(inputs, values=values)


def kinds(modalities: tuple[str, ...]) -> dict[str, Forge]:
    """What can be forged of these modalities, by `swap.image`; what stands before the point is the family."""
    made: dict[str, Forge] = {f"swap.{name}": swap for name in modalities}
    special: dict[str, Forge] = {
        "shift.audio": shift_sound, "splice.audio": splice_sound, "splice.image": splice_image,
    }  # fmt: skip
    return made | {kind: forge for kind, forge in special.items() if kind.partition(".")[2] in modalities}


def _stripped(sound_T: Tensor) -> Tensor:
    loud = sound_T.abs().double()
    place = (loud > _SILENCE * loud.max()).nonzero()[:, 0] if len(loud) else loud
    if not len(place) or place[-1] + 1 - place[0] < _MIN_SOUND:
        return sound_T
    return sound_T[int(place[0]) : int(place[-1]) + 1]


def _loudness(sound_T: Tensor) -> float:
    return float(sound_T.double().square().mean().sqrt())


def _padded(sounds: list[Tensor]) -> dict[str, Tensor]:
    lengths = torch.tensor([len(sound_T) for sound_T in sounds])
    return {"values": torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True), "length_N": lengths}
