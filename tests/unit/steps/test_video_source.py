from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import pytest
from film import write_film
from PIL import Image

from mmdata.errors import PlanError, SampleError
from mmdata.steps.exchange import Input
from mmdata.steps.sources.video import Video

SRT = """1
00:00:00,200 --> 00:00:01,200
One is red.

2
00:00:01,300 --> 00:00:01,900
Very red.

3
00:00:02,500 --> 00:00:03,900
Two is <i>green</i>.
"""


def look(*files: Path, **given: Any) -> tuple[list[Input], list[bytes]]:
    source = Video.model_validate({"files": [str(file) for file in files], **given})
    kept: list[bytes] = []

    def keep(data: bytes) -> tuple[str, tuple[int, int]]:
        kept.append(data)
        return "kept", (len(kept) - 1, len(data))

    return [found for place in source.places(Path()) for found in source.look(place, keep)], kept


def clips(found: list[Input]) -> list[tuple[float, float] | None]:
    return [next(ref.clip for ref in one.refs if ref.name == "video") for one in found]


def words(found: list[Input]) -> list[str | None]:
    return [next((ref.text for ref in one.refs if ref.name == "words"), None) for one in found]


def test_a_film_is_cut_where_its_scenes_change(tmp_path: Path):
    film = write_film(tmp_path / "a.mp4", [2.0, 3.0, 1.5])
    found, kept = look(film, min_s=0.5, frames=2)
    assert clips(found) == [(0.0, 2.0), (2.0, 5.0), (5.0, 6.5)]
    assert [one.key for one in found] == ["a.mp4 0.000-2.000", "a.mp4 2.000-5.000", "a.mp4 5.000-6.500"]
    assert found[0].attributes == {"file": "a.mp4", "start_s": "0.000", "end_s": "2.000"}
    assert {ref.name for ref in found[0].refs} == {"video", "audio", "words", "frame_0", "frame_1"}
    greens = [
        Image.open(io.BytesIO(kept[ref.span[0]])) for ref in found[1].refs if ref.modality == "image" and ref.span
    ]
    assert all(image.resize((1, 1)).getpixel((0, 0))[1] > 150 for image in greens)
    assert len(greens) == 2
    assert look(film, min_s=0.5, frames=2)[0] == found


def test_long_scenes_are_cut_evenly_and_short_ones_are_said(tmp_path: Path):
    found, _ = look(write_film(tmp_path / "a.mp4", [5.0, 1.0]), max_s=2.0, min_s=1.2, frames=0)
    assert [(one.problem or ("",))[0] for one in found] == ["", "", "", "too_short"]
    assert clips(found)[:3] == [(0.0, 1.667), (1.667, 3.333), (3.333, 5.0)]


def test_subtitles_beside_a_film_cut_it(tmp_path: Path):
    film = write_film(tmp_path / "a.mp4", [2.0, 2.0])
    (tmp_path / "a.de.srt").write_text(SRT)
    found, _ = look(film, cut="subtitles", min_s=1.2, frames=0)
    assert clips(found) == [(0.2, 1.9), (2.5, 3.9)]
    assert words(found) == ["One is red. Very red.", "Two is green."]
    assert {ref.lang for one in found for ref in one.refs if ref.name in {"words", "audio"}} == {"de"}
    # In scenes they are what is said meanwhile.
    assert words(look(film, min_s=0.5, frames=0)[0]) == ["One is red. Very red.", "Two is green."]
    place = next(iter(Video.model_validate({"files": str(film)}).places(Path())))
    (tmp_path / "a.de.srt").write_text(SRT.replace("red", "dark"))
    assert next(iter(Video.model_validate({"files": str(film)}).places(Path()))) != place


def test_subtitles_inside_a_film_cut_it(tmp_path: Path):
    (tmp_path / "x.srt").write_text(SRT)
    film = write_film(tmp_path / "a.mkv", [2.0, 2.0], subtitles=str(tmp_path / "x.srt"))
    found, _ = look(film, cut="subtitles", min_s=1.2, frames=0)
    assert clips(found) == [(0.2, 1.9), (2.5, 3.9)]
    assert words(found)[1] == "Two is green."


def test_a_silent_film_has_no_sound_and_one_piece_is_all_of_it(tmp_path: Path):
    ((found,), _) = look(write_film(tmp_path / "a.mp4", [2.0, 2.0], sound=False), cut="none", frames=1)
    assert clips([found]) == [(0.0, 4.0)]
    assert [ref.name for ref in found.refs if ref.version] == ["video", "frame_0"]


def test_what_is_no_film_costs_itself(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"no film at all" * 100)
    with pytest.raises(SampleError) as caught:
        look(tmp_path / "a.mp4")
    assert caught.value.reason == "not_video"
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "nowhere.mp4").symlink_to(tmp_path / "gone")
    for name, reason in (("empty", "empty_file"), ("nowhere", "unreadable")):
        with pytest.raises(SampleError) as caught:
            look(tmp_path / f"{name}.mp4")
        assert caught.value.reason == reason
    film = write_film(tmp_path / "b.mp4", [2.0])
    for given, reason in (
        ({"max_bytes": 10}, "too_large"),
        ({"max_duration_s": 1}, "too_long"),
        ({"cut": "subtitles"}, "no_subtitles"),
    ):
        with pytest.raises(SampleError) as caught:
            look(film, **given)
        assert caught.value.reason == reason


def test_a_film_that_does_not_say_how_long_it_is_is_as_long_as_its_packets(tmp_path: Path):
    # As browsers record: written to where nothing can be corrected at the end.
    film = write_film(tmp_path / "a.mp4", [2.0, 1.0], sound=False)
    with av.open(str(film)) as source, av.open(str(tmp_path / "b.mkv"), "w", options={"live": "1"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    ((found,), _) = look(tmp_path / "b.mkv", cut="none", frames=0)
    assert clips([found]) == [(0.0, 3.0)]
    with pytest.raises(SampleError, match="3 s, more than max_duration_s: 2"):
        look(tmp_path / "b.mkv", cut="none", max_duration_s=2)


@pytest.mark.parametrize(("kind", "start_s"), [("ts", 0.0), ("ts", 1000.0), ("mkv", 7.3)])
def test_a_recording_that_begins_late_is_cut_by_times_since_its_beginning(tmp_path: Path, kind: str, start_s: float):
    film = write_film(tmp_path / f"a.{kind}", [2.0, 3.0], start_s=start_s)
    film.with_suffix(".srt").write_text(SRT)
    found, kept = look(film, min_s=0.5, frames=2)
    assert [clip for cut in clips(found) for clip in cut or ()] == pytest.approx([0, 2, 2, 5], abs=0.11)
    assert words(found) == ["One is red. Very red.", "Two is green."]
    stills = [Image.open(io.BytesIO(one)).resize((1, 1)).getpixel((0, 0)) for one in kept]
    assert [still.index(max(still)) for still in stills] == [0, 0, 1, 1]
    ((whole,), _) = look(film, cut="none", frames=0)
    # The sound is padded, and of Matroska the whole counts.
    assert clips([whole])[0] == pytest.approx((0, 5), abs=0.15)


def test_subtitles_inside_of_a_recording_that_begins_late_count_from_its_beginning(tmp_path: Path):
    (tmp_path / "x.srt").write_text(SRT)
    film = write_film(tmp_path / "a.mkv", [2.0, 2.0], subtitles=str(tmp_path / "x.srt"), start_s=7.3)
    found, _ = look(film, cut="subtitles", min_s=1.2, frames=0)
    assert [clip for cut in clips(found) for clip in cut or ()] == pytest.approx([0.2, 1.9, 2.5, 3.9], abs=0.03)


def test_subtitles_that_cannot_be_read_are_named(tmp_path: Path):
    film = write_film(tmp_path / "a.mp4", [2.0])
    film.with_suffix(".srt").write_bytes(SRT.replace("red", "r\u00f6t").encode("latin-1"))
    with pytest.raises(SampleError, match=r"its subtitles a\.srt: not UTF-8 at byte 4") as caught:
        look(film, cut="subtitles")
    assert caught.value.reason == "not_utf8"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (SRT.replace("red", "r\u00f6t").encode("latin-1"), "not_utf8"),
        (b"\xff\xfe1\x00\x00", "not_utf16"),
        (b"no subtitles", "not_subtitles"),
        (b"", "not_subtitles"),
    ],
)
@pytest.mark.parametrize("cut", ["none", "scenes"])
def test_subtitles_that_cannot_be_read_cost_a_film_its_words_alone(tmp_path: Path, data: bytes, reason: str, cut: str):
    film = write_film(tmp_path / "a.mp4", [2.0])
    beside = tmp_path / "a.de.srt"
    beside.write_bytes(data)
    ((found,), _) = look(film, cut=cut, frames=0)
    refs = {ref.name: ref for ref in found.refs}
    problem = refs["words"].problem
    assert problem is not None
    assert problem[0] == reason
    assert problem[1].startswith("its subtitles a.de.srt: ")
    assert (refs["words"].required, refs["words"].url, refs["audio"].lang) == (False, str(beside), "de")


def test_subtitles_that_cannot_be_read_inside_of_a_film_cost_its_words_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(path: Path) -> None:
        raise SampleError("bad_subtitles", "cannot be decoded")

    monkeypatch.setattr("mmdata.steps.sources.video._embedded", broken)
    film = write_film(tmp_path / "a.mp4", [2.0])
    ((found,), _) = look(film, cut="none", frames=0)
    assert [ref.problem for ref in found.refs if ref.name == "words"] == [("bad_subtitles", "cannot be decoded")]
    with pytest.raises(SampleError):
        look(film, cut="subtitles")


@pytest.mark.parametrize("order", ["le", "be"])
def test_subtitles_in_utf_16_say_so_and_are_read(tmp_path: Path, order: str):
    film = write_film(tmp_path / "a.mp4", [2.0, 2.0])
    film.with_suffix(".srt").write_bytes(("\ufeff" + SRT.replace("red", "r\u00f6t")).encode(f"utf-16-{order}"))
    found, _ = look(film, cut="subtitles", min_s=1.2, frames=0)
    assert words(found) == ["One is r\u00f6t. Very r\u00f6t.", "Two is green."]


def test_mistakes_are_said_before_anything_runs(tmp_path: Path):
    with pytest.raises(PlanError, match="there is no file"):
        look(tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="min_s: 9 is more than max_s: 5"):
        Video.model_validate({"files": "x", "min_s": 9, "max_s": 5})
