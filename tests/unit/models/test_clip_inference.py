"""What an open_clip network leaves out for embeddings alone changes none of them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import nn

from mmdata.models.clip_inference import (
    _ClassAlone,
    fold_quick_gelu,
    has_last_block,
    last_block,
    pool_class_early,
)

VISION = {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 4}
TEXT = {"context_length": 12, "vocab_size": 40, "width": 32, "heads": 2, "layers": 2}
SHORTENED: dict[str, dict[str, Any]] = {
    "class token": {},
    "norm after pooling": {"final_ln_after_pool": True},
    "no norm before": {"no_ln_pre": True},
    "sines": {"pos_embed_type": "sin_cos_2d"},
    "layer scale": {"ls_init_value": 0.5},
    "tanh gelu": {"act_kwargs": {"approximate": "tanh"}},
    "layer norm": {"norm_kwargs": {"eps": 1e-3}},
}
WHOLE: dict[str, dict[str, Any]] = {
    "mean of patches": {"pool_type": "avg"},
    "pooled by attention": {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": False},
    "normed queries": {"qk_norm": True},
    "one block": {"layers": 1},
}


def build(vision: dict[str, Any], quick_gelu: bool = False) -> Any:
    """Random weights far from the initialisation, so that a wrong token shows."""
    torch.manual_seed(0)
    model = CLIP(32, VISION | vision, TEXT, quick_gelu=quick_gelu)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return model.eval()


def pixels() -> torch.Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def same_images(model: Any, changed: Any) -> None:
    with torch.inference_mode():
        expected_ND, found_ND = model.encode_image(pixels()), changed.encode_image(pixels())
    assert np.ptp(expected_ND.numpy(), axis=0).max() > 0.05
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-5)


@pytest.mark.parametrize("name", SHORTENED)
def test_a_class_token_alone_is_what_it_is_among_all(name: str):
    model = build(SHORTENED[name])
    early = copy.deepcopy(model)
    pool_class_early(early.visual)
    assert isinstance(early.visual.transformer.resblocks[-1], _ClassAlone)
    same_images(model, early)


@pytest.mark.parametrize("name", WHOLE)
def test_towers_that_need_all_tokens_keep_them(name: str):
    model = build(WHOLE[name])
    early = copy.deepcopy(model)
    pool_class_early(early.visual)
    assert not any(isinstance(part, _ClassAlone) for part in early.modules())
    same_images(model, early)


def test_towers_of_other_makers_are_left_alone():
    network = nn.Sequential(nn.Linear(2, 2))
    pool_class_early(network)
    assert [type(part) for part in network] == [nn.Linear]


def test_the_last_block_sees_through_the_mask_what_the_whole_block_sees():
    block = build({}).transformer.resblocks[-1]
    x_NSK = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(2))
    mask_SS = torch.full((6, 6), float("-inf")).triu(1)
    columns_N = torch.tensor([0, 5, 2, 3])
    with torch.inference_mode():
        whole_NSK = block(x_NSK, attn_mask=mask_SS)
        found_N1K = last_block(block, x_NSK, columns_N, mask_SS)
        unmasked_N1K = last_block(block, x_NSK, columns_N)
    expected_N1K = whole_NSK[torch.arange(4), columns_N][:, None]
    torch.testing.assert_close(found_N1K, expected_N1K, atol=1e-5, rtol=0)
    # The comparison can fail: without a mask only the last column sees the same.
    moved_N = (unmasked_N1K - expected_N1K).abs().amax(dim=(1, 2))
    assert (moved_N > 1e-2).tolist() == [True, False, True, True]


def test_a_block_that_attends_to_something_else_is_not_known():
    transformer = build({}).transformer
    assert has_last_block(transformer)
    transformer.resblocks[-1] = ResidualAttentionBlock(32, 2, is_cross_attention=True)
    assert not has_last_block(transformer)


def test_quick_gelu_is_a_silu_of_other_weights():
    model = build({}, quick_gelu=True)
    folded = copy.deepcopy(model)
    fold_quick_gelu(folded)
    assert not any(isinstance(part, QuickGELU) for part in folded.modules())
    same_images(model, folded)
    ids_NL = torch.randint(1, 40, (6, 12), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(folded.encode_text(ids_NL), model.encode_text(ids_NL), atol=1e-5, rtol=1e-5)


def test_gelu_is_left_as_it_is():
    model = build({})
    folded = copy.deepcopy(model)
    fold_quick_gelu(folded)
    before, after = model.state_dict(), folded.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
