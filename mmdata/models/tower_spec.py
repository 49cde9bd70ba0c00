"""Which tower: its kind and its weights. A plan asks for this, so that it imports neither torch nor NumPy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from mmdata.errors import WeightsError
from mmdata.models import clip_weights, whisper_weights
from mmdata.models.weights import Weights, content_identity

if TYPE_CHECKING:
    from mmdata.models.towers import Tower

Kind = Literal["open_clip_image", "open_clip_text", "timm", "sentence", "whisper"]

_SENTENCE_FILES: Final = ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json")


@dataclass(frozen=True)
class TowerSpec:
    """Names a tower; small and picklable.

    Attributes:
        kind: `open_clip_image` and `open_clip_text` are the towers of a CLIP model with its projections, `timm` the
            pooled features of an image network, `sentence` the mean of a Hugging Face encoder's states, `whisper` the
            mean of its encoder's.
        model: for open_clip and Whisper as their aligners take it, for timm an architecture, else a folder.
        checkpoint: open_clip: its tag or file; timm: a local file, None fetches timm's own.
        resize_mode: timm: as in `ImageRecipe`; `longest` shows all of a drawing.
    """

    kind: Kind
    model: str
    checkpoint: str | None = None
    resize_mode: str = "shortest"

    def weights(self) -> Weights:
        """Say which weights these are, without loading them. Raises WeightsError where they are missing."""
        if self.kind in ("open_clip_image", "open_clip_text"):
            return clip_weights.locate(self.model, self.checkpoint)
        if self.kind == "whisper":
            return whisper_weights.locate(self.model)
        return _locate_sentence(self.model) if self.kind == "sentence" else _locate_timm(self)

    def load(self, device: str = "auto") -> Tower:
        """Load the tower.

        Raises:
            WeightsError: the weights are missing or are those of another network.
            MissingExtraError: the library is not installed.
            FatalError: the device is not there.
        """
        from mmdata.models.towers import load_tower

        return load_tower(self, device)


def _locate_timm(spec: TowerSpec) -> Weights:
    if spec.checkpoint is None:
        return Weights(identity=f"timm/{spec.model}")
    path = Path(spec.checkpoint).expanduser()
    if not path.is_file():
        raise WeightsError(f"checkpoint {spec.checkpoint} of the image network {spec.model!r} is not there")
    return Weights(identity=f"{spec.model}/{content_identity([path])}", path=path)


def _locate_sentence(model: str) -> Weights:
    folder = Path(model).expanduser()
    files = [folder / name for name in _SENTENCE_FILES if (folder / name).is_file()]
    missing = [name for name in _SENTENCE_FILES[:3] if folder / name not in files]
    if missing:
        raise WeightsError(f"sentence encoder {folder} has no {' or '.join(missing)}")
    pooling = json.loads(files[-1].read_text()) if files[-1].parent.name == "1_Pooling" else {}
    if pooling and not pooling.get("pooling_mode_mean_tokens"):
        raise WeightsError(f"sentence encoder {folder} pools by other means than the mean; only that is supported")
    return Weights(identity=content_identity(files), path=folder)
