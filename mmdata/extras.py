"""Extras of this package: which modules each brings, and whether they are here.

By module and not by distribution: faiss may be faiss-gpu, cv2 that of conda. `tests/unit/test_extras.py` holds this
table against pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from mmdata.errors import MissingExtraError

# By extra: the modules, and what pip calls them where that is another name.
MODULES: Final[Mapping[str, Mapping[str, str]]] = {
    "clip": {"torch": "torch", "open_clip": "open-clip-torch", "transformers": "transformers", "timm": "timm"},
    "whisper": {
        "torch": "torch",
        "whisper": "openai-whisper",
        "safetensors": "safetensors",
        "faster_whisper": "faster-whisper",
        "jiwer": "jiwer",
    },
    "crossfit": {"torch": "torch", "open_clip": "open-clip-torch", "timm": "timm", "safetensors": "safetensors"},
    "regions": {"torch": "torch", "open_clip": "open-clip-torch", "textblob": "textblob"},
    "timing": {"torch": "torch", "whisper": "openai-whisper", "faster_whisper": "faster-whisper", "pysubs2": "pysubs2"},
    "ocr": {"rapidocr": "rapidocr", "onnxruntime": "onnxruntime"},
    "tags": {"onnxruntime": "onnxruntime"},
    "safety": {"nudenet": "nudenet", "onnxruntime": "onnxruntime"},
    "personal": {"phonenumbers": "phonenumbers", "stdnum": "python-stdnum"},
    "near": {"faiss": "faiss-cpu", "pdqhash": "pdqhash"},
    "clap": {"torch": "torch", "transformers": "transformers"},
    "huggingface": {"datasets": "datasets"},
    "s3": {"s3fs": "s3fs"},
    "video": {"scenedetect": "scenedetect", "cv2": "opencv-python-headless", "pysubs2": "pysubs2"},
    "augment": {
        "albumentations": "albumentations",
        "audiomentations": "audiomentations",
        "nlpaug": "nlpaug",
        "nltk": "nltk",
        "pysubs2": "pysubs2",
        "textblob": "textblob",
    },
    "export": {"torch": "torch", "onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"},
    "train": {"torch": "torch", "tokenizers": "tokenizers", "safetensors": "safetensors"},
    "eval": {"sacrebleu": "sacrebleu", "sklearn": "scikit-learn", "torchmetrics": "torchmetrics"},
    "tensorboard": {"tensorboard": "tensorboard"},
    "wandb": {"wandb": "wandb"},
}


def require(needed_by: str, extra: str) -> None:
    """Raises MissingExtraError where a module of an extra is not here; none is imported."""
    for module, package in MODULES[extra].items():
        if find_spec(module) is None:
            raise MissingExtraError(needed_by, package, extra)
