"""Steps that would do harm are not taken: numbers that are not finite, and those far above what they have been."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from mmdata.errors import TrainError

# What the newest are held against; below so many there is no median worth the name.
_WINDOW = 128
_MIN_KNOWN = 16
_MAX_BAD_IN_A_ROW = 10
# So many batches in a row are not bad by chance: it is the weights that have come to a steep place, and no batch would
# be taken there any more. Gradients are scaled down to `clip_norm`, so a step out of it is no larger than others.
_MAX_STEEP_IN_A_ROW = 3


class Guard:
    """Holds each step's loss and gradient norm against the running medians of those that were taken.

    A spike is told by the gradient's norm or by the loss above `factor` times its median. After three bad steps in a
    row one that is bad by its norm alone is taken, and norms are learnt anew. After ten it gives up: then the training
    has changed, not met one bad batch.
    """

    def __init__(self, factor: float, state: dict[str, list[float]] | None = None) -> None:
        """Go on from `state`; `factor` 0 looks at finiteness alone."""
        state = state or {}
        self._factor = factor
        self._losses = deque(state.get("losses", []), _WINDOW)
        self._norms = deque(state.get("norms", []), _WINDOW)
        self._in_a_row = int(state.get("in_a_row", [0])[0])

    def state(self) -> dict[str, list[float]]:
        """What it knows, for a checkpoint."""
        return {"losses": [*self._losses], "norms": [*self._norms], "in_a_row": [self._in_a_row]}

    def reset(self) -> None:
        """Forget: another stage has another loss."""
        self._losses.clear()
        self._norms.clear()
        self._in_a_row = 0

    def problem(self, loss: float, norm: float, step: int) -> str | None:
        """What is wrong with a step, or None: then it counts as taken.

        Raises TrainError for the tenth bad step in a row.
        """
        what = self._problem(loss, norm)
        if what is None:
            self._losses.append(loss)
            self._norms.append(norm)
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        if self._in_a_row >= _MAX_BAD_IN_A_ROW:
            numbers = f"loss {loss:.4g}, gradient norm {norm:.4g} at step {step}"
            raise TrainError(f"{numbers}: {what} {self._in_a_row} times in a row; lower optim.lr or clip_norm")
        return what

    def _problem(self, loss: float, norm: float) -> str | None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "not finite"
        if not self._factor or len(self._losses) < _MIN_KNOWN:
            return None
        # A loss near its floor may double without harm; the norm tells those apart.
        if loss > self._factor * median(self._losses) > 0:
            return f"loss above {self._factor:g} times its median"
        if len(self._norms) >= _MIN_KNOWN and norm > self._factor * median(self._norms):
            if self._in_a_row < _MAX_STEEP_IN_A_ROW:
                return f"gradient norm above {self._factor:g} times its median"
            self._norms.clear()
        return None
