from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fused_case import OFF, batch_of, example, fit, latents_of, make_model

from mmdata.train.batch import Batch, Collate, Example, Inputs
from mmdata.train.losses.config import LossConfig
from mmdata.train.model.generate import Making, choose, make_media, respond, write_texts
from mmdata.train.model.media_decoders import AudioDecoder, sound_of
from mmdata.train.model.mel import LogMel
from mmdata.train.model.patches import from_patches, to_patches
from mmdata.train.model.sizes import ModelConfig
from mmdata.train.model.text_decoder import TextDecoder, joined


def texts_of(inputs: Inputs) -> list[list[int]]:
    return [ids[1 : length - 1] for ids, length in zip(inputs.values.tolist(), inputs.length_N.tolist(), strict=True)]


@pytest.mark.slow
def test_captions_are_learned_by_heart():
    loss = LossConfig(**OFF, caption=1)
    model, batch = make_model(loss, decoders=["text"]), batch_of([example(row) for row in range(8)])
    fit(model, loss, batch, 70)
    expected = texts_of(batch.inputs["text"])
    assert write_texts(model, latents_of(model, batch, "text"), Making(max_tokens=10)) == expected
    # From another's picture and sound comes the other's caption: it is read, not guessed.
    turned = latents_of(model, batch, "text").roll(1, 0)
    assert write_texts(model, turned, Making(max_tokens=10)) == expected[-1:] + expected[:-1]
    assert [len(ids) for ids in write_texts(model, turned, Making(max_tokens=2))] == [2] * 8


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "steps", "error"), [("image", 240, 0.09), ("audio", 130, 0.07)])
def test_flows_are_learned_by_heart(modality: str, steps: int, error: float):
    """Mean absolute error of what is made out of noise, on a scale of -1 to 1; two samples differ by 0.6 and 0.3."""
    loss = LossConfig(**OFF, flow=1)
    model, batch = make_model(loss, decoders=[modality]), batch_of([example(row) for row in range(4)], copies=4)
    fit(model, loss, batch, steps)
    decoder, latents, row_N = model.decoders[modality], latents_of(model, batch, modality)[:4], torch.arange(4) + 77
    inputs = batch.inputs[modality]
    wanted = decoder.tokens(inputs.values[:4], inputs.length_N[:4])
    noise = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(5))
    for guidance in (1.0, 1.5):
        made = decoder.flow.make(latents, noise, 20, guidance)
        assert (made - wanted).abs().mean() < error
        assert (made - wanted.roll(1, 0)).abs().mean() > 0.2
    media = make_media(model, modality, latents, Making(steps=20), row_N)
    if modality == "image":
        assert (media.int() - inputs.values[:4].int()).abs().float().mean() < error * 127.5
    else:
        assert (media.dtype, media.ndim) == (torch.int16, 2)
        bands = decoder.frames(decoder.flow.make(latents, noise, 20)).mean(dim=2).argmax(dim=1)
        assert bands.tolist() == decoder.frames(wanted).mean(dim=2).argmax(dim=1).tolist()
        assert len(set(bands.tolist())) == 4  # four tones


def asked_batch(count: int = 32, seed: int = 0) -> Batch:
    """Pictures of a colour and a brightness, and a question after one of them; nothing else says the answer."""
    rng = np.random.default_rng(seed)
    examples, questions, answers = [], [], []
    for row in range(count):
        colour, bright, which = (int(number) for number in rng.integers(0, 2, 3))
        image = np.zeros((3, 16, 16), dtype=np.uint8)
        image[2 * colour] = 120 + 120 * bright
        examples.append(Example(row, {"image": image, "text": np.array([1, 9, 2])}, (0,)))
        questions.append([1, 10 + which, 2])
        answers.append([1, 20 + 2 * which + (colour, bright)[which], 30, 2])
    every = torch.arange(count)
    asked = {
        "question": Inputs(every, torch.tensor(questions), torch.full((count,), 3)),
        "answer": Inputs(every, torch.tensor(answers), torch.full((count,), 4)),
    }
    return dataclasses.replace(Collate(("text", "image"))(examples), asked=asked)


def share_right(model, batch: Batch, latents: torch.Tensor, questions: list[list[int]]) -> float:
    said = write_texts(model, latents, Making(max_tokens=4), questions)
    return float(np.mean([one == other for one, other in zip(said, texts_of(batch.asked["answer"]), strict=True)]))


def test_answers_need_both_the_picture_and_the_question():
    """Colour and brightness are even chances, so whoever lacks either is right in half of the cases at most."""
    loss = LossConfig(**OFF, answer=1)
    batch, test = asked_batch(64), asked_batch(200, seed=1)
    questions = texts_of(test.asked["question"])
    model = make_model(loss, ("text", "image"), decoders=["text"])
    fit(model, loss, batch, 60)
    assert share_right(model, test, latents_of(model, test), questions) == 1.0
    assert share_right(model, test, latents_of(model, test, "image"), questions) < 0.65
    assert share_right(model, test, latents_of(model, test), [[10]] * 200) < 0.65
    assert share_right(model, test, latents_of(model, test), [[11]] * 200) < 0.65


@pytest.mark.slow
@pytest.mark.parametrize("blind", ["image", "question"])
def test_a_model_that_never_had_one_of_them_stays_at_chance(blind: str):
    """The control: trained without the picture, or without the question, it cannot learn to answer."""
    loss = LossConfig(**OFF, answer=1)
    batches = []
    for count, seed in ((64, 0), (200, 1)):
        batch = asked_batch(count, seed)
        if blind == "image":
            black = dataclasses.replace(batch.inputs["image"], values=torch.zeros_like(batch.inputs["image"].values))
            batch = dataclasses.replace(batch, inputs={**batch.inputs, "image": black})
        else:
            question = batch.asked["question"]
            same = dataclasses.replace(question, values=torch.tensor([[1, 10, 2]]).expand(count, -1))
            batch = dataclasses.replace(batch, asked={**batch.asked, "question": same})
        batches.append(batch)
    model = make_model(loss, ("text", "image"), decoders=["text"])
    fit(model, loss, batches[0], 60)
    test = batches[1]
    assert share_right(model, test, latents_of(model, test), texts_of(test.asked["question"])) < 0.65


def test_the_unified_head_makes_what_is_wanted():
    """What a text asks for, a picture or a sound, is what its sample has beside it."""
    loss = LossConfig(**OFF, route=1, flow=1)
    examples = []
    for row in range(8):
        whole = example(row)
        other = ("image", "audio")[row % 2]
        text = np.array([1, 3 + row % 2, *whole.values["text"][1:]])
        examples.append(dataclasses.replace(whole, values={"text": text[:10], other: whole.values[other]}))
    batch = batch_of(examples)
    model = make_model(loss, decoders=["image", "audio"])
    fit(model, loss, batch, 30)
    latents = model.latents(model.encode(batch), torch.tensor([[[True, False, False]]]).expand(1, 8, 3))[0]
    assert choose(model, latents) == ["image", "audio"] * 4
    made = respond(model, latents, Making(steps=2), batch.row_B)
    assert [one.modality for one in made] == ["image", "audio"] * 4
    assert made[0].value.shape == (3, 16, 16)
    assert made[1].value.dtype == torch.int16
    # One alone makes the same: the noise is the sample's own.
    assert torch.equal(respond(model, latents[2:3], Making(steps=2), batch.row_B[2:3])[0].value, made[2].value)


def test_a_question_is_joined_to_its_answer():
    question = (torch.tensor([[1, 5, 2, 0], [1, 5, 6, 2]]), torch.tensor([3, 4]))
    answer = (torch.tensor([[1, 7, 8, 2], [1, 9, 2, 0]]), torch.tensor([4, 3]))
    ids, length, asked = joined(question, answer)
    assert ids.tolist() == [[1, 5, 2, 7, 8, 2, 0], [1, 5, 6, 2, 9, 2, 0]]
    assert (length.tolist(), asked.tolist()) == ([6, 6], [3, 4])


def test_a_text_is_written_from_what_stands_before_it():
    torch.manual_seed(0)
    decoder = TextDecoder(ModelConfig().architecture().text_decoder, 50, 12, 8, 0.0).eval()
    ids, context = torch.randint(0, 50, (1, 9)), torch.randn(1, 3, 8)
    logits = decoder(ids, torch.tensor([9]), context)
    later = ids.clone()
    later[0, 5:] = 7
    changed = decoder(later, torch.tensor([9]), context)
    assert torch.allclose(changed[0, :5], logits[0, :5], atol=1e-5)
    assert not torch.allclose(changed[0, 5:], logits[0, 5:], atol=1e-3)
    padded = decoder(torch.nn.functional.pad(ids, (0, 3)), torch.tensor([9]), context)
    assert torch.allclose(padded[0, :9], logits[0], atol=1e-5)
    # Only what follows the question counts, and nothing beyond the end.
    asked = decoder.loss(ids, torch.tensor([7]), context, torch.tensor([4]))
    nats = torch.nn.functional.cross_entropy(logits[0, 3:6], ids[0, 4:7])
    assert asked.item() == pytest.approx(nats.item(), rel=1e-5)


def test_patches_are_the_image():
    image = torch.randn(2, 3, 12, 12)
    patches = to_patches(image, 4)
    assert patches.shape == (2, 9, 48)
    assert torch.equal(patches[0, 5].view(3, 4, 4), image[0, :, 4:8, 8:12])
    assert torch.equal(from_patches(patches, 4), image)


def test_sound_comes_back_from_its_spectrogram():
    time_T = torch.arange(16_000) / 16_000
    low, high = (torch.sin(2 * torch.pi * hz * time_T) for hz in (440, 2000))
    sound = (6000 * low + 3000 * high).to(torch.int16)
    frames, _ = LogMel()(sound[None], torch.tensor([16_000]))
    back = sound_of(frames)
    again, _ = LogMel()(back, torch.tensor([back.shape[1]]))
    assert abs(back.float().std() / sound.float().std() - 1) < 0.15
    amplitude, before = (10 ** (2 * part[..., 2:98] - 2) for part in (again, frames))
    assert (amplitude - before).norm() < 0.4 * before.norm()


def test_a_short_clip_is_followed_by_silence():
    decoder = AudioDecoder(ModelConfig().architecture().audio_decoder, 16)
    sound = torch.randint(-9000, 9000, (1, 16_000), dtype=torch.int16)
    frames = decoder.frames(decoder.tokens(sound, torch.tensor([8000])))
    assert frames.shape == (1, 80, 200)
    assert torch.equal(frames[..., 51:].unique(), frames.min()[None])
    assert (frames[..., :45].mean() - frames.min()) > 0.5
