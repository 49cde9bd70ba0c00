"""Each kind of text tower that open_clip builds: a cut batch embeds as the full context does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

CONTEXT, VOCAB, END = 24, 64, 63
VISION = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 32, "heads": 2, "layers": 3}
USED = [4, 11, 7]

Config = dict[str, Any]
CAUSAL: dict[str, Config] = {
    "argmax": {},
    "eos": {"pool_type": "eos", "eos_id": END},
    "eos of another id": {"pool_type": "eos", "eos_id": 5},
    "no projection": {"proj_type": "none"},
    "biased projection": {"proj_bias": True},
    "layer scale": {"ls_init_value": 0.5},
    "layer norm": {"norm_kwargs": {"eps": 1e-3}},
    "custom blocks": {"scale_attn": True, "scale_fc": True, "scale_attn_inner": True, "scale_heads": True},
    "normed queries": {"qk_norm": True},
    "tanh gelu": {"act_kwargs": {"approximate": "tanh"}},
}
FULL: dict[str, Config] = {
    "siglip": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "bidirectional": {"no_causal_mask": True, "pool_type": "argmax"},
    "bidirectional first": {"no_causal_mask": True, "pool_type": "first"},
    "bidirectional class": {"no_causal_mask": True, "embed_cls": True, "output_tokens": False},
    "causal, last column": {"pool_type": "last"},
}


def restless(model: Any) -> Any:
    """Random weights far from the initialisation, so that a wrong mask or position shows."""
    import torch

    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return model.eval()


def token_ids(pad_id: int = 0, end_id: int = END) -> Any:
    import torch

    ids_NL = torch.randint(6, END, (len(USED), CONTEXT), generator=torch.Generator().manual_seed(1))
    ids_NL[:, 0] = 6
    for row, used in enumerate(USED):
        ids_NL[row, used - 1] = end_id
        ids_NL[row, used:] = pad_id
    ids_NL[0, 2] = 0  # in open_clip's tokenizer 0 is padding and an exclamation mark
    return ids_NL


def build(kind: str, config: Config, quick_gelu: bool = False) -> Any:
    from open_clip.model import CLIP, CustomTextCLIP

    return restless({"plain": CLIP, "custom": CustomTextCLIP}[kind](32, VISION, TEXT | config, quick_gelu=quick_gelu))


def compare(model: Any, ids_NL: Any, kept: list[int]) -> None:
    """The tower keeps `kept` columns of each row; its features are those of `encode_text` at the full context."""
    import torch
    from torch.nn.functional import normalize

    from mmdata.models.clip_text import text_tower

    tower = text_tower(model)
    assert list(tower.lengths(ids_NL)) == kept
    with torch.inference_mode():
        full_ND = normalize(model.encode_text(ids_NL), dim=-1)
        cut_ND = normalize(tower.encode(ids_NL[:, : max(kept)]), dim=-1)
        alone_ND = torch.cat([normalize(tower.encode(ids_NL[i : i + 1, :n]), dim=-1) for i, n in enumerate(kept)])
    # A text's own content must matter more than the tolerance by orders.
    assert np.ptp(full_ND.numpy(), axis=0).max() > 0.05
    np.testing.assert_allclose(cut_ND, full_ND, atol=1e-5)
    np.testing.assert_allclose(alone_ND, full_ND, atol=1e-5)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("kind", ["plain", "custom"])
def test_causal_towers_are_cut_exactly(kind: str, name: str):
    config = CAUSAL[name]
    compare(build(kind, config), token_ids(end_id=config.get("eos_id", END)), USED)


@pytest.mark.parametrize("kind", ["plain", "custom"])
def test_quick_gelu_is_cut_exactly(kind: str):
    compare(build(kind, {}, quick_gelu=True), token_ids(), USED)


@pytest.mark.parametrize("kind", ["plain", "custom"])
def test_what_pads_with_another_token_is_cut_all_the_same(kind: str):
    """A causal tower pools at the end token and never looks at padding, whatever its id."""
    compare(build(kind, {"pad_id": 1}), token_ids(pad_id=1), USED)


def test_a_text_without_end_token_pools_where_open_clip_does():
    ids_NL = token_ids()
    ids_NL[1] = ids_NL[1].clamp(max=END - 1)
    compare(build("plain", {"pool_type": "eos", "eos_id": END}), ids_NL, [USED[0], 1, USED[2]])


@pytest.mark.parametrize("name", FULL)
def test_other_towers_get_the_full_context(name: str):
    from mmdata.models.clip_text import _Full, text_tower

    model = build("custom", FULL[name])
    assert isinstance(text_tower(model), _Full)
    compare(model, token_ids(), [CONTEXT] * len(USED))


def test_a_cut_would_show():
    """The comparison can fail: the same tower without a causal mask is not what it was when it is cut."""
    import torch

    from mmdata.models.clip_text import _Causal

    model = build("custom", {"no_causal_mask": True, "pool_type": "argmax"})
    ids_NL = token_ids()
    model.text.attn_mask = torch.zeros(CONTEXT, CONTEXT)
    with torch.inference_mode():
        cut_ND, full_ND = _Causal(model.text, "argmax").encode(ids_NL[:, :11]), model.encode_text(ids_NL)
    assert (cut_ND - full_ND).abs().max() > 1e-2


def test_a_mask_that_lets_a_column_through_is_not_causal():
    from mmdata.models.clip_text import _Full, text_tower

    model = build("plain", {})
    model.attn_mask[3, 9] = 0
    assert isinstance(text_tower(model), _Full)


def test_a_tower_of_no_known_kind_gets_the_full_context():
    from torch import nn

    from mmdata.models.clip_text import _Full, text_tower

    model = build("custom", {})
    model.text = nn.Sequential(model.text)
    assert isinstance(text_tower(model), _Full)


@pytest.mark.parametrize(("correct", "kept"), [(True, USED), (False, [n + 1 for n in USED])])
def test_coca_is_cut_exactly(correct: bool, kept: list[int]):
    from open_clip.coca_model import CoCa

    decoder = {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 32, "heads": 2, "layers": 1}
    model = CoCa(32, decoder, TEXT | {"embed_cls": True, "output_tokens": True}, VISION | {"output_tokens": True})
    restless(model).text.correct_cls_mask = correct
    compare(model, token_ids(), kept)


def test_coca_that_fills_its_context():
    from open_clip.coca_model import CoCa

    decoder = {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 32, "heads": 2, "layers": 1}
    model = CoCa(32, decoder, TEXT | {"embed_cls": True, "output_tokens": True}, VISION | {"output_tokens": True})
    ids_NL = token_ids()
    ids_NL[1] = 7
    compare(restless(model), ids_NL, [USED[0] + 1, CONTEXT, USED[2] + 1])


def hugging_face(kind: str, pooler: str) -> Any:
    """A CLIP with a small encoder of transformers; padding is 1, but 0 for T5."""
    from open_clip.hf_model import HFTextEncoder
    from open_clip.model import CustomTextCLIP
    from transformers import AutoConfig

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    t5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "pad_token_id": 0}
    m2m = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 1}
    shapes = {"mt5": t5, "m2m_100": m2m | heads}
    config = AutoConfig.for_model(kind, vocab_size=VOCAB, **shapes.get(kind, shape | {"pad_token_id": 1}))
    model = CustomTextCLIP(32, VISION, TEXT)
    model.text = HFTextEncoder("", 32, config=config, pooler_type=pooler, proj_type="mlp")
    if config.is_encoder_decoder:
        # As open_clip itself does where it loads the tower by name.
        model.text.transformer = model.text.transformer.get_encoder()
    return restless(model)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "mt5", "m2m_100"])
@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
def test_hugging_face_towers_are_cut_exactly(kind: str, pooler: str):
    model = hugging_face(kind, pooler)
    pad_id = model.text.config.pad_token_id
    assert pad_id in (0, 1)
    compare(model, token_ids(pad_id), USED)


def test_what_open_clip_cannot_run_itself_is_left_to_it():
    """Open_clip 3.3 multiplies 4-d tensors by `bmm` here, and masks with integers there: both raise at any length."""
    import torch

    from mmdata.models.clip_text import _Full, text_tower

    cosine, pooled = build("plain", {"scaled_cosine_attn": True}), hugging_face("bert", "max_pooler")
    assert isinstance(text_tower(pooled), _Full)
    for model in (cosine, pooled):
        with pytest.raises(RuntimeError), torch.inference_mode():
            model.encode_text(token_ids())


def test_an_unknown_encoder_gets_the_full_context():
    from mmdata.models.clip_text import _Full, text_tower

    model = hugging_face("bert", "mean_pooler")
    model.text.config.model_type = "gpt2"
    assert isinstance(text_tower(model), _Full)
