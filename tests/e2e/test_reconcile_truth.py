"""Texts with the errors of OCR and of speech recognition (nlpaug), reconciled: nearer to the truth after than before.

Each text's truth is known: captions of stamps, with the picture and with what another reader made of the same words;
transcripts of telephone prompts, with the speech.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import nlpaug.augmenter.char as chars
import nlpaug.augmenter.word as words
import numpy as np
import pytest

from mmdata.media.audio import measure_audio
from mmdata.sample import Member, Sample
from mmdata.steps.align.reconcile import Reconcile

SEED = 4
COUNT = 30

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def read_off(text: str) -> str:
    """As OCR errs: letters that look alike, in a third of the words."""
    (found,) = chars.OcrAug(aug_word_p=0.3, aug_char_p=0.3, min_char=1).augment(text)
    return found


def taken_down(text: str) -> str:
    """As a speech recogniser errs: a word left out here, one spelt as it sounds there, one split."""
    one = random.choice([words.SpellingAug(aug_p=0.2), words.SplitAug(aug_p=0.15), words.RandomWordAug("delete")])
    (found,) = one.augment(text)
    return found


def text_member(name: str, text: str) -> Member:
    return Member(name, "text", "text/plain", "txt", text.encode(), "en", {"text": text})


def seeded() -> None:
    random.seed(SEED)
    np.random.seed(SEED)


@pytest.fixture(scope="module")
def drawn(stamps_dir: Path) -> list[tuple[str, Member]]:
    """Captions of six words and more, and their pictures."""
    found = []
    for path in sorted(stamps_dir.rglob("*.png")):
        note = path.with_suffix(".txt")
        caption = note.read_text(encoding="utf-8").splitlines()[0].strip() if note.is_file() else ""
        if len(caption.split()) >= 6 and caption.isascii():
            found.append((caption, Member("image", "image", "image/png", "png", path.read_bytes())))
    return random.Random(SEED).sample(found, COUNT)


@pytest.fixture(scope="module")
def said(prompts_dir: Path) -> list[tuple[str, Member]]:
    """Prompts of six words and more, and their recordings."""
    rows = csv.DictReader((prompts_dir / "prompts.csv").read_text(encoding="utf-8").splitlines())
    # Of every second one: the weights were chosen on the others.
    whole = [row for row in list(rows)[1::2] if 6 <= len(row["text"].split()) <= 25 and "(" not in row["text"]]
    found = []
    for row in random.Random(SEED).sample(whole, COUNT):
        data = (prompts_dir / row["path"]).read_bytes()
        info = measure_audio(data, 60.0)
        measures = {"duration_s": info.duration_s}
        found.append((row["text"], Member("speech", "audio", info.mime, info.extension, data, "en", measures)))
    return found


def reconciled(step: Reconcile, samples: list[dict[str, Member]]) -> list[str]:
    scorer, edges = step.load("cpu"), step.edges()
    found = []
    for number, members in enumerate(samples):
        item: Any = step.prepare(scorer.recipe, Sample(str(number), "s", str(number), members), edges)
        (one,) = scorer.score([item])
        made = one.scores[0].new_text
        found.append(made.text if made else members[step.texts[0]].text)
    return found


def compare(
    step: Reconcile, truths: list[tuple[str, Member]], spoil: Callable[[str], str], other: Callable[[str], str] | None
) -> tuple[float, float]:
    """Character error rate of all texts together, before and after."""
    seeded()
    texts = [spoil(truth) for truth, _ in truths]
    samples = [
        {"text": text_member("text", text), medium.name: medium}
        | ({"other": text_member("other", other(truth))} if other else {})
        for text, (truth, medium) in zip(texts, truths, strict=True)
    ]
    truth = [text for text, _ in truths]
    before, after = jiwer.cer(truth, texts), jiwer.cer(truth, reconciled(step, samples))
    print(f"{spoil.__name__}: character error rate {before:.4f} -> {after:.4f}")  # noqa: T201
    return before, after


@pytest.fixture(scope="module")
def by_speech(whisper_tiny_dir: Path) -> Reconcile:
    return Reconcile(texts=["text"], into="best", speech="speech", whisper=str(whisper_tiny_dir))


@pytest.fixture(scope="module")
def by_sight(lite_dir: Path) -> Reconcile:
    return Reconcile(texts=["text", "other"], into="best", image="image", clip=str(lite_dir))


def test_captions_read_wrong_are_put_right_by_another_reading_and_the_picture(drawn, by_sight) -> None:
    before, after = compare(by_sight, drawn, read_off, read_off)
    assert before > 0.02
    assert after < 0.7 * before


# Words that were left out are seldom put back: the likelihood of a sentence does not fall by much.
@pytest.mark.parametrize(("spoil", "left"), [(taken_down, 0.85), (read_off, 0.6)])
def test_transcripts_are_put_right_by_the_speech(said, by_speech, spoil, left) -> None:
    before, after = compare(by_speech, said, spoil, None)
    assert before > 0.02
    assert after < left * before


def test_clean_texts_stay_as_they_are(drawn, said, by_sight, by_speech) -> None:
    seeded()
    samples = [
        {"text": text_member("text", truth), "other": text_member("other", read_off(truth)), "image": picture}
        for truth, picture in drawn
    ]
    assert sum(a == b for a, (b, _) in zip(reconciled(by_sight, samples), drawn, strict=True)) >= 0.96 * len(drawn)
    samples = [{"text": text_member("text", truth), "speech": speech} for truth, speech in said]
    changed = [(b, a) for a, (b, _) in zip(reconciled(by_speech, samples), said, strict=True) if a != b]
    print(f"clean transcripts that were changed: {changed}")  # noqa: T201
    # Some prompts do not say quite what their transcript does: "I am sorry, but that's not a valid extension."
    assert len(changed) <= 0.08 * len(said)
