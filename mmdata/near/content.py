"""A digest of what a payload holds, whatever it is written as: another lossless encoding has the same."""

from __future__ import annotations

import hashlib
import io
import unicodedata
from typing import TYPE_CHECKING, Final

from mmdata.media.audio import frames_of, open_audio, resampled
from mmdata.media.image import ANY_SIZE, open_image

if TYPE_CHECKING:
    from PIL import Image

_WIDE: Final = frozenset({"I;16", "I;16B", "I;16L", "I", "F"})


def of_image(data: bytes) -> str:
    """Of its pixels, upright and in sRGB, 8 bits of RGBA (16 bits of grey stay): EXIF, ICC and the format say no more.

    Pixels that are wholly transparent are all the same. Raises SampleError.
    """
    import numpy as np

    image = open_image(data, ANY_SIZE)
    if image.mode in _WIDE:
        array = np.asarray(image).astype("<i4" if image.mode != "F" else "<f4")
        return hashlib.sha256(f"{image.size} {array.dtype}".encode() + array.tobytes()).hexdigest()
    pixels_HWC = np.asarray(_srgb(image).convert("RGBA")).copy()
    pixels_HWC[pixels_HWC[..., 3] == 0] = 0
    return hashlib.sha256(f"{image.size} rgba".encode() + pixels_HWC.tobytes()).hexdigest()


def _srgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA"):
        return image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode=image.mode)
    except (ImageCms.PyCMSError, OSError):
        # A profile that nobody can read changes nothing anywhere else either.
        return image
    return converted or image


def of_audio(data: bytes) -> str:
    """Of its samples, as 32-bit integers at their own rate and channels. Raises SampleError."""
    import av

    digest = hashlib.sha256()
    with open_audio(data) as container:
        context = container.streams.audio[0].codec_context
        resampler = av.AudioResampler(format="s32", layout=context.layout, rate=context.sample_rate)
        digest.update(f"{context.sample_rate} {len(context.layout.channels)} ".encode())
        for frame in frames_of(container):
            frame.pts = None
            for out in resampled(resampler, frame):
                digest.update(out.to_ndarray().tobytes())
    return digest.hexdigest()


def of_text(text: str) -> str:
    """Of its characters in compatibility form, without case, with single blanks."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode()).hexdigest()
