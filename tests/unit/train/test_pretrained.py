from __future__ import annotations

import numpy as np
import pytest
import torch
from fused_case import fit, make_model

from mmdata.errors import WeightsError
from mmdata.train.batch import Collate, Example
from mmdata.train.losses.config import LossConfig
from mmdata.train.model.pretrained import load_tower
from mmdata.train.model.sizes import PretrainedTower
from mmdata.train.model.towers import Limits
from mmdata.train.model.vocabulary import tower_tokenizer
from mmdata.train.tokens import bounds, encode

LIMITS = Limits(64, 10, 32, 0.3)


@pytest.fixture
def sentence(tmp_path):
    """A BERT of two small layers, and the words that it knows."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "ring", "bar"]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path)
    return PretrainedTower(kind="sentence", model=str(tmp_path))


@pytest.fixture
def timm_weights(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "net.pt")
    return PretrainedTower(kind="timm", model="test_resnet", checkpoint=str(tmp_path / "net.pt"))


def examples(count: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(
            row,
            {
                "text": np.array([2, *rng.integers(4, 9, 3 + row % 2), 3]),
                "image": rng.integers(0, 256, (3, 32, 32), dtype=np.uint8),
            },
            (row + 1,),
        )
        for row in range(count)
    ]


def test_the_tokenizer_is_that_of_the_tower(sentence: PretrainedTower):
    tokenizer = tower_tokenizer(sentence)
    assert bounds(tokenizer) == (2, 3)
    assert encode(tokenizer, "a red ring", 10).tolist() == [2, 4, 5, 7, 3]


def test_a_sentence_tower_gives_its_network_s_states(sentence: PretrainedTower):
    tower = load_tower(sentence, LIMITS).train()
    ids = torch.tensor([[2, 4, 5, 3, 0], [2, 4, 5, 7, 3]])
    tokens, mask = tower(ids, torch.tensor([4, 5]))
    assert mask.sum(dim=1).tolist() == [4, 5]
    alone, _ = tower(ids[:1, :4], torch.tensor([4]))
    assert torch.allclose(tokens[0, :4], alone[0], atol=1e-5)
    assert torch.equal(alone, tower(ids[:1, :4], torch.tensor([4]))[0])  # no dropout


def test_an_image_tower_sees_its_own_size_and_scale(timm_weights: PretrainedTower):
    import timm

    tower = load_tower(timm_weights, LIMITS)
    network = timm.create_model("test_resnet")
    network.load_state_dict(torch.load(timm_weights.checkpoint, weights_only=True))
    cfg, side = network.pretrained_cfg, tower.side_px
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        features = network.eval().forward_features((pixels / 255 - mean) / std)
    tokens, mask = tower(pixels, torch.full((2,), side))
    assert torch.allclose(tokens, features.flatten(2).transpose(1, 2), atol=1e-5)
    assert mask.all()
    other, _ = tower(pixels[..., ::2, ::2], torch.full((2,), side // 2))
    assert other.shape == tokens.shape


def test_what_is_frozen_stays_and_what_is_not_learns(sentence: PretrainedTower, timm_weights: PretrainedTower):
    loss, batch = LossConfig(modality_dropout=0), Collate(("text", "image"))(examples(6))
    tuned = timm_weights.model_copy(update={"frozen": False})
    model = make_model(loss, ("text", "image"), LIMITS, towers={"text": sentence, "image": tuned})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    history = fit(model, loss, batch, 5, lr=1e-3)
    assert history[-1]["text~image"] < history[0]["text~image"]
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith("towers.text.")]
    assert [name for name in moved if name.startswith("towers.image.network.") and name.endswith("weight")]
    assert not [
        name for name, part in model.named_parameters() if name.startswith("towers.text.") and part.requires_grad
    ]
    model.train()
    assert not model.towers["text"].network.training
    assert model.towers["image"].network.training


def test_a_tuned_network_gives_a_picture_the_same_features_in_any_company(timm_weights: PretrainedTower):
    """Else the pieces of a batch, and its ranks, would be another step than the batch."""
    tower = load_tower(timm_weights.model_copy(update={"frozen": False}), LIMITS).eval().train()
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    pixels = torch.from_numpy(np.stack([one.values["image"] for one in examples(6)]))
    whole, _ = tower(pixels, torch.full((6,), 32))
    pieces = [tower(pixels[at : at + 2], torch.full((2,), 32))[0] for at in (0, 2, 4)]
    assert torch.allclose(whole, torch.cat(pieces), atol=1e-5)
    assert any(parameter.requires_grad for parameter in tower.parameters())
    assert all(torch.equal(before[name], buffer) for name, buffer in tower.named_buffers())


@pytest.mark.slow
def test_a_clip_is_two_towers(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-32", None).eval()
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    source = {"model": "ViT-B-32", "checkpoint": str(tmp_path / "clip.pt")}
    images = load_tower(PretrainedTower(kind="open_clip_image", **source), LIMITS)
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    tokens, _ = images(pixels, torch.tensor([224]))
    assert tokens.shape == (1, 49, 768)
    described = PretrainedTower(kind="open_clip_text", **source)
    texts, tokenizer = load_tower(described, LIMITS), tower_tokenizer(described)
    said = "A red  ring isn't blue,\tit's 42!"
    ids, theirs = torch.from_numpy(encode(tokenizer, said, 77))[None], open_clip.get_tokenizer("ViT-B-32")([said])
    assert torch.equal(ids, theirs[:, : ids.shape[1]])
    states, mask = texts(ids, torch.tensor([ids.shape[1]]))
    with torch.no_grad():
        whole = clip.encode_text(theirs)
        assert torch.allclose(states[:, -1] @ clip.text_projection, whole, atol=1e-4)
    assert mask.all()


@pytest.mark.parametrize("kind", ["sentence", "timm", "whisper"])
def test_missing_weights_say_so(tmp_path, kind: str):
    with pytest.raises(WeightsError):
        load_tower(PretrainedTower(kind=kind, model=str(tmp_path / "no"), checkpoint=str(tmp_path / "no.pt")), LIMITS)
