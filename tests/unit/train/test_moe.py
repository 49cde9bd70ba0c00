from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fused_case import LIMITS, SHAPE, batch_of, example, fit, make_model

from mmdata.train.batch import Collate, Example
from mmdata.train.dice import Dice
from mmdata.train.losses.config import LossConfig
from mmdata.train.losses.experts import expert_terms
from mmdata.train.losses.objective import Objective
from mmdata.train.model.layers import Mlp
from mmdata.train.model.moe import MixtureMlp


def layers_of(model) -> list[MixtureMlp]:
    return [layer for layer in model.modules() if isinstance(layer, MixtureMlp)]


def shares(model, batch) -> list[torch.Tensor]:
    """How the tokens of a batch are spread over the experts of each layer."""
    model.train()
    Objective(model, LossConfig())(batch, Dice.of(0, 0, batch.row_B))
    counts = [torch.stack([load.chosen_E for load in layer.loads]).sum(dim=0) for layer in layers_of(model)]
    return [count / count.sum() for count in counts]


def test_a_token_takes_the_expert_of_the_highest_probability():
    torch.manual_seed(0)
    layer = MixtureMlp(8, [Mlp(8) for _ in range(3)])
    tokens = torch.randn(2, 5, 8)
    out = layer(tokens, torch.ones(2, 5, dtype=torch.bool))
    probability = torch.softmax(tokens @ layer.router.weight.T, dim=-1)
    for row in range(2):
        for at in range(5):
            best = int(probability[row, at].argmax())
            expected = probability[row, at, best] * layer.experts[best](tokens[row, at])
            assert torch.allclose(out[row, at], expected, atol=1e-6)


def test_padding_is_no_load():
    layer = MixtureMlp(8, [Mlp(8) for _ in range(3)])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    layer(torch.randn(2, 3, 8), mask)
    assert layer.loads[0].chosen_E.sum() == 3
    assert layer.loads[0].probability_E.sum().item() == pytest.approx(3, rel=1e-5)
    layer.eval()(torch.randn(2, 3, 8), mask)
    assert len(layer.loads) == 1


def test_a_tower_that_runs_over_nothing_is_no_load():
    """As on a rank whose batch lacks a modality: the blank that it runs for its gradients spread one text more."""
    model = make_model(LossConfig(), moe={"experts": 4, "every": 1})
    examples = [example(row) for row in range(4)]
    batch = batch_of([replace(one, values={"image": one.values["image"]}) for one in examples])
    counts = []
    for absent in (False, True):
        model.run_absent = absent
        for layer in layers_of(model):
            layer.loads.clear()
        encoded = model.train().encode(batch)
        counts.append([sum(int(load.chosen_E.sum()) for load in layer.loads) for layer in layers_of(model)])
    assert counts[0] == counts[1]
    assert sum(counts[0]) > 0
    encoded.embeddings[model.modalities.index("text")].sum().backward()
    assert all(part.grad is not None for part in model.towers["text"].parameters())


def test_penalties_know_even_from_uneven_and_sure_from_unsure():
    torch.manual_seed(0)
    layer = MixtureMlp(4, [Mlp(4) for _ in range(4)])
    every = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(4) * 20)
    layer(torch.eye(4)[None], every)
    spread = expert_terms(layer)
    assert spread["experts.balance"].item() == pytest.approx(1, abs=1e-3)
    assert spread["experts.entropy"].item() == pytest.approx(-torch.log(torch.tensor(4.0)).item(), abs=1e-3)
    layer.loads.clear()
    layer(torch.eye(4)[:1].expand(4, -1)[None], every)
    crowded = expert_terms(layer)
    assert crowded["experts.balance"].item() == pytest.approx(4, abs=1e-3)
    assert crowded["experts.entropy"].item() == pytest.approx(0, abs=1e-3)
    layer.loads.clear()
    with torch.no_grad():
        layer.router.weight.zero_()
    layer(torch.eye(4)[None], every)
    assert expert_terms(layer)["experts.entropy"].item() == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_balance_spreads_the_tokens():
    loss, batch = LossConfig(), batch_of([example(row) for row in range(8)])
    worst = {}
    for balance in (0.0, 1.0):
        moe = {"experts": 4, "every": 1, "balance": balance, "entropy": 0.0}
        model = make_model(loss, moe=moe)
        assert len(layers_of(model)) == 3  # text, image, fusion
        with torch.no_grad():
            for layer in layers_of(model):
                layer.router.weight[0] = layer.router.weight[0] * 3  # a start that favours one
        fit(model, loss, batch, 40)
        worst[balance] = max(float(share.max()) for share in shares(model, batch))
    assert worst[1.0] < 0.45
    assert worst[0.0] > worst[1.0] + 0.1


def test_one_trunk_is_shared_and_saved_once():
    loss = LossConfig()
    model = make_model(loss, shared_trunk=True)
    own = make_model(loss)
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if ".blocks." in name and name.startswith("towers.")]
    assert [name for name in names if name.startswith("trunk.0.")]
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in own.parameters())
    storages = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(set(storages)) == len(storages)
    batch = batch_of([example(row) for row in range(3)])
    for name in ("text", "image", "audio"):
        model.zero_grad()
        inputs = batch.inputs[name]
        tokens, _ = model.towers[name](inputs.values, inputs.length_N, None, model.trunk_of(name))
        tokens.square().sum().backward()
        assert model.trunk[0].attention.query.weight.grad.abs().sum() > 0, name
    before = [part.clone() for part in model.encode(batch).embeddings]
    with torch.no_grad():
        model.trunk[0].mlp[0].weight.mul_(-1)
    after = model.encode(batch).embeddings
    assert [bool((one - other).abs().max() > 1e-4) for one, other in zip(before, after, strict=True)] == [True] * 3


def test_video_goes_through_the_image_tower_and_sensors_through_convolutions():
    names = ("image", "video", "tensor")
    limits = LIMITS.__class__(64, 10, 16, 0.3, video_frames=4, tensor_channels=2, tensor_max_steps=40)
    model = make_model(LossConfig(), names, limits)
    assert not [name for name, _ in model.named_parameters() if name.startswith("towers.video.images")]
    generator = torch.Generator().manual_seed(0)

    def values(frames: int, steps: int) -> dict[str, object]:
        frame = torch.randint(0, 256, (3, 16, 16, 4), generator=generator, dtype=torch.uint8).numpy()
        sensor = torch.randn(2, 40, generator=generator).numpy()
        return {"image": frame[..., 0], "video": frame[..., :frames], "tensor": sensor[:, :steps]}

    examples = [Example(row, values(*sizes), (0,)) for row, sizes in enumerate([(4, 40), (2, 17), (3, 30)])]
    batch = Collate(names)(examples)
    together, alone = model.encode(batch), model.encode(Collate(names)(examples[1:2]))
    for many, one in zip(together.embeddings, alone.embeddings, strict=True):
        assert torch.allclose(many[1], one[0], atol=1e-5)
    assert together.masks[1].sum(dim=1).tolist() == [4, 2, 3]
    loss, _ = Objective(model, LossConfig())(batch, Dice.of(0, 0, batch.row_B))
    loss.backward()
    assert model.towers["image"].patches.weight.grad.abs().sum() > 0
    # A sensor's offset and gain say nothing; what it does, does.
    sensor = batch.inputs["tensor"]
    before, _ = model.towers["tensor"](sensor.values, sensor.length_N)
    scaled, _ = model.towers["tensor"](sensor.values * 3, sensor.length_N)
    assert torch.allclose(before, scaled, atol=1e-3)
    own = make_model(LossConfig(), ("video", "tensor"), limits)
    assert [name for name, _ in own.named_parameters() if name.startswith("towers.video.images")]
    assert SHAPE["video"]["width"] == own.towers["video"].width
