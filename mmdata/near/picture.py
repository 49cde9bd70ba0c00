"""PDQ, a hash of 256 bits of how a picture looks: equal in most bits after scaling, encoding, changes of brightness.

Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019; `pdqhash` is its reference
implementation. Two pictures of which 31 bits or fewer differ are taken for one there.
"""

from __future__ import annotations

from typing import Any, Final

from mmdata.errors import MissingExtraError
from mmdata.media.image import ANY_SIZE, open_image, to_rgb

HASH_BYTES: Final = 32
# PDQ averages down to 64 x 64 by boxes, which makes of a picture and its half two that differ in up to 40 bits where
# they are small; a filter without aliasing before it leaves 31 or fewer of 98 in 100 instead of 87.
_SIDE_PX: Final = 128


def hashes(data: bytes) -> tuple[bytes, bytes, int]:
    """The hash of a picture, that of its mirror image, and PDQ's quality, 0 (flat) to 100.

    Raises SampleError where it cannot be decoded, MissingExtraError where pdqhash is not installed.
    """
    import numpy as np
    from PIL import Image

    image = to_rgb(open_image(data, ANY_SIZE, _SIDE_PX * 2)).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BILINEAR)
    pixels_HWC = np.asarray(image)
    bits_b, quality = _pdqhash().compute(pixels_HWC)
    # PDQ can turn the first hash into the second, but not exactly: its filter is not symmetric, some 16 bits differ.
    mirrored_b, _ = _pdqhash().compute(np.ascontiguousarray(pixels_HWC[:, ::-1]))
    as_is, mirrored = (np.packbits(found_b.astype(np.uint8)).tobytes() for found_b in (bits_b, mirrored_b))
    return as_is, mirrored, int(quality)


def _pdqhash() -> Any:
    try:
        import pdqhash
    except ImportError:
        raise MissingExtraError("pdq", "pdqhash", "near") from None
    return pdqhash
