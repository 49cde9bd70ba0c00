"""ONNX files on one thread of the processor: equal inputs give equal outputs, workers do not wait for each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdata.errors import MissingExtraError, WeightsError


def open_session(path: Path, needed_by: str, extra: str) -> Any:
    """An onnxruntime session.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        WeightsError: the file does not load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(needed_by, "onnxruntime", extra) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises types of its own, that it does not export
        raise WeightsError(f"{path} does not load: {error}") from error
