"""What becomes of captions of real stamps (Tux Paint), in six languages: hand-written expectations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmdata.augment.base import VetoError
from mmdata.augment.meaning import rewrite

EYE = "people/body_parts/manga_eye_left"
BAG = "clothes/red_handbag"
HAT = "clothes/hats/elfhat"
TOP = "clothes/hats/tophat"
RHINO = "animals/mammals/rhino_black"
BOARS = "animals/mammals/wildboar"
CAT = "seasonal/halloween/blackcat"
HERON = "animals/birds/heron_greatblue"
FRIENDS = "animals/birds/cartoon/penguin_with_spider"
KANGAROO = "animals/marsupials/kangaroo"

TABLE = [
    # A left eye in a mirror is a right one; where the other half has another form, in French and Spanish, it is a veto.
    (EYE, "mirror", "en", "Right eye."),
    (EYE, "mirror", "de", "Rechtes Auge."),
    (EYE, "mirror", "ru", "Правый глаз."),
    (EYE, "mirror", "zh_CN", "右眼"),
    (EYE, "mirror", "zh_TW", "右眼。"),
    (EYE, "mirror", "fr", "<ambiguous_side>"),
    (EYE, "mirror", "es", "Un ojo derecho."),
    (EYE, "turn", "de", "<turned>"),
    (EYE, "move", "ru", "<moved>"),
    (EYE, "colour", "en", "Left eye."),
    (BAG, "mirror", "en", "A red handbag."),
    (BAG, "colour", "en", "<colour_named>"),
    (BAG, "colour", "de", "<colour_named>"),
    (BAG, "colour", "es", "<colour_named>"),
    (BAG, "grey", "fr", "<colour_named>"),
    (BAG, "grey", "ru", "<colour_named>"),
    (HAT, "colour", "en", "<colour_named>"),
    (HAT, "colour", "fr", "<colour_named>"),
    (HAT, "colour", "ru", "<colour_named>"),
    (HAT, "detail", "de", "Ein grüner Hut."),
    # What is black stays black in grey, and not under another hue.
    (RHINO, "grey", "en", "A male black rhino."),
    (RHINO, "grey", "fr", "Un rhinocéros noir."),
    (RHINO, "grey", "zh_CN", "一只雄性黑犀牛。"),
    (RHINO, "colour", "zh_TW", "<colour_named>"),
    (RHINO, "colour", "es", "<colour_named>"),
    (CAT, "grey", "de", "Eine schwarze Katze."),
    (CAT, "colour", "ru", "<colour_named>"),
    (CAT, "mirror", "zh_TW", "黑貓"),
    # A crop may leave one of two.
    (BOARS, "move", "en", "<moved>"),
    (BOARS, "move", "es", "<moved>"),
    (BOARS, "move", "fr", "<moved>"),
    (BOARS, "move", "ru", "<moved>"),
    (BOARS, "move", "zh_CN", "<moved>"),
    (BOARS, "move", "zh_TW", "<moved>"),
    (BOARS, "move", "de", "Wildschwein mit Frischling."),
    (FRIENDS, "hide", "de", "<may_be_hidden>"),
    (FRIENDS, "hide", "es", "Tux y la araña, grandes amigos."),
    (FRIENDS, "move", "zh_CN", "企鹅和蜘蛛"),
    (HERON, "colour", "fr", "<colour_named>"),
    (HERON, "colour", "es", "Una garza ceniza."),
    (HERON, "colour", "ru", "<colour_named>"),
    (KANGAROO, "colour", "zh_TW", "<colour_named>"),
    (KANGAROO, "colour", "zh_CN", "<colour_named>"),
    (KANGAROO, "colour", "ru", "<colour_named>"),
    # A top hat is no top; nobody guesses.
    (TOP, "upside_down", "en", "<ambiguous_height>"),
    (TOP, "upside_down", "de", "Ein Zylinderhut."),
    (TOP, "upside_down", "fr", "<ambiguous_height>"),
    (TOP, "mirror", "ru", "Цилиндр."),
]


def caption(stamps: Path, stem: str, lang: str) -> str:
    first, *others = (stamps / f"{stem}.txt").read_text(encoding="utf-8").splitlines()
    said = dict(match.groups() for line in others if (match := re.fullmatch(r"(\w+)\.utf8=(.*)", line)))
    return first if lang == "en" else said[lang]


@pytest.mark.slow  # fetches the stamps where nobody did
@pytest.mark.parametrize(("stem", "effect", "lang", "expected"), TABLE)
def test_a_stamp_s_caption(stamps_dir: Path, stem: str, effect: str, lang: str, expected: str) -> None:
    try:
        found = rewrite(caption(stamps_dir, stem, lang), lang, frozenset({effect}))
    except VetoError as veto:
        found = f"<{veto.reason}>"
    assert found == expected
