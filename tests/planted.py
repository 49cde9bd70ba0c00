"""Real media with near-duplicates planted among them; keys say what was made of what (`012.jpeg` of `012`)."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from mmdata.errors import SampleError
from mmdata.media.audio import decode_mono
from mmdata.media.image import open_image, to_rgb

SEED = 6
# Icons of a hundred pixels are noise once they are JPEG, and a third of the clip-art is icons.
_MIN_SIDE_PX, _MAX_PIXELS = 150, 1_000_000
_COLOURFUL = 40
_RATE = 8_000
# Prompts of silence are among them: noise of one bit has no copy that could be told.
_AUDIBLE = 0.01
COLUMNS = ["key", "picture", "title", "said", "speech"]


def write_table(folder: Path, clipart: Path, prompts: Path, originals: int, each: int) -> Path:
    """`t.csv` and its media: so many originals of each modality, and so many copies of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        *_pictures(folder, clipart, originals, each),
        *_texts(prompts, originals, each),
        *_sounds(folder, prompts, originals, each),
    ]
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return folder / "t.csv"


def _is_colourful(image: Image.Image) -> bool:
    """Who has no colour cannot have another one."""
    return float(np.asarray(image.convert("HSV"))[..., 1].mean()) >= _COLOURFUL


def _planted(keys: list[str], kinds: list[str], each: int) -> Iterator[tuple[str, str]]:
    """Which original has a copy of which kind: none has two."""
    for number, kind in enumerate(kinds):
        yield from ((key, kind) for key in keys[number * each : (number + 1) * each])


# --- pictures ---------------------------------------------------------------------------------------------------------


def _png(image: Image.Image) -> bytes:
    return _saved(image, "PNG")


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _cropped(image: Image.Image) -> Image.Image:
    """5 % of each side, from all four."""
    x, y = round(image.width * 0.025), round(image.height * 0.025)
    return image.crop((x, y, image.width - x, image.height - y))


def _recoloured(image: Image.Image) -> Image.Image:
    """Hues turned by 55 degrees."""
    pixels_HWC = np.array(image.convert("HSV"))
    pixels_HWC[..., 0] += 39
    return Image.fromarray(pixels_HWC, "HSV").convert("RGB")


PICTURES: dict[str, Callable[[Image.Image], bytes]] = {
    "recoloured": lambda image: _png(_recoloured(image)),
    "lossless": lambda image: _saved(image, "WEBP", lossless=True),
    "resized": lambda image: _png(image.resize((max(image.width * 3 // 5, 1), max(image.height * 3 // 5, 1)))),
    "jpeg": lambda image: _saved(image, "JPEG", quality=30),
    "cropped": lambda image: _png(_cropped(image)),
    "flipped": lambda image: _png(ImageOps.mirror(image)),
}


def _pictures(folder: Path, clipart: Path, originals: int, each: int) -> Iterator[dict[str, str]]:
    with (clipart / "clipart.csv").open(encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    images: dict[str, tuple[Image.Image, str]] = {}
    for row in random.Random(SEED).sample(listed, len(listed)):
        if len(images) == originals:
            break
        try:
            image = to_rgb(open_image((clipart / row["path"]).read_bytes(), _MAX_PIXELS))
        except (SampleError, OSError):
            continue
        if min(image.size) >= _MIN_SIDE_PX and (_is_colourful(image) or len(images) >= each):
            images[f"p{len(images):03}"] = image, row["title"] or "untitled"
    for key, (image, title) in images.items():
        (folder / f"{key}.png").write_bytes(_png(image))
        yield {"key": key, "picture": f"{key}.png", "title": title}
    for key, kind in _planted(list(images), list(PICTURES), each):
        data = PICTURES[kind](images[key][0])
        extension = {"lossless": "webp", "jpeg": "jpg"}.get(kind, "png")
        (folder / f"{key}.{kind}.{extension}").write_bytes(data)
        yield {"key": f"{key}.{kind}", "picture": f"{key}.{kind}.{extension}", "title": images[key][1]}


# --- texts ------------------------------------------------------------------------------------------------------------


def _typo(text: str, drawn: random.Random) -> str:
    """Two letters change places, once in about 30."""
    letters = list(text)
    for _ in range(1 + len(text) // 30):
        at = drawn.choice([n for n in range(len(letters) - 1) if letters[n].isalpha() and letters[n + 1].isalpha()])
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def _inserted(text: str, drawn: random.Random) -> str:
    words = text.split()
    words.insert(drawn.randrange(1, len(words)), drawn.choice(["now", "really", "again"]))
    return " ".join(words)


TEXTS: dict[str, Callable[[str, random.Random], str]] = {
    "case": lambda text, _: text.upper().rstrip(".") + " !",
    "typo": _typo,
    "inserted": _inserted,
}


def _texts(prompts: Path, originals: int, each: int) -> Iterator[dict[str, str]]:
    drawn = random.Random(SEED)
    with (prompts / "prompts.csv").open(encoding="utf-8") as file:
        texts = {row["text"] for row in csv.DictReader(file)}
    # What is in brackets is a sound; letters one by one are no sentence.
    said = sorted(text for text in texts if text[0] not in "([" and sum(len(word) > 2 for word in text.split()) >= 4)
    chosen = {f"t{number:03}": text for number, text in enumerate(drawn.sample(said, min(originals, len(said))))}
    yield from ({"key": key, "said": text} for key, text in chosen.items())
    for key, kind in _planted(list(chosen), list(TEXTS), each):
        yield {"key": f"{key}.{kind}", "said": TEXTS[kind](chosen[key], drawn)}


# --- sounds -----------------------------------------------------------------------------------------------------------


def encoded(audio_T: np.ndarray, kind: str, codec: str, rate: int, bit_rate: int | None = None) -> bytes:
    """Mono sound at 8 kHz in a codec at a rate of its own."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        if bit_rate:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(
            np.round(audio_T * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = _RATE
        for one in _frames(frame, stream, rate):
            out.mux(stream.encode(one))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def _frames(frame: av.AudioFrame, stream: av.AudioStream, rate: int) -> Iterator[av.AudioFrame]:
    """Resampled, of the size that the codec takes."""
    resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=rate)
    queue = av.AudioFifo()
    for one in [*resampler.resample(frame), *resampler.resample(None)]:
        one.pts = None
        queue.write(one)
    done = 0
    while queue.samples:
        one = queue.read(min(stream.codec_context.frame_size or 1024, queue.samples))
        one.pts = done
        done += one.samples
        yield one


def _flac(audio_T: np.ndarray) -> bytes:
    return encoded(audio_T, "flac", "flac", _RATE)


SOUNDS: dict[str, tuple[str, Callable[[np.ndarray], bytes]]] = {
    "lossless": ("flac", _flac),
    "mp3": ("mp3", lambda audio_T: encoded(audio_T, "mp3", "libmp3lame", 16_000, 24_000)),
    "opus": ("ogg", lambda audio_T: encoded(audio_T, "ogg", "libopus", 16_000, 16_000)),
    "quiet": ("flac", lambda audio_T: _flac(audio_T * 0.3)),
    "shifted": ("flac", lambda audio_T: _flac(np.concatenate([np.zeros(1900, np.float32), audio_T]))),
    "cut": ("flac", lambda audio_T: _flac(audio_T[700:])),
}


def _sounds(folder: Path, prompts: Path, originals: int, each: int) -> Iterator[dict[str, str]]:
    sounds: dict[str, np.ndarray] = {}
    paths = sorted(prompts.rglob("*.wav"))
    for path in random.Random(SEED).sample(paths, len(paths)):
        if len(sounds) == originals:
            break
        audio_T = decode_mono(path.read_bytes(), 20, _RATE)
        if len(audio_T) >= _RATE and np.abs(audio_T).max() >= _AUDIBLE:
            sounds[f"s{len(sounds):03}"] = audio_T
    for key, audio_T in sounds.items():
        (folder / f"{key}.wav").write_bytes(encoded(audio_T, "wav", "pcm_s16le", _RATE))
        yield {"key": key, "speech": f"{key}.wav"}
    for key, kind in _planted(list(sounds), list(SOUNDS), each):
        extension, change = SOUNDS[kind]
        (folder / f"{key}.{kind}.{extension}").write_bytes(change(sounds[key]))
        yield {"key": f"{key}.{kind}", "speech": f"{key}.{kind}.{extension}"}
