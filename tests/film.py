"""A short film: colours that change with hard cuts, a tone with them, perhaps subtitles inside."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS, RATE, SIDE = 20, 16_000, 64
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)]


def write_film(
    path: Path,
    scenes_s: list[float],
    *,
    sound: bool = True,
    subtitles: str | None = None,
    start_s: float = 0.0,
    sound_after_s: float = 0.0,
    left_only: bool = False,
) -> Path:
    """Scenes of such lengths; scene n has a tone of 300 (n + 1) Hz; `subtitles` is an SRT file to put in.

    The tone is mono, or with `left_only` stereo and on the left.

    MPEG-TS begins 1.4 s after `start_s`, Matroska there; of others it has to be 0. Tones come `sound_after_s` later.
    """
    container = av.open(str(path), "w", options={"output_ts_offset": str(start_s)})
    picture = container.add_stream("mpeg4", rate=FPS, width=SIDE * 2, height=SIDE, pix_fmt="yuv420p")
    picture.codec_context.bit_rate = 2_000_000
    picture.codec_context.gop_size = 10
    layout = "stereo" if left_only else "mono"
    tone = container.add_stream("aac", rate=RATE, layout=layout) if sound else None
    source = av.open(subtitles) if subtitles else None
    words = container.add_stream_from_template(source.streams.subtitles[0]) if source else None
    rng = np.random.default_rng(0)
    heard = round(sound_after_s * RATE)
    for scene, length_s in enumerate(scenes_s):
        texture = rng.integers(-25, 25, (SIDE, SIDE * 2, 1))
        pixels = np.clip(np.array(COLOURS[scene % len(COLOURS)]) + texture, 0, 255).astype(np.uint8)
        for _ in range(round(length_s * FPS)):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if tone is not None:
            times = np.arange(round(length_s * RATE)) / RATE
            wave = (0.4 * np.sin(2 * np.pi * 300 * (scene + 1) * times)).astype(np.float32)[None]
            if left_only:
                wave = np.concatenate([wave, np.zeros_like(wave)])
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=layout)
            frame.sample_rate = RATE
            if sound_after_s:
                frame.time_base, frame.pts = Fraction(1, RATE), heard
                heard += frame.samples
            container.mux(tone.encode(frame))
    container.mux(picture.encode(None))
    if tone is not None:
        container.mux(tone.encode(None))
    if source is not None:
        for packet in source.demux(subtitles=0):
            if packet.dts is not None:
                packet.stream = words
                container.mux(packet)
        source.close()
    container.close()
    return path


def rising_film(kind: str, frames: int) -> bytes:
    """H.264, a key frame a second, each picture lighter than the last; two of three are stored after the third."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        order = {"x264-params": "bframes=2:b-adapt=0:scenecut=0:keyint=20:min-keyint=20"}
        picture = container.add_stream("libx264", rate=FPS, width=SIDE, height=SIDE, pix_fmt="yuv420p", options=order)
        for number in range(frames):
            pixels = np.full((SIDE, SIDE, 3), 240 * number // frames, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode(None))
    return buffer.getvalue()


def phone_film(degrees: int | None, *, mirrored: bool = False) -> bytes:
    """A second of 128 x 64 pictures, orange above and black below, in MP4; to be shown turned clockwise by so much.

    Left and right change places before that where it is `mirrored`; None is a matrix of zeros.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        picture = container.add_stream("mpeg4", rate=FPS, width=SIDE * 2, height=SIDE, pix_fmt="yuv420p")
        pixels = np.zeros((SIDE, SIDE * 2, 3), np.uint8)
        pixels[: SIDE // 2] = (250, 150, 20)
        for _ in range(FPS):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode(None))
    data = bytearray(buffer.getvalue())
    # ISO/IEC 14496-12, 8.3.2: the matrix of a track's header, version 0.
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1), None: (0, 0)}[degrees]
    one = 1 << 16
    first = -one if mirrored else one
    struct.pack_into(
        ">9i", data, data.index(b"tkhd") + 44, cos * first, sin * first, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30
    )
    return bytes(data)
