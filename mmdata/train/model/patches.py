"""Images as rows of patches, and back.

Shapes: N images, C = 3 colours, H and W pixels, S patches, X numbers of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdata.train.model.layers import unflatten


def unit_pixels(pixels_NCHW: Tensor) -> Tensor:
    """From uint8 to float32 between -1 and 1."""
    return pixels_NCHW.to(torch.float32) / 127.5 - 1


def to_patches(image_NCHW: Tensor, patch_px: int) -> Tensor:
    """Squares of `patch_px`, row by row. Shape (N, S, X)."""
    split = unflatten(unflatten(image_NCHW, 3, (-1, patch_px)), 2, (-1, patch_px))
    return split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(patch_NSX: Tensor, patch_px: int) -> Tensor:
    """The square image of some patches. Shape (N, C, H, W)."""
    side = round(patch_NSX.shape[1] ** 0.5)
    split = unflatten(unflatten(patch_NSX, 2, (3, patch_px, patch_px)), 1, (side, side))
    return split.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
