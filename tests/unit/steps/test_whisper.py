from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from mmdata.sample import Member, Sample
from mmdata.steps.align.reconcile import Reconcile, _Recipe
from mmdata.steps.align.timing import Timing
from mmdata.steps.align.whisper import Whisper

SRT = "1\n00:00:00,500 --> 00:00:01,500\nOne\n"


def spoken(lang: str | None, text_lang: str | None = None) -> Sample:
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(16_000), 16_000, format="WAV")
    speech = Member("speech", "audio", "audio/wav", "wav", sound.getvalue(), lang, {"duration_s": 1.0})
    texts = [Member(name, "text", "text/plain", "txt", SRT.encode(), text_lang) for name in ("transcript", "subtitles")]
    return Sample("0" * 32, "s", "k", {m.name: m for m in (speech, *texts)})


@pytest.mark.parametrize(("lang", "text_lang"), [("en-US", None), (None, "EN"), ("en_GB", "fr"), ("en", None)])
def test_a_language_is_known_whatever_its_region(lang, text_lang):
    sample, languages = spoken(lang, text_lang), frozenset({"en"})
    whisper, timing = Whisper(model="tiny.en"), Timing(model="tiny.en")
    reconcile = Reconcile(texts=["transcript"], into="said", speech="speech", whisper="tiny.en")
    assert whisper.prepare(languages, sample, whisper.edges())["speech_transcript"].lang == "en"
    assert timing.prepare(languages, sample, timing.edges()).lang == "en"
    assert reconcile._spoken(_Recipe(languages, None), sample) == "en"


@pytest.mark.parametrize(
    ("guess", "known", "expected"),
    [("it", {"en"}, "en"), ("it", {"en", "it"}, "it"), ("war", {"en", "it"}, None), (None, {"en"}, None)],
)
def test_a_guessed_language_keeps_no_model_from_listening(guess, known, expected):
    sample = spoken(None, guess)
    for member in sample.members.values():
        if member.modality == "text":
            member.measures["lang_guessed"] = True
    step = Whisper(model="tiny", pairs={"speech": "transcript"})
    assert step.prepare(frozenset(known), sample, step.edges())["speech_transcript"].lang == expected


def test_a_language_that_the_model_does_not_know_is_said():
    whisper = Whisper(model="tiny.en")
    item = whisper.prepare(frozenset({"en"}), spoken("fr-CA"), whisper.edges())
    assert item["speech_transcript"].measures == {"skipped": "the model does not know the language 'fr'"}
