"""What the decoders learn: each modality out of the fusion of the others, answers out of all and a question.

Shapes: B samples, N samples that have what is made, M modalities, S tokens, Q latents, W the fusion's width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmdata.train.batch import Inputs
from mmdata.train.dice import Dice, Purpose
from mmdata.train.losses.ranks import shared_mean, total
from mmdata.train.losses.step import Step
from mmdata.train.model.media_decoders import MediaDecoder
from mmdata.train.model.text_decoder import TextDecoder, joined


def caption_terms(step: Step) -> dict[str, Tensor]:
    """Cross-entropy of the texts, each written from what else its sample has: `caption`."""
    decoder, column = step.model.decoders["text"], step.model.modalities.index("text")
    assert isinstance(decoder, TextDecoder)
    texts = step.batch.inputs.get("text") or _no_texts(step.device)
    loss_N = decoder.loss(texts.values, texts.length_N, step.latents_MBQW[column][texts.row_N])
    return _term("caption", loss_N, step.visible_MBM[column].any(dim=1)[texts.row_N])


def answer_terms(step: Step) -> dict[str, Tensor]:
    """Cross-entropy of the answers, after their questions, from all that a sample has: `answer`."""
    decoder = step.model.decoders["text"]
    assert isinstance(decoder, TextDecoder)
    asked = step.batch.asked or dict.fromkeys(("question", "answer"), _no_texts(step.device))
    question, answer = asked["question"], asked["answer"]
    ids_NS, length_N, asked_N = joined((question.values, question.length_N), (answer.values, answer.length_N))
    loss_N = decoder.loss(ids_NS, length_N, step.latents_BQW[question.row_N], asked_N)
    return _term("answer", loss_N, torch.ones_like(loss_N))


def flow_terms(step: Step) -> dict[str, Tensor]:
    """How far the flows are from the straight way to their data: `flow.image`, `flow.audio`."""
    terms: dict[str, Tensor] = {}
    for name, decoder in step.model.decoders.items():
        if isinstance(decoder, MediaDecoder):
            terms |= _flow_term(step, name, decoder)
    return terms


def _flow_term(step: Step, name: str, decoder: MediaDecoder) -> dict[str, Tensor]:
    column, inputs, flow = step.model.modalities.index(name), step.batch.inputs.get(name), decoder.flow
    row_N = torch.zeros(0, dtype=torch.int64, device=step.device) if inputs is None else inputs.row_N
    if inputs is None:
        data_NSX = torch.zeros((0, flow.tokens, flow.numbers), device=step.device)
    else:
        data_NSX = decoder.tokens(inputs.values, inputs.length_N)
    dice = Dice(step.dice.key_B[row_N])
    noise_NSX = dice.normal(Purpose.FLOW_NOISE, flow.tokens, flow.numbers)
    without_N = dice.uniform(Purpose.FLOW_CONDITION) < step.config.condition_dropout
    context_NQW = step.latents_MBQW[column][row_N]
    loss_N = flow.loss(data_NSX, noise_NSX, dice.normal(Purpose.FLOW_TIME), context_NQW, without_N)
    return _term(f"flow.{name}", loss_N, step.visible_MBM[column].any(dim=1)[row_N])


def route_terms(step: Step) -> dict[str, Tensor]:
    """Cross-entropy of the decoder that is chosen, where what it makes is what was hidden: `route`."""
    model = step.model
    assert model.route_head is not None
    losses, weights = [], []
    for number, name in enumerate(model.architecture.decoders):
        column = model.modalities.index(name)
        logits_BG = model.route_head(step.latents_MBQW[column])
        target_B = torch.full((len(logits_BG),), number, device=step.device)
        losses.append(functional.cross_entropy(logits_BG, target_B, reduction="none"))
        weights.append(step.batch.present_BM[:, column] & step.visible_MBM[column].any(dim=1))
    return _term("route", torch.cat(losses), torch.cat(weights))


def _term(name: str, loss_N: Tensor, weight_N: Tensor) -> dict[str, Tensor]:
    weight_N = weight_N.float()
    everyone = total(weight_N.sum())
    return {name: shared_mean(loss_N, weight_N, everyone)} if everyone else {}


def _no_texts(device: torch.device) -> Inputs:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Inputs(none, torch.zeros((0, 2), dtype=torch.int64, device=device), none)
