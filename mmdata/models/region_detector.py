"""Which part of an image a phrase names, by an open-vocabulary detector: OWL-ViT, OWLv2 or Grounding DINO.

Shapes: Q boxes that the detector proposes, P phrases, T tokens. Boxes are (x0, y0, x1, y1), relative, 0 to 1. A score
is the detector's own probability, 0 to 1. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.media.image import to_rgb
from mmdata.models.device import resolve_device
from mmdata.models.regions import Region
from mmdata.models.weights import Weights, content_identity

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    Floats = NDArray[np.floating[Any]]
    Pixels = NDArray[np.uint8]

# Kind by `model_type` of config.json, and the probability above which the detector's authors call a thing found: the
# defaults of transformers' `post_process_grounded_object_detection` (0.1 for OWL; 0.25 for Grounding DINO).
_KINDS: Final = {"owlvit": "owl", "owlv2": "owl", "grounding-dino": "dino", "mm-grounding-dino": "dino"}
FOUND_ABOVE: Final = {"owl": 0.1, "dino": 0.25}
# Grounding DINO reads all phrases as one text of 256 tokens at most.
_PHRASES_A_PASS: Final = {"owl": 64, "dino": 12}
_WORDS_A_PHRASE: Final = 12
# The largest input of these detectors is 1,333 px; more would only travel between processes.
_MAX_SIDE_PX: Final = 1333


def locate_detector(folder: str) -> Weights:
    """Say whether the weights of a detector are here, in milliseconds.

    Raises:
        WeightsError: the folder or a file in it is missing, or it holds another kind of model.
    """
    path = Path(folder).expanduser()
    checkpoints = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not checkpoints:
        lacks = "has no config.json with *.safetensors" if path.is_dir() else "is not there"
        raise WeightsError(
            f"detector folder {folder} {lacks}; download an OWLv2 or Grounding DINO model: "
            "hf download google/owlv2-base-patch16-ensemble --local-dir FOLDER"
        )
    _kind(path)
    return Weights(identity="detector/" + content_identity([*checkpoints, *path.glob("*.json")]), path=path)


def found_above(folder: str) -> float:
    """The probability above which this detector's authors call a thing found. Raises WeightsError."""
    return FOUND_ABOVE[_kind(Path(folder).expanduser())]


def see_whole(image: Image.Image) -> Pixels:
    """The image for the detector: uint8 `[H, W, 3]`, RGB, its longer side 1,333 px at most."""
    rgb = to_rgb(image)
    rgb.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    return np.asarray(rgb, dtype=np.uint8)


class Detector:
    """A loaded detector; finds one image's phrases at a time."""

    def __init__(self, model: Any, processor: Any, kind: str) -> None:
        """Take over a built model; use `Detector.load`."""
        self._model = model
        self._processor = processor
        self._kind = kind

    @classmethod
    def load(cls, folder: str, device: str = "auto") -> Detector:
        """Load a local folder in the format of transformers; code that it may hold is never run.

        Raises:
            MissingExtraError: transformers is not installed.
            WeightsError: the weights are missing, or do not load.
            FatalError: the device is not there.
        """
        path = locate_detector(folder).path
        assert path is not None
        try:
            from safetensors import SafetensorError
            from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
        except ImportError as error:
            raise MissingExtraError(f"the detector {folder!r}", "transformers", "regions") from error
        try:
            from_folder: Any = AutoProcessor.from_pretrained
            processor = from_folder(path, local_files_only=True)
            model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(
                path, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
            raise WeightsError(f"detector {folder!r} does not load: {error}") from error
        return cls(model.to(resolve_device(device)).eval(), processor, _kind(path))

    def find(self, image_HWC: Pixels, phrases: Sequence[str]) -> list[Region]:
        """The best box of each phrase, whatever its score."""
        size = _PHRASES_A_PASS[self._kind]
        find = self._find_owl if self._kind == "owl" else self._find_dino
        starts = range(0, len(phrases), size)
        return [region for start in starts for region in find(image_HWC, list(phrases[start : start + size]))]

    def _find_owl(self, image_HWC: Pixels, phrases: list[str]) -> list[Region]:
        inputs = self._processor(text=[phrases], images=image_HWC, return_tensors="pt", truncation=True)
        probability_QP, box_Q4 = self._run(inputs)
        if self._model.config.model_type == "owlv2":
            # It pads images to a square, below and at the right, and boxes are relative to that.
            height_px, width_px = image_HWC.shape[:2]
            box_Q4 = box_Q4 * max(height_px, width_px) / np.array([width_px, height_px, width_px, height_px])
        return _best(probability_QP, box_Q4)

    def _find_dino(self, image_HWC: Pixels, phrases: list[str]) -> list[Region]:
        prompt = "".join(
            f"{' '.join(phrase.lower().replace('.', ' ').split()[:_WORDS_A_PHRASE])}. " for phrase in phrases
        )
        inputs = self._processor(text=prompt, images=image_HWC, return_tensors="pt", truncation=True)
        probability_QT, box_Q4 = self._run(inputs)
        spans = list(self._spans(inputs["input_ids"][0].tolist()))[: len(phrases)]
        # A phrase without a span was cut off: nothing is known of it.
        spans += [[]] * (len(phrases) - len(spans))
        columns = [probability_QT[:, span].max(axis=1, initial=0.0) for span in spans]
        return _best(np.stack(columns, axis=1), box_Q4)

    def _run(self, inputs: Any) -> tuple[Floats, Floats]:
        """Probabilities `[Q, P or T]` and boxes `[Q, 4]` as corners."""
        import torch

        with torch.inference_mode():
            out = self._model(**inputs.to(self._model.device))
        centre_Q4 = out.pred_boxes[0].float().cpu().numpy()
        half_Q2 = centre_Q4[:, 2:] / 2
        corner_Q4 = np.concatenate([centre_Q4[:, :2] - half_Q2, centre_Q4[:, :2] + half_Q2], axis=1)
        return torch.sigmoid(out.logits[0].float()).cpu().numpy(), corner_Q4

    def _spans(self, ids: list[int]) -> Iterator[list[int]]:
        """The tokens of each phrase: what stands between full stops."""
        tokenizer = self._processor.tokenizer
        stop, special = tokenizer.convert_tokens_to_ids("."), set(tokenizer.all_special_ids)
        span: list[int] = []
        for place, token in enumerate(ids):
            if token == stop:
                yield span
                span = []
            elif token not in special:
                span.append(place)


def _kind(path: Path) -> str:
    try:
        name = json.loads((path / "config.json").read_text())["model_type"]
        return _KINDS[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"detector folder {path} holds none of {', '.join(_KINDS)}: {error!r}") from None


def _best(probability_QP: Floats, box_Q4: Floats) -> list[Region]:
    best_P = probability_QP.argmax(axis=0)
    box_P4 = np.clip(box_Q4[best_P], 0, 1).astype(np.float64).round(4).tolist()
    score_P = probability_QP.max(axis=0).astype(np.float64).round(4).tolist()
    return [Region((b[0], b[1], b[2], b[3]), score) for b, score in zip(box_P4, score_P, strict=True)]
