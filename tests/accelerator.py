"""What tests on an accelerator share: where they run, and when they are skipped."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

# Another device (`cpu`) is for trying the tests themselves out.
DEVICE = torch.device(os.environ.get("MMDATA_TEST_DEVICE", "cuda"))
Record = Callable[[str, Any], None]
IS_CUDA = DEVICE.type == "cuda"
ON_ACCELERATOR = [
    pytest.mark.gpu,
    pytest.mark.skipif(IS_CUDA and not torch.cuda.is_available(), reason="no CUDA device is here"),
]
needs_cuda = pytest.mark.skipif(not IS_CUDA, reason="of CUDA alone")


def least_cosine(left_ND: np.ndarray | torch.Tensor, right_ND: np.ndarray | torch.Tensor) -> float:
    """Of rows of any length."""
    left, right = (torch.as_tensor(part).detach().double().cpu() for part in (left_ND, right_ND))
    return float(torch.nn.functional.cosine_similarity(left, right, dim=-1).min())
