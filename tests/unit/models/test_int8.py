"""int8 blocks beside what they stand for; those that multiply need a processor with VNNI."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from mmdata.errors import FatalError
from mmdata.models.clip import Clip
from mmdata.models.clip_image import ImageRecipe
from mmdata.models.device import require_int8
from mmdata.models.int8 import NARROWEST, Int8Linear, quantise_mlps
from mmdata.steps.align.clip import Clip as ClipStep
from mmdata.steps.align.whisper import Whisper as WhisperStep

CPU = torch.device("cpu")
WIDE = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": NARROWEST, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": NARROWEST, "heads": 4, "layers": 2},
}
TEXTS = ["a red bird", "bird", "", "a very long caption of a bird that flies over the sea " * 3, "a boat"]


def _can() -> bool:
    try:
        require_int8(CPU)
    except FatalError:
        return False
    return True


vnni = pytest.mark.skipif(not _can(), reason="int8 needs a processor with VNNI")


@functools.cache
def network(width: int = NARROWEST) -> Any:
    """A CLIP of random weights; who changes it takes a copy."""
    import open_clip

    torch.manual_seed(0)
    vision, text = ({**WIDE[kind], "width": width} for kind in ("vision_cfg", "text_cfg"))
    model = open_clip.CLIP(WIDE["embed_dim"], vision, text).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    return model


def loaded(model: Any, precision: str, device: torch.device = CPU) -> Clip:
    import open_clip

    recipe = ImageRecipe(32, (0.5,) * 3, (0.3,) * 3)
    return Clip(copy.deepcopy(model), open_clip.get_tokenizer("ViT-B-32"), recipe, 64, device, precision)


def with_large_channels(model: Any, factor: float) -> Any:
    """The same function: four channels of what each MLP multiplies are so much larger, their weights smaller."""
    other = copy.deepcopy(model)
    for block in [*other.visual.transformer.resblocks, *other.transformer.resblocks]:
        block.ln_2.weight.data[5:9] *= factor
        block.ln_2.bias.data[5:9] *= factor
        block.mlp.c_fc.weight.data[:, 5:9] /= factor
    return other


@pytest.fixture(scope="module")
def images_NCHW() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)


def gap(clip: Clip, exact: Clip, images_NCHW: np.ndarray) -> float:
    """Root mean square of what cosines of all images and texts move by."""
    cosines = [one.embed_images(images_NCHW) @ one.embed_texts(TEXTS).T for one in (clip, exact)]
    return float(np.sqrt(np.mean((cosines[0] - cosines[1]) ** 2)))


@vnni
def test_whole_numbers_are_multiplied_exactly():
    torch.manual_seed(0)
    weight_NK = torch.randint(-127, 128, (48, 64)).float()
    weight_NK[:, 3] = 127  # each output's scale is 1
    x_BLK = torch.randint(-127, 128, (2, 5, 64)).float()
    x_BLK[..., 7] = 127  # and each token's
    x_BLK[1, 2] *= 1024
    bias_N = torch.arange(48.0) * 8
    given_BLK = x_BLK.clone()
    got = Int8Linear(weight_NK, bias_N, torch.float32)(given_BLK)
    assert torch.equal(got, functional.linear(x_BLK, weight_NK, bias_N))
    assert torch.equal(given_BLK, x_BLK)


@vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_token_depends_on_another(dtype: torch.dtype):
    torch.manual_seed(0)
    layer = Int8Linear(torch.randn(64, 256), torch.randn(64), dtype)
    x_TK = torch.randn(40, 256, dtype=dtype)
    alone = torch.cat([layer(x_TK[row : row + 1]) for row in range(20)])
    x_TK[20:] *= 1000
    assert torch.equal(layer(x_TK)[:20], alone)


@vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_activation_never_overflows(dtype: torch.dtype):
    # One of these, rounded to 128 of 127 levels, would come back as -128.
    x_TK = torch.logspace(-6, 6, 3000).to(dtype)[:, None] * torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=dtype)
    got = Int8Linear(torch.eye(4), torch.zeros(4), dtype)(x_TK)
    torch.testing.assert_close(got, x_TK, rtol=0.02, atol=0)


@vnni
def test_a_token_of_zeros_gives_the_bias_and_a_broken_one_stays_broken():
    layer = Int8Linear(torch.randn(8, 16), torch.arange(8.0), torch.bfloat16)
    x_TK = torch.zeros(2, 16, dtype=torch.bfloat16)
    x_TK[1, 3] = float("nan")
    got = layer(x_TK)
    assert got[0].tolist() == list(range(8))
    assert got[1].isnan().all()


@vnni
def test_scores_of_even_channels_hardly_move(images_NCHW: np.ndarray):
    model = network()
    exact = loaded(model, "float32")
    spread = float((exact.embed_images(images_NCHW) @ exact.embed_texts(TEXTS).T).std())
    assert 1e-4 < gap(loaded(model, "int8"), exact, images_NCHW) < spread / 10


@vnni
def test_a_score_hardly_depends_on_its_batch(images_NCHW: np.ndarray):
    clip = loaded(network(), "int8")
    together_ND = clip.embed_images(images_NCHW)
    alone_ND = np.concatenate([clip.embed_images(image[None]) for image in images_NCHW])
    other_ND = clip.embed_images(np.concatenate([images_NCHW[:1], np.zeros_like(images_NCHW[:9])]))
    assert (together_ND * alone_ND).sum(axis=1).min() > 0.9999
    assert float(together_ND[0] @ other_ND[0]) > 0.9999


@vnni
def test_large_channels_cost_int8_its_accuracy_so_auto_leaves_it(images_NCHW: np.ndarray):
    plain = network()
    model = with_large_channels(plain, 50)
    exact = loaded(model, "float32")
    assert gap(exact, loaded(plain, "float32"), images_NCHW) < 1e-5, "it must be the same function"
    auto, fast = loaded(model, "auto"), loaded(model, "int8")
    assert gap(fast, exact, images_NCHW) > 5 * gap(loaded(plain, "int8"), exact, images_NCHW)
    assert gap(auto, exact, images_NCHW) < 4e-3
    assert not any(isinstance(module, Int8Linear) for module in auto._model.modules())


@vnni
def test_mlps_of_both_towers_are_found_and_narrow_ones_left():
    model = copy.deepcopy(network())
    assert quantise_mlps(model, torch.bfloat16) == 4
    assert sum(isinstance(module, Int8Linear) for module in model.modules()) == 4 * 2
    narrow = network(NARROWEST // 2)
    assert quantise_mlps(narrow, torch.bfloat16) == 0
    with pytest.raises(FatalError, match=f"no transformer of open_clip's own that is {NARROWEST} wide"):
        loaded(narrow, "int8")


def test_other_processors_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": True})
    with pytest.raises(FatalError, match="no VNNI; use precision: auto"):
        loaded(network(64), "int8")


def test_accelerators_are_refused():
    with pytest.raises(FatalError, match="not for device cuda; use precision: auto"):
        require_int8(torch.device("cuda"))


def test_only_clip_may_be_asked_for_it(tmp_path: Path):
    assert ClipStep(model="ViT-B-32", pretrained="openai", precision="int8").precision == "int8"
    with pytest.raises(ValidationError, match="precision"):
        WhisperStep(model="tiny.en", precision="int8")
