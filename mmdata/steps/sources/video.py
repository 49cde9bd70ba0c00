"""`video`: recordings, cut into samples where a scene changes or a subtitle is shown."""

from __future__ import annotations

import codecs
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, Literal

from pydantic import ByteSize, Field, model_validator

from mmdata.errors import SampleError
from mmdata.spec import Names
from mmdata.steps.base import Discovered
from mmdata.steps.exchange import Declared, Input, Keep, Place, Ref
from mmdata.steps.sources.places import file_places, text_ref
from mmdata.store.remote import opened

_SIDECARS: Final = ("srt", "vtt", "ass")
_MOST_SUBTITLES: Final = 4 << 20
_MOST_CUES: Final = 20_000
# Pieces of a recording overlap by nothing; one this short is a slip of rounding.
_SLIP_S: Final = 0.001
_OVERRIDE: Final = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class _Piece:
    """From when to when, seconds, and what is said meanwhile."""

    start_s: float
    end_s: float
    words: str = ""


@dataclass(frozen=True)
class _Said:
    """What the subtitles of a recording say.

    Attributes:
        cues: in the order of their times.
        lang: of them and of its sound.
        place: the file they stand in.
        problem: why they cannot be read, else None.
    """

    cues: Sequence[_Piece]
    lang: str | None
    place: str
    problem: tuple[str, str] | None = None


class Video(Discovered):
    """Video files, cut into scenes or by their subtitles: the piece, its sound, its words and some of its frames."""

    step: ClassVar[str] = "video"
    version: ClassVar[int] = 6
    extras: ClassVar[tuple[str, ...]] = ("video",)
    name: str | None = Field(None, description="names the source in every sample_id; default: video")
    files: Names = Field(min_length=1, description="video files, or patterns: talks/*.mp4")
    cut: Literal["scenes", "subtitles", "none"] = Field("scenes", description="where a sample ends and another begins")
    min_s: float = Field(1.0, ge=0, description="shorter pieces have failed; subtitles are put together until then")
    max_s: float = Field(30.0, gt=0, description="longer scenes are cut evenly")
    threshold: float = Field(27.0, gt=0, description="of PySceneDetect's ContentDetector: lower cuts more")
    frames: int = Field(3, ge=0, le=32, description="stills of each piece: image members frame_0, frame_1, ...")
    sound: bool = Field(True, description="make a member of its sound")
    lang: str | None = Field(None, description="of speech and subtitles; told by name.de.srt, else detected")
    max_bytes: ByteSize = Field(ByteSize(1 << 30), description="larger files have failed")
    max_duration_s: float = Field(6 * 3600.0, gt=0, description="longer recordings have failed")
    max_pixels: int = Field(16_000_000, ge=1, description="of a frame")

    @model_validator(mode="after")
    def _lengths_fit(self) -> Video:
        if self.min_s > self.max_s:
            raise ValueError(f"min_s: {self.min_s:g} is more than max_s: {self.max_s:g}")
        return self

    def identity(self) -> dict[str, Any]:
        """Where the files lie does not matter."""
        mine = super().identity()
        mine["params"].pop("files")
        return mine

    def members(self) -> dict[str, Declared]:
        """The piece, and what goes with it."""
        found = {"video": Declared("video", True), "words": Declared("text", self.cut == "subtitles", self.lang)}
        if self.sound:
            found["audio"] = Declared("audio", False, self.lang)
        return found | {f"frame_{n}": Declared("image", False) for n in range(self.frames)}

    def places(self, crawled: Path) -> Iterator[Place]:  # noqa: ARG002 - nothing was crawled
        """The files; subtitles beside them are part of their version. Raises PlanError."""
        for place in file_places("video", self.files, remote=False):
            beside = _sidecar(Path(place.path))
            stat = beside.stat() if beside else None
            yield Place(place.key, place.path, f"{place.version} {stat and (stat.st_size, stat.st_mtime_ns)}")

    def look(self, place: Place, keep: Keep) -> Iterator[Input]:
        """The pieces of one recording."""
        from mmdata.media.video import Limits, open_video

        path = Path(place.path)
        limits = Limits(self.max_duration_s, 1 << 40, self.max_pixels)
        with opened(place.path) as file:
            self._check_size(file)
            with open_video(file) as container:
                duration_s = _end(container) or _last_end(container)
                has_sound = bool(container.streams.audio)
        if duration_s > self.max_duration_s:
            raise SampleError("too_long", f"{duration_s:g} s, more than max_duration_s: {self.max_duration_s:g}")
        said = self._said(path)
        for piece in self._pieces(path, duration_s, said.cues):
            yield self._input(place, piece, said, keep, limits, has_sound=has_sound)

    def _check_size(self, file: BinaryIO) -> None:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if not size:
            raise SampleError("empty_file", "the file is empty")
        if size > self.max_bytes:
            raise SampleError("too_large", f"more than max_bytes: {self.max_bytes}")

    def _said(self, path: Path) -> _Said:
        """Subtitles beside the file, else those inside of it."""
        beside = _sidecar(path)
        said = _Said([], self.lang or _lang_of(path, beside), str(beside or path))
        try:
            return replace(said, cues=_beside(beside) if beside else _embedded(path))
        except SampleError as error:
            # A film without words is one; but nothing else says where to cut it.
            if self.cut == "subtitles":
                raise
            return replace(said, problem=(error.reason, str(error)))

    def _pieces(self, path: Path, duration_s: float, cues: Sequence[_Piece]) -> Iterator[_Piece]:
        if self.cut == "subtitles":
            if not cues:
                raise SampleError("no_subtitles", "none beside the file, and none in it")
            yield from _together(cues, self.min_s, self.max_s)
            return
        bounds = _scenes(path, self.threshold) if self.cut == "scenes" else [(0.0, duration_s)]
        for start, end in bounds:
            parts = max(1, math.ceil((end - start) / self.max_s - _SLIP_S)) if self.cut == "scenes" else 1
            length = (end - start) / parts
            for n in range(parts):
                begins, ends = start + n * length, start + (n + 1) * length
                words = " ".join(c.words for c in cues if c.words and begins <= (c.start_s + c.end_s) / 2 < ends)
                yield _Piece(begins, ends, words)

    def _input(self, place: Place, piece: _Piece, said: _Said, keep: Keep, limits: Any, *, has_sound: bool) -> Input:
        start, end = round(piece.start_s, 3), round(piece.end_s, 3)
        version, clip = f"{place.version} {start}-{end}", (start, end)
        refs = [Ref("video", "video", place.path, version=version, clip=clip)]
        required = self.cut == "subtitles"
        if said.problem:
            refs.append(Ref("words", "text", said.place, required=False, version=version, problem=said.problem))
        else:
            refs.append(text_ref("words", piece.words or None, "subtitles", required=required, lang=said.lang))
        if self.sound and has_sound:
            refs.append(Ref("audio", "audio", place.path, None, said.lang, required=False, version=version, clip=clip))
        key = f"{place.key} {start:.3f}-{end:.3f}"
        attributes = {"file": place.key, "start_s": f"{start:.3f}", "end_s": f"{end:.3f}"}
        if end - start < self.min_s - _SLIP_S:
            return Input(key, tuple(refs), attributes, ("too_short", f"{end - start:.3f} s, less than min_s"))
        return Input(key, (*refs, *self._stills(place, piece, keep, limits)), attributes)

    def _stills(self, place: Place, piece: _Piece, keep: Keep, limits: Any) -> Iterator[Ref]:
        """Frames from the middles of equal parts."""
        from mmdata.media.video import stills

        if not self.frames:
            return
        length = (piece.end_s - piece.start_s) / self.frames
        times = [piece.start_s + (n + 0.5) * length for n in range(self.frames)]
        with Path(place.path).open("rb") as file:
            images = stills(file, times, limits)
        for number, image in enumerate(images):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=95)
            url, span = keep(buffer.getvalue())
            version = f"{place.version} {times[number]:.3f}"
            yield Ref(f"frame_{number}", "image", url, required=False, version=version, span=span)


def _together(cues: Sequence[_Piece], min_s: float, max_s: float) -> Iterator[_Piece]:
    """Neighbours are put together until they are long enough, as long as they are not too long."""
    held: _Piece | None = None
    for cue in sorted(cues, key=lambda one: one.start_s):
        if not cue.words or cue.end_s <= cue.start_s:
            continue
        if held is not None and held.end_s - held.start_s < min_s and cue.end_s - held.start_s <= max_s:
            held = _Piece(held.start_s, max(held.end_s, cue.end_s), f"{held.words} {cue.words}")
            continue
        if held is not None:
            yield held
        held = cue
    if held is not None:
        yield held


def _sidecar(path: Path) -> Path | None:
    """Subtitles of the same name: talk.srt, else talk.de.srt."""
    for extension in _SIDECARS:
        plain = path.with_suffix(f".{extension}")
        if plain.is_file():
            return plain
    known = re.compile(re.escape(path.stem) + r"\.[a-z]{2,3}\.(?:" + "|".join(_SIDECARS) + ")")
    return next((one for one in sorted(path.parent.iterdir()) if known.fullmatch(one.name)), None)


def _lang_of(path: Path, beside: Path | None) -> str | None:
    """The language that the name of subtitles says: talk.de.srt."""
    suffixes = beside.name.removeprefix(path.stem).strip(".").split(".") if beside else []
    return suffixes[0] if len(suffixes) > 1 and re.fullmatch(r"[a-z]{2,3}", suffixes[0]) else None


def _beside(path: Path) -> list[_Piece]:
    """Subtitles beside the file."""
    from mmdata.media.text import decode_text
    from mmdata.models.subtitles import parse_subtitles

    try:
        with opened(str(path)) as file:
            data = file.read(_MOST_SUBTITLES)
        # As editors on Windows write them.
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            data = data.decode("utf-16").encode()
        cues = parse_subtitles(decode_text(data, entities=False))
    except UnicodeDecodeError as error:
        raise SampleError("not_utf16", f"its subtitles {path.name}: not UTF-16 at byte {error.start}") from None
    except SampleError as error:
        raise SampleError(error.reason, f"its subtitles {path.name}: {error}") from None
    return [_Piece(cue.start_s, cue.end_s, cue.text) for cue in cues]


def _embedded(path: Path) -> list[_Piece]:
    """Subtitles inside of the file."""
    import av

    from mmdata.media.clock import since_beginning
    from mmdata.media.video import open_video
    from mmdata.models.subtitles import Shown, as_said

    found: list[Shown] = []
    with path.open("rb") as file, open_video(file) as container:
        if not container.streams.subtitles:
            return []
        stream = container.streams.subtitles[0]
        try:
            for packet in container.demux(stream):
                if packet.pts is None or packet.duration is None or len(found) >= _MOST_CUES:
                    continue
                start = since_beginning(container, packet)
                lines = "\n".join(_lines(one) for one in packet.decode())
                if lines.strip():
                    found.append(Shown(start, start + float(packet.duration * packet.time_base), lines))
        except av.FFmpegError as error:
            raise SampleError("bad_subtitles", f"cannot be decoded: {error.strerror}") from None
    return [_Piece(cue.start_s, cue.end_s, cue.text) for cue in as_said(found)]


def _lines(subtitle: Any) -> str:
    """What one subtitle shows, without its overrides; '' for a picture of words."""
    raw = getattr(subtitle, "dialogue", b"")
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    return _OVERRIDE.sub("", text).replace("\\N", "\n").replace("\\n", "\n")


def _scenes(path: Path, threshold: float) -> list[tuple[float, float]]:
    """Beginning and end of every scene, seconds; one where nothing cuts."""
    import scenedetect

    from mmdata.media.video import open_video

    with path.open("rb") as file, open_video(file) as container:
        first_s = _first(container)
    try:
        video = scenedetect.open_video(str(path), backend="pyav")
        manager = scenedetect.SceneManager()
        manager.add_detector(scenedetect.ContentDetector(threshold=threshold))
        manager.detect_scenes(video)
        scenes = manager.get_scene_list(start_in_scene=True)
    except (OSError, ValueError, RuntimeError, scenedetect.VideoOpenFailure) as error:
        raise SampleError("bad_video", f"its scenes cannot be found: {error}") from None
    # It counts from the first picture.
    return [(first_s + start.seconds, first_s + end.seconds) for start, end in scenes]


def _first(container: Any) -> float:
    """When the first picture is shown, seconds since the beginning."""
    from mmdata.media.clock import beginning

    stream = container.streams.video[0]
    if stream.start_time is None or not stream.time_base:
        return 0.0
    return max(0.0, float(stream.start_time * stream.time_base - beginning(container)))


def _last_end(container: Any) -> float:
    """Of a stream whose container does not say how long it is, as browsers record them: where its last packet ends.

    Raises SampleError.
    """
    import av

    from mmdata.media.clock import since_beginning

    end_s = 0.0
    try:
        for packet in container.demux(container.streams.video[0]):
            if packet.pts is not None and packet.time_base:
                shown_s = float((packet.duration or 0) * packet.time_base)
                end_s = max(end_s, since_beginning(container, packet) + shown_s)
    except av.FFmpegError as error:
        raise SampleError("bad_video", f"cannot be read: {error.strerror}") from None
    if not end_s:
        raise SampleError("no_video", "no frame")
    return end_s


def _end(container: Any) -> float:
    """When its pictures end, seconds since the beginning; 0 where it does not say."""
    from mmdata.media.clock import told_length_s

    stream = container.streams.video[0]
    if stream.duration and stream.time_base:
        return _first(container) + float(stream.duration * stream.time_base)
    return told_length_s(container)
