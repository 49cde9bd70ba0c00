"""How the loader decodes a member of each modality; text, which needs a tokenizer, apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mmdata.train.config import DataConfig
from mmdata.train.decode import decode_audio, decode_image
from mmdata.train.decode_series import decode_tensor, decode_video

Decoder = Callable[[bytes, DataConfig], npt.NDArray[np.generic]]


def decode_media(modality: str, data: bytes, config: DataConfig) -> npt.NDArray[np.generic]:
    """A member as the model's tower wants it, see `mmdata.train.batch`. Raises SampleError where it cannot be used."""
    return DECODERS[modality](data, config)


def _image(data: bytes, config: DataConfig) -> npt.NDArray[np.generic]:
    return decode_image(data, config.image_side_px, config.image_max_pixels)


def _audio(data: bytes, config: DataConfig) -> npt.NDArray[np.generic]:
    return decode_audio(data, config.audio_max_s)


def _video(data: bytes, config: DataConfig) -> npt.NDArray[np.generic]:
    pixels = (config.image_side_px, config.video_frames, config.video_max_s, config.image_max_pixels)
    return decode_video(data, *pixels)


def _tensor(data: bytes, config: DataConfig) -> npt.NDArray[np.generic]:
    return decode_tensor(data, config.tensor_channels, config.tensor_max_steps)


DECODERS: dict[str, Decoder] = {"image": _image, "audio": _audio, "video": _video, "tensor": _tensor}
