"""Where in a sound somebody speaks, by Silero VAD (MIT); its weights come inside of faster-whisper.

Shapes: T samples of audio at 16 kHz, mono.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models.weights import Weights, content_identity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE_HZ = 16_000
# A pause that is shorter belongs to what is said: Silero's own default, `min_silence_duration_ms`.
_PAUSE_MS = 100


def locate() -> Weights:
    """The weights inside of faster-whisper, without importing it. Raises MissingExtraError, WeightsError."""
    spec = find_spec("faster_whisper")
    if spec is None or spec.origin is None:
        raise MissingExtraError("voice", "faster-whisper", "whisper")
    files = sorted((Path(spec.origin).parent / "assets").glob("silero*.onnx"))
    if not files:
        raise WeightsError(f"{spec.origin} has no assets/silero*.onnx: install faster-whisper anew")
    return Weights(content_identity(files), files[-1])


def spoken_s(audio_T: NDArray[np.float32], min_probability: float) -> list[tuple[float, float]]:
    """From when to when somebody speaks, seconds. Raises MissingExtraError."""
    try:
        from faster_whisper.vad import VadOptions, get_speech_timestamps
    except ImportError as error:
        raise MissingExtraError("voice", "faster-whisper", "whisper") from error
    options = VadOptions(threshold=min_probability, min_silence_duration_ms=_PAUSE_MS, speech_pad_ms=0)
    spans = get_speech_timestamps(audio_T, options, RATE_HZ)
    return [(span["start"] / RATE_HZ, span["end"] / RATE_HZ) for span in spans]
