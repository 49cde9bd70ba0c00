"""The captions are checked against the pixels alone: what was drawn is found again without asking the generator."""

from __future__ import annotations

import io
import re
import shutil
import wave
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from mmdata.demo import sound
from mmdata.demo.scenes import COLOURS, GROUNDS, draw, scene_of, write_scenes
from mmdata.errors import MmdataError

PHRASE = re.compile(r"a (small|large) (\w+) (circle|triangle|square|star|hexagon)", re.IGNORECASE)
# Share of the picture that a shape covers, whatever its kind: the largest small one and the smallest large one.
LARGE_FROM_SHARE = 0.021
CHECKED = 200


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def found(image: Image.Image) -> dict[str, tuple[float, float, float]]:
    """Colour -> x and y of the centroid and the share of the picture, by the nearest of all known colours."""
    pixels_HWC = np.asarray(image, np.float32)
    palette_KC = np.array([*COLOURS.values(), *GROUNDS], np.float32)
    # |p - c|^2 without |p|^2, which is the same for every c.
    nearest_HW = ((palette_KC**2).sum(-1) - 2 * pixels_HWC @ palette_KC.T).argmin(-1)
    places = {}
    for index, name in enumerate(COLOURS):
        y, x = np.nonzero(nearest_HW == index)
        if x.size > nearest_HW.size * 0.004:  # edges blend into other colours, a few pixels wide
            side_px = len(nearest_HW)
            places[name] = (x.mean() / side_px, y.mean() / side_px, x.size / nearest_HW.size)
    return places


def lies(relation: str, first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    right, down = second[0] - first[0], second[1] - first[1]
    margin = {"left of": right, "right of": -right, "above": down, "below": -down}[relation]
    return margin > 0.15


def claims(caption: str) -> list[tuple[str, str, str]]:
    """(colour, relation, colour) for everything that a caption says about places."""
    colours = [match[2] for match in PHRASE.finditer(caption)]
    claimed = []
    if len(colours) > 1:
        relation = re.search(r"(left of|right of|above|below) a ", caption)[1]
        claimed.append((colours[0], relation, colours[1]))
    if len(colours) > 2:
        beside = re.search(r"(left of|right of|above|below) both", caption)[1]
        claimed += [(colours[2], beside, colours[0]), (colours[2], beside, colours[1])]
    return claimed


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What is found on each picture, and its caption."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, CHECKED, seed=5, audio=False)
    return [
        (found(Image.open(folder / f"{n:05d}.png")), (folder / f"{n:05d}.txt").read_text("utf-8"))
        for n in range(CHECKED)
    ]


def test_every_caption_names_the_colours_that_are_there_and_no_others(written):
    for places, caption in written:
        assert set(places) == {match[2] for match in PHRASE.finditer(caption)}, caption


def test_every_relation_holds_between_the_centroids(written):
    checked = 0
    for places, caption in written:
        for first, relation, second in claims(caption):
            assert lies(relation, places[first], places[second]), caption
            checked += 1
    assert checked > CHECKED / 2


def test_a_single_shape_is_at_the_spot_that_is_named(written):
    spots = {"on the left": (-1, 0), "on the right": (1, 0), "at the top": (0, -1), "at the bottom": (0, 1)}
    spots["in the middle"] = (0, 0)
    singles = [(places, caption) for places, caption in written if len(PHRASE.findall(caption)) == 1]
    for places, caption in singles:
        ((x, y, _),) = places.values()
        spot = PHRASE.sub("", caption).strip(" .\n")
        assert tuple(int(np.trunc((value - 0.5) / 0.15)) for value in (x, y)) == spots[spot], caption
    assert len(singles) > CHECKED / 5


def test_large_and_small_are_told_apart_by_area(written):
    for places, caption in written:
        for size, colour, _ in (match.groups() for match in PHRASE.finditer(caption)):
            # A caption begins in upper case, the phrase is matched without regard to it.
            assert (places[colour][2] > LARGE_FROM_SHARE) == (size == "large"), (caption, places)


def test_all_relations_kinds_and_colours_occur(written):
    text = " ".join(caption for _, caption in written)
    assert set(re.findall(r"left of|right of|above|below", text)) == {"left of", "right of", "above", "below"}
    assert {match[2] for match in PHRASE.finditer(text)} == set(COLOURS)
    assert len({caption for _, caption in written}) > CHECKED * 0.9


@pytest.mark.parametrize("side_px", [64, 224])
def test_the_kind_is_the_one_that_the_caption_names(side_px):
    """Share of the shape's own bounding box that it fills, measured on upright drawings of one shape."""
    fills: dict[str, list[float]] = {}
    for n in range(400):
        scene = scene_of(9, n)
        if len(scene.shapes) == 1 and scene.shapes[0].size == "large":
            ink_HW = np.abs(np.asarray(draw(scene, side_px), int) - scene.shapes[0].rgb).sum(-1) < 60
            y, x = np.nonzero(ink_HW)
            fills.setdefault(scene.shapes[0].kind, []).append(ink_HW.sum() / (np.ptp(y) + 1) / (np.ptp(x) + 1))
    assert max(fills["star"]) < min(fills["triangle"] + fills["circle"] + fills["square"] + fills["hexagon"])
    assert max(fills["triangle"]) < min(fills["circle"] + fills["square"] + fills["hexagon"])


@pytest.mark.parametrize("kind", ["tones", "speech"])
def test_the_same_seed_gives_the_same_bytes(tmp_path, kind):
    if kind == "speech" and shutil.which(sound.PROGRAM) is None:
        pytest.skip("espeak-ng is not on this machine")
    for name in ("a", "b"):
        write_scenes(tmp_path / name, 6, seed=3, sound=kind)
    assert read(tmp_path / "a") == read(tmp_path / "b")
    assert sorted(read(tmp_path / "a"))[:4] == ["00000.png", "00000.txt", "00000.wav", "00001.png"]


def test_more_scenes_leave_the_first_as_they_were_and_another_seed_changes_them(tmp_path):
    write_scenes(tmp_path / "a", 3, seed=3, sound="tones")
    write_scenes(tmp_path / "b", 5, seed=3, sound="tones")
    write_scenes(tmp_path / "c", 3, seed=4, sound="tones")
    assert read(tmp_path / "a").items() < read(tmp_path / "b").items()
    assert read(tmp_path / "a") != read(tmp_path / "c")


def test_without_audio_no_sound_is_written_and_the_side_is_as_asked(tmp_path):
    write_scenes(tmp_path, 2, seed=0, audio=False, side_px=96)
    assert sorted(read(tmp_path)) == ["00000.png", "00000.txt", "00001.png", "00001.txt"]
    with Image.open(tmp_path / "00001.png") as image:
        assert (image.size, image.mode) == ((96, 96), "RGB")


def test_the_melody_says_colour_size_and_kind():
    # Colour 1 is D; a large square is four notes of 0.15 s and a rest of 0.25 s.
    with wave.open(io.BytesIO(sound.melody_wav([(1, "square", "large")], Random(0)))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        audio_T = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert len(audio_T) == 16_000 * (4 * 0.15 + 0.25)
    spectrum = np.abs(np.fft.rfft(audio_T[: int(16_000 * 0.15)], 16_000))
    assert spectrum.argmax() == pytest.approx(293.66, abs=2)
    assert sound.pitch_hz(1, "small") == pytest.approx(2 * 293.66, abs=0.1)
    assert sound.pitch_hz(7, "large") == pytest.approx(2 * sound.pitch_hz(0, "large"))


def test_speech_is_as_long_as_the_caption_takes_to_say():
    if not sound.can_speak():
        pytest.skip("espeak-ng is not on this machine")
    with wave.open(io.BytesIO(sound.speech_wav("A small red circle left of a large blue square.", Random(1)))) as file:
        assert file.getframerate() == 16_000
        assert 1.5 < file.getnframes() / 16_000 < 6


def test_speech_without_the_program_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(sound, "PROGRAM", "no-such-program")
    with pytest.raises(MmdataError, match="apt-get install espeak-ng"):
        write_scenes(tmp_path, 1, seed=0, sound="speech")
    write_scenes(tmp_path, 1, seed=0, sound="auto")
    assert (tmp_path / "00000.wav").stat().st_size > 10_000
