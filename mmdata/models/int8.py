"""Transformers of open_clip whose MLPs are multiplied in int8, for inference on processors with VNNI.

Weights are quantised once, symmetrically, one scale an output channel; activations in each pass, symmetrically, one
scale a token (the `vector-wise` scheme of LLM.int8(), Dettmers et al., 2022, without its 16-bit columns). So no token
depends on another's scale. What is multiplied in bf16 between them rounds otherwise in a batch of another size, though,
and rounding to int8 magnifies that.

Scales by token lose what is small beside a large channel. Trained transformers have such channels; `precision: int8` is
for who has looked at their own scores (docs/decisions/0024-int8-is-asked-for.md).

Shapes: K width of the input, N of the output, T tokens in all.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

# Width of a block from which it takes less time than in bf16 (one core of an AMD EPYC with AVX512-BF16 and VNNI, blocks
# of 800 tokens; docs/decisions/0024-int8-is-asked-for.md). Below, quantising costs what the products save.
NARROWEST: Final = 256
# What the largest weight of an output and the largest activation of a token become.
_LARGEST: Final = 127
# oneDNN's products take activations as uint8; adding 128 to an int8 is flipping its first bit.
_ZERO_POINT: Final = 128


class Int8Linear(nn.Module):
    """`nn.Linear` for inference: weights [N, K] in int8, activations quantised token by token."""

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor, dtype: torch.dtype) -> None:
        """Quantise; activations come and go as `dtype`, to which the bias is rounded too."""
        super().__init__()
        # open_clip asks the first block's layer for the type of activations, by this name.
        self.int8_original_dtype = dtype
        weight_NK = weight_NK.detach().float()
        scale_N = weight_NK.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny).div_(_LARGEST)
        # No buffers: a later `to(dtype)` must not round the scales, nor touch what oneDNN has laid out for itself.
        self._scale_N = scale_N
        self._zero_N = torch.zeros(len(scale_N), dtype=torch.int8)
        self._bias_N = bias_N.detach().to(dtype)
        quantised_NK = (weight_NK / scale_N[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(quantised_NK, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] to [..., N]."""
        x_TK = x.reshape(-1, x.shape[-1])
        # Smallest normal numbers, so that a token of zeros stays one.
        scale_T1 = x_TK.abs().amax(dim=1, keepdim=True).div_(_LARGEST).clamp_(min=torch.finfo(x.dtype).tiny)
        # Quotients in float32: bf16 would round them twice, a tenth more error. A scale that was rounded to bf16, by up
        # to 2^-9, leaves the largest quotient below 127.5.
        signed_TK = x_TK.to(torch.float32, copy=True).div_(scale_T1).round_().to(torch.int8)
        unsigned_TK = signed_TK.view(torch.uint8).bitwise_xor_(_ZERO_POINT)
        product_TN = torch.ops.onednn.qlinear_pointwise(
            unsigned_TK, 1.0, _ZERO_POINT, self._packed, self._scale_N, self._zero_N,
            None, 1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        return torch.addcmul(self._bias_N, product_TN, scale_T1).view(*x.shape[:-1], -1)


def quantise_mlps(model: nn.Module, dtype: torch.dtype) -> int:
    """Give the MLPs of a model's transformer blocks int8 products, in place; activations between them are of `dtype`.

    Those of open_clip's own blocks that are as wide as `NARROWEST`. Attention stays as it is, for with it trained
    weights lose half as much again; so do convolutions, towers of timm and Hugging Face, and projections.

    Returns:
        how many blocks were found.
    """
    from open_clip.transformer import ResidualAttentionBlock

    found = [module for module in model.modules() if isinstance(module, ResidualAttentionBlock)]
    mlps = [block.mlp for block in found if block.mlp.c_fc.in_features >= NARROWEST]
    for mlp in mlps:
        for name in ("c_fc", "c_proj"):
            layer = getattr(mlp, name)
            setattr(mlp, name, Int8Linear(layer.weight, layer.bias, dtype))
    return len(mlps)
