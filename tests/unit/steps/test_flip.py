"""The joint flip: pixels, captions in six languages, vetoes, and what becomes of speech."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from PIL import Image

from mmdata.errors import SampleError
from mmdata.sample import Member, Sample, child_id
from mmdata.steps.augment.flip import Flip, mirror_words

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


@pytest.mark.parametrize(
    ("lang", "given", "expected"),
    [
        ("en", "a cat", "a cat"),
        ("en", "a cat on the left", "a cat on the right"),
        ("en", "a cat on the left of a dog on the right", "a cat on the right of a dog on the left"),
        ("en", "A Left arrow and a RIGHT ARROW", "A Right arrow and a LEFT ARROW"),
        ("en", "facing left, its left wing up", "facing right, its right wing up"),
        ("en", "the left-handed man", "the right-handed man"),
        ("en-US", "turn left", "turn right"),
        ("EN_gb", "turn left", "turn right"),
        ("en", "a bright leftover", "a bright leftover"),
        ("fr", "un chat à gauche d'un chien", "un chat à droite d'un chien"),
        ("fr", "sa main droite", "sa main gauche"),
        ("es", "un gato a la izquierda", "un gato a la derecha"),
        ("es", "Derecha, izquierda", "Izquierda, derecha"),
        ("de", "eine Katze links vom Hund", "eine Katze rechts vom Hund"),
        ("de", "die linke Hand, dem rechten Fuß", "die rechte Hand, dem linken Fuß"),
        ("de", "LINKS", "RECHTS"),
        ("ru", "кот слева от собаки", "кот справа от собаки"),
        ("ru", "Левая рука и правый глаз", "Правая рука и левый глаз"),
        ("zh", "一只猫在狗的左边", "一只猫在狗的右边"),
        ("zh_tw", "右手", "左手"),
        (None, "1234 !?", "1234 !?"),
        ("xx", "42", "42"),
    ],
)
def test_sides_change_places_in_six_languages(lang: str | None, given: str, expected: str) -> None:
    assert mirror_words(given, lang) == expected
    assert mirror_words(expected, lang) == given


@pytest.mark.parametrize(
    ("lang", "given", "reason", "words"),
    [
        ("en", "that is right", "ambiguous_side", "'right' in 'that is right' may be no side"),
        ("en", "the last cookie left", "ambiguous_side", "'left' in"),
        ("en", "on the left, all right", "ambiguous_side", "'right' in"),
        ("en", "the letter A", "mirrored_writing", "'letter' may be writing"),
        ("en", "a clock on the left", "mirrored_writing", "'clock' may be writing"),
        ("fr", "le droit français", "ambiguous_side", "'droit' in"),
        ("fr", "la droite", "ambiguous_side", "'droite' in"),
        ("fr", "une horloge", "mirrored_writing", "'horloge'"),
        ("es", "el lado izquierdo", "ambiguous_side", "'izquierdo' in"),
        ("es", "un reloj", "mirrored_writing", "'reloj'"),
        ("de", "ein Buchstabenrätsel", "mirrored_writing", "'Buchstabe'"),
        ("de", "link\u017f", "ambiguous_side", "'link\u017f' in"),
        ("de", "l\u0131nks", "ambiguous_side", "'l\u0131nks' in"),
        ("ru", "большая буква", "mirrored_writing", "'букв'"),
        ("zh", "三点左右", "ambiguous_side", "'左右' in"),
        ("zh", "文字", "mirrored_writing", "'文'"),
        ("it", "un gatto", "unknown_language", "no left and right for the language 'it': 'un gatto'"),
        (None, "a cat", "unknown_language", "no left and right for the language 'None': 'a cat'"),
    ],
)
def test_what_may_not_stay_true_is_a_veto(lang: str | None, given: str, reason: str, words: str) -> None:
    with pytest.raises(SampleError) as caught:
        mirror_words(given, lang)
    assert caught.value.reason == reason
    assert words in str(caught.value)


def flipped(step: Flip, parent: Sample, seed: int) -> Sample:
    (child,) = step.make(parent, seed)
    return child


@pytest.mark.parametrize("extension", ["png", "bmp", "gif", "tif", "webp"])
def test_pixels_are_mirrored_without_loss(extension: str) -> None:
    child = flipped(Flip(), sample(picture(extension)), 0)
    given, found = (opened(m).convert("RGB") for m in (picture(extension), child.members["image"]))
    assert found.size == (16, 8)
    assert found.getpixel((0, 0)) == given.getpixel((15, 0))
    assert found.tobytes() == given.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_keeps_its_mode_and_nearly_its_pixels(mode: str) -> None:
    child = flipped(Flip(), sample(picture("jpg", mode=mode)), 0)
    found = opened(child.members["image"])
    assert (found.format, found.mode) == ("JPEG", mode)
    left = found.convert("RGB").getpixel((1, 1))
    assert isinstance(left, tuple)
    assert left[2] > left[0] or mode == "L"


def test_an_upright_image_is_mirrored_not_its_stored_pixels() -> None:
    image = Image.new("RGB", (16, 8), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95)
    child = flipped(Flip(), sample(replace(picture("jpg"), data=buffer.getvalue())), 0)
    assert opened(child.members["image"]).size == (8, 16)
    assert (child.members["image"].measures["width"], child.members["image"].measures["height"]) == (8, 16)
    assert opened(child.members["image"]).getexif().get(0x0112, 1) == 1


def test_the_child_names_its_parent_and_shares_what_did_not_change() -> None:
    parent = sample(picture(), text("a cat"), text("un chat", "fr", "caption_fr"), speech())
    child = flipped(Flip(), parent, 0)
    assert (child.sample_id, child.parent_id, child.variant) == (child_id("0" * 32, "flip"), "0" * 32, "flip")
    assert (child.source, child.key) == ("s", "k")
    assert {n: m.data for n, m in child.members.items() if n != "image"} == {
        n: m.data for n, m in parent.members.items() if n != "image"
    }
    assert parent.members["image"] == picture()


def test_speech_is_dropped_exactly_where_a_text_names_a_side() -> None:
    child = flipped(Flip(), sample(picture(), text("on the left"), speech()), 0)
    assert sorted(child.members) == ["caption", "image"]
    assert child.members["caption"].measures == {"text": "on the right", "chars": 12, "words": 3}
    assert sorted(flipped(Flip(), sample(picture(), text("a cat"), speech()), 0).members) == [
        "caption",
        "image",
        "speech",
    ]
    other = text("à gauche", "fr", "caption_fr")
    assert "speech" not in flipped(Flip(), sample(picture(), text("a cat"), other, speech()), 0).members


def test_a_veto_of_any_text_is_a_veto_of_the_child() -> None:
    with pytest.raises(SampleError) as caught:
        flipped(Flip(), sample(picture(), text("a cat"), text("un gatto", "it", "caption_it")), 0)
    assert caught.value.reason == "unknown_language"


def test_without_an_image_there_is_nothing_to_mirror() -> None:
    with pytest.raises(SampleError) as caught:
        flipped(Flip(), sample(text("a cat")), 0)
    assert (caught.value.reason, str(caught.value)) == ("no_image", "none of image to mirror")


def test_all_images_named_are_mirrored_and_no_other() -> None:
    members = (picture(name="image"), picture(name="depth"), picture(name="other"))
    child = flipped(Flip(image=["image", "depth", "absent"]), sample(*members), 0)
    same = {name: member.data == picture().data for name, member in child.members.items()}
    assert same == {"image": False, "depth": False, "other": True}


def test_twice_is_what_it_was() -> None:
    parent = sample(picture(), text("a Cat on the left"))
    again = flipped(Flip(), flipped(Flip(), parent, 0), 0)
    assert again.members["caption"] == parent.members["caption"]
    assert opened(again.members["image"]).tobytes() == opened(parent.members["image"]).tobytes()


def test_a_broken_image_is_an_error_of_the_sample() -> None:
    with pytest.raises(SampleError) as caught:
        flipped(Flip(), sample(replace(picture(), data=picture().data[:60])), 0)
    assert caught.value.reason == "bad_image"
