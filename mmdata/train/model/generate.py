"""Make something out of the fusion: texts, images, sounds, or whichever of them fits.

Shapes: N samples, Q latents, W the fusion's width, S tokens, T samples in time at 16 kHz.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmdata.train.dice import Dice, Purpose
from mmdata.train.model.fused import FusedModel
from mmdata.train.model.media_decoders import MediaDecoder
from mmdata.train.model.text_decoder import TextDecoder


@dataclass(frozen=True)
class Making:
    """How things are made.

    Attributes:
        max_tokens: of a text.
        steps: of a flow.
        guidance: of a flow, see `Flow.make`.
        seed: of a flow's noise.
    """

    max_tokens: int = 32
    steps: int = 50
    guidance: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """What came of a sample.

    Attributes:
        modality: what it is.
        value: token ids (S,) of a text; uint8 pixels (3, side, side); int16 sound (T,).
    """

    modality: str
    value: Tensor


def write_texts(
    model: FusedModel, latents_NQW: Tensor, making: Making, questions: list[list[int]] | None = None
) -> list[list[int]]:
    """Token ids of a text for each sample, without start and end: a caption, or the answer to its question.

    `questions` are token ids without start and end.
    """
    decoder, limits, device = model.decoders["text"], model.limits, latents_NQW.device
    assert isinstance(decoder, TextDecoder)
    if questions is None:
        prompts = [[limits.start_id]] * len(latents_NQW)
    else:
        prompts = [[limits.start_id, *question, limits.end_id] for question in questions]
    if not prompts:
        return []
    ids_NS = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True).to(device)
    length_N = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return decoder.write(latents_NQW, ids_NS, length_N, limits.end_id, making.max_tokens)


def make_media(model: FusedModel, modality: str, latents_NQW: Tensor, making: Making, row_N: Tensor) -> Tensor:
    """Images (N, 3, side, side), uint8, or sounds (N, T), int16. The noise is that of the samples `row_N`."""
    decoder = model.decoders[modality]
    assert isinstance(decoder, MediaDecoder)
    flow, dice = decoder.flow, Dice.of(making.seed, 0, row_N)
    noise_NSX = dice.normal(Purpose.FLOW_NOISE, flow.tokens, flow.numbers)
    return decoder.media(flow.make(latents_NQW, noise_NSX, making.steps, making.guidance))


@torch.no_grad()
def choose(model: FusedModel, latents_NQW: Tensor) -> list[str]:
    """The modality that the unified head would answer each sample in."""
    assert model.route_head is not None
    chosen = model.route_head(latents_NQW).argmax(dim=1).tolist()
    return [model.architecture.decoders[number] for number in chosen]


def respond(model: FusedModel, latents_NQW: Tensor, making: Making, row_N: Tensor) -> list[Made]:
    """For each sample, what the unified head chooses, made by the decoder of that."""
    chosen = choose(model, latents_NQW)
    made: dict[int, Made] = {}
    for modality in dict.fromkeys(chosen):
        rows = [row for row, name in enumerate(chosen) if name == modality]
        if modality == "text":
            values = [torch.tensor(ids) for ids in write_texts(model, latents_NQW[rows], making)]
        else:
            values = list(make_media(model, modality, latents_NQW[rows], making, row_N[rows]))
        made |= {row: Made(modality, value) for row, value in zip(rows, values, strict=True)}
    return [made[row] for row in range(len(chosen))]
