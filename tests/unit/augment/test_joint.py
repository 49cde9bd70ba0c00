"""The step `joint`: children, vetoes, records and replays, notes, mixing; pixels and words together."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from film import write_film
from PIL import Image

from mmdata.augment.base import Change, Picture, VetoError, View
from mmdata.augment.load import replay
from mmdata.augment.policy import Entry, Others, Policy, chosen, nobody
from mmdata.augment.view import Notes
from mmdata.media.tensor import measure_tensor, write_tensor
from mmdata.media.video import Limits, frames_of_film, measure_video
from mmdata.sample import Member, Sample, child_id
from mmdata.steps.augment.joint import Joint
from mmdata.steps.exchange import Veto

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(extension: str = "png", name: str = "image", *, mode: str = "RGB") -> Member:
    """Red on the left, blue on the right; 16 by 8 pixels."""
    image = Image.new("RGB", (16, 8), RED)
    image.paste(BLUE, (8, 0, 16, 8))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(extension, extension.upper()), quality=95)
    return Member(name, "image", f"image/{extension}", extension, buffer.getvalue(), None, {"width": 16, "height": 8})


def text(content: str, lang: str | None = "en", name: str = "caption") -> Member:
    measures = {"text": content, "chars": len(content), "words": len(content.split())}
    return Member(name, "text", "text/plain", "txt", content.encode(), lang, measures)


def speech() -> Member:
    return Member("speech", "audio", "audio/wav", "wav", b"RIFF", "en", {"duration_s": 1.0})


def sample(*members: Member) -> Sample:
    return Sample("0" * 32, "s", "k", {member.name: member for member in members})


def opened(member: Member) -> Image.Image:
    return Image.open(io.BytesIO(member.data))


def joint(*apply: Any, **params: Any) -> Joint:
    return Joint.model_validate({"apply": list(apply), **params})


def made(step: Joint, parent: Sample, others: Others = nobody, seed: int = 0) -> list[Sample | Veto]:
    return list(step.make(parent, seed, others))


def child_of(step: Joint, parent: Sample, others: Others = nobody) -> Sample:
    (child,) = made(step, parent, others)
    assert isinstance(child, Sample), child
    return child


def flipped(parent: Sample) -> Sample:
    return child_of(joint("HorizontalFlip"), parent)


def veto_of(step: Joint, parent: Sample, others: Others = nobody) -> str:
    (veto,) = made(step, parent, others)
    assert isinstance(veto, Veto), veto
    return veto.reason


def boxes(*rows: tuple[list[float], str]) -> Member:
    content = json.dumps([{"box": box, "phrase": phrase} for box, phrase in rows])
    return text(content, None, "regions")


def wav(seconds: float = 2.0, rate: int = 16_000) -> Member:
    tone_T = 0.3 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, tone_T, rate, format="WAV", subtype="PCM_16")
    measures = {"duration_s": seconds, "sample_rate": rate, "channels": 1}
    return Member("speech", "audio", "audio/wav", "wav", buffer.getvalue(), "en", measures)


def times(words: Sequence[tuple[str, float, float]]) -> Member:
    content = json.dumps([{"word": w, "start_s": a, "end_s": b} for w, a, b in words])
    return text(content, None, "times")


@pytest.mark.parametrize("extension", ["png", "bmp", "gif", "tif", "webp"])
def test_pixels_are_mirrored_without_loss(extension: str) -> None:
    child = flipped(sample(picture(extension)))
    given, found = (opened(m).convert("RGB") for m in (picture(extension), child.members["image"]))
    assert found.size == (16, 8)
    assert found.getpixel((0, 0)) == given.getpixel((15, 0))
    assert found.tobytes() == given.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()


def test_an_upright_image_is_mirrored_not_its_stored_pixels() -> None:
    image = Image.new("RGB", (16, 8), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95)
    child = flipped(sample(replace(picture("jpg"), data=buffer.getvalue())))
    assert opened(child.members["image"]).size == (8, 16)
    assert (child.members["image"].measures["width"], child.members["image"].measures["height"]) == (8, 16)
    assert opened(child.members["image"]).getexif().get(0x0112, 1) == 1


def test_the_child_names_its_parent_and_shares_what_did_not_change() -> None:
    parent = sample(picture(), text("a cat"), text("un chat", "fr", "caption_fr"), speech())
    child = flipped(parent)
    assert (child.sample_id, child.parent_id, child.variant) == (child_id("0" * 32, "joint_0"), "0" * 32, "joint_0")
    assert (child.source, child.key) == ("s", "k")
    assert {n: m.data for n, m in child.members.items() if n != "image"} == {
        n: m.data for n, m in parent.members.items() if n != "image"
    }
    assert parent.members["image"] == picture()


def test_speech_is_dropped_exactly_where_a_text_names_a_side() -> None:
    child = flipped(sample(picture(), text("on the left"), speech()))
    assert sorted(child.members) == ["caption", "image"]
    assert child.members["caption"].measures == {"text": "on the right", "chars": 12, "words": 3}
    assert sorted(flipped(sample(picture(), text("a cat"), speech())).members) == [
        "caption",
        "image",
        "speech",
    ]
    other = text("à gauche", "fr", "caption_fr")
    assert "speech" not in flipped(sample(picture(), text("a cat"), other, speech())).members


def test_twice_is_what_it_was() -> None:
    parent = sample(picture(), text("a Cat on the left"))
    again = flipped(flipped(parent))
    assert again.members["caption"] == parent.members["caption"]
    assert opened(again.members["image"]).tobytes() == opened(parent.members["image"]).tobytes()


def test_a_veto_of_any_text_is_a_veto_of_the_child_and_its_record_says_so() -> None:
    parent = sample(picture(), text("a cat"), text("un gatto", "it", "caption_it"))
    (veto,) = made(joint("HorizontalFlip"), parent)
    assert isinstance(veto, Veto)
    assert (veto.variant, veto.reason) == ("joint_0", "unknown_language")
    assert veto.augmentation is not None
    assert [one["op"] for one in veto.augmentation["skipped"]] == ["HorizontalFlip"]


def test_an_operator_that_cannot_stay_true_is_left_out_and_the_others_are_not() -> None:
    step = joint({"ColorJitter": {"hue": [0.4, 0.5]}}, "HorizontalFlip")
    child = child_of(step, sample(picture(), text("a red ball on the left")))
    assert child.augmentation is not None
    assert [one["op"] for one in child.augmentation["applied"]] == ["HorizontalFlip"]
    assert [(one["op"], one["reason"]) for one in child.augmentation["skipped"]] == [("ColorJitter", "colour_named")]
    assert child.members["caption"].text == "a red ball on the right"


def test_what_is_written_in_a_picture_is_minded_in_any_language_and_stays() -> None:
    parent = sample(picture(), text("a shop"), text("turn left · открыто", None, "written"))
    for apply, reason in [("HorizontalFlip", "mirrored_writing"), ({"Blur": {}}, "detail_named")]:
        assert veto_of(joint(apply, written=["written"]), parent) == reason
    child = child_of(joint("RandomBrightnessContrast", "KeyboardAug", written=["written"], children=1), parent)
    assert child.members["written"] == parent.members["written"]
    assert child.members["caption"].text != "a shop"
    bare = sample(picture(), text("a shop"), text("", None, "written"))
    assert child_of(joint("HorizontalFlip", written=["written"]), bare).members["caption"].text == "a shop"
    assert joint("Blur", written=["written"]).reads() == {"written": "text"}
    assert joint("Blur", written=["written"]).policy_of_shards()["written"] == ["written"]


def test_without_an_image_there_is_nothing_to_mirror() -> None:
    assert veto_of(joint("HorizontalFlip"), sample(text("a cat"))) == "nothing_drawn"


def test_a_broken_image_is_an_error_of_the_sample() -> None:
    assert veto_of(joint("HorizontalFlip"), sample(replace(picture(), data=picture().data[:60]))) == "bad_image"


def test_a_broken_member_costs_the_children_that_need_it() -> None:
    step = joint({"speed": {"p": 0.5}}, "HorizontalFlip", children=8, spoken={})
    found = made(step, sample(picture(), speech()))
    assert {one.reason for one in found if isinstance(one, Veto)} == {"bad_audio"}
    assert 0 < sum(isinstance(one, Sample) for one in found) < len(found) == 8


def test_a_broken_partner_is_not_mixed_in_and_costs_nothing_else() -> None:
    other = replace(sample(replace(picture(), data=b"no picture"), text("a dog")), sample_id="1" * 32)
    child = child_of(joint("mixgen", "HorizontalFlip"), sample(picture(), text("a cat")), partners(other))
    assert child.augmentation is not None
    assert [one["reason"] for one in child.augmentation["skipped"]] == ["partner_broken"]
    assert [one["op"] for one in child.augmentation["applied"]] == ["HorizontalFlip"]


def test_transparency_moves_with_the_picture() -> None:
    image = Image.new("RGBA", (16, 8), (*RED, 0))
    image.paste((*BLUE, 255), (8, 0, 16, 8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    child = flipped(sample(replace(picture(), data=buffer.getvalue())))
    assert opened(child.members["image"]).getpixel((0, 0)) == (*BLUE, 255)
    assert opened(child.members["image"]).getpixel((15, 0))[3] == 0  # type: ignore[index]


def test_what_is_drawn_follows_from_seed_sample_and_number_alone() -> None:
    step = joint(
        {"Rotate": {"limit": 10}}, {"GaussNoise": {"p": 0.5}}, "KeyboardAug", children=4, boxes={"image": "regions"}
    )
    parent = sample(picture(), text("some animals run along the river"), boxes(([0, 0, 16, 8], "animals")))
    children = made(step, parent)
    np.random.rand(3)
    assert made(step, parent) == children
    assert made(step.model_copy(update={"children": 2}), parent) == children[:2]
    assert made(step, parent, seed=1) != children
    assert len({json.dumps(c.augmentation) for c in children}) == 4


@pytest.mark.parametrize(
    "apply",
    [
        ["HorizontalFlip", {"Rotate": {"limit": 10}}, "GaussNoise"],
        [{"RandomCrop": {"height": 6, "width": 10}}, "KeyboardAug"],
        ["mixgen", {"ElasticTransform": {"alpha": 3}}],
        [{"speed": {"factor": [0.8, 1.2]}}, {"add_noise": {"snr_db": [5, 10]}}],
        ["PitchShift", "TimeStretch", "reverb"],
        ["drop_modality"],
    ],
)
def test_a_replay_gives_the_same_bytes(apply: list[Any]) -> None:
    step = joint(*apply, children=3, boxes={"image": "regions"}, spoken={})
    parent = sample(picture(), text("animals"), boxes(([2, 2, 9, 7], "animals")), wav())
    partner = replace(sample(picture(), text("plants"), boxes()), sample_id="f" * 32)

    def others(but: str, draw: int) -> Sample:
        return partner

    children = [child for child in made(step, parent, others) if isinstance(child, Sample)]
    assert children
    for child in children:
        record = json.loads(json.dumps({"variant": child.variant, "augmentation": child.augmentation}))
        again = replay(parent, step.policy_of_shards(), record, others)
        assert again.members == child.members
        assert again.sample_id == child.sample_id


# --- notes -----------------------------------------------------------------------------------------------------------


def test_boxes_move_with_the_picture_and_stay_in_pixels() -> None:
    parent = sample(picture(), text("a dog on the left"), boxes(([1, 2, 5, 6], "a dog")))
    child = child_of(joint("HorizontalFlip", boxes={"image": "regions"}), parent)
    assert json.loads(child.members["regions"].text) == [{"box": [11.0, 2.0, 15.0, 6.0], "phrase": "a dog"}]
    assert child.members["caption"].text == "a dog on the right"


@pytest.mark.parametrize("apply", [{"Resize": {"height": 4, "width": 8}}, {"LongestMaxSize": {"max_size": 8}}])
def test_boxes_are_in_pixels_of_a_picture_of_another_size(apply: Any) -> None:
    # The same shares of it, in single precision too.
    parent = sample(picture(), text("a dog"), boxes(([0, 0, 8, 4], "a dog")))
    child = child_of(joint(apply, boxes={"image": "regions"}), parent)
    assert json.loads(child.members["regions"].text) == [{"box": [0.0, 0.0, 4.0, 2.0], "phrase": "a dog"}]


def test_nothing_is_cropped_where_nothing_that_is_told_was_found() -> None:
    step = joint({"Crop": {"x_max": 8, "y_max": 8}}, boxes={"image": "regions"})
    assert veto_of(step, sample(picture(), text("a dog"), boxes())) == "nothing_found"
    assert child_of(step, sample(picture(), text("5"), boxes())).members["image"].measures["width"] == 8
    other = replace(sample(picture(), text("a cat")), sample_id="1" * 32)
    mixed = joint("cutmix", boxes={"image": "regions"})
    assert veto_of(mixed, sample(picture(), text("a dog"), boxes()), partners(other)) == "nothing_found"


def test_things_that_have_boxes_are_not_torn_apart() -> None:
    step = joint({"RandomGridShuffle": {"grid": [2, 2]}}, boxes={"image": "regions"})
    parent = sample(picture(), text("a dog"), boxes(([2, 2, 14, 6], "a dog")))
    assert veto_of(step, parent) == "torn"
    assert child_of(step, sample(picture(), text("a dog"), boxes())).members["image"].measures["width"] == 16


@pytest.mark.parametrize(("border", "expected"), [(0, "made"), (1, "made"), (2, "more_is_there"), (4, "more_is_there")])
def test_what_a_border_repeats_is_not_alone(border: int, expected: str) -> None:
    pad = joint({"Pad": {"padding": 6, "border_mode": border}})
    (found,) = made(pad, sample(picture(), text("a lone dog")))
    assert (found.reason if isinstance(found, Veto) else "made") == expected
    assert child_of(pad, sample(picture(), text("a dog"))).members["image"].measures["width"] == 28


def test_boxes_go_with_their_picture() -> None:
    step = joint({"drop_modality": {"of": ["image"]}}, boxes={"image": "regions"})
    child = child_of(step, sample(picture(), text("a dog"), boxes(([1, 1, 6, 6], "a dog"))))
    assert set(child.members) == {"caption"}


@pytest.mark.parametrize("box", [[6, 6, 1, 1], [5, 5, 3, 9], [1, 1, float("nan"), 5]])
def test_a_box_whose_corners_are_none_is_told(box: list[float]) -> None:
    # As a box of [x, y, width, height] it would be lost in silence, and its claim stay.
    (veto,) = made(
        joint("HorizontalFlip", boxes={"image": "regions"}), sample(picture(), text("a dog"), boxes((box, "a")))
    )
    assert isinstance(veto, Veto)
    assert veto.reason == "bad_boxes"
    assert "no x0 < x1, y0 < y1 in" in veto.detail


def test_what_left_the_frame_is_claimed_no_longer() -> None:
    step = joint({"Crop": {"x_max": 8, "y_max": 8}}, boxes={"image": "regions"})
    parent = sample(picture(), text("a dog and a cat"), boxes(([1, 1, 6, 6], "a dog"), ([10, 1, 15, 6], "a cat")))
    child = child_of(step, parent)
    assert child.members["caption"].text == "a dog"
    assert json.loads(child.members["regions"].text) == [{"box": [1.0, 1.0, 6.0, 6.0], "phrase": "a dog"}]
    assert child.members["image"].measures["width"] == 8
    bites = sample(picture(), text("a dog bites a cat"), boxes(([1, 1, 6, 6], "a dog"), ([10, 1, 15, 6], "a cat")))
    assert veto_of(step, bites) == "claim_cannot_go"


def test_what_left_the_frame_is_claimed_by_no_other_text_either() -> None:
    step = joint({"Crop": {"x_max": 8, "y_max": 8}}, boxes={"image": "regions"})
    seen = boxes(([1, 1, 6, 6], "a dog"), ([10, 1, 15, 6], "a cat"))
    parent = sample(picture(), text("a dog and a cat"), seen, text("A cat, a dog.", "en", "title"))
    child = child_of(step, parent)
    assert (child.members["caption"].text, child.members["title"].text) == ("a dog", "A dog.")
    french = sample(picture(), text("a dog and a cat"), seen, text("un chien et un chat", "fr", "caption_fr"))
    assert veto_of(step, french) == "claim_cannot_go"
    apart = boxes(([1, 1, 6, 6], "a dog"), ([10, 1, 15, 6], "a cat"), ([1, 1, 6, 6], "a pet"))
    assert isinstance(
        child_of(step, sample(picture(), text("a dog and a cat"), apart, text("a pet", "en", "b"))), Sample
    )


def test_without_boxes_nothing_is_cropped() -> None:
    step = joint({"Crop": {"x_max": 8, "y_max": 8}}, boxes={"image": "regions"})
    assert veto_of(step, sample(picture(), text("a dog"))) == "no_boxes"


def test_broken_notes_are_an_error_of_the_sample() -> None:
    step = joint("HorizontalFlip", boxes={"image": "regions"})
    assert veto_of(step, sample(picture(), text("[{", None, "regions"))) == "bad_boxes"


WORDS = [("hello", 0.1, 0.4), ("big", 0.6, 0.9), ("world", 1.2, 1.6)]


def test_word_times_follow_the_speed() -> None:
    step = joint({"speed": {"factor": [1.25, 1.25]}}, times={"speech": "times"}, spoken={"speech": ["caption"]})
    child = child_of(step, sample(wav(), text("Hello, big world!"), times(WORDS)))
    assert [(w["word"], w["start_s"]) for w in json.loads(child.members["times"].text)] == [
        ("hello", 0.08),
        ("big", 0.48),
        ("world", 0.96),
    ]
    assert child.members["speech"].measures["duration_s"] == pytest.approx(1.6, abs=1e-4)
    assert child.members["caption"].text == "Hello, big world!"


def test_subtitles_follow_the_speed_and_stay_subtitles() -> None:
    step = joint({"speed": {"factor": [0.5, 0.5]}}, times={"speech": "times"}, spoken={})
    srt = text("1\n00:00:00,500 --> 00:00:01,000\nHello\n", None, "times")
    child = child_of(step, sample(wav(), srt))
    assert "00:00:01,000 --> 00:00:02,000" in child.members["times"].text


def test_ass_subtitles_follow_the_speed() -> None:
    events = "[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
    line = "Dialogue: 0,0:00:00.50,0:00:01.00,Default,,0,0,0,,hello\n"
    subtitles = text("[Script Info]\nScriptType: v4.00+\n\n" + events + line, "en", "words")
    step = joint({"speed": {"factor": [2, 2]}}, times={"speech": "words"}, spoken={})
    child = child_of(step, sample(wav(), subtitles))
    assert "Dialogue: 0,0:00:00.25,0:00:00.50," in child.members["words"].text


@pytest.mark.parametrize("when", [("a", float("nan"), 1.0), ("a", 2.0, 1.0), ("a", -1.0, 1.0)])
def test_a_word_at_no_time_is_told(when: tuple[str, float, float]) -> None:
    (veto,) = made(joint("speed", times={"speech": "times"}), sample(wav(), times([when])))
    assert isinstance(veto, Veto)
    assert veto.reason == "bad_times"
    assert "no time is 'a' from" in veto.detail


def test_a_crop_in_time_keeps_the_words_inside() -> None:
    step = joint(
        {"time_crop": {"min_s": 0.5, "max_s": 1.4}},
        times={"speech": "times"},
        spoken={"speech": ["caption"]},
        children=6,
    )
    children = made(step, sample(wav(), text("Hello, big world!"), times(WORDS)))
    for child in children:
        assert isinstance(child, Sample)
        said = [w["word"] for w in json.loads(child.members["times"].text)]
        assert [w.strip("!,").lower() for w in child.members["caption"].text.split()] == said
        assert 0 < len(said) < 3
        assert "speech" in child.members
    unknown = joint({"time_crop": {"min_s": 0.5, "max_s": 1.4}}, spoken={"speech": ["caption"]})
    assert veto_of(unknown, sample(wav(), text("Hello, big world!"))) == "words_unknown"


def test_a_transcript_stays_true_where_a_description_does_not() -> None:
    noise = {"add_noise": {"snr_db": [10, 10]}}
    parent = sample(wav(), text("a quiet voice"))
    assert child_of(joint(noise, spoken={"speech": ["caption"]}), parent).members["caption"].text == "a quiet voice"
    assert veto_of(joint(noise, spoken={}), parent) == "quiet_named"


def test_text_operators_leave_what_is_spoken_alone() -> None:
    parent = sample(wav(), text("animals run along rivers"))
    assert veto_of(joint("KeyboardAug"), parent) == "spoken"
    child = child_of(joint("KeyboardAug", spoken={}), parent)
    assert child.members["caption"].text != "animals run along rivers"
    assert child.members["speech"] == parent.members["speech"]


def test_all_frames_of_a_film_are_changed_alike_and_its_sound_stays(tmp_path) -> None:
    data = write_film(tmp_path / "film.mp4", [0.4, 0.4]).read_bytes()
    film = Member("film", "video", "video/mp4", "mp4", data, None, {"width": 128, "height": 64, "duration_s": 0.8})
    child = child_of(joint("HorizontalFlip"), sample(film, text("on the left")))
    assert child.members["caption"].text == "on the right"
    limits = Limits(60.0, 1000, 1 << 20)
    before, after = (frames_of_film(m.data, limits, 1 << 30) for m in (film, child.members["film"]))
    assert len(before) == len(after) > 10
    for old, new in zip(before, after, strict=True):
        assert np.abs(old[:, ::-1].astype(int) - new).mean() < 4
    infos = [measure_video(m.data, limits) for m in (film, child.members["film"])]
    assert [info.has_sound for info in infos] == [True, True]
    assert infos[1].duration_s == pytest.approx(infos[0].duration_s, abs=0.05)
    assert child_of(joint("HorizontalFlip"), sample(film, text("on the left"))).members == child.members


def loudness(data: bytes) -> list[float]:
    """Of each channel, at its mean."""
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return [float(np.abs(channel).mean()) for channel in np.concatenate(frames, axis=1).astype(float)]


def test_what_is_heard_on_the_left_of_a_film_is_heard_on_the_right_of_its_mirror(tmp_path: Path) -> None:
    data = write_film(tmp_path / "film.mp4", [0.4], left_only=True).read_bytes()
    film = Member("film", "video", "video/mp4", "mp4", data, None, {"width": 128, "height": 64, "duration_s": 0.4})
    child = child_of(joint("HorizontalFlip"), sample(film))
    left, right = loudness(data)
    assert left > 10 * right
    assert loudness(child.members["film"].data) == pytest.approx([right, left], rel=0.1, abs=0.01)
    twice = child_of(joint("HorizontalFlip", "HorizontalFlip"), sample(film))
    assert loudness(twice.members["film"].data) == pytest.approx([left, right], rel=0.1, abs=0.01)
    assert child_of(joint("VerticalFlip"), sample(film)).members["film"].measures == film.measures
    assert loudness(child_of(joint("VerticalFlip"), sample(film)).members["film"].data)[0] > 10 * right


def test_what_is_heard_beside_a_picture_that_is_turned_is_in_the_middle(tmp_path: Path) -> None:
    data = write_film(tmp_path / "film.mp4", [0.4], left_only=True).read_bytes()
    film = Member("film", "video", "video/mp4", "mp4", data, None, {"width": 128, "height": 64, "duration_s": 0.4})
    left, right = loudness(child_of(joint("Transpose"), sample(film)).members["film"].data)
    assert left == pytest.approx(right, rel=0.01)
    assert left == pytest.approx(loudness(data)[0] / 2, rel=0.1)
    parent = sample(picture(), sound_of(TONE_T, 0 * TONE_T))
    for apply in (["Transpose"], ["Transpose", "HorizontalFlip"]):
        assert np.stack(heard(child_of(joint(*apply), parent))) == pytest.approx(np.stack([TONE_T / 2] * 2), abs=1e-4)
    kept = child_of(joint("Transpose", sides={"sound": {}}), parent)
    assert kept.members["sound"] == parent.members["sound"]
    aside = sample(picture(), sound_of(TONE_T, 0 * TONE_T, TONE_T))
    assert veto_of(joint("Transpose"), aside) == "sides_unknown"
    turned = child_of(joint("Transpose", sides={"sound": {"swap": [[0, 1]], "negate": [2]}}), aside)
    assert np.stack(heard(turned)) == pytest.approx(np.stack([TONE_T / 2, TONE_T / 2, 0 * TONE_T]), abs=1e-4)


def sound_of(*channels: np.ndarray[Any, Any]) -> Member:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack(channels, axis=1), 8000, format="WAV", subtype="PCM_16")
    measures = {"duration_s": len(channels[0]) / 8000, "sample_rate": 8000, "channels": len(channels)}
    return Member("sound", "audio", "audio/wav", "wav", buffer.getvalue(), None, measures)


TONE_T = 0.25 * np.sin(np.arange(800) / 5)


def heard(child: Sample) -> list[np.ndarray[Any, Any]]:
    return list(soundfile.read(io.BytesIO(child.members["sound"].data), dtype="float32", always_2d=True)[0].T)


def test_sides_of_a_stereo_sound_change_places_with_those_of_the_picture() -> None:
    parent = sample(picture(), text("a bell on the left"), sound_of(TONE_T, 0 * TONE_T))
    child = child_of(joint("HorizontalFlip", spoken={}), parent)
    assert child.members["caption"].text == "a bell on the right"
    assert [np.abs(channel).max() > 0.2 for channel in heard(child)] == [False, True]
    assert heard(child)[1] == pytest.approx(TONE_T, abs=1e-4)
    twice = child_of(joint("HorizontalFlip", "HorizontalFlip", spoken={}), parent)
    assert twice.members["sound"] == parent.members["sound"]
    louder = child_of(joint("HorizontalFlip", {"Gain": {"min_gain_db": 6, "max_gain_db": 6}}, spoken={}), parent)
    assert [np.abs(channel).max() > 0.45 for channel in heard(louder)] == [False, True]
    kept = child_of(joint("HorizontalFlip", spoken={}, sides={"sound": {}}), parent)
    assert kept.members["sound"] == parent.members["sound"]


def test_a_sound_without_sides_is_left_as_it_is() -> None:
    broken = replace(sound_of(TONE_T), data=b"RIFF")
    for sound in (sound_of(TONE_T), sound_of(TONE_T, TONE_T), broken):
        assert flipped(sample(picture(), sound)).members["sound"] == sound


def test_sides_of_more_channels_than_two_must_be_said() -> None:
    parent = sample(picture(), sound_of(TONE_T, 0 * TONE_T, 0 * TONE_T, -TONE_T))
    (veto,) = made(joint("HorizontalFlip"), parent)
    assert isinstance(veto, Veto)
    assert veto.reason == "sides_unknown"
    assert "'sound' has 4 channels; say what a mirror does to its channels: sides: {sound: {swap:" in veto.detail
    child = child_of(joint("HorizontalFlip", sides={"sound": {"swap": [[0, 1]], "negate": [3]}}), parent)
    assert np.stack(heard(child)) == pytest.approx(np.stack([0 * TONE_T, TONE_T, 0 * TONE_T, TONE_T]), abs=1e-4)
    assert veto_of(joint("HorizontalFlip", sides={"sound": {"swap": [[0, 9]]}}), parent) == "no_such_channel"


def test_boxes_of_a_film_are_in_pixels_of_the_film_that_was_encoded(tmp_path) -> None:
    data = write_film(tmp_path / "film.mp4", [0.2]).read_bytes()
    film = Member("film", "video", "video/mp4", "mp4", data, None, {"width": 128, "height": 64, "duration_s": 0.2})
    seen = text(json.dumps([{"frame": 0, "box": [0, 0, 128, 32]}]), None, "seen")
    step = joint({"Resize": {"height": 33, "width": 45}}, film_boxes={"film": "seen"})
    child = child_of(step, sample(film, text("a dog"), seen))
    assert (child.members["film"].measures["width"], child.members["film"].measures["height"]) == (44, 32)
    assert json.loads(child.members["seen"].text) == [{"frame": 0, "box": [0.0, 0.0, 44.0, 16.0]}]


# --- masks -----------------------------------------------------------------------------------------------------------


def mask(mode: str = "L", size: tuple[int, int] = (16, 8), name: str = "labels") -> Member:
    """Label 1 on the left, 200 on the right; 256 times that in 16 bits, 0 and 1 in one."""
    values = np.repeat(np.array([[1, 200]], np.uint8), size[0] // 2, axis=1).repeat(size[1], axis=0)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) << 8)
    else:
        image = Image.fromarray(values > 1 if mode == "1" else values)
    if mode == "P":
        image.putpalette([n * 7 % 256 for n in range(768)])
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    measures = {"width": size[0], "height": size[1]}
    return Member(name, "image", "image/png", "png", buffer.getvalue(), None, measures)


MASKS = {"masks": {"image": ["labels"]}}


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "RGB", "LA"])
def test_a_mask_is_mirrored_with_its_picture_and_stays_in_its_form(mode: str) -> None:
    child = child_of(joint("HorizontalFlip", **MASKS), sample(picture("jpg"), mask(mode)))
    before, after = (opened(one) for one in (mask(mode), child.members["labels"]))
    assert (after.mode, after.format, child.members["labels"].extension) == (before.mode, "PNG", "png")
    assert (np.asarray(after) == np.asarray(before)[:, ::-1]).all()
    assert after.getpalette() == before.getpalette()
    assert child.members["labels"].measures == {"width": 16, "height": 8}


def test_no_colour_and_no_scaling_makes_labels_of_its_own() -> None:
    colours = joint("ColorJitter", "GaussNoise", "ToGray", {"Morphological": {"scale": [3, 3]}}, **MASKS)
    assert child_of(colours, sample(picture(), mask())).members["labels"] == mask()
    step = joint({"Resize": {"height": 23, "width": 37}}, {"ElasticTransform": {"alpha": 60}}, children=5, **MASKS)
    for child in made(step, sample(picture(), mask("I;16"))):
        assert isinstance(child, Sample)
        assert {value >> 8 for value in np.unique(np.asarray(opened(child.members["labels"])))} <= {0, 1, 200}
        assert child.members["labels"].measures == child.members["image"].measures == {"width": 37, "height": 23}
        record = {"variant": child.variant, "augmentation": child.augmentation}
        again = replay(sample(picture(), mask("I;16")), step.policy_of_shards(), record)
        assert again.members == child.members


def test_a_picture_has_several_masks_and_a_mask_one_picture() -> None:
    depth = mask("I;16", name="depth")
    step = joint("HorizontalFlip", masks={"image": ["labels", "depth"]})
    child = child_of(step, sample(picture(), mask("RGB"), depth))
    for before in (mask("RGB"), depth):
        assert (np.asarray(opened(child.members[before.name])) == np.asarray(opened(before))[:, ::-1]).all()
    assert step.reads() == {"image": "image", "labels": "image", "depth": "image"}
    assert step.policy_of_shards()["masks"] == {"image": ["labels", "depth"]}


def test_a_mask_that_is_none_of_its_picture_is_an_error_of_the_sample() -> None:
    step = joint("HorizontalFlip", **MASKS)
    (veto,) = made(step, sample(picture(), mask(size=(8, 4))))
    assert isinstance(veto, Veto)
    assert (veto.reason, veto.detail) == ("mask_differs", "'labels' is 8 x 4, and 'image', whose mask it is, 16 x 8")
    assert veto_of(step, sample(mask())) == "mask_alone"
    buffer = io.BytesIO()
    Image.new("F", (16, 8)).save(buffer, "TIFF")
    assert veto_of(step, sample(picture(), replace(mask(), data=buffer.getvalue()))) == "bad_mask"
    assert set(child_of(step, sample(picture())).members) == {"image"}


def test_a_mask_goes_with_its_picture_and_is_not_mixed() -> None:
    parent = sample(picture(), mask(), text("a dog"))
    other = replace(sample(picture(), mask(), text("a cow")), sample_id="f" * 32)
    assert veto_of(joint("mixgen", **MASKS), parent, partners(other)) == "masked"
    assert veto_of(joint("mixgen", **MASKS), sample(picture(), text("a dog")), partners(other)) == "masked"
    child = child_of(joint({"drop_modality": {"of": ["image"]}}, **MASKS), parent)
    assert set(child.members) == {"caption"}


def test_an_operator_of_another_package_that_leaves_masks_behind_is_left_out() -> None:
    class Moves:
        name, changes, needs_boxes = "moves", frozenset({"image"}), False

        def __init__(self, effects: frozenset[str]) -> None:
            self.effects = effects

        def __call__(self, view: View, _: np.random.Generator) -> Change:
            seen = {name: Picture(one.rgb_HWC[::-1].copy()) for name, one in view.pictures.items()}
            return Change(replace(view, pictures=seen), self.effects)

    def policy(*effects: str) -> Policy:
        return Policy("own", [Entry(Moves(frozenset(effects)), {})], Notes(masks={"image": ["labels"]}))

    with pytest.raises(VetoError, match="moves moves what 'image' shows, and not its mask 'labels'"):
        policy("upside_down").child(sample(picture(), mask()), 0, 0)
    assert policy("light").child(sample(picture(), mask()), 0, 0).members["labels"] == mask()


# --- across samples --------------------------------------------------------------------------------------------------


def partners(other: Sample) -> Others:
    def others(but: str, draw: int) -> Sample:
        return other

    return others


def test_mixgen_blends_the_pictures_and_joins_the_texts() -> None:
    other = replace(sample(picture(), text("a cow")), sample_id="f" * 32)
    red = Image.new("RGB", (16, 8), (0, 0, 0))
    buffer = io.BytesIO()
    red.save(buffer, "PNG")
    other.members["image"] = replace(picture(), data=buffer.getvalue())
    child = child_of(joint({"mixgen": {"share": 0.5}}), sample(picture(), text("a dog")), partners(other))
    assert child.members["caption"].text == "a dog. a cow"
    assert opened(child.members["image"]).getpixel((0, 0)) == (128, 0, 0)
    assert child.augmentation is not None
    assert child.augmentation["partner_id"] == "f" * 32


def test_texts_of_two_languages_are_not_joined() -> None:
    other = replace(sample(picture(), text("une vache", "fr")), sample_id="f" * 32)
    assert veto_of(joint("mixgen"), sample(picture(), text("a dog")), partners(other)) == "languages_differ"
    assert veto_of(joint("mixgen"), sample(picture(), text("a dog"))) == "no_partner"


@pytest.mark.parametrize(
    ("own", "others", "lang", "expected"),
    [
        ("a room without people", "some people", "en", "<negated>"),
        ("a cat", "no cat", "en", "<negated>"),
        ("", "a cat", "en", "a cat"),
        ("a cat ", "", "en", "a cat"),
        ("猫", "狗", "zh_CN", "猫。狗"),
    ],
)
def test_texts_that_deny_are_not_joined(own: str, others: str, lang: str, expected: str) -> None:
    other = replace(sample(picture(), text(others, lang)), sample_id="1" * 32)
    (child,) = made(joint("mixgen"), sample(picture(), text(own, lang)), partners(other))
    assert (f"<{child.reason}>" if isinstance(child, Veto) else child.members["caption"].text) == expected


@pytest.mark.parametrize(
    ("own", "others", "lang", "reason"),
    [
        ("a red car", "a cow", "en", "colour_named"),
        ("a car", "a brown cow", "en", "colour_named"),
        ("ein rotes Auto", "eine Kuh", "de", "colour_named"),
        ("a street at night", "a cow", "en", "light_named"),
        ("a sharp picture of a cow", "a car", "en", "detail_named"),
        ("a lone tree", "a cow", "en", "more_is_there"),
        ("a cow", "only a tree", "en", "more_is_there"),
        ("one dog", "a dog", "en", "more_is_there"),
        ("two dogs", "three dogs", "en", "more_is_there"),
        ("ein leerer Strand", "eine Kuh", "de", "more_is_there"),
        ("une plage déserte", "une vache", "fr", "more_is_there"),
        ("una playa desierta", "una vaca", "es", "more_is_there"),
        ("пустой пляж", "корова", "ru", "more_is_there"),
        ("空荡的沙滩", "牛", "zh", "more_is_there"),
        ("un gatto", "un cane", "it", "unknown_language"),
    ],
)
def test_what_a_blend_makes_untrue_of_either_is_a_veto(own: str, others: str, lang: str, reason: str) -> None:
    other = replace(sample(picture(), text(others, lang)), sample_id="1" * 32)
    assert veto_of(joint("mixgen"), sample(picture(), text(own, lang)), partners(other)) == reason


def test_what_is_written_in_pictures_is_not_blended() -> None:
    parent = sample(picture(), text("a shop"), text("STOP", None, "written"))
    other = replace(parent, sample_id="1" * 32)
    assert veto_of(joint("mixgen", written=["written"]), parent, partners(other)) == "detail_named"


def test_a_partner_of_other_proportions_keeps_no_shape() -> None:
    wide = replace(sample(sized(64, 8), text("a round table")), sample_id="1" * 32)
    same = replace(sample(sized(32, 16), text("a round table")), sample_id="1" * 32)
    parent = sample(picture(), text("a dog"))
    assert veto_of(joint("mixgen"), parent, partners(wide)) == "shape_named"
    assert child_of(joint("mixgen"), parent, partners(same)).members["caption"].text == "a dog. a round table"
    own = sample(picture(), text("a round table"))
    other = replace(sample(sized(64, 8), text("a dog")), sample_id="1" * 32)
    assert child_of(joint("mixgen"), own, partners(other)).members["caption"].text == "a round table. a dog"


def sized(width: int, height: int) -> Member:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), RED).save(buffer, "PNG")
    return replace(picture(), data=buffer.getvalue(), measures={"width": width, "height": height})


@pytest.mark.parametrize(("others", "reason"), [("a cow on the left", "moved"), ("a tiny cow", "detail_named")])
def test_places_of_the_small_picture_that_cutmix_pastes_are_others(others: str, reason: str) -> None:
    step = joint({"cutmix": {"share": [0.2, 0.2]}}, boxes={"image": "regions"})
    other = replace(sample(picture(), text(others), boxes()), sample_id="f" * 32)
    parent = sample(picture(), text("a dog on the left"), boxes(([0, 0, 1, 1], "a dog on the left")))
    assert veto_of(step, parent, partners(other)) == reason
    other = replace(sample(picture(), text("a cow"), boxes()), sample_id="f" * 32)
    assert child_of(step, parent, partners(other)).members["caption"].text == "a dog on the left. a cow"


def test_what_is_not_mixed_and_told_of_goes() -> None:
    parent = sample(picture(), text("a dog barks"), text("hello", name="transcript"), wav(), bark())
    other = replace(
        sample(picture(), text("a cow moos"), text("hi", name="transcript"), wav(), bark()), sample_id="f" * 32
    )
    said = {"spoken": {"speech": ["transcript"]}}
    assert set(child_of(joint("mixgen", **said), parent, partners(other)).members) == {
        "image",
        "caption",
        "transcript",
    }
    step = joint("mixgen", **said, heard={"bark": [], "speech": []})
    assert "bark" in child_of(step, parent, partners(other)).members
    step = joint("mix_sounds", **said, heard={"bark": ["caption"], "speech": []})
    child = child_of(step, parent, partners(other))
    assert set(child.members) == {"speech", "bark", "caption", "transcript"}
    wordless = sample(picture(), bark())
    assert set(child_of(joint("mixgen"), wordless, partners(replace(wordless, sample_id="f" * 32))).members) == {
        "image",
        "bark",
    }


def bark() -> Member:
    return replace(wav(1.0), name="bark")


def test_texts_that_tell_of_no_mixed_sound_stay_as_they_are() -> None:
    parent = sample(wav(), text("hello there"), text("a portrait", name="title"))
    other = replace(sample(wav(), text("good bye"), text("a landscape", name="title")), sample_id="f" * 32)
    step = joint("mix_sounds", spoken={"speech": ["caption"]}, heard={"speech": []})
    child = child_of(step, parent, partners(other))
    assert (child.members["caption"].text, child.members["title"].text) == ("hello there. good bye", "a portrait")


def test_cutmix_never_covers_what_is_claimed() -> None:
    other = replace(sample(picture(), text("a cow"), boxes(([0, 0, 16, 8], "a cow"))), sample_id="f" * 32)
    parent = sample(picture(), text("a dog"), boxes(([0, 0, 5, 8], "a dog")))
    step = joint({"cutmix": {"share": [0.2, 0.2]}}, boxes={"image": "regions"}, children=20)
    reasons = set()
    for child in made(step, parent, partners(other)):
        if isinstance(child, Veto):
            reasons.add(child.reason)
            continue
        dog, cow = json.loads(child.members["regions"].text)
        assert dog["box"] == [0.0, 0.0, 5.0, 8.0]
        covered = max(0.0, min(5.0, cow["box"][2]) - cow["box"][0]) * (cow["box"][3] - cow["box"][1])
        assert covered <= 0.5 * 40 + 1e-6
        assert child.members["caption"].text == "a dog. a cow"
    assert reasons <= {"would_hide"}


def test_mixed_sounds_have_both_texts() -> None:
    other = replace(sample(wav(1.0), text("a bell rings")), sample_id="f" * 32)
    child = child_of(joint("mix_sounds", spoken={}), sample(wav(), text("a dog barks")), partners(other))
    assert child.members["caption"].text == "a dog barks. a bell rings"
    assert child.members["speech"].measures["duration_s"] == pytest.approx(2.0)


@pytest.mark.parametrize(("own_s", "others_s"), [(2.0, 1.0), (1.0, 2.0)])
def test_both_sounds_are_heard_once_and_whole(own_s: float, others_s: float) -> None:
    parent, other = (sample(wav(seconds), text("a bell", lang="en")) for seconds in (own_s, others_s))
    step = joint({"mix_sounds": {"ratio_db": [0, 0]}}, spoken={})
    child = child_of(step, parent, partners(replace(other, sample_id="f" * 32)))
    mixed_T, _ = soundfile.read(io.BytesIO(child.members["speech"].data))
    assert mixed_T.size == 32_000
    loud = [np.abs(part).max() for part in np.split(mixed_T, 2)]
    assert loud == pytest.approx([0.6, 0.3], abs=0.01)


def test_what_runs_along_with_a_sound_keeps_it_from_a_longer_one() -> None:
    value = np.ones((1, 50), np.float32)
    imu = Member("imu", "tensor", "application/x-npy", "npy", write_tensor(value), None, measure_tensor(value, 50.0))
    parent = sample(wav(1.0), imu)
    step = joint("mix_sounds")
    assert veto_of(step, parent, partners(replace(sample(wav(2.0)), sample_id="f" * 32))) == "out_of_step"
    assert set(child_of(step, parent, partners(replace(sample(wav(0.5)), sample_id="f" * 32))).members) == {
        "speech",
        "imu",
    }


def test_times_of_what_is_heard_in_a_mixture_are_those_of_both() -> None:
    step = joint("mix_sounds", times={"speech": "times"}, spoken={})
    parent = sample(wav(), text("a dog"), times([("a dog", 0.5, 1.0)]))
    other = replace(sample(wav(), text("a bell"), times([("a bell", 0.1, 0.4)])), sample_id="f" * 32)
    child = child_of(step, parent, partners(other))
    assert [row["word"] for row in json.loads(child.members["times"].text)] == ["a bell", "a dog"]
    bare = replace(sample(wav(), text("a bell")), sample_id="f" * 32)
    assert veto_of(step, parent, partners(bare)) == "nothing_in_common"


# --- what is heard when ----------------------------------------------------------------------------------------------

CROP = {"time_crop": {"min_s": 0.5, "max_s": 1.0}}


@pytest.mark.parametrize("apply", [CROP, "TimeMask", {"CropAug": {}}, {"Trim": {"top_db": 20}}])
def test_a_description_is_not_of_a_part_of_its_sound(apply: Any) -> None:
    parent = sample(wav(), text("a dog barks and a car honks"))
    (veto,) = made(joint(apply, spoken={}), parent)
    assert isinstance(veto, Veto)
    assert veto.reason == "may_be_cut"
    assert "give `times: {speech: ...}`, or `heard: {speech: []}` if no text tells of it" in veto.detail
    child = child_of(joint(apply, spoken={}, heard={"speech": []}), parent)
    assert child.members["caption"].text == "a dog barks and a car honks"


def test_what_was_heard_in_the_part_that_is_gone_is_told_no_longer() -> None:
    heard = times([("a dog barks", 0.1, 0.8), ("a car honks", 1.2, 1.9)])
    step = joint(CROP, spoken={}, times={"speech": "times"}, children=6)
    parent = sample(wav(), text("a dog barks and a car honks"), heard)
    told = set()
    for child in made(step, parent):
        assert isinstance(child, Sample)
        (left,) = json.loads(child.members["times"].text)
        assert child.members["caption"].text == left["word"]
        told.add(left["word"])
    assert told == {"a dog barks", "a car honks"}
    other_words = sample(wav(), text("barking and a horn"), heard)
    assert veto_of(joint(CROP, spoken={}, times={"speech": "times"}), other_words) == "claim_cannot_go"


def test_a_crop_that_keeps_all_changes_nothing() -> None:
    step = joint({"time_crop": {"min_s": 1.9, "max_s": 2.5}}, "PolarityInversion", spoken={}, times={"speech": "times"})
    child = child_of(step, sample(wav(), text("a dog barks"), times([("a dog barks", 0.1, 1.9)])))
    assert child.augmentation is not None
    assert [one["reason"] for one in child.augmentation["skipped"]] == ["nothing_changed"]
    assert child.members["caption"].text == "a dog barks"


def test_sound_effects_mind_the_texts_that_tell_of_the_sound() -> None:
    parent = sample(wav(), text("a quiet room"))
    noise = {"add_noise": {"snr_db": [10, 10]}}
    assert veto_of(joint(noise, spoken={}), parent) == "quiet_named"
    assert child_of(joint(noise, spoken={}, heard={"speech": []}), parent).members["caption"].text == "a quiet room"
    assert joint(noise, heard={"speech": ["caption"]}).reads() == {"speech": None, "caption": "text"}
    assert joint(noise, heard={"speech": ["caption"]}).policy_of_shards()["heard"] == {"speech": ["caption"]}


def test_a_modality_is_dropped_whole_and_one_stays() -> None:
    parent = sample(picture(), text("a cat"), text("un chat", "fr", "caption_fr"), wav())
    left = {
        tuple(sorted(c.members)) for c in made(joint("drop_modality", children=30), parent) if isinstance(c, Sample)
    }
    assert left == {("caption", "caption_fr", "image"), ("caption", "caption_fr", "speech"), ("image", "speech")}
    assert veto_of(joint("drop_modality"), sample(picture())) == "too_few_modalities"
    mute = child_of(joint({"drop_modality": {"of": ["text"]}}), parent)
    assert sorted(mute.members) == ["image", "speech"]


def test_a_partner_is_any_other_sample_by_chance() -> None:
    ids = sorted(f"{n * 7919:032x}" for n in range(1, 50))
    assert chosen(ids, ids[3], int(ids[3], 16)) == ids[4]
    assert chosen(ids, ids[0], int("f" * 32, 16)) == ids[1]
    assert chosen(ids[:1], ids[0], 5) is None
    assert chosen([], ids[0], 5) is None


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apply", "said"),
    [
        ("HorizontalFlop", "unknown operator 'HorizontalFlop'; did you mean 'HorizontalFlip'?"),
        ({"Rotate": {"limits": 3}}, "Rotate: unknown parameter 'limits'; did you mean 'limit'?"),
        ({"Rotate": {"limit": "x"}}, "Rotate: limit"),
        (
            {"RandomCrop": {"height": 3, "width": 3}},
            "RandomCrop takes things out of the picture and must know where they",
        ),
        ({"speed": {"factor": [2, 1]}}, "speed: factor: [2.0, 1.0] is no range above 0.1"),
        (
            {"KeyboardAug": {"aug_char_pp": 1}},
            "unknown parameter 'aug_char_pp'; did you mean 'aug_char_p'?",
        ),
        ({"mixgen": {"share": 2}}, "mixgen: share: Input should be less than 1"),
        ({"HorizontalFlip": {"p": 2}}, "less than or equal to 1"),
        ({"AddBackgroundNoise": {}}, "AddBackgroundNoise: sounds_path: give a folder of recordings"),
    ],
)
def test_wrong_operators_and_parameters_are_said_before_anything_runs(apply: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        joint(apply)


# --- boxes of films --------------------------------------------------------------------------------------------------


def film_of(tmp_path: Path, late_px: int = 80) -> Sample:
    """A dog on the left in the first half, elsewhere in the second; a ball stays. 128 by 64 pixels."""
    data = write_film(tmp_path / "film.mp4", [0.2, 0.2]).read_bytes()
    film = Member("film", "video", "video/mp4", "mp4", data, None, {"width": 128, "height": 64, "duration_s": 0.4})
    count = len(frames_of_film(data, Limits(10, 100, 1 << 20), 1 << 30))
    rows: list[dict[str, Any]] = []
    for frame in range(count):
        left = 0 if frame < count // 2 else late_px
        rows.append({"frame": frame, "box": [left, 0, left + 32, 32], "phrase": "a dog"})
        rows.append({"frame": frame, "box": [48, 8, 64, 24], "phrase": "a ball"})
    return sample(film, text("a dog and a ball"), text(json.dumps(rows), None, "places"))


def places(child: Sample, phrase: str) -> list[list[float] | None]:
    """Of each frame."""
    rows = json.loads(child.members["places"].text)
    found = {row["frame"]: row["box"] for row in rows if row["phrase"] == phrase}
    return [found.get(frame) for frame in range(1 + max(row["frame"] for row in rows))]


FILM_BOXES = {"film_boxes": {"film": "places"}}


def test_boxes_of_a_film_move_with_each_of_its_frames(tmp_path: Path) -> None:
    parent = film_of(tmp_path)
    child = child_of(joint("HorizontalFlip", **FILM_BOXES), parent)
    assert places(child, "a ball") == [[64, 8, 80, 24]] * len(places(parent, "a ball"))
    moved = [[128 - x1, y0, 128 - x0, y1] for x0, y0, x1, y1 in filter(None, places(parent, "a dog"))]
    assert places(child, "a dog") == moved
    again = child_of(joint("HorizontalFlip", **FILM_BOXES), child)
    assert places(again, "a dog") == places(parent, "a dog")
    assert joint("HorizontalFlip", **FILM_BOXES).reads() == {"film": "video", "places": "text"}


def test_what_some_frame_still_shows_is_still_claimed(tmp_path: Path) -> None:
    crop = {"Crop": {"x_min": 0, "y_min": 0, "x_max": 64, "y_max": 64}}
    parent = film_of(tmp_path)
    child = child_of(joint(crop, **FILM_BOXES), parent)
    count = len(places(parent, "a dog"))
    assert places(child, "a dog") == [[0, 0, 32, 32]] * (count // 2) + [None] * (count - count // 2)
    assert child.members["caption"].text == "a dog and a ball"
    middle = {"Crop": {"x_min": 40, "y_min": 0, "x_max": 72, "y_max": 64}}
    gone = child_of(joint(middle, **FILM_BOXES), parent)
    assert gone.members["caption"].text == "a ball"
    assert places(gone, "a ball") == [[8, 8, 24, 24]] * count


def test_a_film_never_jumps_from_frame_to_frame(tmp_path: Path) -> None:
    assert veto_of(joint("BBoxSafeRandomCrop", **FILM_BOXES), film_of(tmp_path)) == "frames_differ"
    film = film_of(tmp_path)
    unknown = sample(film.members["film"], film.members["caption"])
    assert veto_of(joint({"Crop": {"x_max": 64, "y_max": 64}}, **FILM_BOXES), unknown) == "no_boxes"


@pytest.mark.parametrize("frame", ["0", 99, -1, None, True])
def test_a_box_of_no_frame_is_an_error_of_the_sample(frame: Any, tmp_path: Path) -> None:
    film = film_of(tmp_path).members["film"]
    rows = [{"frame": frame, "box": [0, 0, 9, 9]}]
    parent = sample(film, text(json.dumps(rows), None, "places"))
    assert veto_of(joint("HorizontalFlip", **FILM_BOXES), parent) == "bad_boxes"


# --- what a plan says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apply", "said"),
    [
        (
            {"HorizontalFlip": 0.5},
            r"parameters of HorizontalFlip are a mapping, not 0\.5: HorizontalFlip: \{p: 0\.5\}",
        ),
        ("Mosaic", "'Mosaic' is no operator here: pastes what no text of the sample says"),
        ("AntonymAug", "'AntonymAug' is no operator here: says the contrary"),
        ({"add_noise": {"snr_db": [30, 10]}}, r"add_noise: snr_db: \[30\.0, 10\.0\] is no range, the least first"),
        ({"reverb": {"wet_db": [0, -20]}}, r"reverb: wet_db: \[0\.0, -20\.0\] is no range, the least first"),
        ({"mix_sounds": {"ratio_db": [3, -3]}}, r"mix_sounds: ratio_db: \[3\.0, -3\.0\] is no range"),
        ({"speed": {"factor": [0.9, 1e6]}}, r"speed: factor: \[0\.9, 1000000\.0\] is no range above 0\.1 up to 10\.0"),
        ({"NoiseAug": {"color": "x"}}, "NoiseAug: refuses what it is given .* its parameters: zone, coverage, color"),
        ("AdjustDuration", "AdjustDuration: refuses what it is given .* its parameters: duration_samples"),
        ({"ColorJitter": {"hue": [0.1, 7]}}, "ColorJitter: hue: All values in hue must be within"),
    ],
)
def test_what_cannot_be_applied_is_told_with_the_fix(apply: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _ = joint(apply).policy


def test_members_that_operators_name_are_looked_for_by_a_plan() -> None:
    step = joint(
        {"synonyms": {"texts": ["title"]}}, {"jitter": {"members": ["imu"]}}, {"time_crop": {"clock": ["speech"]}}
    )
    assert step.reads() == {"title": "text", "imu": "tensor", "speech": None}
