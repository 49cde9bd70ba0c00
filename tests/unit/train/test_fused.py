from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mmdata.train.batch import Batch, Collate, Example, Failure
from mmdata.train.dice import Dice
from mmdata.train.losses.config import LossConfig
from mmdata.train.losses.contrastive import visible_inputs
from mmdata.train.losses.objective import Objective
from mmdata.train.model.fused import FusedModel
from mmdata.train.model.mel import LogMel, mel_filters
from mmdata.train.model.sizes import FusionChange, ModelConfig, TowerChange
from mmdata.train.model.towers import AudioTower, Limits

NAMES = ("text", "image", "audio")


@pytest.fixture
def model() -> FusedModel:
    torch.manual_seed(0)
    small = TowerChange(width=16, depth=1)
    shape = ModelConfig(
        text=small,
        image=small,
        audio=TowerChange(width=16),
        fusion=FusionChange(width=16, depth=2, latents=3),
        patch_px=8,
    )
    model = FusedModel(shape.architecture(), NAMES, Limits(300, 10, 16, 1.0))
    return model.eval()


def example(row: int, absent: str = "", tokens: int = 5) -> Example:
    rng = np.random.default_rng(row)
    values = {
        "text": rng.integers(3, 300, tokens),
        "image": rng.integers(0, 256, (3, 16, 16), dtype=np.uint8),
        "audio": rng.integers(-9000, 9000, 3000 + 700 * row, dtype=np.int16),
    }
    return Example(row, {name: value for name, value in values.items() if name != absent}, (row + 1, row + 1))


def batch_of(*items: Example | Failure) -> Batch:
    return Collate(NAMES)(items)


def test_collate_pads_and_sets_failures_apart():
    failure = Failure("train-000000.tar", "id", "key", "tone", "bad_audio", "broken")
    batch = batch_of(example(0), failure, example(1, absent="image", tokens=7))
    assert batch.present_BM.tolist() == [[True, True, True], [True, False, True]]
    assert batch.inputs["image"].row_N.tolist() == [0]
    assert batch.inputs["text"].length_N.tolist() == [5, 7]
    assert batch.inputs["text"].values[0, 5:].tolist() == [0, 0]
    assert batch.failures == [failure]
    assert len(batch_of(failure)) == 0


def test_embeddings_have_unit_length_and_none_where_absent(model):
    encoded = model.encode(batch_of(example(0), example(1, absent="audio")))
    lengths = torch.stack(encoded.embeddings).norm(dim=-1).T
    assert torch.allclose(lengths, torch.tensor([[1.0, 1, 1], [1, 1, 0]]), atol=1e-5)
    fused = model.fuse(encoded, torch.ones(1, 2, 3, dtype=torch.bool))
    assert fused.shape == (1, 2, 96)
    assert fused.norm(dim=-1)[0].tolist() == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("hidden", [0, 1, 2])
@pytest.mark.parametrize("garbage", [float("nan"), 1e30])
def test_fusion_ignores_a_hidden_modality_whatever_stands_there(model, hidden, garbage):
    encoded = model.encode(batch_of(example(0), example(1)))
    visible = torch.ones(1, 2, 3, dtype=torch.bool)
    everything = model.fuse(encoded, visible)
    visible[..., hidden] = False
    before = model.fuse(encoded, visible)
    tokens = [part.clone() for part in encoded.tokens]
    tokens[hidden].fill_(garbage)
    after = model.fuse(dataclasses.replace(encoded, tokens=tokens), visible)
    assert torch.equal(before, after)
    assert not torch.allclose(before, everything, atol=1e-3)


def test_fusion_ignores_an_absent_modality_of_one_sample(model):
    encoded = model.encode(batch_of(example(0), example(1, absent="audio")))
    visible = visible_inputs(encoded.present_BM, 0.0)
    before = model.fuse(encoded, visible)
    tokens = [part.clone() for part in encoded.tokens]
    tokens[2][1] = torch.randn_like(tokens[2][1])
    assert torch.equal(before, model.fuse(dataclasses.replace(encoded, tokens=tokens), visible))
    tokens[2][0] += torch.randn_like(tokens[2][0])
    changed = model.fuse(dataclasses.replace(encoded, tokens=tokens), visible)
    assert (changed != before).any(dim=-1).tolist() == [[True, False], [True, False], [False, False]]


def test_views_of_the_fusion_do_not_see_each_other(model):
    encoded = model.encode(batch_of(example(0), example(1)))
    visible = visible_inputs(encoded.present_BM, 0.0)
    together = model.fuse(encoded, visible)
    alone = torch.cat([model.fuse(encoded, visible[[view]]) for view in range(3)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_nothing_visible_is_finite(model):
    encoded = model.encode(batch_of(example(0)))
    assert model.fuse(encoded, torch.zeros(1, 1, 3, dtype=torch.bool)).isfinite().all()


def test_the_company_in_a_batch_changes_nothing(model):
    """Padding, absent rows and neighbours: a sample alone and among others gives the same."""
    among = model.encode(batch_of(example(0), example(3, tokens=9), example(1, absent="image")))
    alone = model.encode(batch_of(example(0)))
    for many, one in zip(among.embeddings, alone.embeddings, strict=True):
        assert torch.allclose(many[0], one[0], atol=1e-5)
    every = torch.ones(1, 3, 3, dtype=torch.bool)
    assert torch.allclose(model.fuse(among, every)[0, 0], model.fuse(alone, every[:, :1])[0, 0], atol=1e-5)


def test_sound_beyond_a_clip_is_silence_not_noise():
    torch.manual_seed(0)
    tower = AudioTower(ModelConfig().architecture().audio, 2.0)
    sound = torch.randint(-9000, 9000, (1, 8000), dtype=torch.int16)
    padded = torch.cat([sound, torch.zeros(1, 9000, dtype=torch.int16)], dim=1)
    length = torch.tensor([8000])
    short, short_mask = tower(sound, length)
    long, long_mask = tower(padded, length)
    assert short_mask.sum() == long_mask.sum() == 7  # 0.5 s, a token every 80 ms
    assert torch.allclose(short[short_mask], long[long_mask], atol=1e-5)


def test_a_tone_lights_its_band():
    time_T = torch.arange(16_000) / 16_000
    tone = (10_000 * torch.sin(2 * torch.pi * 2000 * time_T)).to(torch.int16)
    frames, mask = LogMel()(tone[None], torch.tensor([16_000]))
    assert mask.sum() == 100
    # 2000 Hz is 1521 mel; 80 centres share 2840 mel, 35.06 each: the 43rd is nearest.
    assert frames[0, :, 50].argmax() == 42
    assert (mel_filters().amax(dim=1) > 0).all()  # every band hears some frequency


def test_terms_are_those_that_two_samples_share(model):
    batch = batch_of(example(0, absent="audio"), example(1, absent="image"), example(2, absent="audio"), example(3))
    dice = Dice.of(0, 0, batch.row_B)
    _, terms = Objective(model, LossConfig())(batch, dice)
    assert set(terms) == {"text~image", "text~audio", "fusion~text", "fusion~image", "fusion~audio"}
    loss, terms = Objective(model, LossConfig(fusion=0, pair=0.5))(batch, dice)
    assert set(terms) == {"text~image", "text~audio"}
    assert loss.item() == pytest.approx(0.25 * sum(term.item() for term in terms.values()))


def test_one_sample_alone_has_nothing_to_say(model):
    batch = batch_of(example(0))
    assert Objective(model, LossConfig())(batch, Dice.of(0, 0, batch.row_B)) == (None, {})


def test_the_temperature_is_clamped(model):
    with torch.no_grad():
        model.log_scale.fill_(50.0)
    assert model.scale().item() == pytest.approx(100)


def test_the_modality_that_is_asked_for_gives_no_gradient_by_the_fusion(model):
    """Else the fusion would learn to copy its own target."""
    batch = batch_of(example(0), example(1))
    encoded = model.encode(batch)
    tokens = [part.detach().requires_grad_() for part in encoded.tokens]
    fused = model.fuse(dataclasses.replace(encoded, tokens=tokens), visible_inputs(batch.present_BM, 0.0))
    weights = torch.randn_like(fused[1])
    gradients = torch.autograd.grad((fused[1] * weights).sum(), tokens)
    assert [bool(gradient.any()) for gradient in gradients] == [True, False, True]
