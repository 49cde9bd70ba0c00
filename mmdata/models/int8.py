"""Transformer blocks of open_clip whose matrix products are int8, for inference on processors with VNNI.

Weights are quantised once, symmetrically, one scale an output channel; activations in each pass, symmetrically, one
scale a token (the `vector-wise` scheme of LLM.int8(), Dettmers et al., 2022, without its 16-bit columns). So no token
depends on another's scale, and a score not on what else is in its batch.

Scales by token lose what is small beside a large channel. Trained transformers have such channels; `precision: int8` is
for who has looked at their own scores (docs/decisions/0024-int8-is-asked-for.md).

Shapes: B rows of a batch, L tokens, K width of the input, N of the output, T = B L tokens in all, H heads.
"""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch import nn
from torch.nn import functional

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
        # Quotients in float32: bf16 would round them twice, a tenth more error. A scale that was rounded to bf16, by up to
        # 2^-9, leaves the largest quotient below 127.5.
        signed_TK = x_TK.to(torch.float32, copy=True).div_(scale_T1).round_().to(torch.int8)
        unsigned_TK = signed_TK.view(torch.uint8).bitwise_xor_(_ZERO_POINT)
        product_TN = torch.ops.onednn.qlinear_pointwise(
            unsigned_TK, 1.0, _ZERO_POINT, self._packed, self._scale_N, self._zero_N,
            None, 1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        return torch.addcmul(self._bias_N, product_TN, scale_T1).view(*x.shape[:-1], -1)


class Int8Attention(nn.Module):
    """Self-attention of an `nn.MultiheadAttention`, called as open_clip calls that one; batch first."""

    def __init__(self, attention: nn.MultiheadAttention, dtype: torch.dtype) -> None:
        """Quantise its two projections."""
        super().__init__()
        self._heads = attention.num_heads
        self._qkv = Int8Linear(cast("torch.Tensor", attention.in_proj_weight), attention.in_proj_bias, dtype)
        self._out = Int8Linear(attention.out_proj.weight, attention.out_proj.bias, dtype)

    def forward(
        self,
        query_BLK: torch.Tensor,
        key_BLK: torch.Tensor,
        value_BLK: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """[B, L, K] to [B, L, K], and no weights; `attn_mask` is added: [L, L] or [B H, L, L].

        Raises ValueError where the three are not one, or weights are wanted.
        """
        if need_weights or key_BLK is not query_BLK or value_BLK is not query_BLK:
            raise ValueError("int8 attention is self-attention, and gives no weights")
        rows, length, _ = query_BLK.shape
        if attn_mask is not None and attn_mask.ndim == 3:  # noqa: PLR2004 - [B H, L, L]
            attn_mask = attn_mask.view(rows, self._heads, length, length)
        parts = self._qkv(query_BLK).view(rows, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return self._out(mixed.transpose(1, 2).reshape(query_BLK.shape)), None


def quantise_blocks(model: nn.Module, dtype: torch.dtype) -> int:
    """Give the blocks of a model's transformers int8 products, in place; activations between them are of `dtype`.

    Those of open_clip's own blocks of self-attention that are as wide as `NARROWEST`; all else (convolutions, towers of
    timm and Hugging Face, projections into the common space) stays as it is.

    Returns:
        how many blocks were found.
    """
    from open_clip.transformer import ResidualAttentionBlock

    blocks = [module for module in model.modules() if isinstance(module, ResidualAttentionBlock) and _fits(module)]
    for block in blocks:
        block.attn = Int8Attention(block.attn, dtype)
        for name in ("c_fc", "c_proj"):
            layer = getattr(block.mlp, name)
            setattr(block.mlp, name, Int8Linear(layer.weight, layer.bias, dtype))
    return len(blocks)


def _fits(block: Any) -> bool:
    attention = block.attn
    return bool(attention.embed_dim >= NARROWEST and attention.batch_first and not hasattr(block, "ln_1_kv"))
