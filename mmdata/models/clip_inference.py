"""What an open_clip network need not compute where its embeddings are all that is wanted; exact but for rounding.

* Of the last block's output one token a row is pooled, so of the others only keys and values are needed: a ViT-B/32's
  image tower does a fifteenth less. It is open_clip's own block that is run, with one query a row.
* QuickGELU, `x sigmoid(1.702 x)`, is `SiLU(1.702 x) / 1.702`: with the factor in the weights around it, one operation
  in place where open_clip has three.

Shapes: N rows, S tokens, K width of the tower, H heads.

Importing this module imports torch.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn

# https://github.com/openai/CLIP, `QuickGELU`.
_QUICK_GELU_FACTOR: Final = 1.702


def has_last_block(transformer: Any) -> bool:
    """Whether `last_block` knows what the last block of a transformer does, and there is one before it."""
    return (
        type(transformer) is Transformer
        and transformer.batch_first
        and len(transformer.resblocks) > 1
        and type(transformer.resblocks[-1]) is ResidualAttentionBlock
        and not hasattr(transformer.resblocks[-1], "ln_1_kv")
    )


def last_block(block: Any, x_NSK: Tensor, columns_N: Tensor, mask_SS: Tensor | None = None) -> Tensor:
    """`block(x_NSK, attn_mask=mask_SS)` at one column of each row.

    Returns:
        `[N, 1, K]`.
    """
    rows_N = torch.arange(len(x_NSK), device=x_NSK.device)
    normed_NSK = block.ln_1(x_NSK)
    mask = None
    if mask_SS is not None:
        # A mask of its own for each row and head; heads of a row lie together.
        mask = mask_SS[columns_N, None].repeat_interleave(block.attn.num_heads, dim=0)
    query_N1K = normed_NSK[rows_N, columns_N][:, None]
    attended_N1K = block.attention(query_N1K, normed_NSK, normed_NSK, attn_mask=mask)
    x_N1K = x_NSK[rows_N, columns_N][:, None] + block.ls_1(attended_N1K)
    pooled_N1K: Tensor = x_N1K + block.ls_2(block.mlp(block.ln_2(x_N1K)))
    return pooled_N1K


def pool_class_early(visual: Any) -> None:
    """Have an image tower's last block compute the class token alone, where that is what is pooled; in place.

    The tower has no patch tokens from then on. One that pools otherwise, or is of another kind, stays as it is.
    """
    if (
        type(visual) is VisionTransformer
        and visual.pool_type == "tok"
        and visual.attn_pool is None
        and not visual.output_tokens
        and has_last_block(visual.transformer)
    ):
        blocks = visual.transformer.resblocks
        blocks[-1] = _ClassAlone(blocks[-1])


def fold_quick_gelu(model: nn.Module) -> None:
    """Write SiLU for QuickGELU in every MLP of a model, whose weights must still be in float32; in place."""
    blocks = [part for part in model.modules() if type(part) is ResidualAttentionBlock]
    mlps: list[Any] = [block.mlp for block in blocks]
    for mlp in mlps:
        if type(mlp.gelu) is QuickGELU:
            with torch.no_grad():
                mlp.c_fc.weight.mul_(_QUICK_GELU_FACTOR)
                mlp.c_fc.bias.mul_(_QUICK_GELU_FACTOR)
                mlp.c_proj.weight.div_(_QUICK_GELU_FACTOR)
            mlp.gelu = nn.SiLU(inplace=True)


class _ClassAlone(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_NSK: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return last_block(self.block, x_NSK, x_NSK.new_zeros(len(x_NSK), dtype=torch.long), attn_mask)
