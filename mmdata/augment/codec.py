"""From a member's payload to numbers and back; what is not changed is never encoded anew."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmdata.augment.base import Mask, Picture, Sound, Tensor, Text
from mmdata.errors import SampleError
from mmdata.sample import Member

# A recording is decoded whole: as float32 an hour of stereo at 48 kHz would take 1.4 GB.
_MOST_SECONDS: Final = 600.0
_TENSOR_ELEMENTS: Final = 64 << 20
_CLIP_BYTES: Final = 1 << 30
# What Pillow has of up to 16 bits; "I" is what some 16 bits are read as.
_MASK_MODES: Final = frozenset({"1", "L", "P", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I"})
_MOST_OF_16: Final = 65_535
# What soundfile writes without loss; everything else becomes FLAC.
_LOSSLESS: Final = {"wav": "WAV", "flac": "FLAC"}


def decode_picture(member: Member) -> Picture:
    """Upright, RGB; alpha where something is transparent. Raises SampleError `bad_image`."""
    from mmdata.media.image import ANY_SIZE, open_image, to_rgb

    image = open_image(member.data, ANY_SIZE)
    if not image.has_transparency_data:
        return Picture(np.asarray(to_rgb(image)))
    rgba_HWC = np.asarray(image.convert("RGBA"))
    return Picture(np.ascontiguousarray(rgba_HWC[..., :3]), np.ascontiguousarray(rgba_HWC[..., 3]))


def encode_picture(member: Member, picture: Picture) -> Member:
    """In the member's own format: JPEG at quality 95, else lossless."""
    from PIL import Image

    from mmdata.media.image import encode_like

    image = Image.fromarray(picture.rgb_HWC)
    if picture.alpha_HW is not None:
        image.putalpha(Image.fromarray(picture.alpha_HW))
    measures = {**member.measures, "width": image.width, "height": image.height}
    return replace(member, data=encode_like(image, member.extension), measures=measures)


def decode_mask(member: Member, of: str) -> Mask:
    """Its values as they are stored, palette or not. Raises SampleError `bad_image`, `bad_mask`."""
    from mmdata.media.image import ANY_SIZE, open_image

    image = open_image(member.data, ANY_SIZE)
    values = np.asarray(image)
    if image.mode not in _MASK_MODES or (image.mode == "I" and not 0 <= values.min() <= values.max() <= _MOST_OF_16):
        raise SampleError("bad_mask", f"'{member.name}' has pixels of mode {image.mode}; masks have 8 or 16 bits")
    dtype = np.uint16 if image.mode.startswith("I") else np.uint8
    return Mask(np.atleast_3d(values).astype(dtype), of)


def encode_mask(member: Member, mask: Mask) -> Member:
    """PNG, in the mode and with the palette that it had."""
    from PIL import Image

    from mmdata.media.image import ANY_SIZE, encode_like, open_image

    before = open_image(member.data, ANY_SIZE)
    values = mask.values_HWC[..., 0] if mask.values_HWC.shape[-1] == 1 else mask.values_HWC
    image = Image.fromarray(values.astype(bool) if before.mode == "1" else np.ascontiguousarray(values))
    if before.mode == "P":
        image.putpalette(before.getpalette() or [])
    measures = {**member.measures, "width": image.width, "height": image.height}
    return replace(member, data=encode_like(image, "png"), mime="image/png", extension="png", measures=measures)


def decode_sound(member: Member) -> Sound:
    """All channels at their own rate. Raises SampleError as `mmdata.media.audio` does, `too_long` among others."""
    if member.measures.get("duration_s", 0.0) > _MOST_SECONDS:
        raise SampleError("too_long", f"longer than {_MOST_SECONDS:.0f} s, which augmentation would hold in memory")
    if member.extension in _LOSSLESS:
        # What children are stored as: half the time that FFmpeg's frames and resampler take.
        return _by_soundfile(member)
    return _by_ffmpeg(member)


def _by_soundfile(member: Member) -> Sound:
    import soundfile

    try:
        audio_TC, rate_hz = soundfile.read(io.BytesIO(member.data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise SampleError("bad_audio", f"cannot be decoded: {error}") from None
    if not len(audio_TC):
        raise SampleError("bad_audio", "nothing in it sounds")
    return Sound(np.ascontiguousarray(audio_TC.T), int(rate_hz))


def _by_ffmpeg(member: Member) -> Sound:
    import av

    from mmdata.media.audio import frames_of, open_audio

    blocks: list[NDArray[Any]] = []
    with open_audio(member.data) as container:
        rate_hz = container.streams.audio[0].rate
        resampler = av.AudioResampler(format="fltp", rate=rate_hz)
        for frame in (*frames_of(container), None):
            blocks += [block.to_ndarray() for block in resampler.resample(frame)]
    if not blocks:
        raise SampleError("bad_audio", "nothing in it sounds")
    return Sound(np.concatenate(blocks, axis=1).astype(np.float32, copy=False), rate_hz)


def encode_sound(member: Member, sound: Sound) -> Member:
    """16 bits: WAV stays WAV, everything else becomes FLAC."""
    import soundfile

    kind = _LOSSLESS.get(member.extension, "FLAC")
    pcm_TC = np.clip(np.rint(sound.audio_CT.T * 32767.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm_TC, sound.rate_hz, format=kind, subtype="PCM_16")
    measures = {
        **member.measures,
        "duration_s": len(pcm_TC) / sound.rate_hz,
        "sample_rate": sound.rate_hz,
        "channels": pcm_TC.shape[1],
    }
    extension = kind.lower()
    return replace(member, data=buffer.getvalue(), mime=f"audio/{extension}", extension=extension, measures=measures)


def decode_clip(member: Member) -> tuple[Picture, ...]:
    """All frames. Raises SampleError as `mmdata.media.video` does, `too_many_frames` where they take over 1 GiB."""
    from mmdata.media.video import frames_of_film

    return tuple(Picture(frame) for frame in frames_of_film(member.data, _film_limits(), _CLIP_BYTES))


def encode_clip(
    member: Member,
    frames: tuple[Picture, ...],
    heard: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
) -> Member:
    """H.264 in MP4 with the sound that it had, or what `heard` makes of its two channels."""
    from mmdata.media.video import redrawn

    data = redrawn(member.data, [frame.rgb_HWC for frame in frames], _film_limits(), heard)
    height, width = frames[0].rgb_HWC.shape[:2]
    width, height = even(width, height)
    measures = {**member.measures, "width": width, "height": height}
    return replace(member, data=data, mime="video/mp4", extension="mp4", measures=measures)


def even(width: int, height: int) -> tuple[int, int]:
    """The sides that H.264 gives a film: half of its colours are stored."""
    return round(width / 2) * 2, round(height / 2) * 2


def _film_limits() -> Any:
    from mmdata.media.video import Limits

    return Limits(_MOST_SECONDS, 1 << 20, _CLIP_BYTES)


def decode_tensor(member: Member) -> Tensor:
    """As `mmdata.media.tensor` stores it. Raises SampleError as that does."""
    from mmdata.media.tensor import Limits, read_tensor

    return Tensor(read_tensor(member.data, Limits(_TENSOR_ELEMENTS)), member.measures.get("rate_hz"))


def encode_tensor(member: Member, tensor: Tensor) -> Member:
    """As npy, measured anew."""
    from mmdata.media.tensor import measure_tensor, write_tensor

    value = np.ascontiguousarray(tensor.value)
    return replace(member, data=write_tensor(value), measures=measure_tensor(value, tensor.rate_hz))


def encode_text(member: Member, text: Text) -> Member:
    """UTF-8, measured anew."""
    from mmdata.media.text import count_words

    measures = {**member.measures, "text": text.text, "chars": len(text.text), "words": count_words(text.text)}
    return replace(member, data=text.text.encode(), lang=text.lang, measures=measures)


DECODERS: Final[Mapping[str, Any]] = {
    "image": decode_picture,
    "video": decode_clip,
    "audio": decode_sound,
    "tensor": decode_tensor,
}
ENCODERS: Final[Mapping[str, Any]] = {
    "image": encode_picture,
    "video": encode_clip,
    "audio": encode_sound,
    "tensor": encode_tensor,
}
