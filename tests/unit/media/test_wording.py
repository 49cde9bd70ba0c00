"""What is told of texts by their words: each measure by hand, each kind of junk beside captions that are none."""

from __future__ import annotations

import time

import pytest

from mmdata.media.wording import junk, measure_wording, repetition, split_words, top_gram


@pytest.mark.parametrize(
    ("text", "column", "value"),
    [
        ("ab c1", "letters", 3 / 4),
        ("नमस्ते", "letters", 1.0),
        ("", "letters", 0.0),
        ("ab 12", "digits", 0.5),
        ("AB cd", "upper", 0.5),
        ("猫 12", "upper", None),
        ("a cat sat", "mean_word_chars", 7 / 3),
        ("a cat a dog", "distinct_words", 3 / 4),
        ("see http://a.b/c and www.example.org/x", "urls", 2),
        ("version 2.0 of www", "urls", 0),
        ("<b>bold</b> &amp; [[link]] {{box}}", "markup", 5),
        ("a < b & c > d [sic]", "markup", 0),
        (".red { color: red; margin: 0; }", "markup", 1),
    ],
)
def test_a_measure_of_a_text(text: str, column: str, value: object) -> None:
    assert getattr(measure_wording(text, 3), column) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "size", "value"),
    [
        ("aa bb cc aa bb cc", 3, 0.5),
        ("aa bb cc dd ee ff", 3, 0.0),
        # Of nine words the last six stand in stretches that were there before, each counted once.
        ("buy it now buy it now buy it now", 3, 6 / 9),
        ("a a a a", 2, 0.75),
        ("one two", 3, 0.0),
        ("", 3, 0.0),
    ],
)
def test_the_share_of_what_was_said_before(text: str, size: int, value: float) -> None:
    assert repetition(text.split(), size) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("the cat and the cat or a dog", 12 / 21),
        ("the cat and a dog", 0.0),
        ("no no no no", 1.0),
        ("one", 0.0),
    ],
)
def test_the_share_of_the_most_common_pair(text: str, value: float) -> None:
    assert top_gram(text.split(), 2) == pytest.approx(value)


@pytest.mark.parametrize("piece", ["{", ":", "{:", "www.", "<a ", "[[", "function(", "a_", "a b ", "IMG 1", ". "])
def test_a_hostile_text_takes_time_by_its_length(piece: str) -> None:
    began = time.process_time()
    measure_wording(piece * (50_000 // len(piece)), 3)
    assert time.process_time() - began < 5


def test_words_are_those_of_the_script() -> None:
    assert split_words("it's a well-known cat, no. 3.5!") == ["it's", "a", "well-known", "cat", "no", "3.5"]
    assert split_words("猫と犬 cat") == ["猫", "と", "犬", "cat"]
    assert measure_wording("猫と犬猫と犬", 3).repetition == 0.5


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        ("IMG_1234.jpg", "file_name"),
        ("IMG_20190423_101112", "file_name"),
        ("DSC00012", "file_name"),
        ("dsc_0042.NEF", "file_name"),
        ("PXL_20210101_123456789", "file_name"),
        ("Screen Shot 2021-03-04 at 10.11.12 AM", "file_name"),
        ("WhatsApp Image 2020-01-01 at 10.00.00", "file_name"),
        ("my holiday photo.JPG", "file_name"),
        ("banner_home_2x.png", "file_name"),
        ("d41d8cd98f00b204e9800998ecf8427e", "file_name"),
        ("550e8400-e29b-41d4-a716-446655440000", "file_name"),
        ("2019-04-23_10-11", "file_name"),
        ("image (3)", "file_name"),
        ("red_shoes_front_view", "file_name"),
        ("https://example.org/a/b.jpg", "url"),
        ("www.example.org/shop", "url"),
        ("image", "placeholder"),
        ("Photo of", "placeholder"),
        ("a picture of", "placeholder"),
        ("The image", "placeholder"),
        ("Untitled", "placeholder"),
        ("null", "placeholder"),
        ("...", "placeholder"),
        ("Figure 12.", "placeholder"),
        ("Featured image", "placeholder"),
        ("Image may contain:", "placeholder"),
        ("No image available", "placeholder"),
        ("Bild 3", "file_name"),
        ("Kein Bild vorhanden", "placeholder"),
        ("Sans titre", "placeholder"),
        ("Une photo", "placeholder"),
        ("Imagen", "placeholder"),
        ("Фотография", "placeholder"),
        ("图片", "placeholder"),
        ("画像", "placeholder"),
        ("© 2019 Example Ltd", "boilerplate"),
        ("A cat on a mat. All rights reserved.", "boilerplate"),
        ("Royalty-free stock photo of a cat", "boilerplate"),
        ("Photo by Jane Doe", "boilerplate"),
        ("This site uses cookies", "boilerplate"),
        ("Wir verwenden Cookies", "boilerplate"),
        ("Tous droits réservés", "boilerplate"),
        ("Política de privacidad", "boilerplate"),
        ("Please enable JavaScript", "boilerplate"),
        ("Share on Facebook", "boilerplate"),
    ],
)
def test_captions_that_say_nothing(caption: str, kind: str) -> None:
    assert junk(caption) == kind


@pytest.mark.parametrize(
    "caption",
    [
        "a cat",
        "cat",
        "Penguin",
        "chocolate chip cookies on a plate",
        "a photo of a red car",
        "photo of my dog in the snow",
        "a picture frame",
        "an image of the moon over Paris",
        "two cameras on a table",
        "Boeing 747",
        "IMG Worlds of Adventure in Dubai",
        "Route 66 in 1955",
        "B-52 bomber",
        "a test tube",
        "une photo de famille",
        "ein Bild von van Gogh",
        "a logo of a lion",
        "图片中的猫",
        "Mr. Smith at work",
        "The privacy of home",
        "a download bar",
        "well-known sea-side town",
        "1984 by George Orwell",
        "E. coli",
        "a poster of a film",
        "5",
        "1984",
        "3.14",
        "figure skating",
    ],
)
def test_captions_that_say_something(caption: str) -> None:
    assert junk(caption) is None
